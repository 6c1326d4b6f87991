"""The contract of every selection, whichever family it is of."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import Predictions, selection

NUM, DRAWS, CLASSES, FEATURES, TARGETS = 12, 5, 3, 4, 2
# Without a random part, while BatchBALD can enumerate and the features are not exhausted.
DETERMINISTIC = {
    "bait",
    "batch_bald",
    "batch_bald_gaussian",
    "frank_wolfe",
    "grid",
    "k_center",
    "lcmd",
    "max_det",
    "max_diag",
    "top_k",
    "top_k_epig",
}
EVERY = np.ones(NUM, bool)
AVAILABLE = np.arange(NUM) % 5 != 3
LABELLED = np.arange(NUM) == 3
every_selection = pytest.mark.parametrize("name", selection.REGISTRY)


@functools.cache
def build(name):
    return selection.REGISTRY[name]()


def make_predictions(seed=0):
    rng = np.random.default_rng(seed)
    logits, features, targets = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in [(DRAWS, NUM, CLASSES), (NUM, FEATURES), (DRAWS, TARGETS, CLASSES)]
    )
    return Predictions(2 * logits, features, targets)


def summary_of(acquisition, predictions):
    return None if acquisition.summarise is None else acquisition.summarise(predictions)


@functools.cache
def summary_for(name, seed):
    return summary_of(build(name), make_predictions(seed))


def select(name, key, available, query_size, seed=0, labelled=None):
    labelled = jnp.zeros(NUM, bool) if labelled is None else jnp.asarray(labelled)
    return build(name).select(key, summary_for(name, seed), jnp.asarray(available), query_size, labelled)


def check(picked, available, query_size):
    indices, scores = np.asarray(picked.indices), np.asarray(picked.scores)
    assert (indices.dtype, scores.dtype) == (np.int32, np.float32)
    assert indices.shape == scores.shape == (query_size,)
    num = min(query_size, int(np.sum(available)))
    assert (indices[:num] >= 0).all()
    assert (indices[num:] == -1).all()
    assert np.isnan(scores[num:]).all()
    assert not np.isnan(scores[:num]).any()
    assert len(set(indices[:num].tolist())) == num
    assert np.asarray(available)[indices[:num]].all()


@every_selection
@given(
    available=st.lists(st.booleans(), min_size=NUM, max_size=NUM),
    labelled=st.lists(st.booleans(), min_size=NUM, max_size=NUM),
    seed=st.integers(0, 2**32 - 1),
)
def test_picks_are_distinct_and_available_and_padded(name, available, labelled, seed):
    available = np.array(available)
    labelled = np.array(labelled) & ~available
    check(select(name, jax.random.key(seed), available, 4, seed % 4, labelled), available, 4)


@every_selection
def test_nothing_available(name, key):
    for labelled in (LABELLED, EVERY, None):
        picked = select(name, key, ~EVERY, 4, labelled=labelled)
        assert picked.indices.tolist() == [-1] * 4
        assert np.isnan(picked.scores).all()


@every_selection
def test_the_whole_pool_can_be_picked(name, key):
    check(select(name, key, EVERY, NUM), EVERY, NUM)


@every_selection
def test_one_example(name, key):
    only = np.arange(NUM) == 5
    picked = select(name, key, only, 4, labelled=~only)
    assert picked.indices.tolist() == [5, -1, -1, -1]


@every_selection
def test_more_than_the_pool_is_an_error(name, key):
    # Case 25.
    with pytest.raises(ValueError, match=f"query_size={NUM + 1} exceeds the {NUM} examples"):
        select(name, key, EVERY, NUM + 1)


@every_selection
@pytest.mark.parametrize("query_size", [0, -1, True])
def test_a_query_is_a_positive_number(name, key, query_size):
    with pytest.raises(ValueError, match=r"query_size=.* must be an integer of at least 1"):
        select(name, key, EVERY, query_size)


@every_selection
def test_same_key_same_picks_and_different_keys_differ(name):
    # Case 20.
    keys = jax.random.split(jax.random.key(1), 20)
    picked = [select(name, key, AVAILABLE, 4, labelled=LABELLED).indices.tolist() for key in keys]
    assert picked == [select(name, key, AVAILABLE, 4, labelled=LABELLED).indices.tolist() for key in keys]
    if name != "prob_cover":  # its key goes into the estimate of a radius alone, which need not show in few examples
        assert (len(set(map(tuple, picked))) == 1) == (name in DETERMINISTIC)


@every_selection
def test_the_order_of_picking_does_not_depend_on_how_many_follow(name):
    """For greedy selections; those that plan for the whole batch are named."""
    if name in {"bait", "cluster_margin", "k_means", "k_means_pp", "badge", "typiclust"}:
        return
    key = jax.random.key(6)
    longer, shorter = (select(name, key, AVAILABLE, num, labelled=LABELLED).indices for num in (6, 4))
    np.testing.assert_array_equal(longer[:4], shorter)


@every_selection
def test_compiled_equals_eager(name, key):
    acquisition, jitted = build(name), build(name).select
    assert inspect.unwrap(jitted) is not jitted  # exported compiled
    summary = summary_of(acquisition, make_predictions())
    eager = inspect.unwrap(jitted)(key, summary, jnp.asarray(AVAILABLE), 2, jnp.asarray(LABELLED))
    picked = select(name, key, AVAILABLE, 2, labelled=LABELLED)
    np.testing.assert_array_equal(picked.indices, eager.indices)
    np.testing.assert_allclose(picked.scores, eager.scores, rtol=1e-4, atol=1e-6)


@every_selection
def test_vmaps_over_keys(name):
    acquisition, available, labelled = build(name), jnp.asarray(AVAILABLE), jnp.asarray(LABELLED)
    summary, keys = summary_of(acquisition, make_predictions()), jax.random.split(jax.random.key(2), 6)
    together = jax.vmap(lambda key: acquisition.select(key, summary, available, 4, labelled))(keys)
    alone = [acquisition.select(key, summary, available, 4, labelled) for key in keys]
    np.testing.assert_array_equal(together.indices, np.stack([picked.indices for picked in alone]))
    np.testing.assert_allclose(together.scores, np.stack([picked.scores for picked in alone]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in selection.REGISTRY if name in DETERMINISTIC])
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_of_the_pool_is_followed(name, seed):
    acquisition, given = build(name), make_predictions(seed)
    order = np.random.default_rng(seed).permutation(NUM)
    moved = given._replace(logits=given.logits[:, order], features=given.features[order])
    key, labelled = jax.random.key(3), jnp.asarray(LABELLED)
    picked = acquisition.select(key, acquisition.summarise(given), jnp.asarray(AVAILABLE), 4, labelled)
    other = acquisition.select(key, acquisition.summarise(moved), jnp.asarray(AVAILABLE)[order], 4, labelled[order])
    np.testing.assert_array_equal(order[other.indices], picked.indices)


@every_selection
def test_one_device_or_four(name, mesh):
    acquisition = build(name)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pool"))
    given = (summary_of(acquisition, make_predictions()), jnp.asarray(AVAILABLE), jnp.asarray(LABELLED))
    summary, available, labelled = jax.tree.map(lambda leaf: jax.device_put(leaf, split), given)
    assert len(available.sharding.device_set) == 4
    key = jax.random.key(4)
    spread = acquisition.select(key, summary, available, 4, labelled)
    alone = acquisition.select(key, given[0], given[1], 4, given[2])
    np.testing.assert_array_equal(spread.indices, alone.indices)
    np.testing.assert_allclose(spread.scores, alone.scores, rtol=1e-4, atol=1e-6)


@every_selection
def test_no_key_is_used_twice(name, key, key_reuse):
    with pytest.raises(jax.errors.KeyReuseError):  # the checker is awake
        jax.jit(lambda key: jax.random.uniform(key) + jax.random.normal(key))(jax.random.key(1))
    acquisition = selection.REGISTRY[name]()  # traced anew, under the checker
    summary = summary_of(acquisition, make_predictions())
    check(acquisition.select(key, summary, jnp.ones(NUM, bool), 4), EVERY, 4)


@every_selection
def test_an_example_with_nan_comes_last(name):
    # Case 13.
    acquisition, given = build(name), make_predictions()
    if acquisition.summarise is None:
        return
    broken = given._replace(logits=given.logits.at[1, 2, 0].set(jnp.nan), features=given.features.at[2, 1].set(jnp.nan))
    summary, available = acquisition.summarise(broken), jnp.arange(NUM) != 0
    for key in jax.random.split(jax.random.key(3), 5):
        picked = acquisition.select(key, summary, available, NUM, ~available)
        assert picked.indices[-2:].tolist() == [2, -1]
        assert sorted(picked.indices[:-1].tolist()) == list(range(1, NUM))
        assert np.isnan(picked.scores[-2:]).all()
        assert not np.isnan(picked.scores[:-2]).any()


@every_selection
def test_a_labelled_example_with_nan_harms_nobody(name):
    acquisition, given = build(name), make_predictions()
    if acquisition.summarise is None:
        return
    broken = given._replace(logits=given.logits.at[:, 3].set(jnp.nan), features=given.features.at[3].set(jnp.nan))
    picked = acquisition.select(
        jax.random.key(0), acquisition.summarise(broken), jnp.asarray(AVAILABLE), 4, jnp.asarray(LABELLED)
    )
    check(picked, AVAILABLE, 4)


def random_network():
    """A posterior that costs nothing to compile: random weights of one layer, and dropout of inputs as draws."""

    def fit(key, dataset, labelled, previous=None):
        return jax.random.normal(key, (4, 3)) + 0.1 * jnp.sum(labelled, dtype=jnp.float32)

    def apply(state, draw, inputs):
        return (inputs * jax.random.bernoulli(draw, 0.5, (1, 4)).astype(jnp.float32)) @ state

    return baal.Posterior(fit, lambda key, state, num_samples: jax.random.split(key, num_samples), apply)


@every_selection
def test_runs_in_the_loop(name):
    rng = np.random.default_rng(0)
    train = baal.Dataset(jnp.asarray(rng.normal(size=(20, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 20)))
    loop = baal.active_loop(
        random_network(), build(name), query_size=3, num_samples=4, batch_size=8, features=lambda state, x: x @ state
    )
    state, infos = baal.run(loop, jax.random.key(0), train, num_initial=2, num_rounds=2, target_inputs=train.inputs[:3])
    picked = infos.indices.ravel()
    assert len(set(picked.tolist())) == 6
    assert int(baal.pool.num_labelled(state.pool)) == 8


def test_what_reads_labelled_examples_refuses_a_sample_of_the_pool():
    posterior = baal.Posterior(None, None, None)
    with pytest.raises(ValueError, match="max_sample=5 would hide the labelled examples"):
        baal.active_loop(posterior, selection.lcmd(), query_size=2, max_sample=5)
