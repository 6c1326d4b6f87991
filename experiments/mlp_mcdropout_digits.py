"""Active learning with MC-dropout against random labelling on handwritten digits: how many labels does it save?

Every strategy starts from the same random labels and uses the same trainer and the same keys; all its seeds are one
program. The data come with scikit-learn: 1,437 images to choose from, 360 held out. Prints a table, and writes
`curves.png` and `results.json`.

    python experiments/mlp_mcdropout_digits.py --model cnn --seeds 20 --rounds 12 --out results/digits_cnn

Median labels to 90 % accuracy: random 70, BALD 70, PowerBALD 60, margin 50. Two cores of an AMD EPYC with AVX-512,
882 s beside other work (docs/benchmarks.md). With the dense network of the default command and 5 seeds: random 90,
BALD 80, PowerBALD 70, margin 70.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import harness
import jax
import jax.numpy as jnp
import tyro
from models import MLP, SmallCNN
from tqdm import tqdm

import baal_jax as baal
from baal_jax import features, posteriors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training, harness.Rounds):
    """BALD against random labelling on scikit-learn's digits.

    Attributes:
        strategies: what to compare: a set selection by name ("random", "batch_bald", "badge", "lcmd", …), a heuristic
            by name (the top of its scores is labelled), or a stochastic selection and a heuristic joined by an
            underscore, such as "power_bald" or "softrank_entropy".
        model: dense 64-256-256-10, or a small convolutional network; dropout in both.
        coldness: of stochastic selections (inverse temperature): 0 is uniform, large values approach the top of the
            scores; automatic by default.
        target: accuracy for the "labels to reach it" lines.
    """

    strategies: tuple[str, ...] = ("random", "bald", "power_bald", "margin")
    model: Literal["mlp", "cnn"] = "mlp"
    seeds: int = 5
    coldness: float | None = None
    target: float = 0.9
    out: Path = Path("results/digits")


def main(config: Config) -> dict[str, harness.Curves]:
    """Runs every strategy, then reports."""
    start = time.perf_counter()
    train, test = jax.tree.map(jnp.asarray, baal.data.digits(image=config.model == "cnn"))
    loops = make_loops(config)
    with tqdm(total=len(loops) * config.rounds, unit="round") as progress:
        curves = harness.run_strategies(loops, config, train, test, progress)
    print(harness.learning_curve_table(curves, config.target))
    harness.report(config, start, curves, f"digits, {config.model}, {config.seeds} seeds", target=config.target)
    return curves


def make_loops(config: Config) -> dict[str, baal.ActiveLoop]:
    """The active loop of every strategy; everything but the acquisition is the same for all."""
    model = baal.from_linen(SmallCNN() if config.model == "cnn" else MLP())
    posterior = posteriors.mc_dropout(model, harness.trainer(config))
    # Features are read by set selections such as badge; elsewhere the compiler drops them.
    options: dict[str, Any] = {"features": features.last_hidden(model)}
    picks = {name: harness.acquisition(name, config.coldness) for name in config.strategies}
    return {name: harness.active_loop(config, posterior, how, **options) for name, how in picks.items()}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
