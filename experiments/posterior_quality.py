"""How good is each posterior, trained on few labels? And how many labels does active learning save with it?

Every method sees the same labels, network, optimizer and seeds, on scikit-learn's digits and, where their data are at
hand, on the protein set (CASP) and on a part of CIFAR-10. `deterministic` is the network alone. Prints tables in
Markdown, and writes them with all numbers to `results.json`.

    python experiments/posterior_quality.py --casp protein-tertiary-structure.txt --cifar10

Results, hardware and command: see docs/posteriors.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from models import MLP, SmallCNN
from scipy.optimize import minimize_scalar
from tqdm import tqdm

import baal_jax as baal
from baal_jax import heuristics, losses, metrics, posteriors, selection, study
from baal_jax.posteriors import kernels
from baal_jax.study import statistics
from baal_jax.study.results import Results


@dataclasses.dataclass(frozen=True)
class Config:
    """Posteriors beside each other."""

    methods: tuple[str, ...] = ("deterministic", *posteriors.REGISTRY, "gaussian_process")
    """What to compare."""

    labels: tuple[int, ...] = (50, 200)
    """Labels on digits."""

    casp: Path | None = None
    """The protein set as a text file; left out without it."""

    cifar10: bool = False
    """A part of CIFAR-10 as well, with at most five seeds."""

    data_dir: Path | None = None
    """Where CIFAR-10 is, by default in TFDS_DATA_DIR."""

    active: bool = True
    """Active learning on digits with every method."""

    seeds: int = 20
    """Independent runs, paired over the methods."""

    num_samples: int = 30
    """Draws of a prediction."""

    out: Path = Path("results/posterior_quality")
    """Folder for results.json, and for the study of active learning."""


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

    def report(title: str, found: Any, text: str) -> None:
        """Prints a table, and writes all that there is so far."""
        numbers[title], tables[title] = found, text
        print(f"\n### {title}\n\n{text}\n", flush=True)
        content = {
            "config": dataclasses.asdict(config),
            "environment": study.environment(),
            "seconds": round(time.perf_counter() - start, 1),
            "tables": tables,
            "numbers": numbers,
        }
        study.results.write_json(config.out / "results.json", content)

    for problem in problems(config):
        found = {name: quality(name, problem, config) for name in tqdm(config.methods, problem.name)}
        report(problem.name, found, table(found))
    if config.active:
        for found in active(config):
            numbers_of = {name: runs.metrics for name, runs in found.runs.items()}
            report("active learning on digits", numbers_of, active_table(found))
    print(f"wrote {config.out / 'results.json'} in {time.perf_counter() - start:.0f} s")
    return numbers


def problems(config: Config) -> list[Problem]:
    """Digits, and what else is asked for."""
    train, test = jax.tree.map(jnp.asarray, baal.data.digits())
    found = [
        Problem(f"digits, {n} labels", MLP(hidden=(128, 128), rate=0.2), train, test, n, 400, 32) for n in config.labels
    ]
    if config.casp is not None:
        train, test, *_ = baal.data.uci(config.casp, num_test=2000)
        module = MLP(num_classes=1, hidden=(128, 128), rate=0.05)
        found.append(Problem("CASP, 512 labels", module, on_device(train, 8000), on_device(test), 512, 600, 64))
    if config.cifar10:
        train, test = (scaled(part) for part in baal.data.cifar10(config.data_dir))
        module = SmallCNN(patch=2, rate=0.2)
        found.append(
            Problem("CIFAR-10, 2,000 labels", module, on_device(train, 4000), on_device(test, 2000), 2000, 600, 64, 5)
        )
    return found


def on_device(data: baal.Dataset, num: int | None = None) -> baal.Dataset:
    """The first examples."""
    return baal.Dataset(jnp.asarray(data.inputs[:num]), jnp.asarray(data.targets[:num]))


def scaled(data: baal.Dataset) -> baal.Dataset:
    """Bytes between minus one and one, as networks do for themselves: kernels do not."""
    return baal.Dataset(np.asarray(data.inputs, np.float32) / 127.5 - 1, data.targets)


def make_posterior(name: str, problem: Problem) -> baal.Posterior:
    """A method on a problem, at the settings that all problems share."""
    model = baal.from_linen(problem.module)
    loss: Callable[..., jax.Array] = losses.squared_error if problem.is_regression else losses.cross_entropy
    if problem.is_regression and name == "bayes_by_backprop":
        # A variational method needs a likelihood: squared error in units of the noise's variance.
        loss = scaled_error
    trainer = baal.trainer(optax.adam(2e-3), loss, num_steps=problem.num_steps, batch_size=problem.batch_size)
    match name:
        case "deterministic":
            return posteriors.deep_ensemble(model, trainer, num_members=1)
        case "mc_dropconnect":
            return posteriors.mc_dropconnect(model, trainer, rate=0.1)
        case "gaussian_process":
            num_classes = None if problem.is_regression else 10
            return posteriors.gaussian_process(
                kernels.dense(2), num_classes=num_classes, max_labelled=problem.num_labels
            )
        case "laplace":
            return posteriors.laplace(model, trainer, structure="kronecker")
    return posteriors.REGISTRY[name](model, trainer)


def scaled_error(outputs: jax.Array, targets: jax.Array, noise: float = 0.6) -> jax.Array:
    """Minus the log-likelihood under noise of this standard deviation, but for a constant."""
    return losses.squared_error(outputs, targets) / noise**2


def quality(name: str, problem: Problem, config: Config) -> dict[str, list[float]]:
    """All metrics of a method, one number a seed."""
    posterior = make_posterior(name, problem)
    draws = 1 if name == "deterministic" else config.num_samples
    predict = jax.jit(
        lambda key, state: baal.predict(key, posterior, state, problem.test.inputs, num_samples=draws, batch_size=256)
    )
    rows = []
    for seed in range(min(config.seeds, problem.most_seeds)):
        key_labels, key_fit, key_draws = jax.random.split(jax.random.key(seed), 3)
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


def lowest(function: Callable[[float], Any], low: float, high: float) -> float:
    """Where a function of one number is smallest."""
    found: Any = minimize_scalar(function, bounds=(low, high), method="bounded")
    return float(found.x)


def classification(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Before and after one temperature, chosen on one half of the test set for the other."""
    mean = np.asarray(metrics.model_average(jnp.asarray(logits, jnp.float32)))
    scaled = np.empty_like(mean)
    for part in (np.arange(len(targets)) % 2 == 0, np.arange(len(targets)) % 2 == 1):

        def risk(log_t: float, part: np.ndarray = ~part) -> float:
            return float(metrics.nll(jax.nn.log_softmax(mean[part] / np.float32(np.exp(log_t))), targets[part]))

        log_t = lowest(risk, -3, 3)
        scaled[part] = jax.nn.log_softmax(mean[part] / np.float32(np.exp(log_t)))
    return {
        "NLL": float(metrics.nll(mean, targets)),
        "NLL, scaled": float(metrics.nll(scaled, targets)),
        "Brier": float(metrics.brier(mean, targets)),
        "Brier, scaled": float(metrics.brier(scaled, targets)),
        "ECE": float(metrics.ece(mean, targets)),
        "ECE, scaled": float(metrics.ece(scaled, targets)),
        "accuracy": float(metrics.accuracy(mean, targets)),
    }


