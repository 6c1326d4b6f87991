"""Batch active learning for regression on UCI sets, batches of 256, as in Holzmüller et al. 2022: LCMD, max-det, BAIT.

An MLP 512-512 starts from 256 random labels and asks for 256 at a time. As in the paper its layers are in NTK
parametrisation with SiLU, and 1,024 validation examples decide which weights are kept. `lcmd` picks from clusters of
the network's gradient (sketched to 512 numbers), `max_det` maximises the determinant of the Monte-Carlo dropout
covariance, and `max_diag` takes the largest variances alone: the warning. All strategies share splits, first labels
and trainer. Prints the table of log RMSE, and writes `curves.png` and `results.json`.

    python experiments/uci_regression.py protein-tertiary-structure.txt --strategies random lcmd max_det max_diag

Log RMSE on CASP at 2,304 labels, minus random: LCMD +.003 ± .006, max-det +.045 ± .005, max-diag +.063 ± .008. Two
cores of an AMD EPYC with AVX-512 (docs/benchmarks.md). kin8nm has not been run.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import baal_jax as baal
from baal_jax import features, losses, posteriors, selection
from baal_jax.selection.sets import feature_maps, transforms


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training, harness.Rounds):
    """Batch active learning for regression.

    Attributes:
        paths: text files, one example a line, the target in the last column.
        strategies: what to compare: "random", "lcmd", "max_det", "max_diag", or "bait" and "k_means_pp" on the
            gradients.
        seeds: independent splits into pool and test set; strategies share them.
        num_test: examples held out.
        pool_size: examples to choose from, at most.
        num_validation: labelled examples that choose among the weights of a fit, as in the paper; 0 keeps the last
            weights.
        sketch_size: numbers that a gradient is projected to.
        noise: standard deviation of observation noise where a Gaussian process is meant, in units of the prior's.
        rate: of dropout.
        validate_every: steps between two looks at the validation examples.
        learning_rate: of Adam at the start; it falls linearly to zero.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    strategies: tuple[str, ...] = ("random", "lcmd", "max_det", "max_diag")
    seeds: int = 10
    num_test: int = 2000
    pool_size: int = 50_000
    num_validation: int = 1024
    num_initial: int = 256
    query_size: int = 256
    rounds: int = 9
    num_samples: int = 16
    sketch_size: int = 512
    noise: float = 0.1
    rate: float = 0.05
    num_steps: int = 1000
    batch_size: int = 128
    validate_every: int = 25
    learning_rate: float = 0.15
    out: Path = Path("results/uci_regression")


class Dense(nn.Module):
    """A dense layer in NTK parametrisation: weights of size one, the factor that they would have had is fixed."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, D] -> [B, width]``."""
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return (x @ kernel) * (0.5 / x.shape[-1] ** 0.5) + bias[None]


class MLP(nn.Module):
    """Dense layers, each followed by SiLU and dropout."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, D] -> [B, 1]``."""
        x = 5 * jnp.tanh(x / 5)  # no input is far out
        for width in (512, 512):
            x = nn.Dropout(self.rate, deterministic=not train)(nn.silu(Dense(width)(x)))
        return Dense(1)(x)


def main(config: Config) -> dict[str, dict[str, harness.Curves]]:
    """Every strategy on every split of every set, then the report."""
    start = time.perf_counter()
    curves: dict[str, dict[str, harness.Curves]] = {path.stem: {} for path in config.paths}
    with tqdm(total=len(config.paths) * len(config.strategies) * config.seeds, unit="run") as progress:
        for path in config.paths:
            for name in config.strategies:
                curves[path.stem][name] = run(name, path, config, progress)
                harness.write(config, time.perf_counter() - start, sets=curves)  # what there is so far
            print(table(path.stem, curves[path.stem]), flush=True)
    panels = [(strategies, "rmse", stem) for stem, strategies in curves.items()]
    drawn = harness.draw(config.out / "curves.png", f"{config.seeds} splits", *panels)
    print(f"{config.seeds} splits in {time.perf_counter() - start:.0f} s; wrote {drawn} and results.json beside it")
    return curves


def make_loop(name: str, config: Config, validation: baal.Dataset | None) -> baal.ActiveLoop:
    """The active loop of a strategy; everything but the acquisition is the same for all."""
    model = baal.from_linen(MLP(config.rate))
    rates = optax.linear_schedule(config.learning_rate, 0.0, config.num_steps)
    options = {"validation": validation, "validate_every": config.validate_every}
    trainer = harness.trainer(config, losses.squared_error, rates, **options)
    posterior, gradient = posteriors.mc_dropout(model, trainer), features.gradient(model, config.sketch_size)
    return harness.active_loop(config, posterior, acquisition(name, config.noise), batch_size=1024, features=gradient)


def acquisition(name: str, noise: float) -> baal.Acquisition:
    """A strategy by its name on the command line."""
    gradients, draws, scaled = feature_maps.embedding, feature_maps.draws, [transforms.scale()]
    strategies = {
        "random": selection.random(),
        "lcmd": selection.lcmd(gradients),
        "k_means_pp": selection.k_means_pp(gradients),
        "bait": selection.bait(gradients, scaled, noise, oversampling=1.0),
        "max_det": selection.max_det(draws, scaled, noise, use_labelled=False),
        "max_diag": selection.max_diag(draws),
    }
    if name not in strategies:
        raise SystemExit(f"strategy {name!r} is unknown: use one of {', '.join(strategies)}")
    return strategies[name]


def run(name: str, path: Path, config: Config, progress: tqdm) -> harness.Curves:
    """One strategy on every split; equal shapes, so that it compiles once."""

    @jax.jit
    def one_split(key: jax.Array, train: baal.Dataset, validation: baal.Dataset | None, test: baal.Dataset) -> Any:
        loop = make_loop(name, config, validation)
        return baal.run(loop, key, train, test, num_initial=config.num_initial, num_rounds=config.rounds)[1]

    splits = []
    for split in range(config.seeds):
        train, test = harness.uci(path, num_test=config.num_test, seed=config.seed + split)
        order = np.random.default_rng(split).permutation(len(train.targets))
        parts = np.split(order[: config.num_validation + config.pool_size], [config.num_validation])
        validation, train = (baal.Dataset(train.inputs[part], train.targets[part]) for part in parts)
        key = jax.random.fold_in(jax.random.key(config.seed), split)
        infos = one_split(key, train, validation if config.num_validation else None, test)
        splits.append(jax.tree.map(np.asarray, infos))
        harness.show(progress, f"{path.stem}, {name}, split {split}", rmse=splits[-1].metrics["rmse"][-1])
    infos = jax.tree.map(lambda *values: np.stack(values), *splits)
    return harness.Curves(infos.num_labelled[0], infos.metrics)


def table(title: str, curves: dict[str, harness.Curves]) -> str:
    """Log RMSE, averaged over the rounds after the first labels (Holzmüller et al., section 6), and at the end."""
    logs = {name: np.log(np.asarray(curve.metrics["rmse"])) for name, curve in curves.items()}
    means = {name: values[:, 1:].mean(axis=1) for name, values in logs.items()}
    rows = []
    for name, mean in means.items():
        paired = "random" in curves and name != "random"
        difference = harness.mean_error(mean - means["random"], "+.4f") if paired else ""
        rows.append((name, harness.mean_error(mean, ".4f"), difference, f"{logs[name][:, -1].mean():.4f}"))
    return harness.table((title, "mean log RMSE", "minus random", "log RMSE at the end"), rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
