"""MC-dropout: masks that all examples share, and masks of every example, in convolutions and attention too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import posteriors
from baal_jax._util import random
from tests import networks
from tests.fixtures import close, first, same, same_key, untrained

INPUTS = np.random.default_rng(0).normal(size=(24, 8, 8, 1)).astype(np.float32)
INPUTS[1] = INPUTS[0] * np.float32(1 + 1e-6)
DATA = baal.Dataset(INPUTS, np.arange(24) % 3)
MODELS = {
    "convolutions": baal.from_linen(networks.LinenConv()),
    "attention": baal.from_nnx(networks.NnxAttention),
    "dense": baal.from_nnx(networks.NnxMode),
}


@functools.cache
def fitted(network, shared_masks):
    """A posterior and random weights."""
    posterior = posteriors.mc_dropout(MODELS[network], untrained(), shared_masks=shared_masks)
    return posterior, posterior.fit(jax.random.key(0), DATA, first(24, 24))


def predict(posterior, state, inputs=INPUTS, num_samples=3, batch_size=None):
    options = {"num_samples": num_samples, "batch_size": batch_size}
    return np.asarray(baal.predict(jax.random.key(1), posterior, state, inputs, **options))


def test_a_fit_is_that_of_the_trainer():
    posterior, state = fitted("dense", True)
    same_key(state.opt_state[0], jax.random.key(0))
    later = posterior.fit(jax.random.key(1), DATA, first(24, 24), state)
    same(later.variables.params, jax.tree.map(lambda leaf: np.asarray(leaf) + 1, state.variables.params))


@pytest.mark.parametrize(("network", "shared"), [("convolutions", False), ("convolutions", True), ("attention", True)])
def test_a_draw_is_one_function(network, shared):
    """Whatever the order and the batch: the network with one key, or with one that is made of the example."""
    posterior, state = fitted(network, shared)
    expected = predict(posterior, state)
    order = np.random.default_rng(1).permutation(24)
    close(predict(posterior, state, INPUTS[order], batch_size=7), expected[:, order], rtol=1e-5, atol=1e-5)
    assert (np.ptp(expected, axis=0) > 1e-3).any()

    @jax.jit
    def by_hand(variables, inputs, draw):
        def one(example):
            key = draw if shared else random.of_example(draw, example)
            return MODELS[network].apply(variables, example[None], key)[0]

        return jnp.stack([one(example) for example in inputs])

    draw = jax.random.split(jax.random.key(1), 3)[2]
    close(by_hand(state.variables, INPUTS[4:6], draw), expected[2, 4:6], rtol=1e-5, atol=1e-5)


def test_shared_masks_tie_examples_together_and_change_no_marginal():
    """Two examples are almost the same: what a draw does to one, it does to the other only if they share masks."""
    drawn = {}
    for shared in (True, False):
        logits = drawn[shared] = np.float64(predict(*fitted("dense", shared), INPUTS[:4], num_samples=2000))
        errors = (logits - logits.mean(axis=0)) / logits.std(axis=0)
        assert (np.abs((errors[1:] * errors[:-1]).mean(axis=0)) < 5 / np.sqrt(1999)).all()  # draws are independent
        correlation = (errors[:, 0] * errors[:, 1]).mean(axis=0)
        assert (correlation > 0.99).all() if shared else (np.abs(correlation) < 5 / np.sqrt(2000)).all()
    variances = [logits.var(axis=0) for logits in drawn.values()]
    gaps = (drawn[True].mean(axis=0) - drawn[False].mean(axis=0)) / np.sqrt(sum(variances) / 2000)
    assert np.abs(gaps).max() < 5
    np.testing.assert_allclose(*variances, rtol=0.25)
