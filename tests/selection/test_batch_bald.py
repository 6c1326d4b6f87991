"""BatchBALD against the enumeration of every configuration, and its behaviour beyond enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import Predictions, selection
from baal_jax.selection import _batch_bald
from tests.oracles import baal, heuristics
from tests.oracles import sets as oracle

NUM, DRAWS, CLASSES, QUERY = 10, 6, 3, 5
build = functools.cache(selection.batch_bald)  # one compilation for equal shapes


def random_probs(seed, draws=DRAWS, num=NUM, classes=CLASSES, sharpness=2.0):
    return heuristics.softmax(sharpness * np.random.default_rng(seed).normal(size=(draws, num, classes)))


def log_probs(p):
    """``[N, S, C]`` float32, as the acquisition keeps them."""
    with np.errstate(divide="ignore"):
        return np.moveaxis(np.log(p), 0, 1).astype(np.float32)


def pick(p, query_size=QUERY, *, available=None, key=0, configurations=10_000):
    available = np.ones(p.shape[1], bool) if available is None else available
    return build(configurations).select(jax.random.key(key), log_probs(p), available, query_size)


def check(found, p, query_size=QUERY, available=None):
    """The picks of the definition, and their joint information."""
    picks, values = oracle.batch_bald(p, np.ones(p.shape[1], bool) if available is None else available, query_size)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(np.cumsum(found.scores), values, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("classes", "query_size"), [(2, 6), (3, QUERY), (5, 5)])
def test_picks_and_gains_are_those_of_full_enumeration(classes, query_size):
    # Cases 27, 29 and 31.
    for seed in range(5 if classes < 5 else 1):
        rng = np.random.default_rng(1000 + seed)
        p = random_probs(seed, classes=classes, sharpness=rng.uniform(0.5, 4))
        available = rng.random(NUM) < 0.8
        available[:query_size] = True
        check(pick(p, query_size, available=available), p, query_size, available)


def test_golden_order_and_information():
    # Case 28 and 30: four of five, in the order of picking.
    p = np.moveaxis(baal.PROBS, -1, 0)
    found, golden = pick(p, 4), [0.6533706933, 0.7170035150, 0.7487285259, 0.7609372505]
    assert found.indices.tolist() == [4, 3, 2, 1]
    np.testing.assert_allclose(np.cumsum(found.scores), golden, atol=3e-6)
    np.testing.assert_allclose(oracle.joint_entropy(p[:, :2]), 2.0379203619, rtol=1e-9)
    np.testing.assert_allclose(oracle.joint_entropy(p[:, :3]), 2.7889807115, rtol=1e-9)


def test_sampling_approaches_enumeration():
    # Case 32: the error falls as the square root of the number of configurations grows.
    p, errors = random_probs(3, draws=8, num=9, classes=4, sharpness=1.0), []
    exact = np.diff(oracle.batch_bald(p, np.ones(9, bool), 5)[1])[-1]
    for configurations in (16, 128):
        select = build(configurations).select
        run = jax.jit(jax.vmap(lambda key, select=select: select(key, log_probs(p), np.ones(9, bool), 5).scores[4]))
        gains = np.asarray(run(jax.random.split(jax.random.key(0), 40)))
        errors.append(np.sqrt(np.mean((gains - exact) ** 2)))
        slack = 4 * np.std(gains) / np.sqrt(40) + 0.3 / configurations
        assert abs(np.mean(gains) - exact) < slack + 0.02 * exact
    assert errors[1] < errors[0] / 2


def test_every_sampled_pick_has_a_key_of_its_own(monkeypatch):
    used, resampled = [], _batch_bald._resampled

    def noted(key, *arguments):
        jax.debug.callback(lambda data: used.append(data.tolist()), jax.random.key_data(key))
        return resampled(key, *arguments)

    monkeypatch.setattr(_batch_bald, "_resampled", noted)
    p = log_probs(random_probs(4))
    selection.batch_bald(3).select(jax.random.key(3), p, np.ones(NUM, bool), QUERY).indices.block_until_ready()
    jax.effects_barrier()
    assert used == jax.random.key_data(jax.random.split(jax.random.key(3), QUERY))[2:].tolist()


def test_long_queries_are_finite_and_hold_at_most_what_the_draws_do():
    # Case 33.
    found = pick(random_probs(0, draws=4, num=130), 120, configurations=300)
    assert np.isfinite(found.scores).all()
    assert len(set(found.indices.tolist()) - {-1}) == 120
    assert abs(float(found.scores.sum()) - np.log(4)) < 0.3
    # Nor are impossible classes and certain draws any trouble.
    p = random_probs(0)
    p[:, :, 2] = 0
    p[0] = np.eye(3)[0]
    p /= p.sum(-1, keepdims=True)
    check(pick(p), p)
    assert np.isfinite(pick(p, 6, configurations=4).scores).all()


def test_bounds_leave_out_much_and_change_nothing(monkeypatch):
    def greedy(configurations, *arguments):
        """Compiled anew, with the sizes of blocks and groups as they are now."""
        run = jax.jit(lambda key, *pool: _batch_bald.greedy(key, *pool, configurations), static_argnums=3)
        return run(jax.random.key(0), *arguments)

    monkeypatch.setattr(_batch_bald, "_BLOCK", 400)
    p = np.concatenate([random_probs(0, num=8, sharpness=4), random_probs(0, num=150, sharpness=0.3)], axis=1)
    found, evaluated = greedy(1000, log_probs(p), np.ones(158, bool), 4)  # a few examples stand out
    check(found, p, 4)
    assert evaluated[0] == 158
    assert (np.asarray(evaluated[1:]) < 100).all()
    rng = np.random.default_rng(0)  # some examples are certain, as in a pool
    logits = 2 * rng.normal(size=(200, 1, 3)) + rng.gamma(1.0, 1.0, (200, 1, 1)) * rng.normal(size=(200, 20, 3))
    arguments = np.log(heuristics.softmax(logits)).astype(np.float32), np.ones(200, bool), 7
    monkeypatch.setattr(_batch_bald, "_BLOCK", 2**12)  # blocks of a few examples
    found, evaluated = greedy(243, *arguments)
    monkeypatch.setattr(_batch_bald, "_GROUP", 10**9)
    alone, without = greedy(243, *arguments)
    np.testing.assert_array_equal(found.indices, alone.indices)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
    assert (evaluated <= without).all()
    assert int(evaluated.sum()) < 0.95 * int(without.sum())


def test_memory_does_not_grow_with_the_pool():
    # Case 34: what it needs beside the probabilities is a few numbers an example.
    def temporary(num):
        shape, left = jax.ShapeDtypeStruct((num, 20, 10), jnp.float32), jax.ShapeDtypeStruct((num,), bool)
        lowered = selection.batch_bald(1000).select.lower(jax.random.key(0), shape, left, 4)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    per_example = (temporary(20_000) - temporary(2000)) / 18_000
    assert per_example < 12 * 20 * 10 * 4  # copies of the probabilities; N · M · C would be 40,000 bytes an example


def test_what_it_keeps_and_what_it_refuses():
    logits = np.random.default_rng(0).normal(size=(DRAWS, NUM, CLASSES)).astype(np.float32)
    (summarise, select, *_), zeros = selection.batch_bald(), np.zeros
    expected = log_probs(heuristics.softmax(logits))
    np.testing.assert_allclose(summarise(Predictions(logits)), expected, rtol=1e-5, atol=1e-6)
    for call, message in (
        (lambda: summarise(Predictions(zeros((5, 4, 2, 3)))), r"\(5, 4, 2, 3\).*BatchBALD"),
        (lambda: selection.batch_bald(0), "num_configurations=0"),
        (
            lambda: select(jax.random.key(0), zeros((4, 2, 3)), np.ones(5, bool), 1),
            "for 5 examples",
        ),
        (
            lambda: select(jax.random.key(0), zeros((5, 6)), np.ones(5, bool), 1),
            "for 5 examples",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
