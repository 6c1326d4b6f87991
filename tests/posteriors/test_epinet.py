"""Epinets: equal to their formula in NumPy, beside a network that they leave alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import posteriors
from tests.fixtures import close, same, same_key, split, untrained

INPUTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
DATA = baal.Dataset(INPUTS, (INPUTS[:, 0] > 0).astype(np.int32))
LABELLED = np.arange(30) < 12


def dense(width=6):
    return baal.from_linen(nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(2)]))


def of_seven_steps(model):
    return lambda *given: untrained()(model)(*given)._replace(steps=jnp.int32(7), loss=jnp.float32(7))


@pytest.fixture(scope="module")
def fitted():
    options = {"index_dim": 4, "hidden": (5, 7), "prior_scale": 0.7}
    posterior = posteriors.epinet(dense(), untrained(), epinet_trainer=of_seven_steps, **options)
    state = jax.device_get(posterior.fit(jax.random.key(0), DATA, LABELLED))
    return posterior, state, posteriors._epinet._model(dense(), state.base.variables, 4, (5, 7), 0.7)


def perceptron(layers, units):
    for number, (kernel, bias) in enumerate(layers):
        units = (np.maximum(units, 0) if number else units) @ np.float64(kernel) + np.float64(bias)
    return units


def formula(state, indices, scale=0.7):
    layers = [state.base.variables.params[f"layers_{i}"] for i in (0, 2, 4)]
    *first, last = [(layer["kernel"], layer["bias"]) for layer in layers]
    hidden, indices = np.maximum(perceptron(first, np.float64(INPUTS)), 0), np.float64(indices)
    learned, prior = (perceptron(part, np.append(hidden, indices, axis=1)) for part in state.epinet.variables[:2])
    both = (learned + scale * prior).reshape(30, 4, 2)
    return perceptron([last], hidden) + np.einsum("bzc,bz->bc", both, indices)


def test_a_draw_is_a_normal_index_and_its_outputs_are_the_formula(fitted):
    posterior, state, _ = fitted
    draws = posterior.sample(jax.random.key(1), state, 3)
    same(draws, [jax.random.normal(key, (4,)) for key in split(jax.random.key(1), state, 3)])
    for index in draws:
        outputs = jax.jit(posterior.apply)(state, index, INPUTS)
        close(outputs, formula(state, np.broadcast_to(index, (30, 4))), atol=1e-5)


def test_training_has_an_index_for_every_row_and_validation_the_same_ones_always(fitted, key):
    """At index zero every look of a validation would show the network alone, and the first weights would be kept."""
    _, state, model = fitted
    variables = state.epinet.variables
    outputs, collections = jax.jit(model.train)(variables, INPUTS, key)
    close(outputs, formula(state, jax.random.normal(key, (30, 4))), atol=1e-5)
    same(collections, variables.collections)
    fixed = jax.random.normal(jax.random.key(0), (30, 4))
    close(jax.jit(model.deterministic)(variables, INPUTS), formula(state, fixed), atol=1e-5)
    one = jnp.broadcast_to(jax.random.normal(key, (1, 4)), (30, 4))
    close(jax.jit(model.apply)(variables, INPUTS, key), formula(state, one), atol=1e-5)

    # Neither the prior nor the network is learned.
    def total(variables, inputs):
        return jnp.sum(model.train(variables, inputs, key)[0])

    slopes, of_inputs = jax.jit(jax.grad(total, (0, 1)))(variables, INPUTS)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes.params))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves((slopes.collections, of_inputs)))


def test_both_fits_have_keys_of_their_own_and_go_on(fitted):
    posterior, state, _ = fitted
    twice = posterior.fit(jax.random.key(1), DATA, LABELLED, state)
    for seed, fit in ((0, state), (1, twice)):
        key_base, key_epinet = jax.random.split(jax.random.key(seed))
        same_key(fit.base.opt_state[0], key_base)
        same_key(fit.epinet.opt_state[0], key_epinet)
    for before, after in ((state.base, twice.base), (state.epinet, twice.epinet)):
        close(after.variables.params, jax.tree.map(lambda leaf: leaf + 1, before.variables.params))
    assert (int(state.steps), int(state.epinet.steps), float(state.loss)) == (1, 7, 7)  # a trainer of its own


def test_weights_begin_with_variance_one_over_inputs():
    posterior = posteriors.epinet(dense(width=50), untrained(), index_dim=50, hidden=(200, 100))
    state = posterior.fit(jax.random.key(0), DATA, LABELLED)
    assert int(state.epinet.steps) == 1  # the trainer of the network, where there is no other
    for layers in state.epinet.variables[:2]:
        assert [kernel.shape for kernel, _ in layers] == [(100, 200), (200, 100), (100, 100)]
        for kernel, bias in layers:
            np.testing.assert_allclose(np.std(kernel), kernel.shape[0] ** -0.5, rtol=0.05)
            assert not np.any(bias)
    kernels = [np.ravel(kernel)[:10_000] for layers in state.epinet.variables[:2] for kernel, _ in layers]
    assert np.abs(np.corrcoef(kernels) - np.eye(6)).max() < 0.06


def test_outputs_may_have_no_axis_of_classes(key):
    net = baal.from_functions(lambda key, inputs: jnp.ones(3), lambda params, inputs, key: inputs @ params)
    posterior = posteriors.epinet(net, untrained(), index_dim=4, hidden=())
    state = posterior.fit(key, DATA, LABELLED)
    index = np.float32([1, -1, 2, 0.5])
    rows = np.append(INPUTS, np.broadcast_to(index, (30, 4)), axis=1)
    units = sum(perceptron(layers, rows) for layers in state.epinet.variables[:2])  # the prior counts once by default
    close(jax.jit(posterior.apply)(state, index, INPUTS), INPUTS.sum(axis=1) + units @ index, atol=1e-4)
