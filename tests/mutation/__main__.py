"""Which careless changes do the tests see?  ``python -m tests.mutation --count 120``, by hand.

Each change is made in a copy of the project, and the tests of its own room run until one fails; what they let pass
is printed at the end. ``--whole`` gives these a run of the whole suite.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation import changes

HOME = changes.HOME
CONTRACTS = {
    "selection": "selections",
    "training": "doors",
    "data": "sources doors",
    "checkpoint": "files",
    "prediction": "sources",
}
CONTRACTS |= {"_util": "files sources heuristics selections"}


def rooms_tests(path: str) -> list[str]:
    """The tests of a module, nearest first: its own file, its family's contract, its room, and those of the loop."""
    parts = Path(path).with_suffix("").parts[1:]
    room, name = parts[0].removeprefix("_"), parts[-1].removeprefix("_")
    tests = HOME / "tests"
    folder = tests.joinpath(*(part.removeprefix("_") for part in parts[:-1]))
    contracts = [tests / "contracts" / f"test_{family}.py" for family in CONTRACTS.get(parts[0], parts[0]).split()]
    near = [folder / f"test_{name}.py", *contracts, tests / f"test_{room}.py"]
    near += [*(sorted(folder.glob("test_*.py")) if len(parts) > 1 else []), *sorted((tests / room).rglob("test_*.py"))]
    near += [tests / "test_architecture.py"]
    if room not in ("annotation", "cli", "study", "data"):
        near += [tests / f"test_{name}.py" for name in ("loop", "rounds", "prediction", "checkpoint")]
    return list(dict.fromkeys(str(path.relative_to(HOME)) for path in near if path.exists()))


def is_seen(change: changes.Change, copy: Path, tests: list[str], timeout: float, workers: int = 0) -> str | None:
    """What saw it: the first test that failed, or none."""
    path = copy / change.path
    original = path.read_text(encoding="utf-8")
    path.write_text(change.apply(original), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    command += ["--tb=no", "-n", str(workers), *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "time"
    finally:
        path.write_text(original, encoding="utf-8")
    if run.returncode == 0:
        return None
    named = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return named[0].split(" - ")[0] if named else f"exit status {run.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=120, help="how many drawn changes")
    parser.add_argument("--only", default="", help="changes of files whose path holds this text")
    parser.add_argument("--written", action="store_true", help="the list in careless.toml instead of drawn ones")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on what a room's tests let pass")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a change counts as seen")
    options = parser.parse_args()
    everything = changes.written() if options.written else changes.drawn(options.seed, options.count)
    chosen = [change for change in everything if options.only in change.path]

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as threads:
        free: queue.SimpleQueue = queue.SimpleQueue()
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "_build")
        for job in range(options.jobs):
            free.put(shutil.copytree(HOME, Path(folder) / str(job) / "project", ignore=ignored))

        def try_out(change: changes.Change) -> bool:
            start, copy = time.monotonic(), free.get()
            saw = is_seen(change, copy, rooms_tests(change.path), options.timeout)
            if saw is None and options.whole:
                saw = is_seen(change, copy, ["tests"], 10 * options.timeout)
            free.put(copy)
            mark = "seen  " if saw else "PASSED"
            print(f"{mark} {time.monotonic() - start:4.0f} s  {change.describe()}  [{saw}]", flush=True)
            return saw is not None

        seen = list(threads.map(try_out, chosen))
    print(f"\n{sum(seen)} of {len(seen)} seen: {sum(seen) / max(len(seen), 1):.3f}")
    for change, was_seen in zip(chosen, seen, strict=True):
        if not was_seen:
            print(f"  {change.describe()}")


if __name__ == "__main__":
    main()
