"""Selections that rank scores, and exact distributions for the random ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from baal_jax import Predictions, heuristics, selection
from baal_jax.selection import _stochastic
from tests.oracles import baal
from tests.oracles import selection as oracle

NUM, DRAWS, CLASSES, FEATURES = 7, 5, 3, 4
SCORES = jnp.array(baal.GOLDEN["BALD(P)"]["scores"], jnp.float32)
STOCHASTIC = {
    "power": (jax.jit(_stochastic.power_log_weights), "PowerSampling"),
    "softmax": (jax.jit(_stochastic.softmax_log_weights), "GibbsSampling"),
    "softrank": (jax.jit(_stochastic.softrank_log_weights), "RankBasedSampling"),
}
every_ranking = pytest.mark.parametrize("name", ["top_k", *STOCHASTIC])
every_stochastic = pytest.mark.parametrize("name", STOCHASTIC)


@functools.cache
def build(name, **arguments):
    return selection.REGISTRY[name](**arguments)


def make_predictions(seed=0, num=NUM):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(DRAWS, num, CLASSES))
    return Predictions(jnp.asarray(logits, jnp.float32), jnp.asarray(rng.normal(size=(num, FEATURES)), jnp.float32))


def summary_of(acquisition, predictions):
    return None if acquisition.summarise is None else acquisition.summarise(predictions)


def check(picked, available, query_size):
    indices, scores = np.asarray(picked.indices), np.asarray(picked.scores)
    assert (indices.dtype, scores.dtype) == (np.int32, np.float32)
    assert indices.shape == scores.shape == (query_size,)
    num = min(query_size, int(np.sum(available)))
    assert (indices[:num] >= 0).all()
    assert (indices[num:] == -1).all()
    assert np.isnan(scores[num:]).all()
    assert len(set(indices[:num].tolist())) == num
    assert np.asarray(available)[indices[:num]].all()


# Selections that rank scores


@every_ranking
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
    check(picked, available, NUM)
    indices = np.asarray(picked.indices)[: available.sum()]
    np.testing.assert_array_equal(picked.scores[: len(indices)], scores[indices])
    broken = np.isnan(scores[indices])
    assert (np.sort(broken) == broken).all()  # all NaN at the end
    if name == "top_k":
        order = sorted(np.flatnonzero(available), key=lambda i: (np.isnan(scores[i]), -scores[i], i))
        assert indices.tolist() == [int(i) for i in order]


@every_ranking
def test_maps_of_scores_cannot_be_ranked(name, key):
    # Case 16.
    predictions = Predictions(jnp.zeros((DRAWS, NUM, 2, 2, CLASSES)))
    acquisition = build(name)
    with pytest.raises(ValueError, match=r"\(7, 2, 2\) cannot be ranked.*reduce_spatial"):
        acquisition.select(key, acquisition.summarise(predictions), jnp.ones(NUM, bool), 2)


@every_ranking
def test_maps_are_ranked_after_a_reduction(name, key):
    logits = jnp.zeros((2, NUM, 2, 2, 2)).at[0, 4, 1, 1, 0].set(9.0)
    acquisition = build(name, score_fn=most_disputed_position)
    assert np.argmax(acquisition.summarise(Predictions(logits))) == 4
    check(acquisition.select(key, acquisition.summarise(Predictions(logits)), jnp.ones(NUM, bool), 3), np.ones(7), 3)


def most_disputed_position(logits):
    return heuristics.reduce_spatial(heuristics.bald(logits), "max")


@every_ranking
@pytest.mark.parametrize("num", [1, 3, NUM + 1])
def test_one_score_an_example(name, key, num):
    with pytest.raises(ValueError, match=f"{num} scores for {NUM} examples"):
        build(name).select(key, jnp.ones(num), jnp.ones(NUM, bool), 1)


@every_ranking
def test_scores_may_be_half_precision(name, key):
    scores = jnp.arange(NUM).astype(jnp.bfloat16)
    picked = build(name).select(key, scores, jnp.ones(NUM, bool), 4)
    check(picked, np.ones(NUM), 4)
    np.testing.assert_array_equal(picked.scores, scores[picked.indices].astype(jnp.float32))


@every_ranking
def test_scores_are_those_of_the_heuristic(name):
    predictions = make_predictions()
    np.testing.assert_array_equal(build(name).summarise(predictions), heuristics.bald(predictions.logits))
    other = build(name, score_fn=heuristics.margin)
    np.testing.assert_array_equal(other.summarise(predictions), heuristics.margin(predictions.logits))


# top_k


def test_top_k_descends_and_breaks_ties_by_id(key):
    scores = jnp.array([0.5, 2.0, 0.5, -1.0, 2.0, jnp.nan, jnp.inf])
    picked = build("top_k").select(key, scores, jnp.arange(NUM) != 1, NUM)
    assert picked.indices.tolist() == [6, 4, 0, 2, 3, 5, -1]
    np.testing.assert_array_equal(picked.scores, [np.inf, 2, 0.5, 0.5, -1, np.nan, np.nan])


def test_top_k_takes_zero_for_zero_whatever_its_sign(key):
    picked = build("top_k").select(key, jnp.array([-0.0, 0.0, -0.0, 0.0, 0.0, -0.0, 0.0]), jnp.ones(NUM, bool), NUM)
    assert picked.indices.tolist() == list(range(NUM))


@given(st.permutations(range(NUM)))
def test_top_k_follows_a_permutation_of_the_pool(permutation):
    scores, available = np.linspace(-1, 2, NUM, dtype=np.float32)[[3, 6, 0, 5, 1, 4, 2]], np.arange(NUM) != 1
    key, permutation = jax.random.key(0), np.array(permutation)
    picked = build("top_k").select(key, scores, available, 4)
    moved = build("top_k").select(key, scores[permutation], available[permutation], 4)
    np.testing.assert_array_equal(permutation[moved.indices], picked.indices)


def test_top_k_of_baal(key):
    # Case 1.
    acquisition = build("top_k", score_fn=heuristics.bald)
    summary = acquisition.summarise(Predictions(heuristics.from_baal_layout(np.log(baal.PROBS))))
    picked = acquisition.select(key, summary, jnp.ones(5, bool), 5)
    assert picked.indices.tolist() == baal.GOLDEN["BALD(P)"]["ranks"]


# random and precomputed


def test_what_reads_no_predictions_says_so():
    # Case 20.
    assert build("random").summarise is None
    assert selection.precomputed(jnp.ones(3)).summarise is None


def test_random_reaches_every_permutation_equally():
    # Case 20.
    keys = jax.random.split(jax.random.key(4), 24_000)
    picked = jax.vmap(lambda key: build("random").select(key, None, jnp.ones(4, bool), 4))(keys)
    assert_sequences(np.asarray(picked.indices), oracle.sequences(np.ones(4), 4))
    assert (np.diff(picked.scores) <= 0).all()


@pytest.mark.parametrize("scores", [[0.3, np.nan, 0.5, -np.inf, 0.5, np.inf, 0.0], [3, 1, 5, -7, 5, 9, 0]])
def test_precomputed_picks_as_top_k_does(key, scores):
    scores, available = np.array(scores), jnp.arange(NUM) != 4
    picked = selection.precomputed(scores).select(key, None, available, NUM)
    other = build("top_k").select(key, jnp.asarray(scores), available, NUM)
    np.testing.assert_array_equal(picked.indices, other.indices)
    np.testing.assert_array_equal(picked.scores, other.scores)
    assert picked.scores.dtype == jnp.float32


@pytest.mark.parametrize("num", [1, 3, NUM + 1])
def test_precomputed_needs_one_score_an_example(key, num):
    with pytest.raises(ValueError, match=f"{num} scores for {NUM} examples"):
        selection.precomputed(jnp.ones(num)).select(key, None, jnp.ones(NUM, bool), 1)
    with pytest.raises(ValueError, match="cannot be ranked"):
        selection.precomputed(jnp.ones((NUM, 2)))
    with pytest.raises(ValueError, match="query_size=8 exceeds"):
        selection.precomputed(jnp.ones(NUM)).select(key, None, jnp.ones(NUM, bool), 8)


# Stochastic selections


def assert_sequences(picks, table):
    """χ² of ordered picks against their exact probabilities; the keys are fixed, so this passes always or never."""
    counts = dict.fromkeys(table, 0)
    for row, number in zip(*np.unique(picks, axis=0, return_counts=True), strict=True):
        counts[tuple(row.tolist())] += int(number)
    observed, truth = np.array(list(counts.values())), np.array(list(table.values()))
    assert observed[truth == 0].sum() == 0
    possible = truth > 0
    assert stats.chisquare(observed[possible], len(picks) * truth[possible]).pvalue > 1e-3


def weights_of(name, scores, coldness=1.0, available=None):
    """Probabilities of the first pick, by the package."""
    available = jnp.ones(len(scores), bool) if available is None else available
    log_weights = STOCHASTIC[name][0](jnp.asarray(scores, jnp.float32), available, coldness)
    return np.asarray(jax.nn.softmax(jnp.where(available, log_weights, -jnp.inf)))


@functools.cache
def sampler(name, coldness):
    """One compilation for every pool of at most NUM examples; the first picks do not depend on how many follow."""
    acquisition, keys = build(name, coldness=coldness), jax.random.split(jax.random.key(5), 20_000)
    pick = jax.vmap(lambda key, *pool: acquisition.select(key, *pool, NUM).indices, in_axes=(0, None, None))
    return functools.partial(jax.jit(pick), keys)


def samples_of(name, scores, query_size, coldness=2.0, available=None):
    available = np.ones(len(scores), bool) if available is None else available
    absent = NUM - len(scores)
    scores = np.append(np.asarray(scores, np.float32), np.full(absent, 99, np.float32))
    picks = np.asarray(sampler(name, coldness)(scores, np.append(available, np.zeros(absent, bool))))
    return picks[:, :query_size]


@every_stochastic
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_baal_distributions(name, temperature):
    # Cases 21 and 22.
    golden = baal.GOLDEN[f"{STOCHASTIC[name][1]}(BALD(P),T={temperature})"]
    np.testing.assert_allclose(weights_of(name, SCORES, 1 / temperature), golden, rtol=2e-6)


def test_equal_scores_share_their_rank():
    # Case 22.
    np.testing.assert_allclose(weights_of("softrank", [0.3, 0.3, 0.1]), [0.4, 0.4, 0.2], rtol=1e-6)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 1.0, -2.0, np.inf, -np.inf]), min_size=NUM, max_size=NUM),
    available=st.lists(st.booleans(), min_size=NUM, max_size=NUM).filter(any),
)
def test_ranks_are_those_of_what_is_available(scores, available):
    available = np.array(available)
    log_weights = np.asarray(STOCHASTIC["softrank"][0](np.array(scores, np.float32), available, 2.0))
    ranks = oracle.average_ranks(np.array(scores)[available])
    np.testing.assert_allclose(log_weights[available], -2 * np.log(ranks), rtol=1e-6, atol=1e-6)


@every_stochastic
def test_samples_without_replacement(name):
    # Case 23: one χ² over all ordered triples; first picks and inclusions follow, and are looked at by themselves.
    weights = np.array(baal.GOLDEN[f"{STOCHASTIC[name][1]}(BALD(P),T=0.5)"])
    picks = samples_of(name, SCORES, 3)
    assert_sequences(picks, oracle.sequences(weights, 3))
    first = np.bincount(picks[:, 0], minlength=5)
    assert stats.chisquare(first, len(picks) * oracle.first_pick_probabilities(weights)).pvalue > 1e-3
    included = np.bincount(picks.ravel(), minlength=5) / len(picks)
    truth = oracle.inclusion_probabilities(weights, 3)
    assert (np.abs(included - truth) < 4 * np.sqrt(truth * (1 - truth) / len(picks))).all()


@every_stochastic
def test_samples_from_what_is_available(name):
    scores = np.insert(np.asarray(SCORES), [0, 2], [9.0, 9.0]).astype(np.float32)
    available = np.array([False, True, True, False, True, True, True])
    picks = samples_of(name, scores, 1, available=available)
    weights = np.insert(np.array(baal.GOLDEN[f"{STOCHASTIC[name][1]}(BALD(P),T=0.5)"]), [0, 2], 0.0)
    assert_sequences(picks, oracle.sequences(weights, 1))


@every_stochastic
def test_cold_is_top_k_and_hot_is_uniform(name):
    # Case 24.
    for key in jax.random.split(jax.random.key(7), 20):
        cold = build(name, coldness=1e4).select(key, SCORES, jnp.ones(5, bool), 5)
        assert cold.indices.tolist() == [4, 3, 2, 1, 0]
    np.testing.assert_allclose(weights_of(name, SCORES, 0.0), 0.2, rtol=1e-6)
    assert_sequences(samples_of(name, SCORES, 2, coldness=0.0), oracle.sequences(np.ones(5), 2))


@every_stochastic
def test_entropy_falls_with_coldness(name):
    # Case 24.
    entropies = [stats.entropy(weights_of(name, SCORES, coldness)) for coldness in (0, 0.1, 0.5, 1, 2, 5, 20)]
    assert (np.diff(entropies) < -1e-4).all()


def test_weightless_examples_wait_until_the_others_are_used_up():
    # Case 25: Baal falls back to uniform.
    scores = [0.0, 2.0, -1.0, 1.0, 0.0]
    picks = samples_of("power", scores, 4)
    assert_sequences(picks, oracle.sequences(np.maximum(scores, 0) ** 2, 4))


@every_ranking
def test_scores_without_any_weight_still_fill_the_query(name, key):
    # Case 25.
    for scores in (np.zeros(NUM), np.full(NUM, -np.inf), np.full(NUM, -3.0), np.full(NUM, np.nan)):
        check(build(name).select(key, scores.astype(np.float32), np.ones(NUM, bool), 4), np.ones(NUM), 4)


def test_scores_without_a_positive_one_are_shifted():
    # −inf is the score of an example that is all padding; it has no weight and moves nobody else.
    np.testing.assert_allclose(weights_of("power", [-3.0, -1.0, -2.0]), [0, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights_of("power", [-3.0, -1.0, -np.inf, -2.0]), [0, 2 / 3, 0, 1 / 3], rtol=1e-6)
    available = jnp.array([True, True, False, True, False])
    scores = [-3.0, -1.0, -9.0, -2.0, 5.0]
    np.testing.assert_allclose(weights_of("power", scores, 1.0, available), [0, 2 / 3, 0, 1 / 3, 0], rtol=1e-6)
    assert_sequences(samples_of("power", [-3.0, -1.0, -np.inf, -2.0], 2), oracle.sequences([0, 4, 0, 1], 2))


@every_stochastic
def test_nan_takes_no_weight_from_the_others(name):
    # Case 13.
    weights = np.array(baal.GOLDEN[f"{STOCHASTIC[name][1]}(BALD(P),T=0.5)"])
    picks = samples_of(name, np.insert(np.asarray(SCORES), 2, np.nan), 1)
    assert_sequences(picks, oracle.sequences(np.insert(weights, 2, 0.0), 1))


@every_stochastic
def test_small_margins_are_preferred(name):
    # Case 26: Baal prefers large ones.
    probs = np.array([[0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])
    acquisition = build(name, score_fn=heuristics.margin, coldness=2.0)
    scores = acquisition.summarise(Predictions(jnp.asarray(np.log(probs), jnp.float32)[None]))
    np.testing.assert_allclose(scores, [-0.8, -0.4, 0, -0.6], rtol=1e-5, atol=1e-6)
    first = np.bincount(samples_of(name, scores, 1)[:, 0], minlength=4)
    assert first[2] > first[1] > first[3] > first[0]


@every_stochastic
@pytest.mark.parametrize("coldness", [-0.1, np.inf, np.nan, "1"])
def test_coldness_is_a_finite_number(name, coldness):
    with pytest.raises(ValueError, match="coldness="):
        selection.REGISTRY[name](coldness=coldness)


def test_the_oracle_of_sequences():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    table = oracle.sequences(weights, 2)
    assert sum(table.values()) == pytest.approx(1)
    assert table[(3, 0)] == pytest.approx(0.4 * 0.1 / 0.6)
    assert oracle.inclusion_probabilities(weights, 2).sum() == pytest.approx(2)
    assert all(oracle.sequences([1, 0, 0], 3)[(0, *rest)] == 0.5 for rest in itertools.permutations((1, 2)))
