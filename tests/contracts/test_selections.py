"""The contract of every selection, whichever family it is of."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import Predictions, selection
from tests import fixtures
from tests.contracts import members

MEMBERS = members("selections", selection.REGISTRY)
NUM, QUERY, DRAWS, CLASSES, FEATURES, TARGETS = 12, 4, 5, 3, 4, 2
OPTIONS = {"batch_bald": {"num_configurations": 27}}  # enumerates four picks, samples the rest
# Without a random part, while BatchBALD can enumerate and the features are not exhausted.
DETERMINISTIC = {"bait", "batch_bald", "batch_bald_gaussian", "frank_wolfe", "grid", "k_center", "lcmd", "max_det"}
DETERMINISTIC |= {"balanced_margin", "max_diag", "max_herding", "top_k", "top_k_epig", "uncertainty_herding"}
# On several devices these are the programs of others: lcmd, top_k, power, max_det, badge and prob_cover.
TWINS = {"batch_bald_gaussian", "grid", "k_center", "k_means_pp", "max_diag", "max_herding", "softmax", "top_k_epig"}
PLAN_FOR_THE_WHOLE_QUERY = {"bait", "cluster_margin", "drop_query", "k_means", "k_means_pp", "badge", "typiclust"}
DEVICES = [(name, "Auto") for name in MEMBERS if name not in TWINS]
DEVICES += [(name, "Explicit") for name in ("batch_bald", "lcmd", "random", "top_k")]
EVERY = np.ones(NUM, bool)
AVAILABLE = np.arange(NUM) % 5 != 3
LABELLED = np.arange(NUM) == 3  # 8 is neither
every_selection = pytest.mark.parametrize("name", MEMBERS)


def known(name):
    """The selection that this is, or that a faulty member is made of."""
    return max((whole for whole in selection.REGISTRY if name.removeprefix("broken_").startswith(whole)), key=len)


build = functools.cache(lambda name: MEMBERS[name](**OPTIONS.get(name, {})))


@jax.jit
def summarised(given):
    """By one program for all."""
    return {name: build(name).summarise(given) for name in MEMBERS if build(name).summarise is not None}


@functools.cache
def summaries(seed, rows=(), value=0.0):
    """NaN in some rows, or other numbers."""
    rng = np.random.default_rng(seed)
    shapes = (DRAWS, NUM, CLASSES), (NUM, FEATURES), (DRAWS, TARGETS, CLASSES)
    logits, features, targets = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    if rows:
        logits[:, list(rows)] = value * np.arange(1, DRAWS + 1)[:, None, None] * np.array([0.5, -0.5, 0.25])
        features[list(rows)] = value
    return jax.tree.map(np.asarray, summarised(Predictions(2 * logits, features, targets)))


def select(name, key, available, labelled=LABELLED, query_size=QUERY, seed=0, **changes):
    """Always with arrays of the same shapes, so that there is one program for each size of a query."""
    summary = summaries(seed, **changes).get(name)
    with jax.debug_nans(True):  # NaN scores beside −1 are no error
        return build(name).select(key, summary, np.asarray(available), query_size, np.asarray(labelled))


def check(picked, available, query_size=QUERY):
    indices, scores = np.asarray(picked.indices), np.asarray(picked.scores)
    assert (indices.dtype, scores.dtype) == (np.int32, np.float32)
    assert indices.shape == scores.shape == (query_size,)
    num = min(query_size, int(np.sum(available)))
    assert (indices[num:] == -1).all()
    assert np.isnan(scores).tolist() == [False] * num + [True] * (query_size - num)
    assert len(set(indices[:num].tolist()) & set(np.flatnonzero(available).tolist())) == num


def equal(found, expected):
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-6)


@every_selection
@settings(max_examples=10)
@given(
    available=st.lists(st.booleans(), min_size=NUM, max_size=NUM),
    labelled=st.lists(st.booleans(), min_size=NUM, max_size=NUM),
    seed=st.integers(0, 2**32 - 1),
)
def test_picks_are_distinct_and_available_and_padded(name, available, labelled, seed):
    available = np.array(available)
    key = jax.random.key(seed)
    check(select(name, key, available, np.array(labelled) & ~available, seed=seed % 4), available)
    only = np.arange(NUM) == seed % NUM
    assert select(name, key, only, ~only).indices.tolist() == [seed % NUM, -1, -1, -1]
    for labelled in (LABELLED, EVERY, ~EVERY):  # nothing is left
        check(select(name, key, ~EVERY, labelled), ~EVERY)


@every_selection
def test_the_whole_pool_can_be_picked_and_nan_comes_last(name):
    # Case 13.
    for key in jax.random.split(jax.random.key(6), 3):
        check(select(name, key, EVERY, ~EVERY, NUM), EVERY, NUM)
        longer, shorter = (select(name, key, AVAILABLE, query_size=num).indices for num in (NUM, QUERY))
        if known(name) not in PLAN_FOR_THE_WHOLE_QUERY:  # greedy: what is picked does not depend on how many follow
            np.testing.assert_array_equal(longer[:QUERY], shorter)
        if build(name).summarise is not None:
            available = np.arange(NUM) != 0
            picked = select(name, key, available, ~available, NUM, rows=(2,), value=np.nan)
            assert picked.indices[-2:].tolist() == [2, -1]
            assert sorted(picked.indices[:-1].tolist()) == list(range(1, NUM))
            assert np.isnan(picked.scores).tolist() == [False] * (NUM - 2) + [True] * 2


@every_selection
def test_what_is_hidden_does_not_matter_nor_labels_that_are_not_read(name):
    """Rows that are neither available nor labelled hold anything, as padding does."""
    keys = jax.random.split(jax.random.key(7), 4)

    def picks(labelled=LABELLED, **changes):
        return [select(name, key, AVAILABLE, labelled, **changes) for key in keys]

    usual = picks()
    for value in (1e3, np.nan):
        fixtures.same(picks(rows=(8,), value=value), usual)
    fixtures.same(picks(LABELLED | (np.arange(NUM) < 2)), usual)  # what is available counts as that
    others = picks(rows=(3, 8), value=2.0), picks(LABELLED | (np.arange(NUM) == 8)), picks(~AVAILABLE)
    if build(name).reads_labelled:
        assert any((a.indices != b.indices).any() for other in others for a, b in zip(usual, other, strict=True))
    else:
        for other in others:
            fixtures.same(other, usual)
    for picked in picks(rows=(3,), value=np.nan):  # a label of an example that is not finite harms nobody
        check(picked, AVAILABLE)


@every_selection
def test_a_query_is_a_number_of_examples(name, key):
    # Case 25.
    with pytest.raises(ValueError, match=f"query_size={NUM + 1} exceeds the {NUM} examples"):
        select(name, key, EVERY, query_size=NUM + 1)
    for query_size in (0, -1, True):
        with pytest.raises(ValueError, match=r"query_size=.* must be an integer of at least 1"):
            select(name, key, EVERY, query_size=query_size)


@every_selection
def test_exported_compiled_and_vmaps_over_everything(name):
    # Case 20: the same key picks the same, and different keys differ.
    assert hasattr(build(name).select, "lower")
    keys, rng = jax.random.split(jax.random.key(1), 17), np.random.default_rng(0)
    order = rng.permutation(NUM)
    each = [summaries(seed).get(name) for seed in [0] * 12 + [1, 2, 3, 3]]
    each.append(jax.tree.map(lambda leaf: leaf[order], each[0]))
    available = [AVAILABLE] * 12 + [rng.random(NUM) < share for share in (0.1, 0.3, 0.6, 0.9)] + [AVAILABLE[order]]
    labelled = [LABELLED] * 12 + [~row & (rng.random(NUM) < 0.5) for row in available[12:16]] + [LABELLED[order]]
    run = jax.jit(jax.vmap(lambda *arguments: build(name).select(*arguments[:3], QUERY, arguments[3])))
    together = run(keys, jax.tree.map(lambda *leaves: np.stack(leaves), *each), np.array(available), np.array(labelled))
    alone = [build(name).select(*rest, QUERY, own) for *rest, own in zip(keys, each, available, labelled, strict=True)]
    equal(together, jax.tree.map(lambda *leaves: np.stack(leaves), *alone))
    if known(name) in DETERMINISTIC:  # whatever the order of the pool
        np.testing.assert_array_equal(order[together.indices[-1]], together.indices[0])
    if known(name) != "prob_cover":  # its key goes into the estimate of a radius, which need not show in few examples
        assert (len(np.unique(together.indices[:12], axis=0)) == 1) == (known(name) in DETERMINISTIC)


@pytest.mark.parametrize(("name", "kind"), DEVICES)
def test_one_device_or_four(name, kind):
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    split, key = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pool")), jax.random.key(4)
    alone = select(name, key, AVAILABLE)
    with jax.sharding.set_mesh(mesh):
        summary, available, labelled = jax.device_put((summaries(0).get(name), AVAILABLE, LABELLED), split)
        assert len(available.sharding.device_set) == 4
        equal(build(name).select(key, summary, available, QUERY, labelled), alone)


@every_selection
def test_no_key_is_used_twice(name, key_reuse):
    summary = summaries(0).get(name)

    def trace(acquire):
        jax.jit(lambda key: acquire(key, summary, AVAILABLE, NUM, LABELLED)).trace(jax.random.key(1))

    with pytest.raises(jax.errors.KeyReuseError):  # the checker is awake
        trace(lambda key, *_: jax.random.uniform(key) + jax.random.normal(key))
    trace(MEMBERS[name](**OPTIONS.get(name, {})).select)  # traced anew, under the checker


def test_what_reads_labelled_examples_refuses_a_sample_of_the_pool():
    for name in ("lcmd", "typiclust", "prob_cover"):
        with pytest.raises(ValueError, match="max_sample=5 would hide the labelled examples"):
            baal.active_loop(fixtures.SPY, build(name), query_size=2, max_sample=5)
