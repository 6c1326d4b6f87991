"""Exact distributions for the stochastic rankings."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from baal_jax import selection
from baal_jax.selection import _stochastic
from tests.oracles import baal
from tests.oracles import selection as oracle

NUM = 7
SCORES = np.array(baal.GOLDEN["BALD(P)"]["scores"], np.float32)  # of five
GOLDEN = {"power": "PowerSampling", "softmax": "GibbsSampling", "softrank": "RankBasedSampling"}
LOG_WEIGHTS = {name: jax.jit(getattr(_stochastic, f"{name}_log_weights")) for name in GOLDEN}
every_stochastic = pytest.mark.parametrize("name", GOLDEN)
build = functools.cache(lambda name, **arguments: selection.REGISTRY[name](**arguments))


def padded(scores, available=None):
    """A pool of NUM examples, so that there is one program for all."""
    available = np.ones(len(scores), bool) if available is None else np.asarray(available)
    absent = NUM - len(scores)
    return np.append(np.float32(scores), np.full(absent, np.float32(99))), np.append(available, np.zeros(absent, bool))


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
    ranks = stats.rankdata(-scores[available])
    np.testing.assert_allclose(log_weights[available], -2 * np.log(ranks), rtol=1e-6, atol=1e-6)


@every_stochastic
def test_samples_without_replacement_from_what_is_available(name):
    # Case 23: one χ² over all ordered triples.
    weights = np.array(baal.GOLDEN[f"{GOLDEN[name]}(BALD(P),T=0.5)"])
    oracle.assert_sequences(samples_of(name, SCORES, 3), weights)
    # Others change nothing, nor do the NaN of case 13, which take no weight.
    available = np.array([False, True, True, False, True, True, True])
    picks = samples_of(name, np.insert(SCORES, [0, 2], [9.0, 9.0]), 1, available=available)
    oracle.assert_sequences(picks, np.insert(weights, [0, 2], 0.0))
    oracle.assert_sequences(samples_of(name, np.insert(SCORES, 2, np.nan), 1), np.insert(weights, 2, 0.0))


@every_stochastic
def test_cold_is_top_k_and_hot_is_uniform(name):
    # Case 24.
    cold = [build(name, coldness=1e4).select(jax.random.key(seed), *padded(SCORES), 5).indices for seed in range(10)]
    np.testing.assert_array_equal(cold, [[4, 3, 2, 1, 0]] * 10)
    np.testing.assert_allclose(weights_of(name, SCORES, 0.0), 0.2, rtol=1e-6)
    # 0 · inf is 0, but what has no weight keeps none.
    infinite = np.array([1.0, np.inf, -np.inf, 2.0], np.float32)
    hot = [1 / 3, 1 / 3, 0, 1 / 3] if name != "softrank" else [0.25] * 4
    np.testing.assert_allclose(weights_of(name, infinite, 0.0), hot, rtol=1e-6)
    for coldness in (-0.1, np.inf, np.nan, "1"):
        with pytest.raises(ValueError, match="coldness="):
            selection.REGISTRY[name](coldness=coldness)


def test_weightless_examples_wait_and_each_of_two_keys_makes_one_order():
    # Case 25: Baal falls back to uniform.
    scores = np.array([0.0, 2.0, -1.0, 1.0, 0.0])
    oracle.assert_sequences(samples_of("power", scores, 4), np.maximum(scores, 0) ** 2)
    scores, there = padded([0.0, 2.0, -1.0, 1.0, 0.0, 0.0, 3.0])
    log_weights = np.log(scores, out=np.full(NUM, -np.inf, np.float32), where=scores > 0)
    for seed in range(5):
        key_gumbel, key_rest = jax.random.split(jax.random.key(seed))
        perturbed = log_weights + np.asarray(jax.random.gumbel(key_gumbel, (NUM,)))
        expected = np.lexsort((np.asarray(jax.random.uniform(key_rest, (NUM,))), -perturbed))
        assert build("power").select(jax.random.key(seed), scores, there, NUM).indices.tolist() == expected.tolist()


def test_scores_without_a_positive_one_are_shifted():
    # −inf is the score of an example that is all padding; it has no weight and moves nobody else.
    for scores, available, expected in (
        ([-3.0, -1.0, -2.0], None, [0, 2 / 3, 1 / 3]),
        ([-3.0, -1.0, -np.inf, -2.0], None, [0, 2 / 3, 0, 1 / 3]),
        ([-3.0, -1.0, -9.0, -2.0, 5.0], [True, True, False, True, False], [0, 2 / 3, 0, 1 / 3, 0]),
    ):
        np.testing.assert_allclose(weights_of("power", scores, 1.0, available), expected, rtol=1e-6)