def regression(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """NLL of a Gaussian around the mean: the draws' variance and noise, then both scaled as temperature does."""
    outputs = outputs.reshape(len(outputs), len(targets))
    mean, spread = outputs.mean(axis=0), outputs.var(axis=0)
    squares = (targets - mean) ** 2

    def risk(noise: float, factor: float, part: np.ndarray) -> np.ndarray:
        variance = factor * spread[part] + noise
        return 0.5 * (np.log(2 * np.pi * variance) + squares[part] / variance)

    same_noise, fitted = np.empty_like(mean), np.empty_like(mean)
    for part in (np.arange(len(targets)) % 2 == 0, np.arange(len(targets)) % 2 == 1):

        def best(factor: float, part: np.ndarray = ~part) -> float:
            return float(np.exp(lowest(lambda t: risk(np.exp(t), factor, part).mean(), -8, 3)))

        def best_risk(log_factor: float, part: np.ndarray = ~part) -> float:
            factor = float(np.exp(log_factor))
            return risk(best(factor, part), factor, part).mean()

        same_noise[part] = risk(best(1.0), 1.0, part)
        factor = float(np.exp(lowest(best_risk, -6, 6)))
        fitted[part] = risk(best(factor), factor, part)
    return {
        "NLL": float(same_noise.mean()),
        "NLL, scaled": float(fitted.mean()),
        "RMSE": float(np.sqrt(squares.mean())),
    }


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Means, and the paired difference of NLL to the network alone."""
    columns = list(next(iter(found.values())))
    lines = ["| | NLL − deterministic | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, numbers in found.items():
        cells = []
        if name != "deterministic" and "deterministic" in found:
            difference = np.subtract(numbers["NLL"], found["deterministic"]["NLL"])
            cells.append(f"{difference.mean():+.3f} ± {statistics.standard_error(difference):.3f}")
        else:
            cells.append("")
        for column in columns:
            values = np.asarray(numbers[column])
            cells.append(f"{np.median(values):.2f}" if column.endswith(", s") else f"{values.mean():.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def active(config: Config) -> Iterator[Results]:
    """BALD with every posterior, from twenty random labels, and random labelling with it; all so far each time."""
    train, test = baal.data.digits()
    problem = Problem("digits", MLP(hidden=(128, 128), rate=0.2), train, test, 110, 300, 32)
    acquisitions = {"BALD": selection.top_k(heuristics.bald), "random": selection.random()}
    for name in config.methods:
        if name == "deterministic":
            continue
        yield study.run(
            config.out / "active",
            study.grid({name: make_posterior(name, problem)}, acquisitions, query_size=10, num_samples=20),
            train,
            test,
            key=jax.random.key(0),
            num_seeds=config.seeds,
            num_rounds=9,
            num_initial=20,
            progress=True,
        )


def active_table(found: Results, target: float = 0.9) -> str:
    """Labels to the target accuracy, and the mean accuracy of all rounds against random's."""
    lines = [
        f"| | labels to {target:.0%}, BALD | random | mean accuracy, BALD | random | difference |",
        "|---" * 6 + "|",
    ]
    for name in dict.fromkeys(label.split(", ")[0] for label in found.runs):
        both = [found.runs[f"{name}, {how}"] for how in ("BALD", "random")]
        areas = [runs.metrics["accuracy"].mean(axis=1) for runs in both]
        labels = [
            np.median(statistics.labels_to_target(runs.num_labelled, runs.metrics["accuracy"], target)) for runs in both
        ]
        difference = areas[0] - areas[1]
        text = f"{difference.mean():+.3f} ± {statistics.standard_error(difference):.3f}"
        counts = " | ".join("not reached" if not np.isfinite(count) else f"{count:.0f}" for count in labels)
        lines.append(f"| {name} | {counts} | {areas[0].mean():.3f} | {areas[1].mean():.3f} | {text} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
