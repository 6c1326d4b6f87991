"""Epinets: equal to their formula in NumPy, beside a network that they leave alone, a thousand draws for one trunk."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses, posteriors
from tests.fixtures import close, same, same_key, trainer, untrained

INPUTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
DATA = baal.Dataset(INPUTS, (INPUTS[:, 0] > 0).astype(np.int32))
LABELLED = np.arange(30) < 12
OPTIONS = {"index_dim": 4, "hidden": (5, 7), "prior_scale": 0.7}


def dense(outputs=2, width=6):
    return baal.from_linen(nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(width), nn.relu, nn.Dense(outputs)]))


def of_seven_steps(model):
    return lambda *given: untrained()(model)(*given)._replace(steps=jnp.int32(7), loss=jnp.float32(7))


@pytest.fixture(scope="module")
def fitted():
    """An epinet beside a random network, its state, and what its trainer is given to fit."""
    posterior = posteriors.epinet(dense(), untrained(), epinet_trainer=of_seven_steps, **OPTIONS)
    state = jax.device_get(posterior.fit(jax.random.key(0), DATA, LABELLED))
    return posterior, state, posteriors._epinet._model(dense(), state.base.variables, 4, (5, 7), 0.7)


def network(layers, hidden, indices):
    units = np.concatenate([hidden, indices], axis=1)
    for number, (kernel, bias) in enumerate(layers):
        units = (np.maximum(units, 0) if number else units) @ np.float64(kernel) + np.float64(bias)
    return np.einsum("bzc,bz->bc", units.reshape(*indices.shape, -1), indices)


def formula(state, indices, scale=0.7):
    """``[B, C]``, with an index for each row."""
    layers = [state.base.variables.params[f"layers_{i}"] for i in (0, 2, 4)]
    hidden = np.float64(INPUTS)
    for layer in layers[:2]:
        hidden = np.maximum(hidden @ layer["kernel"] + layer["bias"], 0)
    base = hidden @ layers[2]["kernel"] + layers[2]["bias"]
    learned, prior = (network(layers, hidden, np.float64(indices)) for layers in state.epinet.variables)
    return base + learned + scale * prior


def test_a_draw_is_the_formula(fitted):
    posterior, state, _ = fitted
    for index in np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32):
        outputs = jax.jit(posterior.apply)(state, index, INPUTS)
        close(outputs, formula(state, np.broadcast_to(index, (30, 4))), atol=1e-5)


def test_draws_are_standard_normal_indices(fitted):
    posterior, state, _ = fitted
    draws = np.asarray(posterior.sample(jax.random.key(1), state, 5000))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(4), atol=0.08)


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


def test_neither_the_prior_nor_the_network_is_learned(fitted, key):
    _, state, model = fitted

    def total(variables, inputs):
        return jnp.sum(model.train(variables, inputs, key)[0])

    slopes, of_inputs = jax.jit(jax.grad(total, (0, 1)))(state.epinet.variables, INPUTS)
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
    learned, prior = posterior.fit(jax.random.key(0), DATA, LABELLED).epinet.variables
    for layers in (learned, prior):
        assert [kernel.shape for kernel, _ in layers] == [(100, 200), (200, 100), (100, 100)]
        for kernel, bias in layers:
            np.testing.assert_allclose(np.std(kernel), kernel.shape[0] ** -0.5, rtol=0.05)
            assert not np.any(bias)
    kernels = [np.ravel(kernel)[:10_000] for layers in (learned, prior) for kernel, _ in layers]
    assert np.abs(np.corrcoef(kernels) - np.eye(6)).max() < 0.06


def test_draws_learn_the_labels_and_differ_away_from_them():
    x = np.linspace(-1.0, 1.0, 20, dtype=np.float32)[:, None]
    data = baal.Dataset(x, np.sin(3.0 * x[:, 0]))
    model = baal.from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(1)]))
    fit = trainer(optax.adam(1e-2), losses.squared_error, num_steps=600, batch_size=10)
    posterior = posteriors.epinet(model, fit, prior_scale=0.3)
    state = posterior.fit(jax.random.key(0), data, x[:, 0] < 0)
    assert (int(state.steps), int(state.epinet.steps)) == (600, 600)
    outputs = baal.predict(jax.random.key(1), posterior, state, np.concatenate([x[:10], x[10:] * 4]), num_samples=200)
    spread = np.std(outputs, axis=0)[:, 0]
    assert spread[:10].max() < 0.25 * spread[-3:].min()
    assert np.abs(np.asarray(outputs)[:, :10, 0] - data.targets[None, :10]).mean() < 0.15


def test_outputs_may_have_no_axis_of_classes(key):
    net = baal.from_functions(lambda key, inputs: jnp.ones(3), lambda params, inputs, key: inputs @ params)
    posterior = posteriors.epinet(net, untrained(), index_dim=4, hidden=())
    state = posterior.fit(key, DATA, LABELLED)
    index = np.float32([1, -1, 2, 0.5])
    (learned,), (prior,) = state.epinet.variables
    units = [np.concatenate([INPUTS, np.broadcast_to(index, (30, 4))], axis=1) @ layer[0] for layer in (learned, prior)]
    close(jax.jit(posterior.apply)(state, index, INPUTS), INPUTS.sum(axis=1) + sum(units) @ index, atol=1e-4)


def test_a_thousand_draws_cost_one_trunk(key):
    posterior = posteriors.epinet(dense(width=256), untrained(), index_dim=3, hidden=(4,))
    inputs = jax.ShapeDtypeStruct((16, 3), jnp.float32)
    data = baal.Dataset(inputs, jax.ShapeDtypeStruct((16,), jnp.int32))
    state = jax.eval_shape(posterior.fit, key, data, jax.ShapeDtypeStruct((16,), jnp.bool))

    def predict(draws, state, inputs):
        return jax.vmap(lambda draw: posterior.apply(state, draw, inputs))(draws)

    cost = jax.jit(predict).lower(jax.ShapeDtypeStruct((1000, 3), jnp.float32), state, inputs).compile().cost_analysis()
    flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
    trunk = 16 * 2 * (3 * 256 + 256 * 256 + 256 * 2)
    shared = 2 * 16 * 2 * 256 * 4  # features meet the first kernel of both networks once
    each = 2 * 2 * (3 * 4 + 16 * (4 * 6 + 6))
    assert trunk + shared < flops < 1.1 * (trunk + shared) + 1000 * 2 * each


def test_what_does_not_fit_is_refused(key):
    for options, message in (
        ({"index_dim": 0}, "index_dim=0 must be an integer"),
        ({"hidden": (5, 0)}, "hidden=0 must be an integer"),
        ({"prior_scale": -1.0}, r"prior_scale=-1\.0 must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            posteriors.epinet(dense(), untrained(), **options)
    maps = baal.Dataset(np.zeros((2, 4, 4, 1), np.float32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 2\), but what reads the last layer needs \[C\]"):
        posteriors.epinet(baal.from_linen(nn.Conv(2, (1, 1))), untrained()).fit(key, maps, np.ones(2, bool))
