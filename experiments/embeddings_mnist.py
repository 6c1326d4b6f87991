"""Which embeddings to label first, with heads that need no tuning: logistic regression and a Gaussian process.

    python experiments/embeddings_mnist.py                                  # MNIST, ten numbers an image
    python experiments/embeddings_mnist.py --npz embeddings.npz             # your own

Your own file holds `inputs [N, D]` and `targets int[N]`, of which `--num-test` are held out, or `train_inputs`,
`train_targets`, `test_inputs` and `test_targets`, as `numpy.savez` writes them. Embeddings are standardised. One study
compares all strategies with all heads, seed by seed; its folder holds a table and figures of all rounds, and
`baal-jax report FOLDER` makes a page of it.

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
import numpy as np
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
        npz: embeddings and labels.
        num_test: examples held out, of a file that has no test set.
    """

    strategies: tuple[str, ...] = ("random", "margin", "bald", "badge", "typiclust", "lcmd")
    heads: tuple[str, ...] = ("logistic", "gp")
    npz: Path = Path("../shared/data/mnist_vae.npz")
    num_test: int = 1000
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
        with np.load(config.npz) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise SystemExit(f"--npz {config.npz}: {error}") from None
    if {"inputs", "targets"} <= {*arrays}:
        total = len(arrays["targets"])
        if not 0 < config.num_test < total:
            raise SystemExit(f"--num-test {config.num_test} must lie between 1 and the {total} examples there are")
        order = np.random.default_rng(config.seed).permutation(total)
        for part, ids in (("test", order[: config.num_test]), ("train", order[config.num_test :])):
            arrays |= {f"{part}_{name}": arrays[name][ids] for name in ("inputs", "targets")}
    names = "train_inputs", "train_targets", "test_inputs", "test_targets"
    if missing := {*names} - {*arrays}:
        raise SystemExit(f"--npz {config.npz} holds {', '.join(arrays)}, but not {', '.join(sorted(missing))}")
    inputs, targets, test_inputs, test_targets = (arrays[name] for name in names)
    mean, std = inputs.mean(axis=0), inputs.std(axis=0) + 1e-6
    standard = [((part - mean) / std).astype(np.float32) for part in (inputs, test_inputs)]
    return baal.Dataset(standard[0], targets.astype(np.int32)), baal.Dataset(standard[1], test_targets.astype(np.int32))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
