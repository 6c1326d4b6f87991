"""Do unlabelled images help a network that has few labels, and does active learning on top of that still help?

Without `--active`: the same network is fitted to the same 10 to 100 labels of scikit-learn's digits, by supervised
training, by the Π-model and by FixMatch. All of them shift the labelled images, and a seed has the same labels, first
weights and order of examples in every method, so the differences are paired. With `--active`: BALD against random
labelling, on top of the supervised trainer and of the semi-supervised one. Prints tables, and writes `curves.png` and
`results.json`.

Result, hardware and command: see docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
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
from baal_jax import losses, posteriors, study
from baal_jax.study import plots, statistics
from baal_jax.training import augmentation, semi_supervised

matplotlib.use("agg")


@dataclasses.dataclass(frozen=True)
class Config:
    """Supervised training, the Π-model and FixMatch on scikit-learn's digits."""

    methods: tuple[Literal["supervised", "pi_model", "fix_match"], ...] = ("supervised", "pi_model", "fix_match")
    """What to compare; differences are taken from the first."""

    labels: tuple[int, ...] = (10, 20, 50, 100)
    """Numbers of labels; smaller sets are part of larger ones."""

    balanced: bool = True
    """Equally many labels of each class, as in the papers; else drawn at random."""

    active: bool = False
    """Active learning on top of each method, in place of the numbers of labels above."""

    strategies: tuple[str, ...] = ("random", "bald")
    """With --active: "random", a heuristic, or a stochastic selection and a heuristic, such as "power_bald"."""

    num_initial: int = 20
    """With --active: labels drawn at random before the first round."""

    query_size: int = 10
    """With --active: labels added each round."""

    rounds: int = 5
    """With --active: fits of the network."""

    model: Literal["mlp", "cnn"] = "cnn"
    """Dense 64-256-256-10, or a small convolutional network; dropout in both."""

    seeds: int = 10
    """Runs of everything."""

    num_steps: int = 1000
    """Adam steps of every fit."""

    batch_size: int = 32
    """Labelled examples in a step."""

    unlabelled_batch_size: int = 64
    """Unlabelled inputs in a step."""

    learning_rate: float = 1e-3
    """Of Adam."""

    pi_weight: float = 10.0
    """Largest weight of the Π-model's consistency, reached after a third of the steps."""

    threshold: float = 0.95
    """Probability from which on FixMatch believes its own prediction."""

    num_samples: int = 20
    """Monte-Carlo dropout draws, for scoring and for the Bayesian model average."""

    seed: int = 0
    """Of everything."""

    out: Path = Path("results/semi_supervised_digits")
    """Folder for curves.png and results.json."""


def main(config: Config) -> dict[str, plots.Curves]:
    """Runs everything, then reports."""
    start = time.perf_counter()
    train, test = jax.tree.map(jnp.asarray, baal.data.digits(image=True))
    runs = len(config.methods) * (len(config.strategies) * config.rounds if config.active else len(config.labels))
    with tqdm(total=runs, unit="round" if config.active else "size") as progress:
        curves = (active_curves if config.active else passive_curves)(config, train, test, progress)
    print(plots.learning_curve_table(curves))
    print(difference_table(curves))
    seconds = time.perf_counter() - start
    picture, results = write(config, curves, seconds)
    print(f"{config.seeds} seeds in {seconds:.0f} s; wrote {picture} and {results}")
    return curves


