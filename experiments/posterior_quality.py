"""Compare posteriors trained on few labels: negative log-likelihood, calibration, and labels saved by active learning.

Every method sees the same labels, network, optimizer and seeds, on scikit-learn's digits and, where their data are at
hand, on the protein set (CASP) and on a part of CIFAR-10. `deterministic` is the network alone. Prints tables in
Markdown, and writes them with all numbers to `results.json`.

    python experiments/posterior_quality.py --casp protein-tertiary-structure.txt --no-active        # 264 s
    python experiments/posterior_quality.py --labels --cifar10 --no-active                           # 2,020 s
    python experiments/posterior_quality.py --labels                                                 # 770 s

NLL minus that of the network alone, digits with 50 labels: mc_dropout −.112 ± .028, deep_ensemble −.077 ± .011, laplace
−.128 ± .027, gaussian_process −.131 ± .027. Two CPU cores; all tables are in docs/posteriors.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from models import MLP, SmallCNN
from scipy.optimize import minimize_scalar
from tqdm import tqdm

import baal_jax as baal
from baal_jax import calibration, heuristics, losses, metrics, posteriors, selection, study
from baal_jax.posteriors import kernels
from baal_jax.study import statistics
from baal_jax.study.results import Results


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Posteriors beside each other.

    Attributes:
        methods: what to compare.
        labels: labels on digits.
        casp: the protein set as a text file; left out without it.
        cifar10: a part of CIFAR-10 as well, with at most five seeds.
        data_dir: where CIFAR-10 is, by default in TFDS_DATA_DIR.
        active: active learning on digits with every method.
    """

    methods: tuple[str, ...] = ("deterministic", *posteriors.REGISTRY, "gaussian_process")
    labels: tuple[int, ...] = (50, 200)
    casp: Path | None = None
    cifar10: bool = False
    data_dir: Path | None = None
    active: bool = True
    num_samples: int = 30
    out: Path = Path("results/posterior_quality")


class Problem(NamedTuple):
    """A data set, a network and how it is trained."""

    name: str
    module: nn.Module
    train: baal.Dataset
    test: baal.Dataset
    num_labels: int
    num_steps: int
    batch_size: int
    most_seeds: int = 1_000_000

    @property
    def is_regression(self) -> bool:
        return jnp.issubdtype(self.test.targets.dtype, jnp.floating)


def main(config: Config) -> dict[str, Any]:
    """Every method on every problem, then active learning."""
    start = time.perf_counter()
    study.use_all_cores()
    tables: dict[str, str] = {}
    numbers: dict[str, Any] = {}

    def report(title: str, measured: Any, text: str) -> None:
        """Prints a table, and writes all that there is so far."""
        numbers[title], tables[title] = measured, text
        print(f"\n### {title}\n\n{text}\n", flush=True)
        harness.write(config, time.perf_counter() - start, tables=tables, numbers=numbers)

    for problem in problems(config):
        measured = {name: quality(name, problem, config) for name in tqdm(config.methods, problem.name)}
        report(problem.name, measured, table(measured))
    if config.active:
        for results in active(config):
            metrics_of = {name: runs.metrics for name, runs in results.runs.items()}
            report("active learning on digits", metrics_of, active_table(results))
    print(f"wrote {config.out / 'results.json'} in {time.perf_counter() - start:.0f} s")
    return numbers


def problems(config: Config) -> list[Problem]:
    """Digits, and what else is asked for."""
    train, test = jax.tree.map(jnp.asarray, baal.data.digits())
    module = MLP(hidden=(128, 128), rate=0.2)
    chosen = [Problem(f"digits, {n} labels", module, train, test, n, 400, 32) for n in config.labels]
    if config.casp is not None:
        train, test = harness.uci(config.casp, num_test=2000)
        module = MLP(num_classes=1, hidden=(128, 128), rate=0.05)
        chosen.append(Problem("CASP, 512 labels", module, on_device(train, 8000), on_device(test), 512, 600, 64))
    if config.cifar10:
        train, test = jax.tree.map(scaled, baal.data.cifar10(config.data_dir))
        module, name = SmallCNN(patch=2, rate=0.2), "CIFAR-10, 2,000 labels"
        chosen.append(Problem(name, module, on_device(train, 4000), on_device(test, 2000), 2000, 600, 64, 5))
    return chosen


