"""BatchBALD against the enumeration of every configuration, its bounds, and its behaviour beyond enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import Predictions, selection
from baal_jax.selection import _batch_bald
from tests.oracles import baal, heuristics
from tests.oracles import batch_bald as oracle

NUM, DRAWS, CLASSES, QUERY = 10, 6, 3, 5
EVERY = np.ones(NUM, bool)


def random_probs(seed, draws=DRAWS, num=NUM, classes=CLASSES, sharpness=2.0):
    return heuristics.softmax(sharpness * np.random.default_rng(seed).normal(size=(draws, num, classes)))


def log_probs(p):
    """``[N, S, C]`` float32, as the acquisition keeps them."""
    with np.errstate(divide="ignore"):
        return np.moveaxis(np.log(p), 0, 1).astype(np.float32)


build = functools.cache(selection.batch_bald)  # one compilation for equal shapes


def pick(p, query_size=QUERY, *, available=None, key=0, configurations=10_000):
    summary = log_probs(p)
    available = np.ones(summary.shape[0], bool) if available is None else available
    return build(configurations).select(jax.random.key(key), summary, available, query_size)


def pick_with_keys(num_keys, p, query_size, configurations):
    select = build(configurations).select
    run = jax.jit(jax.vmap(lambda key: select(key, log_probs(p), np.ones(p.shape[1], bool), query_size)))
    return run(jax.random.split(jax.random.key(0), num_keys))


def greedy(num_configurations):
    """Compiled anew, with the sizes of blocks and groups as they are now."""
    return jax.jit(lambda key, *pool: _batch_bald.greedy(key, *pool, num_configurations), static_argnums=3)


@pytest.mark.parametrize(("classes", "query_size"), [(2, 6), (3, QUERY), (5, 5)])
def test_picks_and_gains_are_those_of_full_enumeration(classes, query_size):
    for seed in range(5 if classes < 5 else 1):
        rng = np.random.default_rng(1000 + seed)
        p = random_probs(seed, classes=classes, sharpness=rng.uniform(0.5, 4))
        available = rng.random(NUM) < 0.8
        available[:query_size] = True
        picks, values = oracle.greedy(p, available, query_size)
        found = pick(p, query_size, available=available)
        assert found.indices.tolist() == picks
        gains = np.asarray(found.scores)
        np.testing.assert_allclose(np.cumsum(gains), values, rtol=1e-5, atol=2e-5)
        # Case 29: information grows ever more slowly, and stays below its bounds.
        assert (gains > -1e-5).all()
        assert (np.diff(gains) < 1e-5).all()
        # Case 27: the first is that of BALD.
        scores = heuristics.bald(p)
        assert picks[0] == np.argmax(np.where(available, scores, -1))
        np.testing.assert_allclose(gains[0], scores[picks[0]], rtol=1e-5)
        assert gains.sum() <= min(np.log(DRAWS), scores[picks].sum()) + 1e-5


def test_golden_order_and_information():
    # Case 28 and 30: four of five, in the order of picking.
    p = np.moveaxis(baal.PROBS, -1, 0)
    found = pick(p, 4)
    assert found.indices.tolist() == [4, 3, 2, 1]
    np.testing.assert_allclose(
        np.cumsum(found.scores), [0.6533706933, 0.7170035150, 0.7487285259, 0.7609372505], atol=3e-6
    )
    np.testing.assert_allclose(oracle.joint_entropy(p[:, :2]), 2.0379203619, rtol=1e-9)
    np.testing.assert_allclose(oracle.joint_entropy(p[:, :3]), 2.7889807115, rtol=1e-9)


def test_a_duplicate_adds_nothing_and_independence_adds_all():
    # Case 31: four draws are all combinations of two bits; examples 0 and 2 show the first bit, 1 the second.
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = pick(np.eye(2)[bits[:, [0, 1, 0]]], 3)
    assert found.indices.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.scores, [np.log(2), np.log(2), 0], atol=1e-6)


def test_sampling_approaches_enumeration():
    # Case 32: the error falls as the square root of the number of configurations grows.
    p = random_probs(3, draws=8, num=9, classes=4, sharpness=1.0)
    exact = np.diff(oracle.greedy(p, np.ones(9, bool), 5)[1])[-1]
    errors = []
    for configurations in (16, 128):
        gains = np.asarray(pick_with_keys(40, p, 5, configurations).scores[:, 4])
        errors.append(np.sqrt(np.mean((gains - exact) ** 2)))
        slack = 4 * np.std(gains) / np.sqrt(40) + 0.3 / configurations
        assert abs(np.mean(gains) - exact) < slack + 0.02 * exact
    assert errors[1] < errors[0] / 2


def test_every_sampled_pick_has_a_key_of_its_own():
    """The first draws of the uniforms, one in each of equal parts of the distribution, by ``split(key, Q)[t]``."""
    p = random_probs(4, draws=4, num=3, sharpness=3.0)
    key, log_p = jax.random.key(3), jnp.asarray(log_probs(p))

    def by_hand(order):
        joint = _batch_bald._Joint(jnp.full((1, 4), -jnp.log(4.0)), jnp.ones(1))
        entropy = []
        for turn in (1, 2):
            joint = _batch_bald._resampled(jax.random.split(key, 3)[turn], joint, log_p[order[turn - 1]], 2)
            entropy.append(_batch_bald._entropies(joint, jnp.exp(log_p[order[turn]])[None])[0])
        return jnp.stack(entropy)

    found = pick(p, 3, key=3, configurations=2)
    noise = np.mean([[oracle.entropy(draw[i]) for i in found.indices] for draw in p], axis=0)
    entropy = jax.jit(by_hand)(np.asarray(found.indices))
    np.testing.assert_allclose(found.scores[1:], entropy - noise[1:], rtol=1e-4, atol=1e-5)


def test_long_queries_are_finite_and_hold_at_most_what_the_draws_do():
    # Case 33.
    found = pick(random_probs(0, draws=4, num=130), 120, configurations=300)
    assert np.isfinite(found.scores).all()
    assert len(set(found.indices.tolist())) == 120
    assert found.indices.min() >= 0
    assert abs(float(found.scores.sum()) - np.log(4)) < 0.3
    assert pick(random_probs(0, num=1), 1).indices.tolist() == [0]


def test_impossible_classes_and_certain_draws_are_no_trouble():
    p = random_probs(0)
    p[:, :, 2] = 0
    p[0] = np.eye(3)[0]
    p /= p.sum(-1, keepdims=True)
    picks, values = oracle.greedy(p, EVERY, QUERY)
    found = pick(p)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(np.cumsum(found.scores), values, atol=1e-5)
    assert np.isfinite(pick(p, 6, configurations=4).scores).all()


def test_nan_predictions_come_last_and_spoil_nothing():
    p = random_probs(2)
    available = np.arange(NUM) < QUERY
    clean = pick(p, available=available & (np.arange(NUM) != 1))
    p[2, 1, 0] = np.nan
    found = pick(p, available=available)
    assert found.indices.tolist() == [*clean.indices[:-1].tolist(), 1]
    np.testing.assert_array_equal(found.scores, clean.scores)


def test_the_lazy_bound_leaves_out_much_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(_batch_bald, "_BLOCK", 400)
    run = greedy(1000)
    for seed in range(3):  # a few examples stand out
        p = np.concatenate([random_probs(seed, num=8, sharpness=4), random_probs(seed, num=150, sharpness=0.3)], axis=1)
        found, evaluated = run(jax.random.key(0), log_probs(p), np.ones(158, bool), 4)
        assert found.indices.tolist() == oracle.greedy(p, np.ones(158, bool), 4)[0]
        assert evaluated[0] == 158
        assert (np.asarray(evaluated[1:]) < 100).all()


def test_bounds_of_groups_save_work_and_change_no_pick(monkeypatch):
    rng = np.random.default_rng(0)  # some examples are certain, as in a pool
    logits = 2 * rng.normal(size=(200, 1, 3)) + rng.gamma(1.0, 1.0, (200, 1, 1)) * rng.normal(size=(200, 20, 3))
    p = np.log(heuristics.softmax(logits)).astype(np.float32)
    monkeypatch.setattr(_batch_bald, "_BLOCK", 2**12)  # blocks of a few examples
    arguments = jax.random.key(0), p, np.ones(200, bool), 7
    found, evaluated = greedy(243)(*arguments)
    monkeypatch.setattr(_batch_bald, "_GROUP", 10**9)
    alone, without = greedy(243)(*arguments)
    np.testing.assert_array_equal(found.indices, alone.indices)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
    assert (evaluated <= without).all()
    assert int(evaluated.sum()) < 0.95 * int(without.sum())


def test_a_group_bounds_its_configurations():
    p = random_probs(5, draws=8, num=30).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def entropies(p, num_groups):
        joint = _batch_bald._Joint(jnp.full((1, 8), -jnp.log(8.0)), jnp.ones(1))
        for i in range(4):
            joint = _batch_bald._extend(joint, jnp.log(p[:, i]))
        return _batch_bald._entropies(_batch_bald._coarse(joint, num_groups) if num_groups else joint, p.swapaxes(0, 1))

    exact = entropies(p, 0)
    assert (entropies(p, 9) >= exact - 1e-6).all()
    assert (entropies(p, 7) >= exact - 1e-6).all()  # of groups that are not equally large
    np.testing.assert_allclose(entropies(p, 81), exact, atol=1e-5)
    assert (entropies(p, 9) <= entropies(p, 1) + 1e-6).all()


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
    summary = selection.batch_bald().summarise(Predictions(logits))
    np.testing.assert_allclose(summary, log_probs(heuristics.softmax(logits)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(5, 4, 2, 3\).*BatchBALD"):
        selection.batch_bald().summarise(Predictions(np.zeros((5, 4, 2, 3))))
    with pytest.raises(ValueError, match="num_configurations=0"):
        selection.batch_bald(0)
    with pytest.raises(ValueError, match="query_size=5 exceeds the 4"):
        pick(random_probs(0, num=4), 5)
    for shape in ((4, 2, 3), (5, 6)):
        with pytest.raises(ValueError, match="one row each"):
            selection.batch_bald().select(jax.random.key(0), np.zeros(shape), np.ones(5, bool), 1)
