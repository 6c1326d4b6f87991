"""Exact distributions for the stochastic rankings."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from baal_jax import Predictions, heuristics, selection
from baal_jax.selection import _stochastic
from tests.oracles import baal
from tests.oracles import selection as oracle

NUM = 7
EVERY = np.ones(NUM, bool)
SCORES = np.array(baal.GOLDEN["BALD(P)"]["scores"], np.float32)  # of five
GOLDEN = {"power": "PowerSampling", "softmax": "GibbsSampling", "softrank": "RankBasedSampling"}
LOG_WEIGHTS = {name: jax.jit(getattr(_stochastic, f"{name}_log_weights")) for name in GOLDEN}
every_stochastic = pytest.mark.parametrize("name", GOLDEN)
build = functools.cache(lambda name, **arguments: selection.REGISTRY[name](**arguments))


def padded(scores, available=None):
    """A pool of NUM examples, so that there is one program for all."""
    available = np.ones(len(scores), bool) if available is None else np.asarray(available)
    absent = NUM - len(scores)
    scores = np.append(np.asarray(scores, np.float32), np.full(absent, 99, np.float32))
    return scores, np.append(available, np.zeros(absent, bool))


def weights_of(name, scores, coldness=1.0, available=None):
    """Probabilities of the first pick, by the package."""
    all_scores, there = padded(scores, available)
    log_weights = np.asarray(LOG_WEIGHTS[name](all_scores, there, coldness), np.float64)
    weights = np.exp(np.where(there, log_weights, -np.inf))[: len(scores)]
    return weights / weights.sum()


@functools.cache
def sampler(name, coldness):
    """The first picks do not depend on how many follow."""
    acquisition, keys = build(name, coldness=coldness), jax.random.split(jax.random.key(5), 20_000)
    pick = jax.vmap(lambda key, *pool: acquisition.select(key, *pool, NUM).indices, in_axes=(0, None, None))
    return functools.partial(jax.jit(pick), keys)


def samples_of(name, scores, query_size, coldness=2.0, available=None):
    return np.asarray(sampler(name, coldness)(*padded(scores, available)))[:, :query_size]


@every_stochastic
def test_baal_distributions(name):
    # Cases 21 and 22.
    for temperature in (0.5, 1.0, 2.0):
        golden = baal.GOLDEN[f"{GOLDEN[name]}(BALD(P),T={temperature})"]
        np.testing.assert_allclose(weights_of(name, SCORES, 1 / temperature), golden, rtol=2e-6)


@settings(max_examples=15)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 1.0, -2.0, np.inf, -np.inf]), min_size=NUM, max_size=NUM),
    available=st.lists(st.booleans(), min_size=NUM, max_size=NUM).filter(any),
)
def test_ranks_are_those_of_what_is_available(scores, available):
    # Case 22: equal scores share their rank.
    scores, available = np.array(scores, np.float32), np.array(available)
    log_weights = np.asarray(LOG_WEIGHTS["softrank"](scores, available, 2.0))
    ranks = oracle.average_ranks(scores[available])
    np.testing.assert_allclose(log_weights[available], -2 * np.log(ranks), rtol=1e-6, atol=1e-6)


@every_stochastic
def test_samples_without_replacement_from_what_is_available(name):
    # Case 23: one χ² over all ordered triples; first picks and inclusions follow, and are looked at by themselves.
    weights = np.array(baal.GOLDEN[f"{GOLDEN[name]}(BALD(P),T=0.5)"])
    picks = samples_of(name, SCORES, 3)
    oracle.assert_sequences(picks, oracle.sequences(weights, 3))
    first = np.bincount(picks[:, 0], minlength=5)
    assert stats.chisquare(first, len(picks) * oracle.first_pick_probabilities(weights)).pvalue > 1e-3
    included = np.bincount(picks.ravel(), minlength=5) / len(picks)
    truth = oracle.inclusion_probabilities(weights, 3)
    assert (np.abs(included - truth) < 4 * np.sqrt(truth * (1 - truth) / len(picks))).all()
    # Others change nothing, nor do the NaN of case 13, which take no weight.
    available = np.array([False, True, True, False, True, True, True])
    picks = samples_of(name, np.insert(SCORES, [0, 2], [9.0, 9.0]), 1, available=available)
    oracle.assert_sequences(picks, oracle.sequences(np.insert(weights, [0, 2], 0.0), 1))
    picks = samples_of(name, np.insert(SCORES, 2, np.nan), 1)
    oracle.assert_sequences(picks, oracle.sequences(np.insert(weights, 2, 0.0), 1))


@every_stochastic
def test_cold_is_top_k_and_hot_is_uniform(name):
    # Case 24.
    cold = [build(name, coldness=1e4).select(jax.random.key(seed), *padded(SCORES), 5).indices for seed in range(10)]
    np.testing.assert_array_equal(cold, [[4, 3, 2, 1, 0]] * 10)
    np.testing.assert_allclose(weights_of(name, SCORES, 0.0), 0.2, rtol=1e-6)
    oracle.assert_sequences(samples_of(name, SCORES, 2, coldness=0.0), oracle.sequences(np.ones(5), 2))
    entropies = [stats.entropy(weights_of(name, SCORES, coldness)) for coldness in (0, 0.1, 0.5, 1, 2, 5, 20)]
    assert (np.diff(entropies) < -1e-4).all()
    # 0 · inf is 0, but what has no weight keeps none.
    infinite = np.array([1.0, np.inf, -np.inf, 2.0], np.float32)
    hot = [1 / 3, 1 / 3, 0, 1 / 3] if name != "softrank" else [0.25] * 4
    np.testing.assert_allclose(weights_of(name, infinite, 0.0), hot, rtol=1e-6)


def test_weightless_examples_wait_until_the_others_are_used_up():
    # Case 25: Baal falls back to uniform.
    scores = [0.0, 2.0, -1.0, 1.0, 0.0]
    oracle.assert_sequences(samples_of("power", scores, 4), oracle.sequences(np.maximum(scores, 0) ** 2, 4))


def test_each_of_two_keys_makes_one_order():
    scores, there = padded([0.0, 2.0, -1.0, 1.0, 0.0, 0.0, 3.0])
    for seed in range(5):
        key = jax.random.key(seed)
        key_gumbel, key_rest = jax.random.split(key)
        log_weights = np.log(scores, out=np.full(NUM, -np.inf, np.float32), where=scores > 0)
        perturbed = log_weights + np.asarray(jax.random.gumbel(key_gumbel, (NUM,)))
        expected = np.lexsort((np.asarray(jax.random.uniform(key_rest, (NUM,))), -perturbed))
        assert build("power").select(key, scores, there, NUM).indices.tolist() == expected.tolist()


def test_scores_without_a_positive_one_are_shifted():
    # −inf is the score of an example that is all padding; it has no weight and moves nobody else.
    np.testing.assert_allclose(weights_of("power", [-3.0, -1.0, -2.0]), [0, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(weights_of("power", [-3.0, -1.0, -np.inf, -2.0]), [0, 2 / 3, 0, 1 / 3], rtol=1e-6)
    available = [True, True, False, True, False]
    scores = [-3.0, -1.0, -9.0, -2.0, 5.0]
    np.testing.assert_allclose(weights_of("power", scores, 1.0, available), [0, 2 / 3, 0, 1 / 3, 0], rtol=1e-6)
    oracle.assert_sequences(samples_of("power", [-3.0, -1.0, -np.inf, -2.0], 2), oracle.sequences([0, 4, 0, 1], 2))


@every_stochastic
def test_small_margins_are_preferred(name):
    # Case 26: Baal prefers large ones.
    probs = np.array([[0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])
    scores = build(name, score_fn=heuristics.margin).summarise(Predictions(np.log(probs).astype(np.float32)[None]))
    np.testing.assert_allclose(scores, [-0.8, -0.4, 0, -0.6], rtol=1e-5, atol=1e-6)
    first = np.bincount(samples_of(name, scores, 1)[:, 0], minlength=4)
    assert first[2] > first[1] > first[3] > first[0]


@every_stochastic
def test_coldness_is_a_finite_number(name):
    for coldness in (-0.1, np.inf, np.nan, "1"):
        with pytest.raises(ValueError, match="coldness="):
            selection.REGISTRY[name](coldness=coldness)
