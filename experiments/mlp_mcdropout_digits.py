"""Does active learning with MC-dropout need fewer labels than random labelling on real handwritten digits?

Every strategy starts from the same random labels, uses the same trainer and the same keys, and runs all its seeds in
one `vmap`. The data come with scikit-learn: 1,437 images to choose from, 360 held out. Prints a table, and writes
`curves.png` and `results.json`.

Result, hardware and command: see docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from models import MLP, SmallCNN
from strategies import acquisition
from tqdm import tqdm

import baal_jax as baal
from baal_jax import features, losses, posteriors, study
from baal_jax.study import plots

matplotlib.use("agg")


@dataclasses.dataclass(frozen=True)
class Config:
    """BALD against random labelling on scikit-learn's digits."""

    strategies: tuple[str, ...] = ("random", "bald", "power_bald", "margin")
    """What to compare: a set selection by name ("random", "batch_bald", "badge", "lcmd", …), a heuristic by name (the
    top of its scores is labelled), or a stochastic selection and a heuristic joined by an underscore, such as
    "power_bald" or "softrank_entropy"."""

    model: Literal["mlp", "cnn"] = "mlp"
    """Dense 64-256-256-10, or a small convolutional network; dropout in both."""

    seeds: int = 5
    """Independent runs of every strategy; runs with the same number share their first labels."""

    num_initial: int = 20
    """Labels drawn at random before the first round."""

    query_size: int = 10
    """Labels added each round."""

    rounds: int = 14
    """Fits of the network; the last one sees num_initial + (rounds - 1) * query_size labels."""

    num_samples: int = 20
    """Monte-Carlo dropout draws, for scoring and for the Bayesian model average."""

    num_steps: int = 300
    """Adam steps of every fit; the network starts afresh each time."""

    batch_size: int = 32
    """Labelled examples in a step."""

    learning_rate: float = 1e-3
    """Of Adam."""

    coldness: float = 1.0
    """Of stochastic selections: 0 is uniform, large values approach the top of the scores."""

    target: float = 0.9
    """Accuracy for the "labels to reach it" lines."""

    seed: int = 0
    """Of everything."""

    out: Path = Path("results/digits")
    """Folder for curves.png and results.json."""


def main(config: Config) -> dict[str, plots.Curves]:
    """Runs every strategy, then reports."""
    start = time.perf_counter()
    train, test = baal.data.digits(image=config.model == "cnn")
    train, test = jax.tree.map(jnp.asarray, (train, test))
    total = len(config.strategies) * config.rounds
    loops = {name: make_loop(name, config) for name in config.strategies}
    with tqdm(total=total, unit="round") as progress:
        curves = {name: run_strategy(name, loop, config, train, test, progress) for name, loop in loops.items()}
    print(plots.learning_curve_table(curves, config.target))
    picture, results = write(config, curves, time.perf_counter() - start)
    print(f"{config.seeds} seeds in {time.perf_counter() - start:.0f} s; wrote {picture} and {results}")
    return curves


def run_strategy(
    name: str, loop: baal.ActiveLoop, config: Config, train: baal.Dataset, test: baal.Dataset, progress: tqdm
) -> plots.Curves:
    """All seeds of one strategy, a round at a time so that there is progress to show."""
    progress.set_description(f"{name} (compiling)")
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    states = jax.vmap(lambda key: loop.init(key, train, config.num_initial))(keys)

    def one_round(
        state: baal.LoopState, train: baal.Dataset, test: baal.Dataset
    ) -> tuple[baal.LoopState, baal.StepInfo]:
        return baal.run(loop, None, train, test, num_rounds=1, state=state)

    all_seeds = jax.jit(jax.vmap(one_round, in_axes=(0, None, None)))
    infos = []
    for _ in range(config.rounds):
        states, info = jax.block_until_ready(all_seeds(states, train, test))
        infos.append(info)
        progress.set_description(name)
        progress.set_postfix(accuracy=f"{info.metrics['accuracy'].mean():.3f}")
        progress.update()
    infos = jax.tree.map(lambda *rounds: np.concatenate(rounds, axis=1), *infos)
    return plots.Curves(infos.num_labelled[0], infos.metrics)


def make_loop(name: str, config: Config) -> baal.ActiveLoop:
    """The active loop of a strategy; everything but the acquisition is the same for all."""
    network = SmallCNN() if config.model == "cnn" else MLP()
    optimizer = optax.adam(config.learning_rate)
    trainer = baal.trainer(optimizer, losses.cross_entropy, num_steps=config.num_steps, batch_size=config.batch_size)
    model = baal.from_linen(network)
    return baal.active_loop(
        posteriors.mc_dropout(model, trainer),
        acquisition(name, config.coldness),
        query_size=config.query_size,
        num_samples=config.num_samples,
        features=features.last_hidden(model),  # read by set selections such as badge, dropped by the compiler elsewhere
    )


def write(config: Config, curves: dict[str, plots.Curves], seconds: float) -> tuple[Path, Path]:
    """The picture and the numbers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for ax, metric in zip(axes, ("accuracy", "nll"), strict=True):
        plots.plot_learning_curves(curves, metric, ax)
    axes[0].axhline(config.target, color="grey", linewidth=0.8, linestyle=":")
    figure.suptitle(f"digits, {config.model}, {config.seeds} seeds, band = 95 %")
    config.out.mkdir(parents=True, exist_ok=True)
    picture = config.out / "curves.png"
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    content = {
        "config": dataclasses.asdict(config),
        "environment": study.environment(),
        "seconds": round(seconds, 1),
        "strategies": {name: curve._asdict() for name, curve in curves.items()},
    }
    return picture, study.results.write_json(config.out / "results.json", content)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
