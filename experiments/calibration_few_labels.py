"""Calibration fitted to few labels must not hurt: NLL of a calibrated posterior over NLL of the same one as it is.

    python experiments/calibration_few_labels.py

Every scaling with its defaults in `calibrated` with its defaults, ten seeds; the ratio of the means and that of the
worst seed, in which .02 nats are forgiven.
"""

from __future__ import annotations

import argparse

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn import datasets

import baal_jax as baal
from baal_jax import calibration, losses, pool, posteriors

LABELS = (20, 50, 100, 200)
SOURCES = {
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "blobs": lambda **_: datasets.make_blobs(1500, 6, centers=5, cluster_std=4.0, random_state=1),
}


def halves(name: str) -> tuple[baal.Dataset, baal.Dataset]:
    """Standardised, three fifths to label and two to test."""
    inputs, targets = SOURCES[name](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))
    train, test = np.split(order, [len(order) * 3 // 5])
    inputs = (inputs - inputs[train].mean(axis=0)) / (inputs[train].std(axis=0) + 1e-6)
    parts = (baal.Dataset(inputs[ids].astype(np.float32), targets[ids].astype(np.int32)) for ids in (train, test))
    return next(parts), next(parts)


def network(num_classes: int, dropout: float) -> baal.Model:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            x = nn.relu(nn.Dense(64)(x))
            return nn.Dense(num_classes)(nn.Dropout(dropout, deterministic=not train)(x) if dropout else x)

    return baal.from_linen(Net())


def main(source: str, method: str, seeds: int) -> None:
    train, test = halves(source)
    model = network(int(train.targets.max()) + 1, 0.5 if method == "mc_dropout" else 0.0)
    raw = posteriors.REGISTRY[method](model, baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=200))
    kinds = {name: calibration.calibrated(raw, build()) for name, build in calibration.REGISTRY.items()} | {"raw": raw}
    values = {}
    for name, posterior in kinds.items():
        for labels in LABELS:
            for seed in range(seeds if labels <= len(train.targets) else 0):
                key = jax.random.key(seed)
                labelled = pool.labelled(pool.label_randomly(key, pool.init(len(train.targets)), labels))
                measured = baal.evaluate(jax.random.key(1), posterior, posterior.fit(key, train, labelled), test)
                values.setdefault((name, labels), []).append(float(measured["nll"]))
    for (name, labels), nll in values.items():
        base = np.array(values["raw", labels])
        mean, worst = np.mean(nll) / np.mean(base), np.max((np.array(nll) - 0.02) / base)
        print(
            f"{method} {source} {labels:4} {name:12} nll {np.mean(nll):.3f} mean {mean:.4f} worst {worst:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", nargs="+", default=[*SOURCES], choices=[*SOURCES])
    parser.add_argument("--method", default="mc_dropout", choices=["mc_dropout", "deep_ensemble", "laplace"])
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    for each in arguments.sources:
        main(each, arguments.method, arguments.seeds)
