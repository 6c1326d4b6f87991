"""BatchBALD against the enumeration of every configuration, its bounds, and its behaviour beyond enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax
from baal_jax import Predictions, heuristics, selection
from baal_jax.selection import _batch_bald
from tests.oracles import baal
from tests.oracles import batch_bald as oracle


def random_probs(seed, draws=6, num=12, classes=3, sharpness=2.0):
    logits = sharpness * np.random.default_rng(seed).normal(size=(draws, num, classes))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def log_probs(p):
    """``[N, S, C]`` float32, as the acquisition keeps them."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.moveaxis(np.log(p), 0, 1), jnp.float32)


build = functools.cache(selection.batch_bald)  # one compilation for equal shapes


def pick(p, query_size, *, available=None, key=0, configurations=10_000):
    summary = log_probs(p)
    available = jnp.ones(summary.shape[0], bool) if available is None else jnp.asarray(available)
    return build(configurations).select(jax.random.key(key), summary, available, query_size)


@pytest.mark.parametrize("seed", range(24))
def test_picks_and_gains_are_those_of_full_enumeration(seed):
    rng = np.random.default_rng(1000 + seed)
    classes, query_size, draws = [(2, 6, 9), (3, 5, 4), (5, 5, 12)][seed % 3]
    p = random_probs(seed, draws=draws, num=10, classes=classes, sharpness=rng.uniform(0.5, 4))
    available = rng.random(10) < 0.8
    available[:query_size] = True
    picks, values = oracle.greedy(p, available, query_size)
    found = pick(p, query_size, available=available)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(np.cumsum(found.scores), values, rtol=1e-5, atol=2e-5)


def test_one_pick_is_top_k_of_bald():
    # Case 27.
    for seed in range(20):
        p = random_probs(seed, num=30)
        scores = heuristics.bald(jnp.asarray(np.log(p), jnp.float32))
        found = pick(p, 1)
        assert found.indices[0] == jnp.argmax(scores)
        np.testing.assert_allclose(found.scores[0], scores.max(), rtol=1e-6)


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


@pytest.mark.parametrize("seed", range(5))
def test_information_grows_ever_more_slowly_and_stays_below_its_bounds(seed):
    # Case 29.
    p = random_probs(seed, draws=5, num=15, classes=2)
    found = pick(p, 10)
    gains = np.asarray(found.scores)
    assert (gains > -1e-5).all()
    assert (np.diff(gains) < 1e-5).all()
    scores = np.asarray(heuristics.bald(jnp.asarray(np.log(p), jnp.float32)))
    assert gains.sum() <= min(np.log(5), scores[np.asarray(found.indices)].sum()) + 1e-5


def test_a_duplicate_adds_nothing_and_independence_adds_all():
    # Case 31: four draws are all combinations of two bits; examples 0 and 2 show the first bit, 1 the second.
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    p = np.eye(2)[bits[:, [0, 1, 0]]]
    found = pick(p, 3)
    assert found.indices.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.scores, [np.log(2), np.log(2), 0], atol=1e-6)


def test_sampling_approaches_enumeration():
    # Case 32: the error falls as the square root of the number of configurations grows.
    p = random_probs(3, draws=8, num=9, classes=4, sharpness=1.0)
    exact = np.asarray(pick(p, 6).scores)
    errors = []
    for configurations in (16, 256):
        gains = [pick(p, 6, key=key, configurations=configurations).scores[5] for key in range(40)]
        errors.append(np.sqrt(np.mean((np.array(gains) - exact[5]) ** 2)))
        assert abs(np.mean(gains) - exact[5]) < 4 * np.std(gains) / np.sqrt(40) + 0.02 * exact[5] + 0.3 / configurations
    assert errors[1] < errors[0] / 2


def test_sampled_gains_are_unbiased_for_given_picks():
    # All examples are equal, so that every sampled run picks the same batch: ids in order.
    one = random_probs(1, draws=5, num=1, classes=3, sharpness=1.5)
    p = np.repeat(one, 5, axis=1)
    values = [oracle.joint_information(p, range(t + 1)) for t in range(5)]
    gains = np.array([pick(p, 5, key=key, configurations=9).scores for key in range(300)])
    errors = np.std(gains, axis=0) / np.sqrt(300)
    np.testing.assert_array_less(np.abs(gains.mean(axis=0) - np.diff(values, prepend=0)), 4 * errors + 1e-5)


@pytest.mark.parametrize(("num", "query_size", "classes"), [(420, 400, 10), (1, 1, 3), (3, 3, 2)])
def test_long_queries_and_small_pools_are_finite(num, query_size, classes):
    # Case 33.
    p = random_probs(0, draws=4, num=num, classes=classes)
    found = pick(p, query_size, configurations=50)
    assert np.isfinite(found.scores).all()
    assert len(set(found.indices.tolist())) == query_size
    assert found.indices.min() >= 0
    exact = np.log(4)
    assert abs(float(found.scores.sum()) - exact) < 0.3 if num > 100 else True


def test_impossible_classes_and_certain_draws_are_no_trouble():
    p = random_probs(0, draws=4, num=6, classes=3)
    p[:, :, 2] = 0
    p[0] = np.eye(3)[0]
    p /= p.sum(-1, keepdims=True)
    picks, values = oracle.greedy(p, np.ones(6, bool), 5)
    found = pick(p, 5)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(np.cumsum(found.scores), values, atol=1e-5)
    assert np.isfinite(pick(p, 6, configurations=4).scores).all()


