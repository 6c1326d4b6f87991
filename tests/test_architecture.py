"""The plan of the house, derived from the files: imports point down, rooms keep their privates, names have docs."""

import ast
import functools
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import baal_jax

ROOT = Path(baal_jax.__file__).parent
HOME = ROOT.parent
FILES = sorted(ROOT.rglob("*.py"))
SIGNATURES = Path(__file__).parent / "golden" / "signatures.txt"
EDGE = ("study", "annotation", "_cli")  # a product of its own, which the library does not know
MODULES = {  # ``baal_jax/pool.py`` is ``baal_jax.pool``, and a folder is its ``__init__``
    ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES
}


@functools.cache
def _tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def _room(module):
    """The file or folder on the top shelf that a module belongs to."""
    return [*module.split("."), ""][1]


def _statements(path):
    """Import statements that reach into the project, those inside functions included."""
    for node in ast.walk(_tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports name the package, so that a reader can search for them"
            names = [node.module or ""]
        if any(name.split(".")[0] == "baal_jax" for name in names):
            yield node


def _imports(path):
    """``(module, name or None, name it has here)`` of all that is imported from the project."""
    for node in _statements(path):
        for alias in node.names:
            module, here = getattr(node, "module", alias.name), alias.asname or alias.name
            whole = f"{module}.{alias.name}"
            name = alias.name if isinstance(node, ast.ImportFrom) and whole not in MODULES else None
            yield whole if whole in MODULES else module, name, here


@functools.cache
def _graph():
    return {name: {module for module, *_ in _imports(path)} - {name} for name, path in MODULES.items()}


def test_there_is_no_circle():
    assert list(graphlib.TopologicalSorter(_graph()).static_order())  # or a CycleError, which names it


def test_the_library_does_not_know_the_edge():
    library = [name for name in MODULES if _room(name) not in ("", "__main__", *EDGE)]
    assert library
    assert not [(name, other) for name in library for other in _graph()[name] if _room(other) in ("", *EDGE)]


def test_a_room_takes_no_privates_of_another():
    is_private = lambda name: name.startswith("_") and not name.startswith("__")  # noqa: E731
    taken = []
    for module, path in MODULES.items():
        modules = {}
        for other, name, here in _imports(path) if _room(module) else ():
            if _room(other) != _room(module):
                inner = other.removeprefix("baal_jax").removeprefix("._util").split(".")
                taken += [f"{module}: {other}.{part}" for part in [*inner, name or ""] if is_private(part)]
                modules |= {} if name else {here: other}
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                taken += [f"{module}: {node.value.id}.{node.attr}"] if is_private(node.attr) else []
    assert not taken


def test_the_house_is_small():
    paths = [path for folder in ("baal_jax", "experiments", "tests") for path in (HOME / folder).rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {path.name: count for path, count in lines.items() if count > 500}
    assert len(FILES) <= 125
    assert sum(lines[path] for path in FILES) <= 23_284
    assert len({_room(name) for name in MODULES if not _room(name).startswith("_")} - {""}) <= 19
    assert sum(len(list(_statements(path))) for path in FILES) / len(FILES) <= 3.16


def test_importing_the_package_loads_jax_and_numpy_alone():
    heavy = ["flax", "optax", "orbax", "tensorflow_datasets", "matplotlib", "sklearn", "tyro", "scipy.stats"]
    code = f"import sys, baal_jax; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def _public():
    """``(module, name) → value`` of what users may import: what public modules list, or else define."""
    names = {}
    for module in MODULES:
        if any(part.startswith("_") for part in module.split(".")[1:]):
            continue
        here = importlib.import_module(module)
        own = [name for name, value in vars(here).items() if getattr(value, "__module__", None) == module]
        for name in getattr(here, "__all__", [name for name in own if not name.startswith("_")]):
            if not inspect.ismodule(getattr(here, name)):
                names[module, name] = getattr(here, name)
    return names


def test_every_public_name_is_documented():
    """Constants such as registries are documented where they stand; one-line accessors say it all."""
    offenders = {}
    for name, value in _public().items():
        if inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)):
            doc = inspect.getdoc(value) or ""
            is_short = inspect.isclass(value) or len(doc.splitlines()) == 1
            missing = [p for p in inspect.signature(value).parameters if not re.search(rf"\n    {p}:", doc)]
            offenders |= {name: missing} if not doc or (missing and not is_short) else {}
    assert len(_public()) > 200
    assert not offenders


def _signatures():
    """A line for every parameter of what is public, its default as it is written: what a user gets who says nothing."""
    lines = []
    for (module, name), value in sorted(_public().items()):
        value = inspect.unwrap(value)
        if inspect.isfunction(value) or (inspect.isclass(value) and hasattr(value, "_fields")):
            for parameter in inspect.signature(value).parameters.values():
                default = getattr(parameter.default, "__qualname__", repr(parameter.default))
                shown = "" if parameter.default is parameter.empty else f" = {default}"
                star = "*" if parameter.kind is parameter.KEYWORD_ONLY else ""
                lines.append(f"{module}.{name}({star}{parameter.name}{shown})")
        elif isinstance(value, bool | int | float | str | tuple):
            lines.append(f"{module}.{name} = {value!r}")
    return lines


def test_names_and_defaults_are_those_that_were_agreed_on():
    """After a change on purpose: ``python -m tests.test_architecture`` writes them anew, and the difference is read."""
    assert _signatures() == SIGNATURES.read_text(encoding="utf-8").splitlines()


def test_registries_hold_public_names():
    for module in (baal_jax.heuristics, baal_jax.selection, baal_jax.posteriors, baal_jax.calibration):
        assert set(module.REGISTRY) <= set(module.__all__)
        assert all(getattr(module, name) is value for name, value in module.REGISTRY.items())


def test_no_pickle_and_no_global_numpy_random_state():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "np.random.seed" not in text
        assert path.name == "_archive.py" or not re.search(r"^\s*(import|from) pickle", text, re.M), path


if __name__ == "__main__":
    SIGNATURES.write_text("\n".join(_signatures()) + "\n", encoding="utf-8")
