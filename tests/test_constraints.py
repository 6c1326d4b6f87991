"""What people forbid and pay: costs, quotas of groups, balanced starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import data, heuristics, pool, posteriors, selection, stopping
from tests import fixtures

NUM, GROUPS = 40, 6
NAMES = ["margin", "power_bald", "k_center", "random"]
TRAIN, TEST = fixtures.clouds(NUM)
POSTERIOR = posteriors.logistic_regression(3)
own = lambda state, inputs: inputs  # noqa: E731


@functools.cache
def loop_of(name, **options):
    acquisition = selection.by_name(name)
    return baal.active_loop(POSTERIOR, acquisition, query_size=5, num_samples=4, features=own, **options)


def started(loop, key, num_initial=4, dataset=TRAIN, **limits):
    return loop.init(key, dataset, num_initial, pool.init(NUM, **limits))


# Quotas


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), quota=st.integers(1, 4), name=st.sampled_from(NAMES))
def test_no_group_has_more_labels_than_its_quota(seed, quota, name):
    rng = np.random.default_rng(seed)
    groups, quota = rng.integers(-1, GROUPS, NUM), np.full(GROUPS, quota)
    quota[0], loop = 1, loop_of(name)
    state = started(loop, jax.random.key(seed), 0, groups=groups, quota=quota)
    state = state._replace(pool=pool.exclude(state.pool, [int(np.flatnonzero(groups == groups[0])[0])]))
    state, infos = baal.run(loop, None, TRAIN, TEST, state=state, num_rounds=4)
    labelled = np.asarray(pool.labelled(state.pool))
    counts = np.bincount(groups[labelled & (groups >= 0)], minlength=GROUPS)
    assert (counts <= quota).all()
    # A query is short only where nothing else may be picked.
    allowed = np.asarray(pool.available(state.pool))
    room = (groups < 0) | (counts < quota)[groups]
    np.testing.assert_array_equal(allowed, (np.asarray(state.pool.labelled_at) == -1) & room)
    assert (np.asarray(infos.num_picked) == 5).all() or not allowed.any()


def test_a_ranking_within_quotas_is_that_of_the_scores():
    scores = np.random.default_rng(0).permutation(NUM).astype(np.float32)
    groups = np.arange(NUM) % GROUPS
    for options in ({}, {"max_sample": 25}):
        acquisition = selection.top_k()._replace(summarise=lambda predictions: predictions.logits[0, :, 0])
        loop = baal.active_loop(fixtures.SPY, acquisition, query_size=8, num_samples=1, **options)
        dataset = baal.Dataset(scores[:, None], np.zeros(NUM, np.int32))
        state = loop.init(jax.random.key(0), dataset, 3, pool.init(NUM, groups=groups, quota=2))
        _, info = loop.step(state, dataset)
        ids, free = loop.round.candidates(baal.loop.round_keys(state.key, state.pool.round).subset, state)
        ids = np.arange(NUM) if ids is None else np.asarray(ids)
        counts, picks = np.bincount(groups[np.asarray(pool.labelled(state.pool))], minlength=GROUPS), []
        for i in sorted(ids[np.asarray(free)], key=lambda i: -scores[i]):
            if len(picks) < 8 and counts[groups[i]] < 2:
                picks.append(int(i))
                counts[groups[i]] += 1
        assert info.indices.tolist() == picks + [-1] * (8 - len(picks))
        if not options:
            source = baal.Dataset(data.View(dataset.inputs), dataset.targets)
            assert loop.step(state, source)[1].indices.tolist() == picks


# Costs


def test_scores_are_divided_by_costs(key):
    costs = np.random.default_rng(1).uniform(0.5, 9, NUM)
    for name, score in (("entropy", heuristics.entropy), ("margin", heuristics.margin)):
        for options in ({}, {"max_sample": 25}):
            loop = loop_of(name, **options)
            state = started(loop, key, costs=costs)
            after, info = loop.step(state, TRAIN)
            keys = baal.loop.round_keys(state.key, state.pool.round)
            ids, free = loop.round.candidates(keys.subset, state)
            ids = np.arange(NUM) if ids is None else np.asarray(ids)
            inputs = jnp.asarray(TRAIN.inputs)[ids]
            scores = baal.score(keys.draws, POSTERIOR, after.posterior, inputs, score, num_samples=4)
            scores = np.where(free, np.asarray(scores), np.nan)
            value = (scores - min(np.nanmin(scores), 0)) / costs[ids]
            order = ids[np.argsort(-np.nan_to_num(value, nan=-1), kind="stable")[:5]]
            assert info.indices.tolist() == order.tolist()
            np.testing.assert_allclose(info.scores, np.sort(value[~np.isnan(value)])[::-1][:5], rtol=1e-4)
    spent = float(np.sum(costs[np.asarray(pool.labelled(after.pool))]))
    np.testing.assert_allclose(pool.total_cost(after.pool), spent, rtol=1e-5)
    with pytest.raises(ValueError, match="but this is no ranking"):
        loop_of("k_center").step(started(loop_of("k_center"), key, costs=costs), TRAIN)
    at_random = loop_of("random")
    both = [at_random.step(started(at_random, key, **limits), TRAIN)[1].indices for limits in ({}, {"costs": costs})]
    fixtures.same(*both)


def test_a_budget_of_cost_stops_a_run(key):
    costs = np.random.default_rng(2).uniform(0.5, 3, NUM)
    loop = loop_of("margin")
    state = started(loop, key, costs=costs)
    state, infos = baal.run(loop, None, TRAIN, TEST, state=state, num_rounds=6, stop=stopping.cost_budget(20.0))
    spent = costs[np.asarray(pool.labelled(state.pool))].sum()
    last = np.asarray(infos.indices)[~np.asarray(infos.stopped)][-1]
    assert spent >= 20 > spent - costs[last].sum()
    with pytest.raises(ValueError, match="this pool has no costs"):
        baal.run(loop, key, TRAIN, TEST, num_initial=4, num_rounds=1, stop=stopping.cost_budget(20.0))


def test_limits_go_through_vmap_and_meshes(key):
    loop = loop_of("power_bald")
    limits = pool.init(NUM, costs=np.linspace(1, 2, NUM), groups=np.arange(NUM) % GROUPS, quota=3)
    init = lambda key: loop.init(key, TRAIN, 4, limits)  # noqa: E731
    keys = jax.random.split(key, 3)
    together = jax.vmap(lambda key: loop.step(init(key), TRAIN)[1].indices)(keys)
    for one, own in zip(together, keys, strict=True):
        fixtures.same(one, loop.step(init(own), TRAIN)[1].indices)
    placed = data.shard(TRAIN, jax.make_mesh((4,), ("pool",)))
    fixtures.same(loop.step(loop.init(keys[0], placed, 4, limits), placed)[1].indices, together[0])


# Starts


def test_a_balanced_start_has_as_many_of_each_class(key):
    loop, rare = loop_of("margin"), np.where(np.arange(NUM) == 7, 2, np.minimum(TRAIN.targets, 1))
    dataset = TRAIN._replace(targets=rare.astype(np.int32))
    for seed in range(5):
        state = loop.init(jax.random.key(seed), dataset, 9, balanced=True)
        assert np.bincount(rare[np.asarray(pool.labelled(state.pool))]).tolist() == [4, 4, 1]
    first, second = (pool.random_query(jax.random.key(seed), pool.init(NUM), 9, rare) for seed in (0, 1))
    assert set(first.tolist()) != set(second.tolist())
    quota = pool.init(NUM, groups=rare, quota=2)
    assert np.bincount(rare[pool.random_query(key, quota, 5)]).tolist() == [2, 2, 1]
    for wrong in ({"num_initial": 0}, {"num_initial": 3, "acquisition": selection.random()}):
        with pytest.raises(ValueError, match="balanced=True is a random start"):
            loop.init(key, dataset, balanced=True, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"costs": np.zeros(NUM)}, "costs hold 0.0: give numbers above 0"),
        ({"costs": np.full(NUM, np.nan)}, "costs hold nan"),
        ({"costs": np.ones(NUM - 1)}, "one number for each of 40 is needed"),
        ({"groups": np.zeros(NUM, int)}, "belong together"),
        ({"groups": np.zeros(NUM), "quota": 1}, "groups float64"),
        ({"groups": np.arange(NUM), "quota": np.ones(3, int)}, "one for each group"),
        ({"groups": np.full(NUM, -2), "quota": 1}, "groups hold -2"),
        ({"groups": np.zeros(NUM, int), "quota": -1}, "at least 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        pool.init(NUM, **wrong)


def test_first_queries_and_samples_keep_to_quotas(key):
    """A cold start, a random one and ``max_sample``; and what can never be labelled is not asked for."""
    groups = np.repeat(np.arange(4), 10)
    limits, embeddings = pool.init(NUM, groups=groups, quota=2), jnp.asarray(TRAIN.inputs)
    for start in ({}, {"acquisition": selection.typiclust(), "embeddings": embeddings}):
        state = loop_of("margin").init(key, TRAIN, 3, limits, **start)
        assert np.bincount(groups[np.asarray(pool.labelled(state.pool))]).max() <= 2
    for seed in range(4):
        sampled = baal.active_loop(POSTERIOR, selection.by_name("margin"), query_size=4, num_samples=4, max_sample=4)
        state = sampled.init(jax.random.key(seed), TRAIN, 4, pool.init(NUM, groups=groups, quota=2))
        assert int(sampled.step(state, TRAIN)[1].num_picked) == 4
    with pytest.raises(ValueError, match="num_initial=9 exceeds the 8 unlabelled"):
        loop_of("margin").init(key, TRAIN, 9, limits)
    with pytest.raises(ValueError, match="num=9 exceeds the 8 unlabelled"):
        pool.random_query(key, limits, 9)
    few = baal.active_loop(POSTERIOR, selection.survivors(selection.random(), 6), query_size=3, num_samples=4)
    with pytest.raises(ValueError, match="the 6 survivors may all be of full groups"):
        few.step(few.init(key, TRAIN, 3, limits), TRAIN)


def test_limits_are_looked_at_between_rounds_on_a_mesh():
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(jax.sharding.AxisType.Explicit,))
    placed = data.shard(TRAIN, mesh)
    state = loop_of("margin").init(jax.random.key(0), placed, 4, pool.init(NUM, groups=np.arange(NUM) % 5, quota=2))
    alone = loop_of("margin").init(jax.random.key(0), TRAIN, 4, pool.init(NUM, groups=np.arange(NUM) % 5, quota=2))
    fixtures.same(pool.available(state.pool), pool.available(alone.pool))
    fixtures.same(pool.room(state.pool), pool.room(alone.pool))
