"""Kills a study at random moments, and compares its table with that of one that was never killed.

Three strategies, six seeds, on digits. A study is started, killed (SIGKILL) at a random moment, started again by the
same command, and so on until it ends by itself; then the next one begins. A third of the moments are spread over the time
of a whole study, the others lie around the writing of a cell. The tables must be equal, byte for byte.

    python experiments/benchmarks/study_kills.py --kills 30

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Kills at random moments."""

    kills: int = 30
    """How many."""

    seed: int = 0
    """Of the moments."""


def main(config: Config) -> None:
    """One study in peace, then killed ones."""
    chance = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run(home / "warm-up", home, None)  # fills the compilation cache
        begin = time.monotonic()
        run(home / "peace", home, None)
        length = time.monotonic() - begin
        expected = (home / "peace" / "results.csv").read_bytes()
        kills = studies = with_cells = 0
        while kills < config.kills:
            out = home / f"killed-{studies}"
            killed = True
            while killed:
                moment = None
                if kills < config.kills:
                    anywhere = chance.random() < 1 / 3
                    moment = (
                        (0, chance.uniform(0, length)) if anywhere else (chance.randint(1, 3), chance.uniform(0, 0.1))
                    )
                killed = run(out, home, moment)
                kills += killed
                with_cells += killed and 0 < number_of_cells(out) < 9
            assert (out / "results.csv").read_bytes() == expected, f"{out} ended differently"
            assert not [path for path in out.rglob(".*") if path.is_file()], "a temporary file is left"
            studies += 1
        print(
            f"{kills} kills in {studies} studies, {with_cells} of them with some cells done: every table equals that of "
            f"the study that was never killed ({len(expected)} bytes; {length:.0f} s in peace)"
        )


def run(out: Path, home: Path, moment: tuple[int, float] | None) -> bool:
    """Starts a study; kills it some seconds after it has written some more cells. True if it was killed."""
    command = [sys.executable, "-m", "baal_jax", "study", str(out), "--strategies", "random", "bald", "margin"]
    command += ["--seeds", "6", "--rounds", "4", "--num-steps", "50"]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    before = number_of_cells(out)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if moment is not None:
        cells, seconds = moment
        while process.poll() is None and number_of_cells(out) < before + cells:
            time.sleep(0.001)
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(errors)
    return process.returncode != 0


def number_of_cells(out: Path) -> int:
    """Cells that are there."""
    return len(list((out / "cells").glob("[!.]*.npz")))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
