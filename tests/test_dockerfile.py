"""The Dockerfile without an engine: its structure, its locks, and (on request) its install and run steps for real."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {
    "experiments": ("experiments", "data", "plot"),
    "development": ("experiments", "data", "plot", "test", "docs"),
}


TARGETS = ("base_baal", "prod_baal")
of_both = pytest.mark.parametrize("target", TARGETS)


def parse():
    """Stages: name → (base, [(instruction, rest)])."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    stages = {}
    for line in filter(str.strip, "\n".join(lines).replace("\\\n", " ").splitlines()):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            stages[name] = (base, [])
        else:
            stages[name][1].append((instruction, " ".join(rest.split())))
    return stages


def whole(target):
    """All instructions of a target, from its first base on."""
    stages = parse()
    base, steps = stages[target]
    return (whole(base) if base in stages else []) + steps


def locked(name):
    found = {}
    for line in (ROOT / ".docker" / f"{name}.txt").read_text().splitlines():
        if match := re.match(r"([\w.-]+)(?:\[[^]]*\])?==([\w.+!-]+)", line):
            found[canonicalize_name(match[1])] = match[2]
    return found


def ignored(path):
    patterns = (ROOT / ".dockerignore").read_text().split()
    return any(fnmatch(path, pattern) or path.split("/")[0] == pattern for pattern in patterns)


@of_both
def test_a_target_does_not_run_as_root_and_names_what_exists(target):
    for base, _ in parse().values():
        assert base in parse() or re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base)
    instructions = [instruction for instruction, _ in whole(target)]
    assert [rest for instruction, rest in whole(target) if instruction == "USER"] == ["1000"]  # the one made first
    assert "RUN" not in instructions[instructions.index("USER") :]
    steps = dict(parse()[target][1])
    if target == "base_baal":
        assert json.loads(steps["CMD"])[:3] == ["python", "-m", "pytest"]
    else:
        assert json.loads(steps["ENTRYPOINT"]) == ["python"]
        assert (ROOT / json.loads(steps["CMD"])[0]).is_file()


@of_both
def test_dependencies_are_installed_from_locks_before_any_source_is_copied(target):
    locks_installed, source_copied = False, False
    for instruction, rest in whole(target):
        if instruction == "COPY":
            for source in [word for word in rest.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert not ignored(source), source
            if ".docker/" not in rest:
                assert locks_installed
                source_copied = True
        if instruction == "RUN" and "pip install" in rest:
            assert "--no-cache-dir" in rest
            if "-r .docker/" in rest:
                assert "--require-hashes" in rest
                assert not source_copied
                locks_installed = True
            else:
                assert "--no-deps" in rest
                assert "--no-build-isolation" in rest


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_the_project_asks_for(name):
    versions = locked(name)
    extras = [line for extra in LOCKS[name] for line in PROJECT["optional-dependencies"][extra]]
    for line in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(line)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{line}: {version} is locked"


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


@of_both
def test_install_and_run_steps_in_a_clean_environment(target, tmp_path):
    """All `pip install` lines but the CUDA layer, then the command (of base_baal: one test file)."""
    if not os.environ.get("BAAL_JAX_TEST_DOCKER") or sys.version_info[:2] != (3, 12):
        pytest.skip("needs Python 3.12, PyPI and minutes: set BAAL_JAX_TEST_DOCKER=1")
    home, place = tmp_path / "baal_jax", tmp_path / "venv"
    venv.create(place, with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    environment |= {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(place), "MPLBACKEND": "agg"}
    shutil.copytree(ROOT, home, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    for instruction, rest in whole(target):
        if instruction == "RUN" and "pip install" in rest and "ACCELERATOR" not in rest:
            subprocess.run(["bash", "-c", rest], cwd=home, env=environment, check=True)
    steps = dict(parse()[target][1])
    command = [*json.loads(steps.get("ENTRYPOINT", "[]")), *json.loads(steps["CMD"])]
    short = ["tests/test_pool.py"] if target == "base_baal" else ["--seeds", "1", "--rounds", "2", "--num-steps", "5"]
    subprocess.run([*command, *short], cwd=home, env=environment, check=True)
