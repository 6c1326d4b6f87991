"""What this code picks: every selection with five posteriors, and a small study, to compare before and after a change.

    python tests/picks.py --write picks.json     # before
    python tests/picks.py --compare picks.json   # after, same machine and jax: exit status 1 where a pick differs

tests/golden/picks.json holds those of 2026-11-28 with jax 0.10.2. Indices are compared exactly, numbers to rounding.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import pathlib
import sys
import tempfile
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

import baal_jax as baal
from baal_jax import features, heuristics, losses, posteriors, selection, study

RANKED = {"top_k", "power", "softmax", "softrank"}


class Net(nn.Module):
    """Two hidden layers with dropout, small enough to compile a hundred times."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(24)(x))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(16)(x))))


def acquisitions() -> dict[str, Any]:
    built = {}
    for name, builder in selection.REGISTRY.items():
        built[name] = builder(heuristics.bald) if name in RANKED else builder()
    return built


def ways() -> dict[str, tuple[Any, Any]]:
    """Posterior and features by name."""
    model = baal.from_linen(Net())
    fit = baal.trainer(optax.adam(3e-3), losses.cross_entropy, num_steps=60, batch_size=16)
    hidden = features.last_hidden(model)
    names = ("mc_dropout", "deep_ensemble", "swag", "laplace")
    found = {name: (posteriors.REGISTRY[name](model, fit), hidden) for name in names}
    process = posteriors.gaussian_process(posteriors.kernels.dense(2), num_classes=10, num_features=128)
    return {**found, "gaussian_process": (process, lambda state, inputs: inputs)}


def two_rounds(posterior: Any, acquisition: Any, features_of: Any, train: Any, test: Any) -> dict[str, Any]:
    loop = baal.active_loop(posterior, acquisition, query_size=5, num_samples=10, batch_size=128, features=features_of)
    state = loop.init(jax.random.key(1), train, num_initial=20)
    rounds = []
    for _ in range(2):
        state, info = loop.step(state, train, test.inputs[:20])
        metrics = loop.evaluate(state, test)
        rounds.append(
            {
                "indices": np.asarray(info.indices).tolist(),
                "mean_score": float(info.mean_score),
                "metrics": {name: float(metrics[name]) for name in ("accuracy", "nll")},
            }
        )
    return {"rounds": rounds}


def small_study(train: Any, test: Any) -> dict[str, Any]:
    posterior = ways()["mc_dropout"][0]
    picks = {name: selection.by_name(name) for name in ("random", "bald", "batch_bald")}
    strategies = study.strategies(posterior, picks, query_size=5, num_samples=10)
    with tempfile.TemporaryDirectory() as home:
        results = study.run(
            home, strategies, train, test, key=jax.random.key(2), num_seeds=3, num_rounds=3, num_initial=20
        )
        table = (pathlib.Path(home) / "results.csv").read_text(encoding="utf-8")
    return {
        "indices": {name: runs.indices.tolist() for name, runs in results.runs.items()},
        "table": table.splitlines(),
    }


def picks() -> dict[str, Any]:
    train, test = baal.data.digits()
    train, test = (baal.Dataset(data.inputs[:300], data.targets[:300]) for data in (train, test))
    found: dict[str, Any] = {"jax": jax.__version__, "jaxlib": importlib.metadata.version("jaxlib"), "loops": {}}
    for way, (posterior, features_of) in ways().items():
        for name, acquisition in acquisitions().items():
            print(way, name, file=sys.stderr, flush=True)
            found["loops"][f"{way}, {name}"] = two_rounds(posterior, acquisition, features_of, train, test)
    found["study"] = small_study(train, test)
    return found


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Where two records differ; numbers may in their last digits."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line for name in old.keys() & new.keys() for line in differences(old[name], new[name], f"{where}/{name}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line for i, pair in enumerate(zip(old, new, strict=True)) for line in differences(*pair, f"{where}/{i}")
        ]
    if isinstance(old, str) and isinstance(new, str) and "," in old:
        return differences(old.split(","), new.split(","), where)
    try:
        same = old == new or bool(np.isclose(float(old), float(new), rtol=1e-4, atol=1e-5, equal_nan=True))
    except (TypeError, ValueError):
        same = False
    return [] if same else [f"{where}: {old!r}, now {new!r}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--compare", type=pathlib.Path)
    wanted = parser.parse_args()
    found = picks()
    if wanted.write:
        wanted.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if wanted.compare:
        old = json.loads(wanted.compare.read_text(encoding="utf-8"))
        old["loops"] = {name.replace(", epig", ", top_k_epig"): loop for name, loop in old["loops"].items()}
        gone = sorted(old["loops"].keys() - found["loops"].keys())
        lines = differences(old, found)
        print(*lines, sep="\n")
        print(f"{len(found['loops'])} loops and a study: {len(lines)} differences; no longer there: {gone}")
        return int(bool(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
