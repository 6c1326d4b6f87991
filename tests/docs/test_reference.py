"""The reference without Sphinx: every public name has one entry, and what an entry must say."""

import importlib
import inspect
import re
import sys
from pathlib import Path

from baal_jax import calibration, heuristics, posteriors, selection
from tests.test_architecture import SIGNATURES

DOCS = Path(__file__).parents[2] / "docs"
REGISTRIES = {"calibration": calibration, "heuristics": heuristics, "posteriors": posteriors, "selection": selection}
NOBODYS = {"selection.random", "selection.top_k"}  # a draw and a sort
PAPER = re.compile(r"https?://|arXiv|\bdoi\b|[A-Z][\w’'-]+(?: et al\.| and [A-Z]\w+)?,? \(?(?:19|20)\d\d")


def _reference():
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("_reference")
    finally:
        sys.path.remove(str(DOCS))


REFERENCE = _reference()
ENTRIES = REFERENCE.entries()


def value_of(name):
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


FUNCTIONS = {entry.name: value_of(entry.name) for entry in ENTRIES if entry.directive == "function"}


def test_every_public_name_has_one_entry():
    pages = REFERENCE.pages()
    documented = re.findall(r"^\.\. auto(?:class|function|data):: (\S+)$", "\n".join(pages.values()), re.MULTILINE)
    assert len(set(documented)) == len(documented)
    assert set(documented) == {entry.name for entry in ENTRIES}
    known = {name for entry in ENTRIES for name in (entry.name, *entry.others)}
    lines = SIGNATURES.read_text(encoding="utf-8").splitlines()
    agreed = {re.match(r"[\w.]+", line)[0] for line in lines}
    assert len(agreed) > 200
    assert not agreed - known
    assert {f"{module}.rst" for module in REFERENCE.modules()} <= set(pages)


def test_every_module_says_what_it_is_for_in_a_sentence():
    table = REFERENCE.pages()["modules.inc"]
    for module in REFERENCE.modules():
        assert re.search(rf":mod:`{re.escape(module)}`\n     - \S.*[.?]$", table, re.MULTILINE), module


def test_every_function_says_what_goes_in_and_shows_it():
    """Accessors of one line say it all."""
    missing = {"a line for each argument": [], "an example": []}
    for name, value in FUNCTIONS.items():
        doc = inspect.getdoc(value) or ""
        if len(doc.splitlines()) == 1 and ">>>" not in doc:
            continue
        for parameter in inspect.signature(value).parameters:
            if not re.search(rf"^    {parameter}:", doc, re.MULTILINE):
                missing["a line for each argument"].append(f"{name}: {parameter}")
        if ">>>" not in doc:
            missing["an example"].append(name)
    assert missing == {kind: [] for kind in missing}


def cites(value):
    """A paper, or an entry whose paper it shares."""
    doc = inspect.getdoc(value) or ""
    links = re.findall(r":func:`~?(?:\w+\.)*(\w+)`", doc) if re.search(r"\b[Pp]apers?\b", doc) else ()
    shared = [other for name, other in FUNCTIONS.items() if name.rpartition(".")[2] in links]
    return any(PAPER.search(text) for text in (doc, *(inspect.getdoc(other) or "" for other in shared)))


def test_every_algorithm_cites_its_paper():
    missing = {
        f"{room}.{name}"
        for room, module in REGISTRIES.items()
        for name, value in module.REGISTRY.items()
        if not cites(value)
    }
    assert missing - NOBODYS == set()


def test_the_examples_may_use_what_the_index_says():
    text = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    line = re.search(r"```python\n(import .*)\n```", text)[1]
    assert "baal_jax as baal" in line
    conftest = (DOCS.parent / "conftest.py").read_text(encoding="utf-8")
    for name in re.findall(r"(?:as )?(\w+)(?:,|$)", line.removeprefix("import ")):
        assert f"{name}={name}" in conftest, name
