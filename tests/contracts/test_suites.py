"""The suites can fail: every member with a fault is refused by the suite of its family."""

import os
import subprocess
import sys
from pathlib import Path

from tests.contracts import broken

HERE = Path(__file__)


def test_every_suite_fails_for_every_faulty_member():
    suites = [path for path in sorted(HERE.parent.glob("test_*.py")) if path != HERE]
    assert {path.stem.removeprefix("test_") for path in suites} == broken.FAMILIES.keys() | {
        "doors",
        "flags",
        "gradients",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += ["-p", "tests.contracts.plugin", "-k", "broken_", "--tb=no", "-rfE", *map(str, suites)]
    root = HERE.parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    for family, members in broken.FAMILIES.items():
        for name in members:
            where = f"test_{family}.py::{name.rpartition(', ')[2]}"
            assert any(where in line and f"broken_{name}" in line for line in failed), (
                family,
                name,
                run.stdout[-3000:],
            )
