"""Crash safety: kill a run (SIGKILL) at random moments, restart it, and compare with a run that was never killed.

The run is a short CIFAR-10 experiment, or a study of three strategies and six seeds by the command line. It is killed
at a random moment, started again by the same command, and so on until it ends by itself; then the next one begins. A
third of the moments are spread over the whole time of a run; the others lie shortly after a random number of new
checkpoints (or cells of the study), because most of a short run's time goes into its start. Nothing that was saved may
be lost, and the outcome must be the same: rounds and checksums of the last state, or the study's table byte for byte.

    python experiments/benchmarks/kill.py --kills 30                                       # 8×8 digits
    python experiments/benchmarks/kill.py --kills 30 --dataset cifar10                     # a subset of CIFAR-10
    python experiments/benchmarks/kill.py --kills 30 --program study

30 kills each: none ended differently. Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md).
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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from baal_jax import checkpoint


@dataclasses.dataclass(frozen=True)
class Config:
    """Kills at random moments.

    Attributes:
        kills: how many.
        program: what is killed.
        dataset: what the short runs of the experiment learn.
        rounds: fits of a run.
        seed: of the moments.
    """

    kills: int = 25
    program: Literal["experiment", "study"] = "experiment"
    dataset: Literal["digits", "cifar10"] = "digits"
    rounds: int = 4
    seed: int = 0


class Program(NamedTuple):
    """What is killed: its command, how much of its folder is saved for good, and all that must not depend on kills."""

    command: Callable[[Path], list[str]]
    saved: Callable[[Path], int]
    outcome: Callable[[Path], Any]


def study(config: Config) -> Program:
    """Three strategies and six seeds by the command line: its cells, its table and the temporary files left."""
    size = ["--strategies", "random", "bald", "margin", "--seeds", "6", "--rounds", str(config.rounds)]
    return Program(
        lambda out: ["-m", "baal_jax", "study", str(out), *size, "--num-steps", "50"],
        lambda out: len(list((out / "cells").glob("[!.]*.npz"))),
        lambda out: ((out / "results.csv").read_bytes(), [path for path in out.rglob(".*") if path.is_file()]),
    )


def experiment(config: Config) -> Program:
    """Two strategies and two seeds: its checkpoints, its rounds without times and its last state."""
    size = ["--subset", "400", "--num-test", "200", "--num-initial", "50", "--query-size", "20", "--num-steps", "40"]
    size += ["--seeds", "2", "--num-samples", "5", "--rounds", str(config.rounds), "--dataset", config.dataset]
    script = str(Path(__file__).parents[1] / "vgg_mcdropout_cifar10.py")

    def outcome(out: Path) -> tuple[list[dict], bytes]:
        lines = [line | {"seconds": None} for line in checkpoint.read_lines(out / "rounds.jsonl")]
        return lines, max((out / "checkpoints").glob("step_*.npz")).read_bytes()

    return Program(
        lambda out: [script, "--model", "small", *size, "--out", str(out)],
        lambda out: max((int(path.stem[5:]) for path in (out / "checkpoints").glob("step_*.npz")), default=0),
        outcome,
    )


def main(config: Config) -> None:
    """One run in peace, then killed ones."""
    what = study(config) if config.program == "study" else experiment(config)
    chance, kills, runs, after_new = random.Random(config.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run(what, home / "warm-up")  # fills the compilation cache
        begin = time.monotonic()
        run(what, home / "peace")
        length = time.monotonic() - begin
        while kills < config.kills:
            out, killed, before = home / f"killed-{runs}", True, 0
            while killed:
                moment = None
                if kills < config.kills:
                    anywhere = chance.random() < 1 / 3
                    new = 0 if anywhere else chance.randint(1, 3)
                    moment = before + new, chance.uniform(0, length if anywhere else 0.2)
                killed = run(what, out, moment)
                kills += killed
                assert what.saved(out) >= before, "what was saved is lost"
                after_new += killed and what.saved(out) > before
                before = what.saved(out)
            assert what.outcome(out) == what.outcome(home / "peace"), f"{out} ended differently"
            runs += 1
    print(
        f"{config.program}: {kills} kills over {runs} runs of {length:.1f} s, {after_new} of them after something new "
        "was saved: all ended as the run that was never killed, bit for bit"
    )


def run(what: Program, out: Path, moment: tuple[int, float] | None = None) -> bool:
    """Starts or continues a run; kills it so many seconds after so much is saved. True if it was killed."""
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{out.parent}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command, pipe = [sys.executable, *what.command(out)], subprocess.PIPE
    process = subprocess.Popen(command, env=os.environ | cache, stdout=subprocess.DEVNULL, stderr=pipe, text=True)
    if moment is not None:
        while process.poll() is None and what.saved(out) < moment[0]:
            time.sleep(0.001)
        deadline = time.monotonic() + moment[1]
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
    errors = process.communicate()[1]
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(errors[-3000:])
    return process.returncode != 0


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
