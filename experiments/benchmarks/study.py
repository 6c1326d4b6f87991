"""Experiments an hour: a study of many seeds beside Baal's loop, one seed after the other, on the same machine.

An experiment is an active-learning run on digits: network 64-256-256-10 with dropout .5, 20 rounds of 300 Adam steps of
32, 20 draws over the 1,437 images of the pool, 10 labels a round, and 20 draws over the 360 test images. Prints
experiments an hour on both sides, evaluation included, with and without the time to compile, the share of the
arithmetic limit, and checks that the learning curves agree. On an accelerator all seeds are one call. Needs what
baal_digits.py needs, except with `--theirs 0`.

    python experiments/benchmarks/study.py
    python experiments/benchmarks/study.py --seeds 1024 --theirs 0          # a GPU

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import baal_digits
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from baal_digits import BATCH, DRAWS, INITIAL, MULTIPLICATIONS, STEPS
from measuring import hand_over, in_process, matmul_rate, timed

import baal_jax as baal
from baal_jax import study


@dataclasses.dataclass(frozen=True)
class Config:
    """A study beside Baal.

    Attributes:
        seeds: runs of baal_jax, one call of study.run.
        rounds: of every run.
        theirs: runs of Baal with workers=0, from the first labels of as many of ours; 0 leaves Baal out.
        shipped: three rounds of Baal with workers=4, its default, as well.
        whole_batches: Baal reads its examples as baal_jax does: for equal curves, see baal_digits.py.
        shared_masks: one dropout mask a draw for all examples; Baal gives every example masks of its own.
        side: used by the script itself to give each side a process of its own.
    """

    seeds: int = 32
    rounds: int = 20
    theirs: int = 8
    shipped: bool = True
    whole_batches: bool = False
    shared_masks: bool = False
    side: Literal["both", "ours"] = "both"


def main(config: Config) -> None:
    """Both sides, each in its own process."""
    if config.side == "ours":
        hand_over(run_ours(config))
        return
    ours = in_process(__file__, dataclasses.replace(config, side="ours"))
    rate = 3600 * config.seeds / ours["seconds"]
    # Of a round: training, and full passes over the pool and the test images.
    operations = (6 * STEPS * BATCH + 2 * DRAWS * (1437 + 360)) * MULTIPLICATIONS
    limit = 3600 * ours["gemm"] / (config.rounds * operations)
    print(
        f"baal_jax on {ours['device']}: {config.seeds} experiments in {ours['seconds']:.1f} s, {rate:.0f} an hour "
        f"({3600 * config.seeds / (ours['seconds'] + ours['compile']):.0f} with {ours['compile']:.1f} s of compilation)"
    )
    print(
        f"matrix multiplication {ours['gemm'] / 1e9:.0f} GFLOP/s allows {limit:.0f} an hour: {rate / limit:.0%} of it"
    )
    if config.theirs:
        tuned = baal_digits.Config(
            rounds=config.rounds,
            seeds=config.theirs,
            whole_batches=config.whole_batches,
            first=json.dumps(ours["first"]),
            side="baal",
        )
        theirs = beside("workers=0", tuned, config, rate)
        baal_digits.compare(np.array(ours["accuracy"][: config.theirs]), np.array(theirs["accuracy"]))
        if config.shipped:
            shipped = dataclasses.replace(tuned, rounds=3, seeds=1, workers=(4,), whole_batches=False)
            beside("workers=4", shipped, config, rate)


def beside(title: str, theirs: baal_digits.Config, config: Config, rate: float) -> dict:
    """Runs Baal, and prints its experiments an hour beside ours."""
    measured = in_process(baal_digits.__file__, theirs)
    per_hour = 3600 / (measured["seconds_evaluated"] * config.rounds)
    print(
        f"Baal, {title}: {measured['seconds_evaluated']:.3f} s a round, {measured['seconds']:.3f} s of them without "
        f"evaluation, {per_hour:.1f} an hour: ratio {rate / per_hour:.1f}"
    )
    return measured


def run_ours(config: Config) -> dict:
    """One call of study.run, and what of its time was tracing and compiling."""
    study.use_all_cores()
    train, test = jax.tree.map(jnp.asarray, baal.data.digits())
    loops = {"bald": baal_digits.make_loop(config.shared_masks)[1]}
    size = {"num_seeds": config.seeds, "num_rounds": config.rounds, "num_initial": INITIAL}
    with tempfile.TemporaryDirectory() as folder:
        whole = lambda: study.run(folder, loops, train, test, key=jax.random.key(0), **size)  # noqa: E731
        (results, compiling), seconds = timed(lambda: compiler_seconds(whole))
    runs = results.runs["bald"]
    return {
        "device": f"{jax.devices()[0].device_kind} × {len(jax.devices())}",
        "seconds": seconds - compiling,
        "compile": compiling,
        "gemm": matmul_rate(),
        "accuracy": runs.metrics["accuracy"].astype(float).tolist(),
        "first": runs.initial.tolist(),
    }


def compiler_seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and for how long JAX traced, lowered and compiled in it."""
    spans = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            spans.append((time.perf_counter() - seconds, time.perf_counter()))

    jax.monitoring.register_event_duration_secs_listener(listen)
    outputs, total, end = call(), 0.0, 0.0
    for first, last in sorted(spans):  # traces lie in one another
        total += max(last - max(first, end), 0.0)
        end = max(end, last)
    return outputs, total


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
