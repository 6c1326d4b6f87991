"""Several processes on one folder of a study: what a cell costs, what sharing loses, and what survives SIGKILL.

(overhead) Cells of a study whose program takes no time: claimed, written durably, given back, and read at the end.
(sharing) Four processes on one folder beside one, programs read from a warm compilation cache: every process starts
Python, traces and loads for itself, which is most of what is lost, so the study must be long enough to matter.
(kills) Four processes on one folder; one of them is killed at a random moment and started again, and so on. At the end
table, pictures and report must be those of one process, byte for byte, and no temporary file and no claim may be left.

    python experiments/benchmarks/study_folder.py --what overhead sharing kills

Two cores of an AMD EPYC: docs/benchmarks.md.
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
from typing import Literal

import numpy as np
import tyro

import baal_jax as baal
from baal_jax.study import _folder, results


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        what: see above.
        cells: of the study whose cells take no time.
        processes: on one folder.
        seeds: of the studies that are shared, four strategies each.
        kills: how many.
        seed: of the moments.
    """

    what: tuple[Literal["overhead", "sharing", "kills"], ...] = ("overhead", "sharing", "kills")
    cells: int = 200
    processes: int = 4
    seeds: int = 40
    kills: int = 40
    seed: int = 0


def main(config: Config) -> None:
    """Each in a folder of its own."""
    for what in config.what:
        with tempfile.TemporaryDirectory() as folder:
            globals()[what](config, Path(folder))


def overhead(config: Config, home: Path) -> None:
    """Seconds a cell, of the folder alone, with the arrays of a study of 15 rounds with diagnostics."""
    rng = np.random.default_rng(0)
    rounds, bins = (1, 15), {"reliability": (15,), "entropy": (20,), "per_class": (10,)}
    metrics = {name: rng.random(rounds, np.float32) for name in ("accuracy", "nll", "brier", "ece")}
    metrics |= {name: rng.random((*rounds, *shape), np.float32) for name, shape in bins.items()}
    numbers = np.ones(rounds, np.int32)
    picks, scores = np.ones((*rounds, 10), np.int32), rng.random((*rounds, 10), np.float32)
    told = metrics, numbers > 1, numbers
    infos = baal.typing.StepInfo(numbers, numbers, picks, scores, numbers, scores[..., 0], numbers, *told)
    asked = {"strategies": ["random"], "baseline": None, "seeds": [*range(config.cells)], "num_rounds": 15, "chunk": 1}
    place = _folder.Folder(home, asked)
    place.begin({"random": "none"})
    begun = time.perf_counter()
    for strategy, seeds in results.missing(home, results.cells_of(["random"], config.cells, 1)):
        cell = results.path_of(home, strategy, seeds)
        if not cell.exists() and _folder.take(home / "claims" / cell.stem):
            made = _folder.cell(np.asarray(seeds), np.ones((1, 20), np.int32), infos, np.ones(10, np.int32), "none")
            place.add(strategy, made)
            _folder.give_back(home / "claims" / cell.stem)
    written = time.perf_counter()
    place.finish(None, None)
    read = time.perf_counter()
    each = [1e3 * seconds / config.cells for seconds in (written - begun, read - written)]
    begun = time.perf_counter()
    for i in range(config.cells):  # what no way of writing a file durably can do without
        with (home / f"{i}").open("wb") as file:
            file.write(cell.read_bytes())
            os.fsync(file.fileno())
    probe = 1e3 * (time.perf_counter() - begun) / config.cells
    print(
        f"{config.cells} cells, each: {each[0]:.2f} ms to claim, write and give back, {each[1]:.2f} ms to read at the "
        f"end into the table; to write as many bytes with one fsync, and nothing else, {probe:.2f} ms"
    )


def command(out: Path, seeds: int, steps: int) -> list[str]:
    """Four strategies by the command line."""
    size = ["--strategies", "random", "bald", "margin", "entropy", "--seeds", str(seeds), "--num-steps", str(steps)]
    return [sys.executable, "-m", "baal_jax", "study", str(out), *size]


def started(out: Path, seeds: int, steps: int) -> subprocess.Popen:
    """A process with the compilation cache of all of them."""
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{out.parent}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(out, seeds, steps), env=os.environ | cache, **quiet)


def ended(processes: list[subprocess.Popen]) -> None:
    """Waits for them; an error of any ends all of this."""
    for process in processes:
        errors = process.communicate()[1]
        if process.returncode:
            raise SystemExit(errors[-3000:])


def outcome(out: Path) -> dict[str, bytes]:
    """Every file but the claims, of which none is left."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def sharing(config: Config, home: Path) -> None:
    """Seconds of one process, and of several, in turn."""
    ended([started(home / "warm-up", 2, 300)])
    seconds = {1: [], config.processes: []}
    for repeat in range(2):
        for count, measured in seconds.items():
            begun = time.perf_counter()
            ended([started(home / f"{count}-{repeat}", config.seeds, 300) for _ in range(count)])
            measured.append(time.perf_counter() - begun)
        assert outcome(home / f"1-{repeat}") == outcome(home / f"{config.processes}-{repeat}")
    one, several = map(min, seconds.values())
    lost = several / one - 1
    print(f"one process {one:.1f} s, {config.processes} processes {several:.1f} s: {lost:+.1%}, and the same bytes")


def kills(config: Config, home: Path) -> None:
    """One of several is killed, and started again, until so many were."""
    begun = time.perf_counter()
    ended([started(home / "peace", 8, 50)])
    length, chance, killed, studies = time.perf_counter() - begun, random.Random(config.seed), 0, 0
    while killed < config.kills:
        out = home / f"killed-{studies}"
        processes = [started(out, 8, 50) for _ in range(config.processes)]
        while killed < config.kills and any(process.poll() is None for process in processes):
            time.sleep(chance.uniform(0, length / 2))
            victim = chance.choice(processes)
            if victim.poll() is None:
                victim.send_signal(signal.SIGKILL)
                victim.communicate()
                processes[processes.index(victim)] = started(out, 8, 50)
                killed += 1
        ended(processes)
        assert outcome(out) == outcome(home / "peace"), f"{out} ended differently"
        studies += 1
    print(f"{killed} kills in {studies} studies of {config.processes} processes: table, pictures and report as of one")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
