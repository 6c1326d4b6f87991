"""Epinets: equal to their formula in NumPy, beside a network that they leave alone, a thousand draws for one trunk."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import features, losses, posteriors

RNG = np.random.default_rng(0)
INPUTS = jnp.asarray(RNG.normal(size=(30, 3)), jnp.float32)
DATA = baal.Dataset(INPUTS, (INPUTS[:, 0] > 0).astype(jnp.int32))
LABELLED = jnp.arange(30) < 12


class LinenNet(nn.Module):
    width: int = 6

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(self.width)(nn.relu(nn.Dense(self.width)(x)))))


class NnxNet(nnx.Module):
    def __init__(self, rngs, width=6):
        self.first, self.second = nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


def trainer(num_steps, **options):
    return baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=num_steps, batch_size=8, **options)


@pytest.fixture(scope="module")
def fitted():
    model = baal.from_linen(LinenNet())
    posterior = posteriors.epinet(model, trainer(20), index_dim=4, hidden=(5,), prior_scale=0.7)
    return model, posterior, posterior.fit(jax.random.key(0), DATA, LABELLED)


def network(layers, hidden, index):
    units = np.concatenate([hidden, np.repeat(index[None], len(hidden), axis=0)], axis=1)
    for number, (kernel, bias) in enumerate(layers):
        units = (np.maximum(units, 0) if number else units) @ np.float64(kernel) + np.float64(bias)
    return np.einsum("bzc,z->bc", units.reshape(len(units), len(index), -1), index)


def test_a_draw_is_the_formula(fitted):
    model, posterior, state = fitted
    hidden = np.float64(features.last_hidden(model)(state, INPUTS))
    for index in np.float64(posterior.sample(jax.random.key(1), state, 3)):
        learned, prior = (network(layers, hidden, index) for layers in state.epinet.variables)
        expected = np.float64(model.deterministic(state.variables, INPUTS)) + learned + 0.7 * prior
        np.testing.assert_allclose(posterior.apply(state, jnp.asarray(index, jnp.float32), INPUTS), expected, atol=1e-5)


def test_draws_are_standard_normal_indices(fitted):
    _, posterior, state = fitted
    draws = np.asarray(posterior.sample(jax.random.key(1), state, 5000))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(4), atol=0.08)
    np.testing.assert_array_equal(posterior.sample(jax.random.key(1), state, 2), draws[:2])


def test_the_network_and_the_prior_stay_as_they_are(fitted):
    model, posterior, state = fitted
    key_base, _ = jax.random.split(jax.random.key(0))
    alone = trainer(20)(model)(key_base, DATA, LABELLED)
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-5), state.base, alone)
    np.testing.assert_array_equal(
        posterior.apply(state, jnp.zeros(4), INPUTS), model.deterministic(alone.variables, INPUTS)
    )

    longer = posteriors.epinet(
        model, trainer(20), epinet_trainer=trainer(60), index_dim=4, hidden=(5,), prior_scale=0.7
    ).fit(jax.random.key(0), DATA, LABELLED)
    jax.tree.map(np.testing.assert_array_equal, longer.epinet.variables.collections, state.epinet.variables.collections)
    assert int(longer.epinet.steps) == 60
    moved = [
        np.abs(a - b).max()
        for a, b in zip(
            *map(jax.tree.leaves, (longer.epinet.variables.params, state.epinet.variables.params)), strict=True
        )
    ]
    assert min(moved) > 1e-3


def test_draws_learn_the_labels_and_differ_away_from_them():
    x = jnp.linspace(-1.0, 1.0, 20)[:, None]
    data = baal.Dataset(x, jnp.sin(3.0 * x[:, 0]))
    model = baal.from_linen(nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(1)]))
    fit = baal.trainer(optax.adam(1e-2), losses.squared_error, num_steps=600, batch_size=10)
    posterior = posteriors.epinet(model, fit, prior_scale=0.3)
    state = posterior.fit(jax.random.key(0), data, x[:, 0] < 0)
    outputs = baal.predict(jax.random.key(1), posterior, state, jnp.concatenate([x[:10], x[10:] * 4]), num_samples=200)
    spread = np.asarray(outputs.std(axis=0))[:, 0]
    assert spread[:10].max() < 0.25 * spread[-3:].min()
    assert np.abs(outputs[:, :10, 0] - data.targets[None, :10]).mean() < 0.15


def test_training_options_reach_the_epinet(key):
    """Augmentation and validation see inputs, not features; a warm start goes on; outputs may be [B]."""

    def augment(key, batch):
        return batch._replace(inputs=batch.inputs + 0.1 * jax.random.normal(key, batch.inputs.shape))

    net = baal.from_functions(
        lambda key, inputs: jax.random.normal(key, (3,)), lambda params, inputs, key: inputs @ params
    )
    data = baal.Dataset(INPUTS, INPUTS[:, 0])
    options = {"augment": augment, "validation": data, "validate_every": 2, "warm_start": True}
    fit = baal.trainer(optax.adam(1e-2), losses.squared_error, num_steps=4, batch_size=8, **options)
    posterior = posteriors.epinet(net, fit, hidden=())
    first = posterior.fit(key, data, LABELLED)
    second = posterior.fit(key, data, LABELLED, first)
    assert (int(first.epinet.steps), int(second.epinet.steps), int(second.steps)) == (4, 8, 8)
    assert baal.predict(key, posterior, second, INPUTS, num_samples=3).shape == (3, 30)


def test_validation_sees_the_epinet():
    """At index zero every look would show the network alone, and the first weights would be kept."""
    seen = jax.tree.map(lambda leaf: leaf[:12], DATA)
    fit = trainer(200, validation=seen, validate_every=10)
    posterior = posteriors.epinet(baal.from_linen(LinenNet()), fit, prior_scale=3.0)
    state = posterior.fit(jax.random.key(0), DATA, LABELLED)
    logits = baal.predict(jax.random.key(1), posterior, state, seen.inputs, num_samples=20)
    assert float(losses.cross_entropy(logits, jnp.broadcast_to(seen.targets, (20, 12))).mean()) < 0.1


def test_with_nothing_labelled_draws_are_those_of_random_weights(fitted, key):
    _, posterior, _ = fitted
    state = posterior.fit(key, DATA, jnp.zeros(30, bool))
    outputs = baal.predict(key, posterior, state, INPUTS, num_samples=5)
    assert np.isfinite(outputs).all()
    assert outputs.std(axis=0).min() > 0


@pytest.mark.parametrize("model", [baal.from_linen(LinenNet(256)), baal.from_nnx(lambda rngs: NnxNet(rngs, 256))])
def test_a_thousand_draws_cost_one_trunk(model, key):
    posterior = posteriors.epinet(model, trainer(1), index_dim=3, hidden=(4,))
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
    model = baal.from_linen(LinenNet())
    for options, message in (
        ({"index_dim": 0}, "index_dim=0 must be an integer"),
        ({"hidden": (5, 0)}, "hidden=0 must be an integer"),
        ({"prior_scale": -1.0}, r"prior_scale=-1\.0 must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            posteriors.epinet(model, trainer(1), **options)
    image_loss = lambda maps, targets: losses.cross_entropy(maps[:, 0, 0], targets)  # noqa: E731
    image_trainer = baal.trainer(optax.sgd(0.1), image_loss, num_steps=1)
    maps = baal.Dataset(jnp.zeros((2, 4, 4, 1)), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 2\), but what reads the last layer needs \[C\]"):
        posteriors.epinet(baal.from_linen(nn.Conv(2, (1, 1))), image_trainer).fit(key, maps, jnp.ones(2, bool))