def on_device(data: baal.Dataset, num: int | None = None) -> baal.Dataset:
    """The first examples."""
    return baal.Dataset(jnp.asarray(data.inputs[:num]), jnp.asarray(data.targets[:num]))


def scaled(x: np.ndarray) -> np.ndarray:
    """Bytes of images between minus one and one, as networks do for themselves: kernels do not."""
    return np.asarray(x, np.float32) / 127.5 - 1 if x.ndim == 4 else x


def make_posterior(name: str, problem: Problem) -> baal.Posterior:
    """A method on a problem, at the settings that all problems share."""
    model = baal.from_linen(problem.module)
    loss: Any = losses.squared_error if problem.is_regression else losses.cross_entropy
    if problem.is_regression and name == "bayes_by_backprop":
        # A variational method needs a likelihood: squared error in units of the noise's variance.
        loss = lambda outputs, targets: losses.squared_error(outputs, targets) / 0.6**2  # noqa: E731
    trainer = baal.trainer(optax.adam(2e-3), loss, num_steps=problem.num_steps, batch_size=problem.batch_size)
    match name:
        case "deterministic":
            return posteriors.deep_ensemble(model, trainer, num_members=1)
        case "mc_dropconnect":
            return posteriors.mc_dropconnect(model, trainer, rate=0.1)
        case "gaussian_process":
            size = {"num_classes": None if problem.is_regression else 10, "max_labelled": problem.num_labels}
            return posteriors.gaussian_process(kernels.dense(2), **size)
        case "laplace":
            return posteriors.laplace(model, trainer, structure="kronecker")
    return posteriors.REGISTRY[name](model, trainer)


def quality(name: str, problem: Problem, config: Config) -> dict[str, list[float]]:
    """All metrics of a method, one number a seed."""
    posterior = make_posterior(name, problem)
    draws = 1 if name == "deterministic" else config.num_samples
    predict = jax.jit(
        lambda key, state: baal.predict(key, posterior, state, problem.test.inputs, num_samples=draws, batch_size=256)
    )
    rows = []
    for seed in range(min(config.seeds, problem.most_seeds)):
        key_labels, key_fit, key_draws = jax.random.split(jax.random.key(config.seed + seed), 3)
        pool = baal.pool.label_randomly(key_labels, baal.pool.init(len(problem.train.targets)), problem.num_labels)
        labelled = baal.pool.labelled(pool)
        if seed == 0:  # compiles
            jax.block_until_ready(predict(key_draws, posterior.fit(key_fit, problem.train, labelled)))
        start = time.perf_counter()
        state = jax.block_until_ready(posterior.fit(key_fit, problem.train, labelled))
        fitted = time.perf_counter()
        outputs = np.asarray(predict(key_draws, state), np.float64)
        seconds = {"fit, s": fitted - start, "predict, s": time.perf_counter() - fitted}
        measure = regression if problem.is_regression else classification
        rows.append(measure(outputs, np.asarray(problem.test.targets)) | seconds)
    return {metric: [row[metric] for row in rows] for metric in rows[0]}


