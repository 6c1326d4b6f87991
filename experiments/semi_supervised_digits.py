"""Semi-supervised training (Π-model, FixMatch) with few labels on digits, alone and with active learning on top.

Without `--active`: the same network is fitted to the same 10 to 100 labels of scikit-learn's digits, by supervised
training, by the Π-model and by FixMatch. All of them shift the labelled images, and a seed has the same labels, first
weights and order of examples in every method, so the differences are paired. With `--active`: BALD against random
labelling, on top of the supervised trainer and of the semi-supervised one. Prints tables, and writes `curves.png` and
`results.json`.

    python experiments/semi_supervised_digits.py
    python experiments/semi_supervised_digits.py --active --methods supervised pi_model

Accuracy with 20 labels: supervised .793, Π-model .862, FixMatch .826; with 100: .926, .949, .928. Top-k BALD on the
Π-model is worse than random labels on it. Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from models import MLP, SmallCNN
from tqdm import tqdm

import baal_jax as baal
from baal_jax import posteriors
from baal_jax.training import augmentation, semi_supervised


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training, harness.Rounds):
    """Supervised training, the Π-model and FixMatch on scikit-learn's digits; rounds are those of --active.

    Attributes:
        methods: what to compare; differences are taken from the first.
        labels: numbers of labels; smaller sets are part of larger ones.
        balanced: equally many labels of each class, as in the papers; else drawn at random.
        active: active learning on top of each method, in place of the numbers of labels above.
        strategies: with --active: "random", a heuristic, or a stochastic selection and a heuristic, such as
            "power_bald".
        model: dense 64-256-256-10, or a small convolutional network; dropout in both.
        unlabelled_batch_size: unlabelled inputs in a step.
        pi_weight: largest weight of the Π-model's consistency, reached after a third of the steps.
        threshold: probability from which on FixMatch believes its own prediction.
    """

    methods: tuple[Literal["supervised", "pi_model", "fix_match"], ...] = ("supervised", "pi_model", "fix_match")
    labels: tuple[int, ...] = (10, 20, 50, 100)
    balanced: bool = True
    active: bool = False
    strategies: tuple[str, ...] = ("random", "bald")
    rounds: int = 5
    model: Literal["mlp", "cnn"] = "cnn"
    seeds: int = 10
    num_steps: int = 1000
    unlabelled_batch_size: int = 64
    pi_weight: float = 10.0
    threshold: float = 0.95
    out: Path = Path("results/semi_supervised_digits")


def main(config: Config) -> dict[str, harness.Curves]:
    """Runs everything, then reports."""
    start = time.perf_counter()
    train, test = jax.tree.map(jnp.asarray, baal.data.digits(image=True))
    runs = len(config.methods) * (len(config.strategies) * config.rounds if config.active else len(config.labels))
    with tqdm(total=runs, unit="round" if config.active else "size") as progress:
        curves = (active_rounds if config.active else fixed_labels)(config, train, test, progress)
    print(harness.learning_curve_table(curves))
    print(difference_table(curves))
    harness.report(config, start, curves, f"digits, {config.model}, {config.seeds} seeds")
    return curves


def make_posterior(name: str, config: Config) -> baal.Posterior:
    """MC-dropout on top of one of the trainers; everything but `unlabelled` is the same for all."""
    network = SmallCNN(channels=(16, 32), hidden=128) if config.model == "cnn" else MLP()
    shift = augmentation.shift(1)
    strong = augmentation.compose(shift, augmentation.cutout(3), noise(0.1))
    consistency = {
        "pi_model": semi_supervised.pi_model(ramp_up=config.num_steps // 3, weight=config.pi_weight),
        "fix_match": semi_supervised.fix_match(strong, threshold=config.threshold),
    }.get(name)
    size = None if consistency is None else config.unlabelled_batch_size
    trainer = harness.trainer(config, augment=shift, unlabelled=consistency, unlabelled_batch_size=size)
    return posteriors.mc_dropout(baal.from_linen(network), trainer)


def noise(scale: float) -> Callable[[jax.Array, baal.Dataset], baal.Dataset]:
    """Gaussian noise on every pixel."""

    def augment(key: jax.Array, batch: baal.Dataset) -> baal.Dataset:
        return batch._replace(inputs=batch.inputs + scale * jax.random.normal(key, batch.inputs.shape))

    return augment


def fixed_labels(config: Config, train: baal.Dataset, test: baal.Dataset, progress: tqdm) -> dict[str, harness.Curves]:
    """Every method on the same sets of labels."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    orders = jnp.asarray([labelling_order(train.targets, config, seed) for seed in range(config.seeds)])
    curves = {}
    for name in config.methods:
        all_seeds, sizes = harness.over_seeds(fit_and_evaluate(name, config)), []
        for count in config.labels:
            sizes.append(jax.block_until_ready(all_seeds((keys, orders), jnp.int32(count), train, test)))
            harness.show(progress, f"{name}, {count} labels", accuracy=sizes[-1]["accuracy"])
        metrics = jax.tree.map(lambda *values: np.stack(values, axis=1), *sizes)
        curves[name] = harness.Curves(np.array(config.labels), metrics)
    return curves


def fit_and_evaluate(name: str, config: Config) -> Callable[..., dict[str, jax.Array]]:
    """``((key, order), count, train, test) -> metrics`` of a method with the first labels of an order."""
    posterior = make_posterior(name, config)

    def one_seed(given: tuple, count: jax.Array, train: baal.Dataset, test: baal.Dataset) -> dict[str, jax.Array]:
        key, order = given
        key_fit, key_draws = jax.random.split(key)
        state = posterior.fit(key_fit, train, order < count)
        return baal.evaluate(key_draws, posterior, state, test, num_samples=config.num_samples)

    return one_seed


def labelling_order(targets: jax.Array, config: Config, seed: int) -> np.ndarray:
    """The place of every example in the order of labelling."""
    order = np.random.default_rng((config.seed, seed)).permutation(len(targets))
    if config.balanced:  # the first of every class, then the second of every class …
        classes = np.asarray(targets)[order]
        same = classes[:, None] == classes[None]
        order = order[np.argsort(np.tril(same, -1).sum(axis=1), kind="stable")]
    return np.argsort(order)


def active_rounds(config: Config, train: baal.Dataset, test: baal.Dataset, progress: tqdm) -> dict[str, harness.Curves]:
    """Every strategy on top of every method, a round at a time."""
    curves = {}
    for method in config.methods:
        posterior = make_posterior(method, config)
        for rule in config.strategies:
            loop, label = harness.active_loop(config, posterior, harness.acquisition(rule)), f"{method}, {rule}"
            curves |= harness.run_strategies({label: loop}, config, train, test, progress)
    return curves


def difference_table(curves: dict[str, harness.Curves]) -> str:
    """Accuracy minus that of the first curve, seed by seed, in points."""
    (base, first), *others = curves.items()
    rows = []
    for r, count in enumerate(first.num_labelled):
        accuracies = [curve.metrics["accuracy"][:, r] for _, curve in others]
        gains = [harness.mean_error(100 * (values - first.metrics["accuracy"][:, r]), "+.1f") for values in accuracies]
        rows.append((str(count), *gains))
    title = f"accuracy minus {base}, points ± s.e. of the paired difference"
    return f"{title}\n{harness.table(('labels', *(name for name, _ in others)), rows)}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
