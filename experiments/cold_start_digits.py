"""Cold start: which images to label first, before any network exists, from embeddings made without labels (digits).

Every strategy picks its first labels of scikit-learn's digits from embeddings, and the same network is trained on them.
Embeddings are the pixels, or their principal components, found on the images to choose from alone. Every seed has its
own split into 1,437 images to choose from and 360 held out; within a seed all strategies share split, first weights and
order of examples, so differences to random labels are paired. Prints a table, and writes `cold_start.png` and
`results.json`.

    python experiments/cold_start_digits.py

Accuracy with 10 labels: random .458, k_center .511, k_means .741, max_herding .733, prob_cover .542, typiclust .708 (50
seeds). Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Literal

import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from models import MLP
from tqdm import tqdm

import baal_jax as baal
from baal_jax import posteriors, selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training):
    """Cold starts against random labels on scikit-learn's digits.

    Attributes:
        strategies: selections by name that need nothing but embeddings; others are compared with "random".
        num_labels: sizes of the first query, each one from nothing.
        embeddings: what distances are measured in: the pixels, or their leading principal components.
        components: how many principal components.
        model: dense 64-256-256-10 with dropout, or a linear classifier of inputs with dropout.
        seeds: splits of the data, each with its own first weights.
    """

    strategies: tuple[str, ...] = ("random", "k_center", "k_means", "max_herding", "prob_cover", "typiclust")
    num_labels: tuple[int, ...] = (10, 20, 40)
    embeddings: Literal["pixels", "pca"] = "pca"
    components: int = 20
    model: Literal["mlp", "linear"] = "mlp"
    seeds: int = 50
    num_samples: int = 10
    num_steps: int = 200
    out: Path = Path("results/cold_start_digits")


def main(config: Config) -> dict[str, harness.Curves]:
    """Runs every strategy at every size, then reports."""
    start = time.perf_counter()
    splits = [baal.data.digits(seed=config.seed + seed) for seed in range(config.seeds)]
    train, test = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *splits)
    embeddings = train.inputs
    if config.embeddings == "pca":
        embeddings = jax.jit(jax.vmap(lambda x: principal_components(x, config.components)))(train.inputs)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    loop = make_loop(config)
    fit_all = harness.over_seeds(lambda given: fit(loop, *given))
    curves = {}
    with tqdm(total=len(config.strategies) * len(config.num_labels), unit="query") as progress:
        for name in config.strategies:
            sizes = []
            for num in config.num_labels:
                label_first = partial(loop.init, num_initial=num, acquisition=harness.acquisition(name))
                first = harness.over_seeds(lambda given, label=label_first: label(*given[:2], embeddings=given[2]))
                states = first((keys, train, embeddings))
                sizes.append(jax.tree.map(np.asarray, fit_all((states, train, test))))
                harness.show(progress, f"{name}, {num} labels", accuracy=sizes[-1]["accuracy"])
            metrics = jax.tree.map(lambda *values: np.stack(values, axis=1), *sizes)
            curves[name] = harness.Curves(np.array(config.num_labels), metrics)
    print(table(curves))
    title = f"digits, {config.model}, {config.embeddings}, {config.seeds} seeds"
    harness.report(config, start, curves, title, ("accuracy",), figure="cold_start.png")
    return curves


def make_loop(config: Config) -> baal.ActiveLoop:
    """What is trained on the first labels; the same for every strategy."""
    model = baal.from_linen(MLP(hidden=(), input_rate=0.2) if config.model == "linear" else MLP())
    posterior = posteriors.mc_dropout(model, harness.trainer(config))
    return baal.active_loop(posterior, selection.random(), query_size=1, num_samples=config.num_samples)


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


def table(curves: dict[str, harness.Curves]) -> str:
    """Accuracy, its paired difference to random labels in points, and covered classes: mean ± standard error."""
    rows = []
    for place, num in enumerate(next(iter(curves.values())).num_labelled):
        for name, curve in curves.items():
            accuracy, classes = (np.asarray(curve.metrics[metric])[:, place] for metric in ("accuracy", "classes"))
            gain = ""
            if name != "random" and "random" in curves:
                base = np.asarray(curves["random"].metrics["accuracy"])[:, place]
                gain = harness.mean_error(100 * (accuracy - base), "+.1f")
            rows.append((str(num), name, harness.mean_error(accuracy), gain, f"{classes.mean():.1f}"))
    return harness.table(("labels", "", "accuracy", "points over random", "classes of 10"), rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
