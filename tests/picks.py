"""What this code picks: two rounds of every selection with five posteriors, to compare before and after a change.

    python tests/picks.py --write picks.json     # before
    python tests/picks.py --compare picks.json   # after, same machine and jax: exit status 1 where a pick differs

tests/golden/picks.json holds those of 2026-11-28 with jax 0.10.2. Indices are compared exactly, numbers to rounding.
"""

import argparse
import json
import pathlib
import sys

import flax.linen as nn
import jax
import numpy as np
import optax

import baal_jax as baal
from baal_jax import features, heuristics, losses, posteriors, selection


class Net(nn.Module):
    """Two hidden layers with dropout, small enough to compile a hundred times."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(24)(x))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(16)(x))))


def ways():
    """Posterior and features by name."""
    model = baal.from_linen(Net())
    fit = baal.trainer(optax.adam(3e-3), losses.cross_entropy, num_steps=60, batch_size=16)
    hidden = features.last_hidden(model)
    names = ("mc_dropout", "deep_ensemble", "swag", "laplace")
    found = {name: (posteriors.REGISTRY[name](model, fit), hidden) for name in names}
    process = posteriors.gaussian_process(posteriors.kernels.dense(2), num_classes=10, num_features=128)
    return {**found, "gaussian_process": (process, lambda state, inputs: inputs)}


def two_rounds(posterior, acquisition, features_of, train, test):
    loop = baal.active_loop(posterior, acquisition, query_size=5, num_samples=10, batch_size=128, features=features_of)
    state = loop.init(jax.random.key(1), train, num_initial=20)
    rounds = []
    for _ in range(2):
        state, info = loop.step(state, train, test.inputs[:20])
        metrics = {name: float(loop.evaluate(state, test)[name]) for name in ("accuracy", "nll")}
        numbers = {"mean_score": float(info.mean_score), "metrics": metrics}
        rounds.append({"indices": np.asarray(info.indices).tolist(), **numbers})
    return {"rounds": rounds}


def picks():
    train, test = (baal.Dataset(data.inputs[:300], data.targets[:300]) for data in baal.data.digits())
    found = {}
    for way, (posterior, features_of) in ways().items():
        for name, builder in selection.REGISTRY.items():
            print(way, name, file=sys.stderr, flush=True)
            is_ranked = name in ("top_k", "power", "softmax", "softrank")
            acquisition = builder(heuristics.bald) if is_ranked else builder()
            found[f"{way}, {name}"] = two_rounds(posterior, acquisition, features_of, train, test)
    return {"jax": jax.__version__, "loops": found}


def differences(old, new, where=""):
    """Where two records differ; numbers may in their last digits."""
    if isinstance(old, dict):
        return [
            line for name in old.keys() & new.keys() for line in differences(old[name], new[name], f"{where}/{name}")
        ]
    if isinstance(old, list):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (left, right) in pairs for line in differences(left, right, f"{where}/{i}")]
    same = old == new or (isinstance(old, float) and np.isclose(old, new, rtol=1e-4, atol=1e-5, equal_nan=True))
    return [] if same else [f"{where}: {old!r}, now {new!r}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--compare", type=pathlib.Path)
    wanted, found = parser.parse_args(), picks()
    if wanted.write:
        wanted.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if wanted.compare:
        old = json.loads(wanted.compare.read_text(encoding="utf-8"))
        print(*(lines := differences(old, found)), sep="\n")
        gone = sorted(old["loops"].keys() - found["loops"].keys())
        print(f"{len(found['loops'])} loops: {len(lines)} differences; no longer there: {gone}")
        sys.exit(bool(lines))
