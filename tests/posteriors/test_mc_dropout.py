"""One draw is one function: nothing depends on batches, order or devices, for networks of both module systems.

With masks shared by all examples and with masks of every example.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import baal_jax as baal
from baal_jax import heuristics, losses, posteriors
from tests import networks

INPUTS = np.random.default_rng(0).normal(size=(72, 8, 8, 1)).astype(np.float32)
ORDER = np.random.default_rng(1).permutation(72)


@functools.cache
def fit(network, shared_masks):
    """A trained network with dropout in convolutional and dense layers and batch normalisation."""
    model = baal.from_linen(network()) if network is networks.LinenConv else baal.from_nnx(network)
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=4, batch_size=8)
    posterior = posteriors.mc_dropout(model, trainer, shared_masks=shared_masks)
    data = baal.Dataset(jnp.asarray(INPUTS), jnp.arange(72) % 3)
    return posterior, posterior.fit(jax.random.key(0), data, jnp.ones(72, bool))


CASES = {
    "linen": (networks.LinenConv, True),
    "nnx": (networks.NnxConv, True),
    "nnx, masks of every example": (networks.NnxConv, False),
}


@pytest.fixture(scope="module", params=CASES)
def fitted(request):
    posterior, state = fit(*CASES[request.param])
    return posterior, state, both(posterior, state, INPUTS, None)


def both(posterior, state, inputs, batch_size):
    options = {"num_samples": 6, "batch_size": batch_size}
    logits = baal.predict(jax.random.key(1), posterior, state, inputs, **options)
    return logits, baal.score(jax.random.key(1), posterior, state, inputs, heuristics.bald, **options)


def close(found, expected):
    # Logits near 0 and scores near 0 are differences of larger numbers: the unit is the size of those.
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5 * np.abs(expected[0]).max())
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5 * np.abs(expected[1]).max())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_change_nothing(fitted, batch_size):
    posterior, state, expected = fitted
    close(both(posterior, state, INPUTS, batch_size), expected)


def test_the_order_of_the_pool_changes_nothing(fitted):
    posterior, state, (logits, scores) = fitted
    close(both(posterior, state, INPUTS[ORDER], 7), (logits[:, ORDER], scores[ORDER]))


@pytest.mark.parametrize("batch_size", [8, 64, None])
def test_four_devices_change_nothing(fitted, mesh, batch_size):
    posterior, state, expected = fitted
    sharded = jax.device_put(INPUTS, NamedSharding(mesh, PartitionSpec("pool")))
    replicated = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    logits, scores = both(posterior, replicated, sharded, batch_size)
    assert len(scores.sharding.device_set) == 4
    close((logits, scores), expected)


def test_equal_examples_have_equal_outputs_in_every_draw(fitted):
    posterior, state, _ = fitted
    logits = baal.predict(jax.random.key(1), posterior, state, INPUTS[[3, 5, 3, 3]], num_samples=6)
    np.testing.assert_allclose(logits[:, [2, 3]], logits[:, [0, 0]], rtol=1e-6, atol=1e-6)
    assert (jnp.ptp(logits, axis=0) > 1e-3).any()


def errors(logits):
    """What the draws add to the mean, in standard deviations."""
    logits = np.asarray(logits)
    return (logits - logits.mean(axis=0)) / logits.std(axis=0)


@pytest.mark.parametrize("shared", [True, False])
def test_masks_are_shared_or_not(shared):
    """Two examples that are almost the same: what a draw does to one, it does to the other only if they share masks."""
    posterior, state = fit(networks.NnxConv, shared)
    pair = np.stack([INPUTS[0], INPUTS[0] * np.float32(1 + 1e-6)])
    found = errors(baal.predict(jax.random.key(4), posterior, state, pair, num_samples=400))
    correlation = (found[:, 0] * found[:, 1]).mean(axis=0)
    if shared:
        assert (correlation > 0.99).all()
    else:
        assert (np.abs(correlation) < 5 / np.sqrt(400)).all()


def test_draws_do_not_depend_on_each_other(fitted):
    posterior, state, _ = fitted
    found = errors(baal.predict(jax.random.key(4), posterior, state, INPUTS[:4], num_samples=400))
    assert (np.abs((found[1:] * found[:-1]).mean(axis=0)) < 5 / np.sqrt(399)).all()


def test_shared_masks_change_no_marginal():
    """Means and variances of every example's outputs, from draws of both kinds, as far as so many draws can tell."""
    num_samples, found = 2000, []
    for shared in (True, False):
        posterior, state = fit(networks.NnxConv, shared)
        logits = baal.predict(jax.random.key(3), posterior, state, INPUTS[:8], num_samples=num_samples)
        found.append(np.asarray(logits, np.float64))
    np.testing.assert_raises(AssertionError, np.testing.assert_allclose, *found, atol=0.1)
    variances = [logits.var(axis=0) for logits in found]
    z = (found[0].mean(axis=0) - found[1].mean(axis=0)) / np.sqrt(sum(variances) / num_samples)
    assert np.abs(z).max() < 5
    np.testing.assert_allclose(*variances, rtol=0.25)