def make_posterior(name: str, config: Config) -> baal.Posterior:
    """MC-dropout on top of one of the trainers; everything but `unlabelled` is the same for all."""
    network = SmallCNN(channels=(16, 32), hidden=128) if config.model == "cnn" else MLP()
    shift = augmentation.shift(1)
    strong = augmentation.compose(shift, augmentation.cutout(3), noise(0.1))
    consistencies = {
        "pi_model": semi_supervised.pi_model(ramp_up=config.num_steps // 3, weight=config.pi_weight),
        "fix_match": semi_supervised.fix_match(strong, threshold=config.threshold),
    }
    consistency = consistencies.get(name)
    trainer = baal.trainer(
        optax.adam(config.learning_rate),
        losses.cross_entropy,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        augment=shift,
        unlabelled=consistency,
        unlabelled_batch_size=None if consistency is None else config.unlabelled_batch_size,
    )
    return posteriors.mc_dropout(baal.from_linen(network), trainer)


def noise(scale: float) -> Callable[[jax.Array, baal.Dataset], baal.Dataset]:
    """Gaussian noise on every pixel."""

    def augment(key: jax.Array, batch: baal.Dataset) -> baal.Dataset:
        return batch._replace(inputs=batch.inputs + scale * jax.random.normal(key, batch.inputs.shape))

    return augment


def passive_curves(config: Config, train: baal.Dataset, test: baal.Dataset, progress: tqdm) -> dict[str, plots.Curves]:
    """Every method on the same sets of labels."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    orders = jnp.asarray([labelling_order(train.targets, config, seed) for seed in range(config.seeds)])
    curves = {}
    for name in config.methods:
        posterior = make_posterior(name, config)

        def one_seed(
            key: jax.Array, order: jax.Array, count: jax.Array, data: tuple, posterior: baal.Posterior = posterior
        ) -> dict[str, jax.Array]:
            train, test = data
            key_fit, key_draws = jax.random.split(key)
            state = posterior.fit(key_fit, train, order < count)
            return baal.evaluate(key_draws, posterior, state, test, num_samples=config.num_samples)

        all_seeds = jax.jit(
            lambda count, data, run=one_seed: jax.lax.map(lambda pair: run(*pair, count, data), (keys, orders))
        )
        found = []
        for count in config.labels:
            progress.set_description(f"{name}, {count} labels")
            found.append(jax.block_until_ready(all_seeds(jnp.int32(count), (train, test))))
            progress.set_postfix(accuracy=f"{found[-1]['accuracy'].mean():.3f}")
            progress.update()
        metrics = jax.tree.map(lambda *sizes: np.stack(sizes, axis=1), *found)
        curves[name] = plots.Curves(np.array(config.labels), metrics)
    return curves


def labelling_order(targets: jax.Array, config: Config, seed: int) -> np.ndarray:
    """The place of every example in the order of labelling."""
    order = np.random.default_rng((config.seed, seed)).permutation(len(targets))
    if config.balanced:  # the first of every class, then the second of every class …
        classes = np.asarray(targets)[order]
        same = classes[:, None] == classes[None]
        order = order[np.argsort(np.tril(same, -1).sum(axis=1), kind="stable")]
    return np.argsort(order)


def active_curves(config: Config, train: baal.Dataset, test: baal.Dataset, progress: tqdm) -> dict[str, plots.Curves]:
    """Every strategy on top of every method, a round at a time."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    curves = {}
    for method in config.methods:
        for rule in config.strategies:
            loop = baal.active_loop(
                make_posterior(method, config),
                acquisition(rule, 1.0),
                query_size=config.query_size,
                num_samples=config.num_samples,
            )
            states = jax.vmap(lambda key, loop=loop: loop.init(key, train, config.num_initial))(keys)

            def one_round(
                state: baal.LoopState, train: baal.Dataset, test: baal.Dataset, loop: baal.ActiveLoop = loop
            ) -> tuple[baal.LoopState, baal.StepInfo]:
                return baal.run(loop, None, train, test, num_rounds=1, state=state)

            all_seeds, infos = jax.jit(jax.vmap(one_round, in_axes=(0, None, None))), []
            for _ in range(config.rounds):
                progress.set_description(f"{method}, {rule}")
                states, info = jax.block_until_ready(all_seeds(states, train, test))
                infos.append(info)
                progress.set_postfix(accuracy=f"{info.metrics['accuracy'].mean():.3f}")
                progress.update()
            infos = jax.tree.map(lambda *rounds: np.concatenate(rounds, axis=1), *infos)
            curves[f"{method}, {rule}"] = plots.Curves(infos.num_labelled[0], infos.metrics)
    return curves


def difference_table(curves: dict[str, plots.Curves]) -> str:
    """Accuracy minus that of the first curve, seed by seed, in points."""
    (base, first), *others = curves.items()
    width = max(18, *(len(name) + 3 for name in curves))
    lines = [f"accuracy minus {base}, points ± s.e. of the paired difference"]
    lines.append("labels" + "".join(f"{name:>{width}}" for name, _ in others))
    differences = [100 * (curve.metrics["accuracy"] - first.metrics["accuracy"]) for _, curve in others]
    for r, count in enumerate(first.num_labelled):
        cells = [f"{d[:, r].mean():+.1f} ± {statistics.standard_error(d[:, r]):.1f}" for d in differences]
        lines.append(f"{count:6d}" + "".join(f"{cell:>{width}}" for cell in cells))
    return "\n".join(lines)


def write(config: Config, curves: dict[str, plots.Curves], seconds: float) -> tuple[Path, Path]:
    """The picture and the numbers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for ax, metric in zip(axes, ("accuracy", "nll"), strict=True):
        plots.plot_learning_curves(curves, metric, ax)
    figure.suptitle(f"digits, {config.model}, {config.seeds} seeds, band = 95 %")
    config.out.mkdir(parents=True, exist_ok=True)
    picture = config.out / "curves.png"
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    content = {
        "config": dataclasses.asdict(config),
        "environment": study.environment(),
        "seconds": round(seconds, 1),
        "curves": {name: curve._asdict() for name, curve in curves.items()},
    }
    return picture, study.results.write_json(config.out / "results.json", content)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
