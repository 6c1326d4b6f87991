"""Which sets should a regression network have labelled? Batches of 256 on UCI sets, as in Holzmüller et al. 2022.

An MLP 512-512 starts from 256 random labels and asks for 256 at a time. As in the paper its layers are in NTK
parametrisation with SiLU, and 1,024 validation examples decide which weights are kept. `lcmd` picks from clusters of
the network's gradient (sketched to 512 numbers), `max_det` maximises the determinant of the Monte-Carlo dropout
covariance, and `max_diag` takes the largest variances alone: the warning. All strategies share splits, first labels
and trainer.

    python experiments/uci_regression.py protein-tertiary-structure.txt kin8nm.txt

Prints the table of log RMSE, and writes `curves.png` and `results.json`. Result, hardware and command: see
docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from tqdm import tqdm

import baal_jax as baal
from baal_jax import features, losses, posteriors, selection, study
from baal_jax.selection.sets import feature_maps, transforms
from baal_jax.study import plots, statistics

matplotlib.use("agg")


@dataclasses.dataclass(frozen=True)
class Config:
    """Batch active learning for regression."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Text files, one example a line, the target in the last column."""

    strategies: tuple[str, ...] = ("random", "lcmd", "max_det", "max_diag")
    """What to compare: any of these four, or "bait" and "k_means_pp" on the gradients."""

    splits: int = 10
    """Independent splits into pool and test set; strategies share them."""

    num_test: int = 2000
    """Examples held out."""

    pool_size: int = 50_000
    """Examples to choose from, at most."""

    num_validation: int = 1024
    """Labelled examples that choose among the weights of a fit, as in the paper; 0 keeps the last weights."""

    num_initial: int = 256
    """Labels drawn at random first."""

    query_size: int = 256
    """Labels of a round."""

    rounds: int = 9
    """Fits; the last one sees num_initial + (rounds - 1) * query_size labels."""

    num_samples: int = 16
    """Monte-Carlo dropout draws."""

    sketch_size: int = 512
    """Numbers that a gradient is projected to."""

    noise: float = 0.1
    """Standard deviation of observation noise where a Gaussian process is meant, in units of the prior's."""

    rate: float = 0.05
    """Of dropout."""

    num_steps: int = 1000
    """Adam steps of every fit, with a rate that falls linearly to zero."""

    batch_size: int = 128
    """Labelled examples in a step."""

    validate_every: int = 25
    """Steps between two looks at the validation examples."""

    learning_rate: float = 0.15
    """Of Adam at the start."""

    seed: int = 0
    """Of everything."""

    out: Path = Path("results/uci_regression")
    """Folder for curves.png and results.json."""


class Dense(nn.Module):
    """A dense layer in NTK parametrisation: weights of size one, the factor that they would have had is fixed."""

    width: int
    weight_gain: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, D] -> [B, width]``."""
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return (x @ kernel) * (self.weight_gain / x.shape[-1] ** 0.5) + bias[None]


class MLP(nn.Module):
    """Dense layers, each followed by SiLU and dropout."""

    rate: float
    hidden: tuple[int, ...] = (512, 512)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, D] -> [B, 1]``."""
        x = 5 * jnp.tanh(x / 5)  # no input is far out
        for width in self.hidden:
            x = nn.Dropout(self.rate, deterministic=not train)(nn.silu(Dense(width)(x)))
        return Dense(1)(x)


def main(config: Config) -> dict[str, dict[str, plots.Curves]]:
    """Every strategy on every split of every set, then the report."""
    start = time.perf_counter()
    results: dict[str, dict[str, plots.Curves]] = {}
    with tqdm(total=len(config.paths) * len(config.strategies) * config.splits, unit="run") as progress:
        for path in config.paths:
            for name in config.strategies:
                results.setdefault(path.stem, {})[name] = run(name, path, config, progress)
                save(results, config, time.perf_counter() - start)
            print(table(path.stem, results[path.stem]), flush=True)
    picture = draw(results, config)
    print(f"{config.splits} splits in {time.perf_counter() - start:.0f} s; wrote {picture} and results.json beside it")
    return results


def save(results: dict[str, dict[str, plots.Curves]], config: Config, seconds: float) -> None:
    """Writes what there is so far."""
    content = {
        "config": dataclasses.asdict(config),
        "environment": study.environment(),
        "seconds": round(seconds, 1),
        "sets": {stem: {name: curve._asdict() for name, curve in curves.items()} for stem, curves in results.items()},
    }
    study.results.write_json(config.out / "results.json", content)


