"""One draw is one function: nothing depends on batches, order or devices, for networks of both module systems."""

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


@pytest.fixture(scope="module", params=[networks.LinenConv, networks.NnxConv])
def fitted(request):
    """A trained network with dropout in convolutional and dense layers and batch normalisation."""
    make = baal.from_linen(request.param()) if request.param is networks.LinenConv else baal.from_nnx(request.param)
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=4, batch_size=8)
    posterior = posteriors.mc_dropout(make, trainer)
    data = baal.Dataset(jnp.asarray(INPUTS), jnp.arange(72) % 3)
    state = posterior.fit(jax.random.key(0), data, jnp.ones(72, bool))
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
