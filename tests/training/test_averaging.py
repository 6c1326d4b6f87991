"""Stochastic weight averaging: the mean over the last steps, and batch statistics that belong to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from tests.fixtures import classes_data, first, linear, regression_data


class NormAfterDense(nn.Module):
    """The statistics depend on the weights before them."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(8)(x))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))


def trajectory(inputs, targets, num_steps, rate, start):
    """Weights after every step of full-batch gradient descent."""
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    weights, seen = np.full(inputs.shape[1], start), []
    for _ in range(num_steps):
        weights = weights - rate * inputs.T @ (inputs @ weights - targets) / len(targets)
        seen.append(weights)
    return np.array(seen)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("length", [{"num_steps": 10}, {"num_epochs": 10}], ids=["steps", "epochs"])
def test_the_fit_is_the_mean_over_the_last_steps(share, length, key):
    data = regression_data()
    fit = baal.trainer(
        optax.sgd(0.1), baal.losses.squared_error, **length, batch_size=12, average_from=share
    )(linear(0.5))  # fmt: skip
    state = fit(key, data, first(12))
    expected = trajectory(data.inputs, data.targets, 10, 0.1, 0.5)[int(share * 10) :].mean(axis=0)
    np.testing.assert_allclose(np.asarray(state.variables.params)[:, 0], expected, rtol=1e-5)
    assert int(state.steps) == 10


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99, 0.999])  # 0.99¹⁰⁰ is 37 %
def test_batch_statistics_belong_to_the_averaged_weights(momentum, key):
    data = classes_data()
    fit = baal.trainer(
        optax.sgd(1.0), baal.losses.cross_entropy, num_steps=40, batch_size=20, average_from=0.5
    )(baal.from_linen(NormAfterDense(momentum)))  # fmt: skip
    variables = fit(key, data, first(20, 20)).variables
    kernel, bias = (np.asarray(variables.params["Dense_0"][name]) for name in ("kernel", "bias"))
    hidden = np.maximum(np.asarray(data.inputs) @ kernel + bias, 0)
    statistics = variables.collections["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], hidden.mean(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(statistics["var"], hidden.var(axis=0), rtol=1e-3, atol=1e-3)


def test_averaging_maps_over_seeds_and_differentiates(key):
    data = regression_data()
    fit = baal.trainer(optax.sgd(0.1), baal.losses.squared_error, num_steps=4, batch_size=4, average_from=0.5)(linear())
    keys = jax.random.split(key, 3)
    mapped = jax.vmap(lambda key: fit(key, data, first(12)).variables.params)(keys)
    np.testing.assert_allclose(mapped[1], fit(keys[1], data, first(12)).variables.params, rtol=1e-5)

    def loss(scale):
        return jnp.sum(fit(key, data._replace(targets=data.targets * scale), first(12)).variables.params ** 2)

    slope = jax.grad(loss)(1.0)
    np.testing.assert_allclose(slope, (loss(1.01) - loss(0.99)) / 0.02, rtol=1e-2)


def test_a_warm_start_goes_on_from_the_average(key):
    data = regression_data()
    make = lambda warm, steps: baal.trainer(  # noqa: E731
        optax.sgd(0.1), baal.losses.squared_error, num_steps=steps, batch_size=12, average_from=0.5, warm_start=warm
    )(linear(0.5))
    once = make(False, 4)(key, data, first(12))
    twice = make(True, 4)(key, data, first(12), once)
    start = np.asarray(once.variables.params)[:, 0]
    seen, weights = [], start.astype(np.float64)
    inputs, targets = np.asarray(data.inputs, np.float64), np.asarray(data.targets, np.float64)
    for _ in range(4):
        weights = weights - 0.1 * inputs.T @ (inputs @ weights - targets) / 12
        seen.append(weights)
    np.testing.assert_allclose(np.asarray(twice.variables.params)[:, 0], np.mean(seen[2:], axis=0), rtol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_share_outside_of_the_fit_is_refused(share):
    with pytest.raises(ValueError, match=f"average_from={share}"):
        baal.trainer(optax.sgd(0.1), baal.losses.squared_error, num_steps=4, average_from=share)
