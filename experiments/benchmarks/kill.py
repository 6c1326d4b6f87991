"""Kills short runs of the CIFAR-10 experiment at random moments, and compares what they end with.

A run is started, killed (SIGKILL) at a random moment, started again with the same command, and so on until it ends by
itself. A third of the moments are spread over the whole time of a run; the others lie within a round after a random
number of new ones, because most of a short run's time goes into its start. No checkpoint may be lost, and the rounds
and the checksum of the last state must be those of a run that was never killed.

    python experiments/benchmarks/kill.py --kills 25                                       # 8×8 digits
    python experiments/benchmarks/kill.py --kills 25 --dataset cifar10                     # a subset of CIFAR-10

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from baal_jax import checkpoint

EXPERIMENT = Path(__file__).parents[1] / "vgg_mcdropout_cifar10.py"


@dataclasses.dataclass(frozen=True)
class Config:
    """Kills at random moments."""

    kills: int = 25
    """How many."""

    dataset: Literal["digits", "cifar10"] = "digits"
    """What the short runs learn."""

    rounds: int = 4
    """Of each of the two strategies and seeds."""

    seed: int = 0
    """Of the moments."""


def main(config: Config) -> None:
    """One run in peace, then killed ones."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run(config, home, home / "warm-up", None)  # compiles into the cache
        begin = time.monotonic()
        run(config, home, home / "peace", None)
        length = time.monotonic() - begin
        expected = outcome(home / "peace")
        round_length = statistics.median(seconds_of_rounds(home / "peace"))
        chance, kills, runs, in_rounds = random.Random(config.seed), 0, 0, 0
        while kills < config.kills:
            out, before, newest, alive = home / f"killed-{runs}", 0, -1, True
            while alive:
                moment = None
                if kills < config.kills:
                    anywhere = chance.random() < 1 / 3
                    new = 0 if anywhere else chance.randint(1, 6)
                    moment = Moment(before + new, chance.uniform(0, length if anywhere else 2 * round_length))
                alive = not run(config, home, out, moment)
                kills += alive
                steps = [int(path.stem[5:]) for path in (out / "checkpoints").glob("step_*.npz")]
                assert max(steps, default=-1) >= newest, "a checkpoint is lost"
                in_rounds += alive and max(steps, default=-1) > newest
                newest, before = max(steps, default=-1), number_of_lines(out)
            assert outcome(out) == expected, f"{out} ended differently"
            runs += 1
        print(
            f"{config.dataset}: {kills} kills over {runs} runs of {length:.1f} s ({in_rounds} of them after "
            "new checkpoints): all ended with the same rounds and the same final states, bit for bit"
        )


class Moment(NamedTuple):
    """When to kill: so many seconds after the journal has so many lines."""

    lines: int
    seconds: float


def run(config: Config, home: Path, out: Path, moment: Moment | None) -> bool:
    """Starts or continues a run; False if it was killed."""
    small = ["--subset", "400", "--num-test", "200", "--num-initial", "50", "--query-size", "20", "--num-steps", "40"]
    command = [sys.executable, str(EXPERIMENT), "--model", "small", "--dataset", config.dataset, *small]
    command += ["--seeds", "2", "--rounds", str(config.rounds), "--num-samples", "5", "--out", str(out)]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while moment is not None and process.poll() is None and number_of_lines(out) < moment.lines:
        time.sleep(0.01)
    try:
        _, errors = process.communicate(timeout=None if moment is None else moment.seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors[-3000:]
    return True


def number_of_lines(out: Path) -> int:
    """Of the journal, the last of which may be in the middle of being written."""
    path = out / "rounds.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def seconds_of_rounds(out: Path) -> list[float]:
    """How long every round took."""
    return [line["seconds"] for line in checkpoint.read_lines(out / "rounds.jsonl") if line["kind"] == "round"]


def outcome(out: Path) -> tuple[list[dict], str]:
    """Rounds without their times, and the checksum of the last state."""
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in checkpoint.read_lines(out / "rounds.jsonl")]
    newest = max((out / "checkpoints").glob("step_*.npz"))
    return lines, hashlib.sha256(newest.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