def test_nan_predictions_come_last_and_spoil_nothing():
    p = random_probs(2, num=6)
    clean = pick(p, 3, available=np.arange(6) != 1)
    p[2, 1, 0] = np.nan
    found = pick(p, 6)
    assert found.indices[:3].tolist() == clean.indices.tolist()
    assert found.indices[-1] == 1
    assert np.isnan(found.scores).tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("seed", range(4))
def test_the_lazy_bound_leaves_out_much_and_changes_nothing(seed, monkeypatch):
    monkeypatch.setattr(_batch_bald, "_BLOCK", 400)
    # A few examples stand out.
    p = np.concatenate([random_probs(seed, num=8, sharpness=4), random_probs(seed, num=300, sharpness=0.3)], axis=1)
    arguments = (jax.random.key(0), log_probs(p), jnp.ones(308, bool), 4)
    found, evaluated = _batch_bald.greedy(*arguments, 1000)
    assert found.indices.tolist() == oracle.greedy(p, np.ones(308, bool), 4)[0]
    assert evaluated[0] == 308
    assert (np.asarray(evaluated[1:]) < 150).all()


def test_memory_does_not_grow_with_the_pool():
    # Case 34: what it needs beside the probabilities is a few numbers an example.
    def temporary(num):
        shape = jax.ShapeDtypeStruct((num, 20, 10), jnp.float32)
        left = jax.ShapeDtypeStruct((num,), bool)
        select = jax.jit(lambda p, a: selection.batch_bald(1000).select(jax.random.key(0), p, a, 5))
        return select.lower(shape, left).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(2000), temporary(20_000)
    per_example = (large - small) / 18_000
    assert per_example < 12 * 20 * 10 * 4  # copies of the probabilities; N · M · C would be 40,000 bytes an example


def test_maps_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 4, 2, 3\).*BatchBALD"):
        selection.batch_bald().summarise(Predictions(jnp.zeros((5, 4, 2, 3))))
    with pytest.raises(ValueError, match="num_configurations=0"):
        selection.batch_bald(0)
    with pytest.raises(ValueError, match="query_size=5 exceeds the 4"):
        pick(random_probs(0, num=4), 5)
    with pytest.raises(ValueError, match="one row each"):
        selection.batch_bald().select(jax.random.key(0), jnp.zeros((4, 2, 3)), jnp.ones(5, bool), 1)


def test_it_works_in_the_loop_and_on_several_devices(mesh):
    posterior = baal_jax.Posterior(
        fit=lambda key, dataset, labelled, previous=None: jax.random.normal(key, (6, 3)),
        sample=lambda key, state, num_samples: jax.random.normal(key, (num_samples, 6, 3)),
        apply=lambda state, draw, inputs: inputs @ (state + draw),
    )
    x = jax.random.normal(jax.random.key(0), (16, 6))
    data = baal_jax.Dataset(x, jnp.zeros(16, jnp.int32))
    loop = baal_jax.active_loop(posterior, build(), query_size=3, num_samples=7, batch_size=5)
    state, infos = baal_jax.run(loop, jax.random.key(1), data, num_initial=2, num_rounds=5)
    picked = infos.indices[infos.indices >= 0]
    assert infos.num_picked.tolist() == [3, 3, 3, 3, 2]
    assert len(set(picked.tolist())) == 14
    assert int(baal_jax.pool.num_labelled(state.pool)) == 16

    summary = build().summarise(Predictions(jax.random.normal(jax.random.key(2), (7, 16, 3))))
    spread = jax.device_put(summary, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pool")))
    alone, together = (build().select(jax.random.key(0), s, jnp.ones(16, bool), 4) for s in (summary, spread))
    assert alone.indices.tolist() == together.indices.tolist()
    np.testing.assert_allclose(alone.scores, together.scores, rtol=1e-5, atol=1e-6)


def test_bounds_of_groups_save_work_and_change_no_pick(monkeypatch):
    rng = np.random.default_rng(0)  # some examples are certain, as in a pool
    logits = 2 * rng.normal(size=(400, 1, 3)) + rng.gamma(1.0, 1.0, (400, 1, 1)) * rng.normal(size=(400, 50, 3))
    p = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    monkeypatch.setattr(_batch_bald, "_BLOCK", 2**14)  # blocks of a few examples
    everything, key = jnp.ones(400, bool), jax.random.key(0)
    found, evaluated = _batch_bald.greedy(key, p, everything, 9, 2187)
    monkeypatch.setattr(_batch_bald, "_GROUP", 10**9)
    alone, without = _batch_bald.greedy(key, p, everything, 9, 2187)
    np.testing.assert_array_equal(found.indices, alone.indices)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
    assert (evaluated <= without).all()
    assert int(evaluated.sum()) < 0.95 * int(without.sum())


def test_a_group_bounds_its_configurations():
    p = jnp.asarray(random_probs(5, draws=8, num=30), jnp.float32)
    joint = _batch_bald._Joint(jnp.full((1, 8), -jnp.log(8.0)), jnp.ones(1))
    for i in range(4):
        joint = _batch_bald._extend(joint, jnp.log(p[:, i]))
    rows = jnp.moveaxis(p, 0, 1)
    exact, bound = (_batch_bald._entropies(j, rows) for j in (joint, _batch_bald._coarse(joint, 9)))
    assert (bound >= exact - 1e-6).all()
    one = _batch_bald._entropies(_batch_bald._coarse(joint, 81), rows)
    np.testing.assert_allclose(one, exact, atol=1e-5)
