"""The Gaussian process of dropout passes against function space in float64, and what conditioning leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.posteriors._dropout_gp import dropout_gp
from tests.fixtures import Net, close, same, same_key, untrained
from tests.oracles import gaussian_process as oracle

INPUTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
TARGETS = {
    "regression": np.stack([np.sin(INPUTS[:, 0]), INPUTS[:, 1]], axis=1).astype(np.float32),
    "classification": (INPUTS[:, 0] > 0).astype(np.int32),
}
LABELLED, NOTHING, ONE = (np.isin(np.arange(12), ids) for ids in ([0, 3, 4, 9, 10], [], [3]))
NOISE, PASSES, WIDTH = 0.3, 20, 12


MODEL = baal.from_linen(Net(2, WIDTH))


@functools.cache
def make(model=MODEL, **options):
    return dropout_gp(model, untrained(), **{"num_passes": PASSES, "noise": NOISE, "batch_size": 2} | options)


def fit(posterior, targets, labelled=LABELLED, previous=None, key=0):
    return posterior.fit(jax.random.key(key), baal.Dataset(INPUTS, targets), labelled, previous)


@jax.jit
def run_passes(variables, key):
    return jax.vmap(lambda one: MODEL.apply(variables, INPUTS, one))(jax.random.split(key, PASSES))


def exact(state, targets, labelled, noise=NOISE):
    """Mean and covariance over examples and outputs, ``[N·C]``, by inverting the covariance of what was seen."""
    passes = np.asarray(run_passes(state.variables, state.key), np.float64)
    centre = passes.mean(axis=0)
    flat = (passes - centre).reshape(PASSES, -1)
    prior, classes = flat.T @ flat / PASSES, targets.ndim == 1
    seen = np.repeat(labelled & (targets >= 0), 2) if classes else (labelled[:, None] & ~np.isnan(targets)).ravel()
    residual = np.zeros(24) if classes else (targets - centre).ravel()
    inner = prior[np.ix_(seen, seen)]
    mean, covariance = oracle.moments(prior, prior[:, seen], inner, np.full(seen.sum(), noise**2), residual[seen])
    return centre.ravel() + mean, covariance


def moments(posterior, state):
    """Of all draws, exactly: ``apply`` is affine in the weights."""
    weights = np.concatenate([state.mean[None], np.zeros((1, PASSES)), state.root]).astype(np.float32)
    outputs = jax.jit(lambda weights: jax.vmap(lambda w: posterior.apply(state, w, INPUTS))(weights))(weights)
    mean, start, *slopes = np.asarray(outputs, np.float64).reshape(len(weights), -1)
    return mean, (np.array(slopes) - start).T @ (np.array(slopes) - start)


def agree(found, expected, tolerance=2e-4):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("task", TARGETS)
def test_moments_are_those_of_the_process_and_unknown_targets_do_not_count(task):
    posterior, unknown = make(), TARGETS[task].copy()
    # One output of an example, or its class; and an unlabelled one.
    unknown[(3, 0) if task == "regression" else 3] = np.nan if task == "regression" else -1
    for targets, labelled in ((TARGETS[task], LABELLED), (unknown, LABELLED), (TARGETS[task], NOTHING)):
        state = fit(posterior, targets, labelled)
        agree(moments(posterior, state), exact(state, targets, labelled))
        close(state.root, state.root.T, 1e-4, 1e-5)  # no other root is the same on all machines


def test_noise_may_be_large_or_nearly_nothing():
    targets = TARGETS["regression"]
    for noise, tolerance in ((1e4, 2e-4), (1e-2, 5e-3), (1e-6, None)):  # the last is rounded away, but harmless
        labelled, posterior = ONE if noise < 1 else LABELLED, make(noise=noise)
        found = moments(posterior, state := fit(posterior, targets, labelled))
        assert np.isfinite(found[1]).all()
        if tolerance:
            agree(found, exact(state, targets, labelled, noise), tolerance)
        if noise < 1:
            close(found[0].reshape(12, 2)[3], targets[3], 1e-2)


def test_training_passes_and_draws_have_keys_of_their_own_and_every_round_trains():
    posterior, targets, previous = make(), TARGETS["regression"], None
    for number in range(2):
        state = fit(posterior, targets, previous=previous, key=number)
        key_train, key_passes = jax.random.split(jax.random.key(number))
        same_key(state.network.opt_state[0], key_train)
        same_key(state.key, key_passes)
        assert int(state.age) == 0
        previous = state
    draws, root = posterior.sample(jax.random.key(1), state, 4), np.asarray(state.root)
    for draw, key in zip(draws, jax.random.split(jax.random.key(1), 4), strict=True):
        close(draw, state.mean + root @ np.asarray(jax.random.normal(key, (PASSES,))), 1e-4, 1e-5)


def test_between_trainings_only_the_labels_grow():
    posterior, more, targets = make(retrain_every=3), LABELLED | (np.arange(12) < 3), TARGETS["regression"]
    states = [fit(posterior, targets)]
    for number in range(1, 4):
        states.append(fit(posterior, targets, more, states[-1], key=number))
    first, second, _, fourth = states
    same((second.variables, jax.random.key_data(second.key)), (first.variables, jax.random.key_data(first.key)))
    agree(moments(posterior, second), exact(first, targets, more))  # the same passes, conditioned from scratch
    assert [int(state.age) for state in states] == [0, 1, 2, 0]
    # The network of before is there to start from.
    same(fourth.variables.params, jax.tree.map(lambda leaf: leaf + 1, first.variables.params))
    key_train, key_passes = jax.random.split(jax.random.key(3))
    same_key(fourth.network.opt_state[0], key_train)
    same_key(fourth.key, key_passes)
    # A state of zeros, with which a loop starts, holds no network.
    nothing = second._replace(network=second.network._replace(steps=jnp.int32(0)), age=jnp.int32(0))
    fresh = fit(posterior, targets, more, nothing, key=3)
    assert int(fresh.age) == 0
    same_key(fresh.key, key_passes)


def test_scalar_outputs_take_scalar_targets_and_half_precision_becomes_single():
    posterior, targets = make(baal.from_linen(Net(1, WIDTH))), TARGETS["regression"]
    found, expected = (fit(posterior, targets[:, :1].reshape(shape)) for shape in ((12,), (12, 1)))
    same((found.mean, found.root), (expected.mean, expected.root))
    assert np.abs(found.mean).max() > 0.1
    half = make(MODEL._replace(apply=lambda *given: MODEL.apply(*given).astype(jnp.bfloat16)))
    state = jax.eval_shape(lambda: fit(half, targets))
    outputs = jax.eval_shape(half.apply, state, jax.ShapeDtypeStruct((PASSES,), jnp.float32), INPUTS)
    assert {leaf.dtype for leaf in (state.mean, state.root, outputs)} == {jnp.dtype("float32")}
