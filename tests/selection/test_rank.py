"""Selections that rank scores: the best, random ones, given ones; and every acquisition by its name."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baal_jax import Predictions, heuristics, selection
from tests.oracles import selection as oracle

NUM, DRAWS, CLASSES = 7, 5, 3
EVERY = np.ones(NUM, bool)
every_ranking = pytest.mark.parametrize("name", ["top_k", "power", "softmax", "softrank"])


@functools.cache
def build(name, **arguments):
    return selection.REGISTRY[name](**arguments)


def best_first(scores, available):
    """Largest first, of equal ones the lowest id, NaN last."""
    return sorted(np.flatnonzero(available).tolist(), key=lambda i: (np.isnan(scores[i]), -scores[i], i))


# Of any heuristic


@every_ranking
@settings(max_examples=15)
@given(
    scores=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, 0.5, -1.0, 1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan]),
        min_size=NUM,
        max_size=NUM,
    ),
    available=st.lists(st.booleans(), min_size=NUM, max_size=NUM),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_scores_are_ranked_and_given_back(name, scores, available, seed):
    scores, available = np.array(scores, np.float32), np.array(available)
    picked = build(name).select(jax.random.key(seed), scores, available, NUM)
    indices = np.asarray(picked.indices)
    assert sorted(indices[indices >= 0].tolist()) == np.flatnonzero(available).tolist()
    np.testing.assert_array_equal(picked.scores, np.where(indices >= 0, scores[indices], np.nan))
    broken = np.isnan(picked.scores)
    assert (np.sort(broken) == broken).all()  # all NaN at the end
    if name == "top_k":
        assert indices[indices >= 0].tolist() == best_first(scores, available)


@every_ranking
def test_scores_are_those_of_the_heuristic(name):
    logits = 2 * np.random.default_rng(0).normal(size=(DRAWS, NUM, CLASSES)).astype(np.float32)
    for score_fn in (heuristics.bald, heuristics.margin):
        acquisition = build(name) if score_fn is heuristics.bald else build(name, score_fn=score_fn)
        np.testing.assert_array_equal(acquisition.summarise(Predictions(logits)), score_fn(logits))
    # Half precision is ranked in full.
    scores = np.arange(NUM).astype(jax.numpy.bfloat16)
    picked = build(name).select(jax.random.key(0), scores, EVERY, 4)
    np.testing.assert_array_equal(picked.scores, scores[np.asarray(picked.indices)].astype(np.float32))


@every_ranking
def test_one_score_an_example(name, key):
    # Case 16.
    with pytest.raises(ValueError, match=r"\(7, 2, 2\) cannot be ranked.*reduce_spatial"):
        build(name).select(key, np.zeros((NUM, 2, 2)), EVERY, 2)
    for num in (1, 3, NUM + 1):
        with pytest.raises(ValueError, match=f"{num} scores for {NUM} examples"):
            build(name).select(key, np.ones(num), EVERY, 1)


# top_k


def test_top_k_descends_and_breaks_ties_by_id(key):
    scores = np.array([0.5, 2.0, 0.5, -1.0, 2.0, np.nan, np.inf], np.float32)
    picked = build("top_k").select(key, scores, np.arange(NUM) != 1, NUM)
    assert picked.indices.tolist() == [6, 4, 0, 2, 3, 5, -1]
    np.testing.assert_array_equal(picked.scores, [np.inf, 2, 0.5, 0.5, -1, np.nan, np.nan])
    signed = np.array([-0.0, 0.0, -0.0, 0.0, 0.0, -0.0, 0.0], np.float32)
    assert build("top_k").select(key, signed, EVERY, NUM).indices.tolist() == list(range(NUM))


def test_top_k_of_information_about_targets():
    rng = np.random.default_rng(0)
    logits, targets = (rng.normal(size=(DRAWS, num, CLASSES)).astype(np.float32) for num in (NUM, 2))
    scores = selection.top_k_epig().summarise(Predictions(logits, None, targets))
    np.testing.assert_array_equal(scores, heuristics.epig(logits, targets))
    picked = selection.top_k_epig().select(jax.random.key(0), scores, EVERY, NUM)
    assert picked.indices.tolist() == best_first(np.asarray(scores), EVERY)
    other = selection.top_k_epig(lambda logits, targets: targets[0, 0, 0] - logits[0, :, 0])
    np.testing.assert_array_equal(
        other.summarise(Predictions(logits, None, targets)), targets[0, 0, 0] - logits[0, :, 0]
    )
    with pytest.raises(ValueError, match="target_logits is None: pass the inputs that matter as target_inputs"):
        selection.top_k_epig().summarise(Predictions(logits))


# random and precomputed


def test_random_reaches_every_permutation_equally():
    # Case 20.
    keys = jax.random.split(jax.random.key(4), 12_000)
    picked = jax.jit(jax.vmap(lambda key: build("random").select(key, None, np.ones(4, bool), 4)))(keys)
    oracle.assert_sequences(np.asarray(picked.indices), oracle.sequences(np.ones(4), 4))
    uniforms = np.asarray(jax.random.uniform(keys[0], (4,)))
    np.testing.assert_array_equal(picked.indices[0], best_first(uniforms, np.ones(4)))
    np.testing.assert_array_equal(picked.scores[0], np.sort(uniforms)[::-1])


def test_precomputed_picks_as_top_k_does(key):
    # Case 20: neither reads predictions.
    assert build("random").summarise is None
    assert selection.precomputed(np.ones(3)).summarise is None
    for scores in ([0.3, np.nan, 0.5, -np.inf, 0.5, np.inf, 0.0], [3, 1, 5, -7, 5, 9, 0]):
        scores, available = np.array(scores), np.arange(NUM) != 4
        picked = selection.precomputed(scores).select(key, None, available, NUM)
        expected = best_first(scores, available)
        assert picked.indices.tolist() == [*expected, -1]
        np.testing.assert_array_equal(picked.scores, np.float32([*scores[expected], np.nan]))
        assert picked.scores.dtype == np.float32


def test_precomputed_needs_one_score_an_example(key):
    for num in (1, 3, NUM + 1):
        with pytest.raises(ValueError, match=f"{num} scores for {NUM} examples"):
            selection.precomputed(np.ones(num)).select(key, None, EVERY, 1)
    with pytest.raises(ValueError, match="cannot be ranked"):
        selection.precomputed(np.ones((NUM, 2)))
    with pytest.raises(ValueError, match="query_size=8 exceeds"):
        selection.precomputed(np.ones(NUM)).select(key, None, EVERY, 8)


# By name


def test_acquisitions_by_name(monkeypatch):
    built = {}  # what the registry is asked for
    for name in selection.REGISTRY:
        monkeypatch.setitem(selection.REGISTRY, name, lambda *given, name=name: built.setdefault(name, given))
    for name in selection.REGISTRY:
        if name not in ("grid", "top_k", "power", "softmax", "softrank"):
            assert selection.by_name(name, coldness=2.0) is built[name] == ()
    assert selection.by_name("power_bald") == (heuristics.bald, 1.0)
    assert selection.by_name("softmax_mean_std", coldness=0.5) == (heuristics.mean_std, 0.5)
    assert selection.by_name("softrank_entropy", coldness=2.0) == (heuristics.entropy, 2.0)
    logits = np.random.default_rng(0).normal(size=(DRAWS, NUM, CLASSES)).astype(np.float32)
    for name, score_fn in (("margin", heuristics.margin), ("top_k_expected_entropy", heuristics.expected_entropy)):
        scores = selection.by_name(name).summarise(Predictions(logits))
        np.testing.assert_array_equal(scores, score_fn(logits))
        picked = selection.by_name(name).select(jax.random.key(0), scores, EVERY, NUM)
        assert picked.indices.tolist() == best_first(np.asarray(scores), EVERY)


def test_names_that_are_none_are_refused():
    for name in ("top_k_top", "power_", "topk_bald", "grid", "top_k", "power", "bald_power", ""):
        message = f"name='{name}' is no strategy: use one of badge, .*, or a heuristic behind"
        with pytest.raises(ValueError, match=message):
            selection.by_name(name)
