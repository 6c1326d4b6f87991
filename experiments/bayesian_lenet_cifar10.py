"""Bayesian LeNet-5 on CIFAR-10 (Bayes by backprop, local reparameterisation, flipout) against the point estimate.

The network and the settings of Shridhar et al. (2019), who report 69 % for it and 68 % for the ordinary network: two
5×5 convolutions and three dense layers, every weight a Gaussian. Trained by local reparameterisation as there, by
flipout, by one set of sampled weights a step (Bayes by backprop on the ordinary network), and as a point estimate.
Reports accuracy, NLL, ECE, and the aleatoric and epistemic uncertainty of Kwon et al. (2018). Writes `results.json`.

    python experiments/bayesian_lenet_cifar10.py                                          # for accelerators
    python experiments/bayesian_lenet_cifar10.py --methods local_reparameterization point \
        --subset 5000 --num-test 2000 --epochs 30 --num-samples 10                        # minutes on a CPU

Accuracy and NLL by the second command, one seed: local reparameterisation .462 and 1.58, point estimate .442 and 1.86.
Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md). The first has not been run to its end.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from models import scaled
from tqdm import tqdm

import baal_jax as baal
from baal_jax import losses, metrics, posteriors
from baal_jax.posteriors.layers import BayesianConv, BayesianDense

Method = Literal["local_reparameterization", "flipout", "bayes_by_backprop", "point"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Images):
    """A Bayesian LeNet-5 on CIFAR-10.

    Attributes:
        methods: two estimators of Bayesian layers, weights sampled once a step, and a point estimate.
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: of Adam.
        activation: between layers.
        prior_std: of every weight.
        initial_std: of every weight, before training.
        kl_weight: of the divergence from the prior; 1 is the evidence lower bound.
    """

    methods: tuple[Method, ...] = ("local_reparameterization", "flipout", "bayes_by_backprop", "point")
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    activation: Literal["softplus", "relu"] = "softplus"
    prior_std: float = 0.1
    initial_std: float = 0.0067
    kl_weight: float = 0.1
    num_samples: int = 25
    seeds: int = 1
    out: Path = Path("results/bayesian_lenet")


class LeNet5(nn.Module):
    """Two convolutions with pooling and three dense layers; Bayesian ones where an estimator is given."""

    estimator: Any = None
    initial_std: float = 0.01
    activation: str = "softplus"
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, 32, 32, C] -> [B, num_classes]``."""
        activation = getattr(jax.nn, self.activation)
        window: dict[str, Any] = {"kernel_size": (5, 5), "padding": "VALID"}
        x = scaled(x)
        for width in (6, 16):
            x = activation(self._layer(nn.Conv, BayesianConv, train, features=width, **window)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for width in (120, 84):
            x = activation(self._layer(nn.Dense, BayesianDense, train, features=width)(x))
        return self._layer(nn.Dense, BayesianDense, train, features=self.num_classes)(x)

    def _layer(self, stock: Any, bayesian: Any, train: bool, **fields: Any) -> nn.Module:
        if self.estimator is None:
            return stock(**fields)
        return bayesian(**fields, estimator=self.estimator, initial_std=self.initial_std, deterministic=not train)


def main(config: Config) -> dict[str, dict[str, list[float]]]:
    """Every method with every seed, then the report."""
    start = time.perf_counter()
    train, test = load(config)
    with tqdm(total=len(config.methods) * config.seeds, unit="fit") as progress:
        runs = {name: run(name, config, train, test, progress) for name in config.methods}
    print(table(runs))
    seconds = time.perf_counter() - start
    print(f"{seconds:.0f} s; wrote {harness.write(config, seconds, methods=runs)}")
    return runs


def load(config: Config) -> tuple[baal.Dataset, baal.Dataset]:
    """Training and test images on the device; digits are blown up to 32×32."""
    parts = harness.images(config, shuffled=True)
    if config.dataset == "cifar10":
        return parts
    return jax.tree.map(lambda x: x.repeat(4, axis=1).repeat(4, axis=2) if x.ndim == 4 else x, parts)


def make_posterior(name: Method, config: Config, num_train: int) -> baal.Posterior:
    """A method by its name on the command line."""
    steps = max(config.epochs * num_train // config.batch_size, 1)
    optimizer = optax.adam(config.learning_rate)
    trainer = baal.trainer(optimizer, losses.cross_entropy, num_steps=steps, batch_size=config.batch_size)
    divergence: dict[str, Any] = {"prior_std": config.prior_std, "kl_weight": config.kl_weight}
    if name in ("local_reparameterization", "flipout"):
        network = LeNet5(name, config.initial_std, config.activation)
        return posteriors.bayesian_layers(baal.from_linen(network), trainer, **divergence)
    model = baal.from_linen(LeNet5(activation=config.activation))
    if name == "bayes_by_backprop":
        return posteriors.bayes_by_backprop(model, trainer, initial_std=config.initial_std, **divergence)
    return baal.Posterior(
        trainer(model),
        lambda key, state, num_samples: jnp.zeros(num_samples),
        lambda state, draw, inputs: model.deterministic(state.variables, inputs),
    )


def run(name: Method, config: Config, train: baal.Dataset, test: baal.Dataset, progress: tqdm) -> dict[str, list]:
    """All seeds of a method, one number a seed."""
    posterior, runs = make_posterior(name, config, len(train.targets)), []
    options = {"metrics": usual_and_uncertainties(), "num_samples": config.num_samples, "batch_size": 500}
    for seed in range(config.seeds):
        key_fit, key_draws = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed))
        start = time.perf_counter()
        state = jax.block_until_ready(posterior.fit(key_fit, train, jnp.ones(len(train.targets), bool)))
        seconds = time.perf_counter() - start
        values = baal.evaluate(key_draws, posterior, state, test, **options)
        runs.append({metric: float(value) for metric, value in values.items()} | {"fit_seconds": seconds})
        harness.show(progress, name, accuracy=values["accuracy"])
    return {metric: [values[metric] for values in runs] for metric in runs[0]}


def uncertainties(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Aleatoric and epistemic uncertainty of Kwon et al. (2018), summed over classes: ``[S, B, C] -> [B], [B]``.

    The traces of :math:`\frac1S \sum_s (\mathrm{diag}(p_s) - p_s p_s^\top)` and of
    :math:`\frac1S \sum_s (p_s - \bar p)(p_s - \bar p)^\top`, which add up to :math:`1 - \sum_c \bar p_c^2`.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    return jnp.mean(jnp.sum(probs * (1 - probs), axis=-1), axis=0), jnp.sum(jnp.var(probs, axis=0), axis=-1)


def usual_and_uncertainties() -> metrics.MetricSet:
    """Metrics of classification, and the means of the two uncertainties."""
    usual = metrics.classification()

    def summarise(predictions: baal.Predictions) -> tuple:
        return usual.summarise(predictions), *uncertainties(predictions.logits)

    def compute(summary: tuple, targets: jax.Array) -> dict[str, jax.Array]:
        log_probs, aleatoric, epistemic = summary
        means = {"aleatoric": jnp.mean(aleatoric), "epistemic": jnp.mean(epistemic)}
        return usual.compute(log_probs, targets) | means

    return metrics.MetricSet(summarise, compute)


def table(runs: dict[str, dict[str, list[float]]]) -> str:
    """Means over the seeds, a method a line."""
    names = ("accuracy", "nll", "ece", "aleatoric", "epistemic", "fit_seconds")
    rows = [(method, *(f"{np.mean(values[name]):.4f}" for name in names)) for method, values in runs.items()]
    return harness.table(("method", *names), rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
