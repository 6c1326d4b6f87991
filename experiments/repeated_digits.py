"""Does a selection see that the pool repeats itself, and does a large batch cost labels?

Every digit of scikit-learn's set is in the pool three times, each time with a little noise of its own: the construction
of RepeatedMNIST. Ranking by BALD labels the same image again and again; sets that are picked jointly do not. With
`--query-sizes 5 40` the same strategies label few or many examples at a time.

    python experiments/repeated_digits.py
    python experiments/repeated_digits.py --strategies badge power_bald --query-sizes 5 40

Prints a table, and writes `curves.png` and `results.json`. Result, hardware and command: see docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import mlp_mcdropout_digits as digits
import numpy as np
import tyro
from tqdm import tqdm

import baal_jax as baal
from baal_jax import study
from baal_jax.study import plots, statistics

matplotlib.use("agg")


@dataclasses.dataclass(frozen=True)
class Config:
    """Selections on a redundant pool."""

    strategies: tuple[str, ...] = ("random", "bald", "batch_bald", "power_bald")
    """Names as in mlp_mcdropout_digits.py."""

    query_sizes: tuple[int, ...] = (10,)
    """Labels added each round; every strategy runs with each."""

    copies: int = 3
    """How often each image is in the pool."""

    noise: float = 0.1
    """Standard deviation of the noise of each copy, in units of the pixels' standard deviation."""

    seeds: int = 20
    """Independent runs of every strategy; runs with the same number share their first labels."""

    num_initial: int = 20
    """Labels drawn at random before the first round."""

    num_labels: int = 160
    """Labels of the last fit, at most."""

    num_samples: int = 50
    """Monte-Carlo dropout draws."""

    num_steps: int = 300
    """Adam steps of every fit."""

    target: float = 0.9
    """Accuracy for the "labels to reach it" lines."""

    seed: int = 0
    """Of everything."""

    out: Path = Path("results/repeated_digits")
    """Folder for curves.png and results.json."""


def main(config: Config) -> dict[str, plots.Curves]:
    """Runs every strategy with every query size, then reports."""
    start = time.perf_counter()
    train, test = baal.data.digits()
    train = repeated(train, config.copies, config.noise, config.seed)
    train, test = jax.tree.map(jnp.asarray, (train, test))
    runs = [(size, name) for size in config.query_sizes for name in config.strategies]
    rounds = {size: (config.num_labels - config.num_initial) // size + 1 for size in config.query_sizes}
    curves = {}
    with tqdm(total=sum(rounds[size] for size, _ in runs), unit="round") as progress:
        for size, name in runs:
            settings = digits.Config(
                seeds=config.seeds,
                num_initial=config.num_initial,
                query_size=size,
                rounds=rounds[size],
                num_samples=config.num_samples,
                num_steps=config.num_steps,
                seed=config.seed,
            )
            loop = digits.make_loop(name, settings)
            label = name if len(config.query_sizes) == 1 else f"{name}, {size} at a time"
            curves[label] = digits.run_strategy(label, loop, settings, train, test, progress)
    print(table(curves, config.target))
    config.out.mkdir(parents=True, exist_ok=True)
    picture = draw(curves, config)
    content = {
        "config": dataclasses.asdict(config),
        "environment": study.environment(),
        "seconds": round(time.perf_counter() - start, 1),
        "strategies": {name: curve._asdict() for name, curve in curves.items()},
    }
    results = study.results.write_json(config.out / "results.json", content)
    print(f"{config.seeds} seeds in {time.perf_counter() - start:.0f} s; wrote {picture} and {results}")
    return curves


def repeated(train: baal.Dataset, copies: int, noise: float, seed: int) -> baal.Dataset:
    """Every example several times, each copy with noise of its own."""
    rng = np.random.default_rng(seed)
    inputs = np.concatenate([np.asarray(train.inputs, np.float32)] * copies)
    inputs += noise * inputs.std() * rng.normal(size=inputs.shape).astype(np.float32)
    return baal.Dataset(inputs, np.concatenate([np.asarray(train.targets)] * copies))


def crossing(num_labelled: np.ndarray, values: np.ndarray, target: float) -> float:
    """Where a curve first reaches the target, between its points; inf if it never does."""
    reached = np.flatnonzero(np.asarray(values) >= target)
    if not reached.size:
        return np.inf
    if reached[0] == 0:
        return float(num_labelled[0])
    before, after = reached[0] - 1, reached[0]
    share = (target - values[before]) / (values[after] - values[before])
    return float(num_labelled[before] + share * (num_labelled[after] - num_labelled[before]))


def table(curves: dict[str, plots.Curves], target: float) -> str:
    """Labels to the target: of the mean curve, interpolated, and of the seeds; and the mean accuracy on the way."""
    lines = [f"{'':28s}  labels to {target:.0%}: mean curve   median of seeds    mean accuracy of all rounds"]
    for name, curve in curves.items():
        accuracy = np.asarray(curve.metrics["accuracy"])
        mean = crossing(curve.num_labelled, accuracy.mean(axis=0), target)
        median = np.median(statistics.labels_to_target(curve.num_labelled, accuracy, target))
        area = accuracy.mean(axis=1)
        error = statistics.standard_error(area)
        lines.append(f"{name:28s}  {mean:25.1f}  {median:16.0f}    {area.mean():.4f} ± {error:.4f}")
    return "\n".join(lines)


def draw(curves: dict[str, plots.Curves], config: Config) -> Path:
    """Learning curves."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for ax, metric in zip(axes, ("accuracy", "nll"), strict=True):
        plots.plot_learning_curves(curves, metric, ax)
    axes[0].axhline(config.target, color="grey", linewidth=0.8, linestyle=":")
    figure.suptitle(f"digits {config.copies} times, {config.seeds} seeds, band = 95 %")
    picture = config.out / "curves.png"
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return picture


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
