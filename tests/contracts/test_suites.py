"""The suites can fail: every member with a fault is refused by the suite of its family."""

import os
import subprocess
import sys
from pathlib import Path

from tests.contracts import broken

ROOT = Path(__file__).parents[2]
FAMILIES = {"files", "heuristics", "metrics", "posteriors", "selections", "sources", "stopping"}


def test_every_suite_fails_for_every_faulty_member():
    faulty = broken.FAMILIES
    assert set(faulty) == FAMILIES == {path.stem.removeprefix("test_") for path in suites()}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += ["-p", "tests.contracts.plugin", "-k", "broken_", "--tb=no", "-rfE", *map(str, suites())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    unseen = [
        f"{family}: {name}"
        for family, names in faulty.items()
        for name in names
        if not any(
            f"test_{family}.py::{name.rpartition(', ')[2]}" in line and f"broken_{name}" in line for line in failed
        )
    ]
    assert not unseen, run.stdout[-3000:]


def suites():
    return [path for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
