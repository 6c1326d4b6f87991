"""The Dockerfile without an engine: its structure and its locks."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {"experiments": ("experiments", "data", "plot")}
LOCKS["development"] = (*LOCKS["experiments"], "test", "docs")
of_both = pytest.mark.parametrize("target", ["base_baal", "prod_baal"])


def stages():
    """Name → (base, [(instruction, rest)])."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            found[name] = (base, steps := [])
        else:
            steps.append((instruction, " ".join(rest.split())))
    return found


def whole(target):
    """All instructions of a target, from its first base on."""
    base, steps = stages()[target]
    return (whole(base) if base in stages() else []) + steps


def locked(name):
    lines = re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([\w.+!-]+)", (ROOT / ".docker" / f"{name}.txt").read_text(), re.M)
    return {canonicalize_name(package): version for package, version in lines}


@of_both
def test_dependencies_are_installed_from_locks_before_any_source_is_copied(target):
    locks_installed, ignored = False, (ROOT / ".dockerignore").read_text().split()
    assert [rest for instruction, rest in whole(target) if instruction == "USER"] == ["1000"]  # not as root
    for instruction, rest in whole(target):
        words = rest.split()
        if instruction == "COPY":
            for source in [word for word in words if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch(source, pattern) or source.split("/")[0] == pattern for pattern in ignored)
            assert locks_installed or ".docker/" in rest
        if instruction == "RUN" and "pip install" in rest:
            from_lock = "-r .docker/" in rest
            wanted = {"--require-hashes"} if from_lock else {"--no-deps", "--no-build-isolation"}
            assert wanted | {"--no-cache-dir"} <= set(words)
            locks_installed |= from_lock


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_the_project_asks_for(name):
    extras = [line for extra in LOCKS[name] for line in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        version = locked(name)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version} is locked"


def test_locks_agree_and_name_no_index():
    first = locked("experiments")
    for name in ("development", "cuda"):
        versions = locked(name)
        assert {p: v for p, v in versions.items() if p in first} == {p: first[p] for p in versions if p in first}
    assert "jax-cuda13-plugin" in locked("cuda")
    for path in (ROOT / ".docker").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        requirements = re.findall(r"^[\w.-]+.*==.*$", text, re.MULTILINE)
        assert len(requirements) == len(re.findall(r"^[\w].*\\\n    --hash=sha256:", text, re.MULTILINE))
