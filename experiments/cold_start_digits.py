"""Which images to label first, before any network exists? Cold starts from embeddings that were made without labels.

Every strategy picks its first labels of scikit-learn's digits from embeddings, and the same network is trained on them.
Embeddings are the pixels, or their principal components, found on the images to choose from alone. Every seed has its
own split into 1,437 images to choose from and 360 held out; within a seed all strategies share split, first weights and
order of examples, so differences to random labels are paired. Prints a table, and writes `cold_start.png` and
`results.json`.

Result, hardware and command: see docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from models import MLP
from tqdm import tqdm

import baal_jax as baal
from baal_jax import losses, posteriors, selection, study
from baal_jax.study import plots, statistics

matplotlib.use("agg")


@dataclasses.dataclass(frozen=True)
class Config:
    """Cold starts against random labels on scikit-learn's digits."""

    strategies: tuple[str, ...] = ("random", "k_center", "k_means", "prob_cover", "typiclust")
    """Selections by name that need nothing but embeddings; "random" is what the others are compared with."""

    num_labels: tuple[int, ...] = (10, 20, 40)
    """Sizes of the first query, each one from nothing."""

    embeddings: Literal["pixels", "pca"] = "pca"
    """What distances are measured in: the pixels, or their leading principal components."""

    components: int = 20
    """How many principal components."""

    model: Literal["mlp", "linear"] = "mlp"
    """Dense 64-256-256-10 with dropout, or a linear classifier of inputs with dropout."""

    seeds: int = 50
    """Splits of the data, each with its own first weights."""

    num_samples: int = 10
    """Monte-Carlo dropout draws of the Bayesian model average."""

    num_steps: int = 200
    """Adam steps of every fit."""

    batch_size: int = 32
    """Labelled examples in a step."""

    learning_rate: float = 1e-3
    """Of Adam."""

    seed: int = 0
    """Of everything."""

    out: Path = Path("results/cold_start_digits")
    """Folder for cold_start.png and results.json."""


class Linear(nn.Module):
    """A linear classifier of inputs with dropout."""

    num_classes: int = 10
    rate: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, D] -> [B, num_classes]``."""
        return nn.Dense(self.num_classes)(nn.Dropout(self.rate, deterministic=not train)(x))


def main(config: Config) -> dict[str, plots.Curves]:
    """Runs every strategy at every size, then reports."""
    start = time.perf_counter()
    splits = [baal.data.digits(seed=config.seed + seed) for seed in range(config.seeds)]
    train, test = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *splits)
    embeddings = train.inputs
    if config.embeddings == "pca":
        embeddings = jax.jit(jax.vmap(lambda x: principal_components(x, config.components)))(train.inputs)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    loop = make_loop(config)
    fit_all = jax.jit(lambda *given: jax.lax.map(lambda one: fit(loop, *one), given))
    curves = {}
    with tqdm(total=len(config.strategies) * len(config.num_labels), unit="query") as progress:
        for name in config.strategies:
            found = []
            for num in config.num_labels:
                progress.set_description(f"{name}, {num} labels")
                states = first_labels(loop, cold_start(name), num, keys, train, embeddings)
                found.append(jax.tree.map(np.asarray, fit_all(states, train, test)))
                progress.set_postfix(accuracy=f"{found[-1]['accuracy'].mean():.3f}")
                progress.update()
            metrics = {metric: np.stack([one[metric] for one in found], axis=1) for metric in found[0]}
            curves[name] = plots.Curves(np.array(config.num_labels), metrics)
    print(table(curves))
    picture, results = write(config, curves, time.perf_counter() - start)
    print(f"{config.seeds} seeds in {time.perf_counter() - start:.0f} s; wrote {picture} and {results}")
    return curves


def cold_start(name: str) -> baal.Acquisition:
    """A selection by its name on the command line."""
    if name not in selection.REGISTRY:
        raise SystemExit(f"strategy {name!r} is unknown: use one of {', '.join(selection.REGISTRY)}")
    return selection.REGISTRY[name]()


def make_loop(config: Config) -> baal.ActiveLoop:
    """What is trained on the first labels; the same for every strategy."""
    network = Linear() if config.model == "linear" else MLP()
    optimizer = optax.adam(config.learning_rate)
    trainer = baal.trainer(optimizer, losses.cross_entropy, num_steps=config.num_steps, batch_size=config.batch_size)
    posterior = posteriors.mc_dropout(baal.from_linen(network), trainer)
    return baal.active_loop(posterior, selection.random(), query_size=1, num_samples=config.num_samples)


def first_labels(
    loop: baal.ActiveLoop,
    acquisition: baal.Acquisition,
    num_labels: int,
    keys: jax.Array,
    train: baal.Dataset,
    embeddings: jax.Array,
) -> baal.LoopState:
    """The start of every seed, one after the other in one program."""

    def one_seed(given: tuple[jax.Array, baal.Dataset, jax.Array]) -> baal.LoopState:
        key, train, embeddings = given
        return loop.init(key, train, num_labels, acquisition=acquisition, embeddings=embeddings)

    return jax.jit(lambda *given: jax.lax.map(one_seed, given))(keys, train, embeddings)


def fit(loop: baal.ActiveLoop, state: baal.LoopState, train: baal.Dataset, test: baal.Dataset) -> dict[str, jax.Array]:
    """Metrics of a network that was trained on the first labels, and how many classes these cover."""
    labelled = baal.pool.labelled(state.pool).astype(jnp.float32)
    classes = jnp.sum(jnp.bincount(train.targets, weights=labelled, length=10) > 0)
    _, info = baal.run(loop, None, train, test, num_rounds=1, state=state)
    return {**jax.tree.map(lambda leaf: leaf[0], info.metrics), "classes": classes}


def principal_components(x: jax.Array, num: int) -> jax.Array:
    """``[N, D] -> [N, num]``: centred inputs along the directions in which they vary most."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    return x @ jnp.linalg.svd(x, full_matrices=False)[2][:num].T


def table(curves: dict[str, plots.Curves]) -> str:
    """Accuracy, its paired difference to random labels in points, and covered classes: mean ± standard error."""
    lines = []
    for place, num in enumerate(next(iter(curves.values())).num_labelled):
        lines.append(f"{num} labels{'accuracy':>20}{'points over random':>24}{'classes of 10':>16}")
        for name, curve in curves.items():
            accuracy, classes = (np.asarray(curve.metrics[metric])[:, place] for metric in ("accuracy", "classes"))
            line = f"  {name:<14}{accuracy.mean():>7.3f} ± {statistics.standard_error(accuracy):.3f}"
            gain = ""
            if name != "random" and "random" in curves:
                points = 100 * (accuracy - np.asarray(curves["random"].metrics["accuracy"])[:, place])
                gain = f"{points.mean():+.1f} ± {statistics.standard_error(points):.1f}"
            lines.append(f"{line}{gain:>20}{classes.mean():>16.1f}")
    return "\n".join(lines)


def write(config: Config, curves: dict[str, plots.Curves], seconds: float) -> tuple[Path, Path]:
    """The picture and the numbers."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    plots.plot_learning_curves(curves, "accuracy", ax)
    ax.set_title(f"digits, {config.model}, {config.embeddings}, {config.seeds} seeds, band = 95 %", fontsize=9)
    config.out.mkdir(parents=True, exist_ok=True)
    picture = config.out / "cold_start.png"
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
