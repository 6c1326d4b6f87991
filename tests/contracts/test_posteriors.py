"""One suite for every posterior, with linen or nnx, and classes or real values; each case is fitted once."""

import functools
import zlib

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import baal_jax as baal
from baal_jax import checkpoint, losses, posteriors
from baal_jax.posteriors import kernels
from tests.contracts import members
from tests.fixtures import Net, NnxNet, count_compilations, first, same, trainer

NUM_SAMPLES = 5
INPUTS = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
VALUES = INPUTS @ np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
TARGETS = {"classification": VALUES.argmax(axis=1).astype(np.int32), "regression": VALUES[:, 0]}
LABELLED = first(9, 24)

OF_FEATURES = {"gaussian_process": posteriors.gaussian_process, "logistic_regression": posteriors.logistic_regression}
MEMBERS = members("posteriors", {**posteriors.REGISTRY, **OF_FEATURES})
SETTINGS = {  # where a method has smaller ones at which it is still itself
    "deep_ensemble": {"num_members": NUM_SAMPLES},
    "gaussian_process": {"num_features": 64},
    "mc_dropconnect": {"rate": 0.3},
    "swag": {"rank": 3, "start": 0.5, "every": 1},
}
OF_BOTH_TASKS = ("dropout_gp", "gaussian_process")
CONVEX = ("logistic_regression",)  # a fit has nothing random


def cases(name):
    """A member has a library and a task by its name, so that another one changes nothing for the rest."""
    number = zlib.crc32(name.encode())
    tasks = [*TARGETS] if name in OF_BOTH_TASKS else [[*TARGETS][0 if name in CONVEX else number // 2 % 2]]
    return [(name, "features" if name in OF_FEATURES else ("linen", "nnx")[number % 2], task) for task in tasks]


each_case = pytest.mark.parametrize("case", [case for name in MEMBERS for case in cases(name)], ids="-".join)


def make(name, library, task):
    options, outputs = SETTINGS.get(name, {}), 3 if task == "classification" else 1
    if name == "logistic_regression":
        return MEMBERS[name](**options)
    if library == "features":
        return MEMBERS[name](kernels.dense(1), num_classes=3 if task == "classification" else None, **options)
    model = baal.from_linen(Net(outputs)) if library == "linen" else baal.from_nnx(lambda rngs: NnxNet(rngs, outputs))
    loss = losses.cross_entropy if task == "classification" else losses.squared_error
    return MEMBERS[name](model, trainer(optax.adam(3e-2), loss, num_steps=12), **options)


@functools.cache
def fitted(case):
    """A posterior, its data, its state, and logits ``[S, N, C]``."""
    posterior, data = make(*case), baal.Dataset(*jax.device_put((INPUTS, TARGETS[case[2]])))
    with jax.debug_nans(True):
        state = posterior.fit(jax.random.key(0), data, LABELLED)
        return posterior, data, state, predictions(posterior, state)


def predictions(posterior, state, inputs=INPUTS, batch_size=None):
    options = {"num_samples": NUM_SAMPLES, "batch_size": batch_size}
    return np.asarray(baal.predict(jax.random.key(1), posterior, state, inputs, **options))


@functools.cache
def sampler(posterior):
    """Draws, and fewer of them."""
    return jax.jit(lambda key, state: [posterior.sample(key, state, num) for num in (NUM_SAMPLES, 2)])


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def differ(left, right):
    return np.abs(left - right).max() > 1e-4 * np.abs(right).max()


@each_case
def test_every_draw_is_another_function(case):
    posterior, _, state, expected = fitted(case)
    assert expected.shape == (NUM_SAMPLES, 24, 3 if case[2] == "classification" else 1)
    assert np.isfinite(expected).all()
    assert all(differ(expected[i], expected[j]) for i in range(NUM_SAMPLES) for j in range(i))
    (here, _), (there, _) = (sampler(posterior)(jax.random.key(seed), state) for seed in (1, 2))
    assert not all(np.array_equal(*both) for both in zip(*map(jax.tree.leaves, (here, there)), strict=True))


@each_case
def test_a_draw_is_one_function(case):
    """Of every row by itself: not of its place, nor of the rows beside it. It is the draw that the key makes."""
    posterior, _, state, expected = fitted(case)
    rows = np.random.default_rng(1).permutation(24)[:7]
    draw = jax.tree.map(lambda leaf: leaf[2], sampler(posterior)(jax.random.key(1), state)[0])
    close(jax.jit(posterior.apply)(state, draw, INPUTS[rows]), expected[2, rows])


@each_case
def test_more_draws_keep_the_first(case):
    posterior, _, state, _ = fitted(case)
    many, few = (jax.tree.leaves(draws) for draws in sampler(posterior)(jax.random.key(1), state))
    for left, right in zip(few, many, strict=True):
        if jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
            left, right = map(jax.random.key_data, (left, right))
        np.testing.assert_allclose(left, right[:2], rtol=1e-4, atol=1e-5)


@each_case
def test_four_devices_change_nothing(case, mesh):
    posterior, _, state, expected = fitted(case)
    sharded = jax.device_put(INPUTS, NamedSharding(mesh, PartitionSpec("pool")))
    close(predictions(posterior, jax.device_put(state, NamedSharding(mesh, PartitionSpec())), sharded, 8), expected)


@each_case
def test_fits_map_over_keys(case):
    posterior, data, _, expected = fitted(case)
    keys = jax.random.wrap_key_data(np.array([[0, 3], [0, 0]], np.uint32))

    @jax.jit
    def fits(keys):
        states = jax.vmap(lambda key: posterior.fit(key, data, LABELLED))(keys)
        return [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(2)]

    other, found = (predictions(posterior, state) for state in fits(keys))
    close(found, expected, 2e-3)
    assert differ(other, expected) or case[0] in CONVEX


@each_case
def test_unlabelled_examples_do_not_count(case):
    posterior, (inputs, targets), _, expected = fitted(case)
    other = (TARGETS[case[2]] + 1) % 3 if case[2] == "classification" else TARGETS[case[2]] + 5
    shown = np.asarray(LABELLED)

    def found(inputs, targets):
        data = baal.Dataset(*jax.device_put((inputs, targets)))
        return predictions(posterior, posterior.fit(jax.random.key(0), data, LABELLED))

    same(found(np.where(shown[:, None], inputs, 2 - inputs), np.where(shown, targets, other)), expected)
    assert differ(found(inputs, np.where(shown, other, targets)), expected)


@each_case
def test_nothing_labelled_is_harmless(case):
    posterior, data, _, expected = fitted(case)
    with count_compilations() as compiled:
        state = posterior.fit(jax.random.key(0), data, first(0, 24))
        found = predictions(posterior, state)
    assert np.isfinite(found).all()
    assert differ(found, expected)
    assert not compiled


@each_case
def test_a_state_survives_a_checkpoint_and_a_scan(case, tmp_path):
    """The next state has its shapes, so that the loop can carry it and rounds on the host compile once."""
    posterior, data, state, expected = fitted(case)
    for step in (lambda run: run.save(0, state), lambda run: run.restore(state)):
        with checkpoint.checkpointer(tmp_path / "run", {"name": "contract"}) as run:
            restored = step(run)
    same(predictions(posterior, restored), expected)

    def described(tree):  # keys are never weak
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)), tree)

    shapes = jax.eval_shape(posterior.fit, jax.random.key(0), data, LABELLED, state)
    assert described(shapes) == described(state)
    assert not any(getattr(leaf, "weak_type", False) for leaf in jax.tree.leaves(state))
