"""Batch active learning on a redundant pool (RepeatedMNIST on digits), and what a large query size costs.

Every digit of scikit-learn's set is in the pool three times, each time with a little noise of its own. Ranking by BALD
labels the same image again and again; sets that are picked jointly do not. With `--query-sizes 5 40` the same
strategies label few or many examples at a time. Prints a table, and writes `curves.png` and `results.json`.

    python experiments/repeated_digits.py
    python experiments/repeated_digits.py --strategies badge batch_bald lcmd power_bald --query-sizes 5 40 \
        --num-samples 20 --num-labels 140

Labels to 90 % accuracy by the first command: random 103, BALD 107, BatchBALD 58, PowerBALD 66. Two cores of an AMD EPYC
with AVX-512, 1,450 s beside other work; the second command took 433 s (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import mlp_mcdropout_digits as digits
import numpy as np
import tyro
from tqdm import tqdm

import baal_jax as baal
from baal_jax.study import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training):
    """Selections on a redundant pool.

    Attributes:
        strategies: names as in mlp_mcdropout_digits.py.
        query_sizes: labels added each round; every strategy runs with each.
        copies: how often each image is in the pool.
        noise: standard deviation of the noise of each copy, in units of the pixels' standard deviation.
        num_initial: labels drawn at random before the first round.
        num_labels: labels of the last fit, at most.
        target: accuracy for the "labels to reach it" column.
    """

    strategies: tuple[str, ...] = ("random", "bald", "batch_bald", "power_bald")
    query_sizes: tuple[int, ...] = (10,)
    copies: int = 3
    noise: float = 0.1
    num_initial: int = 20
    num_labels: int = 160
    num_samples: int = 50
    target: float = 0.9
    out: Path = Path("results/repeated_digits")


def main(config: Config) -> dict[str, harness.Curves]:
    """Runs every strategy with every query size, then reports."""
    start = time.perf_counter()
    train, test = baal.data.digits()
    train = repeated(train, config.copies, config.noise, config.seed)
    train, test = jax.tree.map(jnp.asarray, (train, test))
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(harness.Training)}
    rounds = {size: (config.num_labels - config.num_initial) // size + 1 for size in config.query_sizes}
    curves = {}
    with tqdm(total=sum(rounds.values()) * len(config.strategies), unit="round") as progress:
        for size in config.query_sizes:
            sizes: dict[str, Any] = {"num_initial": config.num_initial, "query_size": size, "rounds": rounds[size]}
            settings = digits.Config(**shared, **sizes, strategies=config.strategies)
            ending = "" if len(config.query_sizes) == 1 else f", {size} at a time"
            loops = {f"{name}{ending}": loop for name, loop in digits.make_loops(settings).items()}
            curves |= harness.run_strategies(loops, settings, train, test, progress)
    print(table(curves, config.target))
    harness.report(config, start, curves, f"digits {config.copies} times, {config.seeds} seeds", target=config.target)
    return curves


def repeated(train: baal.Dataset, copies: int, noise: float, seed: int) -> baal.Dataset:
    """Every example several times, each copy with noise of its own."""
    rng = np.random.default_rng(seed)
    inputs = np.concatenate([np.asarray(train.inputs, np.float32)] * copies)
    inputs += noise * inputs.std() * rng.normal(size=inputs.shape).astype(np.float32)
    return baal.Dataset(inputs, np.concatenate([np.asarray(train.targets)] * copies))


def crossing(num_labelled: np.ndarray, values: np.ndarray, target: float) -> float:
    """Where a curve first reaches the target, between its points; inf if it never does."""
    reached = values >= target
    first = int(np.argmax(reached))
    both = slice(max(first - 1, 0), first + 1)
    return float(np.interp(target, values[both], num_labelled[both])) if reached.any() else np.inf


def table(curves: dict[str, harness.Curves], target: float) -> str:
    """Labels to the target: of the mean curve, interpolated, and of the seeds; and the mean accuracy on the way."""
    header = ("", f"labels to {target:.0%}: mean curve", "median of seeds", "mean accuracy of all rounds")
    rows = []
    for name, curve in curves.items():
        accuracy = np.asarray(curve.metrics["accuracy"])
        mean = crossing(curve.num_labelled, accuracy.mean(axis=0), target)
        median = np.median(statistics.labels_to_target(curve.num_labelled, accuracy, target))
        rows.append((name, f"{mean:.1f}", f"{median:.0f}", harness.mean_error(accuracy.mean(axis=1), ".4f")))
    return harness.table(header, rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
