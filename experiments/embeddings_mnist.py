"""Which embeddings to label first, with heads that need no tuning: logistic regression and a Gaussian process.

    python experiments/embeddings_mnist.py --npz mnist_vae.npz

MNIST as ten numbers an image, each standardised. One study compares all strategies with all heads, seed by seed; its
folder holds a table and figures of all rounds, and `baal-jax report FOLDER` makes a page of it. Embeddings of your own
are compared by `baal-jax study FOLDER --data embeddings.npz --posteriors logistic_regression_point`.

Accuracy with 100, 200 and 300 labels, 20 seeds: margin .798/.890/.909 with the Bayesian logistic regression and
.831/.896/.911 with its likeliest weights alone (`--heads point`); random .755/.840/.870 and .792/.852/.876; BADGE
.761/.847/.881, LCMD .766/.841/.873, BALD .724/.807/.840. Twenty draws of a wide Gaussian are a noisier mean than its
centre. A Gaussian process with margin reaches .848/.902/.928 (4 seeds, 86 s).
`--heads point --strategies random margin entropy least_confidence` takes 40 s in all on two cores of an AMD EPYC; the
logistic head about 30 s a strategy, TypiClust and the Gaussian process far longer.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import harness
import tyro

import baal_jax as baal
from baal_jax import posteriors, study
from baal_jax.study import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Rounds):
    """Strategies and heads on embeddings.

    Attributes:
        strategies: selections by name; "random" is what the others are compared with.
        heads: of logistic (Bayesian, its prior the likeliest), point (its likeliest weights alone) and gp.
        npz: `train_inputs`, `train_targets`, `test_inputs` and `test_targets`.
    """

    strategies: tuple[str, ...] = ("random", "margin", "bald", "badge", "typiclust", "lcmd")
    heads: tuple[str, ...] = ("logistic", "gp")
    npz: Path = Path("../shared/data/mnist_vae.npz")
    seeds: int = 20
    rounds: int = 29
    out: Path = Path("results/embeddings_mnist")


def main(config: Config) -> study.results.Results:
    """Runs the study and prints its table."""
    start = time.perf_counter()
    study.use_all_cores()
    train, test = read(config)
    num_classes = int(train.targets.max()) + 1
    most = config.num_initial + config.rounds * config.query_size
    heads = {
        "logistic": posteriors.logistic_regression(num_classes),
        "point": posteriors.logistic_regression(num_classes, point_estimate=True),
        "gp": posteriors.gaussian_process(posteriors.kernels.rbf(), num_classes=num_classes, max_labelled=most),
    }
    if unknown := {*config.heads} - {*heads}:
        raise SystemExit(f"--heads {' '.join(sorted(unknown))} must be of {', '.join(heads)}")
    loops = study.strategies(
        {name: heads[name] for name in config.heads},
        {name: harness.acquisition(name) for name in config.strategies},
        query_size=config.query_size,
        num_samples=config.num_samples,
        features=lambda state, inputs: inputs,
        batch_size=1024,
    )
    results = harness.run_study(
        config, config.out, loops, train, test, name="Embeddings", baseline=next(iter(loops)), metric="accuracy"
    )
    print(statistics.markdown(statistics.summary(results)))
    for name, runs in results.runs.items():
        for labels in (100, 200, 300):
            accuracy = runs.metrics["accuracy"][runs.num_labelled == labels]
            if accuracy.size:
                print(f"{name:24} {labels:4} labels  accuracy {accuracy.mean():.4f}")
    print(f"{config.seeds} seeds of {len(loops)} loops in {time.perf_counter() - start:.0f} s")
    return results


def read(config: Config) -> tuple[baal.Dataset, baal.Dataset]:
    """Standardised embeddings to choose from, and those held out."""
    try:
        opened = baal.data.open(config.npz)
    except ValueError as error:
        raise SystemExit(f"--npz: {error}") from None
    assert opened.test is not None
    mean, std = opened.train.inputs.mean(axis=0), opened.train.inputs.std(axis=0) + 1e-6
    train, test = (part._replace(inputs=(part.inputs - mean) / std) for part in (opened.train, opened.test))
    return train, test


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