def make_loop(name: str, config: Config, validation: baal.Dataset | None) -> baal.ActiveLoop:
    """The active loop of a strategy; everything but the acquisition is the same for all."""
    model = baal.from_linen(MLP(config.rate))
    trainer = baal.trainer(
        optax.adam(optax.linear_schedule(config.learning_rate, 0.0, config.num_steps)),
        losses.squared_error,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        validation=validation,
        validate_every=config.validate_every,
    )
    return baal.active_loop(
        posteriors.mc_dropout(model, trainer),
        acquisition(name, config.noise),
        query_size=config.query_size,
        num_samples=config.num_samples,
        batch_size=1024,
        features=features.gradient(model, config.sketch_size),
    )


def acquisition(name: str, noise: float) -> baal.Acquisition:
    """A strategy by its name on the command line."""
    gradients, draws = feature_maps.embedding, feature_maps.draws
    match name:
        case "random":
            return selection.random()
        case "lcmd":
            return selection.lcmd(gradients)
        case "k_means_pp":
            return selection.k_means_pp(gradients)
        case "bait":
            return selection.bait(gradients, [transforms.scale()], noise, oversampling=1.0)
        case "max_det":
            return selection.max_det(draws, [transforms.scale()], noise, use_labelled=False)
        case "max_diag":
            return selection.max_diag(draws)
    raise SystemExit(f"strategy {name!r} is unknown: use random, lcmd, k_means_pp, bait, max_det or max_diag")


def run(name: str, path: Path, config: Config, progress: tqdm) -> plots.Curves:
    """One strategy on every split; equal shapes, so that it compiles once."""

    @jax.jit
    def one_split(key: jax.Array, train: baal.Dataset, validation: baal.Dataset | None, test: baal.Dataset) -> Any:
        loop = make_loop(name, config, validation)
        return baal.run(loop, key, train, test, num_initial=config.num_initial, num_rounds=config.rounds)[1]

    metrics, num_labelled = [], np.zeros(0)
    for split in range(config.splits):
        progress.set_description(f"{path.stem}, {name}, split {split}")
        train, test, *_ = baal.data.uci(path, num_test=config.num_test, seed=config.seed + split)
        order = np.random.default_rng(split).permutation(len(train.targets))
        parts = np.split(order[: config.num_validation + config.pool_size], [config.num_validation])
        validation, train = (baal.Dataset(train.inputs[part], train.targets[part]) for part in parts)
        key = jax.random.fold_in(jax.random.key(config.seed), split)
        infos = one_split(key, train, validation if config.num_validation else None, test)
        metrics.append(jax.tree.map(np.asarray, infos.metrics))
        num_labelled = np.asarray(infos.num_labelled)
        progress.set_postfix(rmse=f"{metrics[-1]['rmse'][-1]:.3f}")
        progress.update()
    return plots.Curves(num_labelled, {name: np.stack([m[name] for m in metrics]) for name in metrics[0]})


def log_rmse(curve: plots.Curves) -> np.ndarray:
    """Log RMSE averaged over the rounds after the first labels, one number a split (Holzmüller et al., section 6)."""
    return np.log(np.asarray(curve.metrics["rmse"]))[:, 1:].mean(axis=1)


def table(title: str, curves: dict[str, plots.Curves]) -> str:
    """Mean log RMSE, and the paired difference to random."""
    lines = [f"{title:32s} mean log RMSE       minus random       log RMSE at the end"]
    for name, curve in curves.items():
        values, last = log_rmse(curve), np.log(np.asarray(curve.metrics["rmse"]))[:, -1]
        text = f"{name:32s} {values.mean():.4f} ± {statistics.standard_error(values):.4f}"
        if "random" in curves and name != "random":
            difference = values - log_rmse(curves["random"])
            text += f"  {difference.mean():+.4f} ± {statistics.standard_error(difference):.4f}"
        lines.append(f"{text:72s}  {last.mean():.4f}")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, plots.Curves]], config: Config) -> Path:
    """One panel a data set."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 3.8), layout="constrained", squeeze=False)
    for ax, (stem, curves) in zip(axes[0], results.items(), strict=True):
        plots.plot_learning_curves(curves, "rmse", ax)
        ax.set_title(stem)
    figure.suptitle(f"{config.splits} splits, band = 95 %")
    picture = config.out / "curves.png"
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return picture


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