def classification(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Before and after one temperature, chosen on one half of the test set for the other."""
    mean = metrics.model_average(jnp.asarray(logits, jnp.float32))
    fit, apply = calibration.temperature(penalty=0.0)
    tempered, even = np.empty_like(mean), np.arange(len(targets)) % 2 == 0
    for part in (even, ~even):
        tempered[part] = jax.nn.log_softmax(apply(fit(mean[~part], targets[~part]), mean[part]))
    values = {}
    for name, metric in (("NLL", metrics.nll), ("Brier", metrics.brier), ("ECE", metrics.ece)):
        values |= {name: float(metric(mean, targets)), f"{name}, scaled": float(metric(tempered, targets))}
    return values | {"accuracy": float(metrics.accuracy(mean, targets))}


def regression(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """NLL of a Gaussian around the mean: the draws' variance and noise, then both scaled as temperature does."""
    outputs = outputs.reshape(len(outputs), len(targets))
    mean, spread = outputs.mean(axis=0), outputs.var(axis=0)
    squares = (targets - mean) ** 2

    def risk(noise: float, factor: float, part: np.ndarray) -> np.ndarray:
        variance = factor * spread[part] + noise
        return 0.5 * (np.log(2 * np.pi * variance) + squares[part] / variance)

    def best_noise(factor: float, part: np.ndarray) -> float:
        return float(np.exp(lowest(lambda log_noise: risk(np.exp(log_noise), factor, part).mean(), -8, 3)))

    def best_factor(part: np.ndarray) -> float:
        factors = lambda log_factor: (best_noise(np.exp(log_factor), part), np.exp(log_factor))  # noqa: E731
        return float(np.exp(lowest(lambda log_factor: risk(*factors(log_factor), part).mean(), -6, 6)))

    same_noise, fitted, even = np.empty_like(mean), np.empty_like(mean), np.arange(len(targets)) % 2 == 0
    for part in (even, ~even):
        same_noise[part] = risk(best_noise(1.0, ~part), 1.0, part)
        factor = best_factor(~part)
        fitted[part] = risk(best_noise(factor, ~part), factor, part)
    rmse = float(np.sqrt(squares.mean()))
    return {"NLL": float(same_noise.mean()), "NLL, scaled": float(fitted.mean()), "RMSE": rmse}


def lowest(function: Callable[[float], Any], low: float, high: float) -> float:
    """Where a function of one number is smallest."""
    minimum: Any = minimize_scalar(function, bounds=(low, high), method="bounded")
    return float(minimum.x)


def table(measured: dict[str, dict[str, list[float]]]) -> str:
    """Means, and the paired difference of NLL to the network alone."""
    columns = list(next(iter(measured.values())))
    rows = []
    for name, numbers in measured.items():
        difference = ""
        if name != "deterministic" and "deterministic" in measured:
            difference = harness.mean_error(np.subtract(numbers["NLL"], measured["deterministic"]["NLL"]), "+.3f")
        cells = [
            f"{np.median(numbers[column]):.2f}" if column.endswith(", s") else f"{np.mean(numbers[column]):.3f}"
            for column in columns
        ]
        rows.append((name, difference, *cells))
    return harness.table(("", "NLL − deterministic", *columns), rows)


def active(config: Config) -> Iterator[Results]:
    """BALD with every posterior, from twenty random labels, and random labelling with it; all so far each time."""
    train, test = baal.data.digits()
    problem = Problem("digits", MLP(hidden=(128, 128), rate=0.2), train, test, 110, 300, 32)
    acquisitions = {"BALD": selection.top_k(heuristics.bald), "random": selection.random()}
    size = harness.Rounds(seeds=config.seeds, seed=config.seed, rounds=9)
    for name in config.methods:
        if name != "deterministic":
            posterior = make_posterior(name, problem)
            loops = {f"{name}, {how}": harness.active_loop(size, posterior, acquisitions[how]) for how in acquisitions}
            yield harness.run_study(size, config.out / "active", loops, train, test)


def active_table(results: Results, target: float = 0.9) -> str:
    """Labels to the target accuracy, and the mean accuracy of all rounds against random's."""
    rows = []
    for name in dict.fromkeys(label.split(", ")[0] for label in results.runs):
        both = [results.runs[f"{name}, {how}"] for how in ("BALD", "random")]
        areas = [runs.metrics["accuracy"].mean(axis=1) for runs in both]
        labels = [
            np.median(statistics.labels_to_target(runs.num_labelled, runs.metrics["accuracy"], target)) for runs in both
        ]
        counts = [f"{count:.0f}" if np.isfinite(count) else "not reached" for count in labels]
        means = [f"{area.mean():.3f}" for area in areas]
        rows.append((name, *counts, *means, harness.mean_error(areas[0] - areas[1], "+.3f")))
    header = (f"labels to {target:.0%}, BALD", "random", "mean accuracy, BALD", "random", "difference")
    return harness.table(("", *header), rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
