"""Selections that rank scores: the best, random ones, given ones, stochastic ones; and acquisitions by their names."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax

from baal_jax import Predictions, heuristics, selection
from baal_jax.selection import _rank
from tests.oracles import baal

NUM = 7
EVERY = np.ones(NUM, bool)
NUMBERS = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan]
LOGITS, TARGETS = (2 * np.random.default_rng(0).normal(size=(5, num, 3)).astype(np.float32) for num in (NUM, 2))
every_ranking = pytest.mark.parametrize("name", ["top_k", "power", "softmax", "softrank"])


build = functools.cache(lambda name, **arguments: selection.REGISTRY[name](**arguments))


def best_first(scores, available=EVERY):
    """Largest first, of equal ones the lowest id, NaN last."""
    return sorted(np.flatnonzero(available).tolist(), key=lambda i: (np.isnan(scores[i]), -scores[i], i))


@every_ranking
@settings(max_examples=15)
@given(
    scores=st.lists(st.sampled_from(NUMBERS), min_size=NUM, max_size=NUM),
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
def test_scores_are_those_of_the_heuristic(name, key):
    for arguments, score_fn in (({}, heuristics.bald), ({"score_fn": heuristics.margin}, heuristics.margin)):
        np.testing.assert_array_equal(build(name, **arguments).summarise(Predictions(LOGITS)), score_fn(LOGITS))
    # Half precision is ranked in full.
    scores = np.arange(NUM).astype(jax.numpy.bfloat16)
    picked = build(name).select(key, scores, EVERY, 4)
    np.testing.assert_array_equal(picked.scores, scores[np.asarray(picked.indices)].astype(np.float32))
    # Case 16.
    with pytest.raises(ValueError, match=r"\(7, 2, 2\) cannot be ranked.*reduce_spatial"):
        build(name).select(key, np.zeros((NUM, 2, 2)), EVERY, 2)
    for num in (1, NUM + 1):
        with pytest.raises(ValueError, match=f"{num} scores for {NUM} examples"):
            build(name).select(key, np.ones(num), EVERY, 1)


def test_top_k_of_information_about_targets():
    given = Predictions(LOGITS, None, TARGETS)
    np.testing.assert_array_equal(selection.top_k_epig().summarise(given), heuristics.epig(LOGITS, TARGETS))
    other = selection.top_k_epig(lambda logits, targets: targets[0, 0, 0] - logits[0, :, 0])
    np.testing.assert_array_equal(other.summarise(given), TARGETS[0, 0, 0] - LOGITS[0, :, 0])
    with pytest.raises(ValueError, match="target_logits is None: pass the inputs that matter as target_inputs"):
        selection.top_k_epig().summarise(Predictions(LOGITS))


def test_random_ranks_numbers_of_its_key(key):
    # Case 20.
    uniforms, picked = np.asarray(jax.random.uniform(key, (NUM,))), build("random").select(key, None, EVERY, NUM)
    assert picked.indices.tolist() == best_first(uniforms)
    np.testing.assert_array_equal(picked.scores, np.sort(uniforms)[::-1])


def test_precomputed_picks_as_top_k_does(key):
    # Case 20: neither reads predictions.
    assert build("random").summarise is selection.precomputed(np.ones(3)).summarise is None
    for scores in ([0.3, np.nan, 0.5, -np.inf, 0.5, np.inf, 0.0], [3, 1, 5, -7, 5, 9, 0]):
        scores, available = np.array(scores), np.arange(NUM) != 4
        picked = selection.precomputed(scores).select(key, None, available, NUM)
        expected = best_first(scores, available)
        assert picked.indices.tolist() == [*expected, -1]
        np.testing.assert_array_equal(picked.scores, np.float32([*scores[expected], np.nan]))
        assert picked.scores.dtype == np.float32
    for scores, query_size, message in (
        (np.ones(NUM + 1), 1, f"{NUM + 1} scores for {NUM} examples"),
        (np.ones((NUM, 2)), 1, "cannot be ranked"),
        (np.ones(NUM), 8, "query_size=8 exceeds"),
    ):
        with pytest.raises(ValueError, match=message):
            selection.precomputed(scores).select(key, None, EVERY, query_size)


# Stochastic

SCORES = np.array(baal.GOLDEN["BALD(P)"]["scores"], np.float32)  # of five
GOLDEN = {"power": "PowerSampling", "softmax": "GibbsSampling", "softrank": "RankBasedSampling"}
LOG_WEIGHTS = {name: jax.jit(getattr(_rank, f"{name}_log_weights")) for name in GOLDEN}
every_stochastic = pytest.mark.parametrize("name", GOLDEN)


def weights_of(name, scores, coldness, available=None):
    """Probabilities of the first pick, by the package."""
    available = np.ones(len(scores), bool) if available is None else np.array(available)
    log_weights = np.asarray(LOG_WEIGHTS[name](np.float32(scores), available, coldness), np.float64)
    return softmax(np.where(available, log_weights, -np.inf))


@every_stochastic
def test_baal_distributions(name):
    # Cases 21 and 22.
    for temperature in (0.5, 1.0, 2.0):
        golden = baal.GOLDEN[f"{GOLDEN[name]}(BALD(P),T={temperature})"]
        np.testing.assert_allclose(weights_of(name, SCORES, 1 / temperature), golden, rtol=2e-6)


def test_ranks_are_those_of_what_is_available():
    # Case 22: equal scores share their rank.
    scores, available = np.float32([1.0, -np.inf, 0.25, np.inf, 1.0, 0.25, 1.0]), np.arange(NUM) != 4
    log_weights = LOG_WEIGHTS["softrank"](scores, available, 2.0)
    expected = -2 * np.log(stats.rankdata(-scores[available]))
    np.testing.assert_allclose(log_weights[available], expected, rtol=1e-6, atol=1e-6)


@every_stochastic
def test_picks_follow_gumbel_noise_and_the_weightless_come_last_in_random_order(name):
    # Cases 23 and 25: that is sampling without replacement, of what has a weight first; NaN has none.
    scores, available = np.float32([0.0, 2.0, -1.0, 1.0, 0.0, np.nan, 3.0]), np.arange(NUM) != 3
    log_weights = np.asarray(LOG_WEIGHTS[name](scores, available, 2.0))
    for seed in range(8):
        key_gumbel, key_rest = jax.random.split(jax.random.key(seed))
        perturbed = log_weights + np.asarray(jax.random.gumbel(key_gumbel, (NUM,)))
        order = np.lexsort((np.asarray(jax.random.uniform(key_rest, (NUM,))), -perturbed, np.isnan(scores)))
        found = build(name, coldness=2.0).select(jax.random.key(seed), scores, available, NUM)
        assert found.indices.tolist() == [*order[available[order]].tolist(), -1]


@every_stochastic
def test_cold_is_top_k_and_hot_is_uniform(name):
    # Case 24.
    cold = [build(name, coldness=1e4).select(jax.random.key(seed), SCORES, EVERY[:5], 5).indices for seed in range(10)]
    np.testing.assert_array_equal(cold, [[4, 3, 2, 1, 0]] * 10)
    # 0 · inf is 0, but what has no weight keeps none.
    infinite = np.array([1.0, np.inf, -np.inf, 2.0], np.float32)
    hot = [1 / 3, 1 / 3, 0, 1 / 3] if name != "softrank" else [0.25] * 4
    np.testing.assert_allclose(weights_of(name, infinite, 0.0), hot, rtol=1e-6)
    for coldness in (-0.1, np.inf, np.nan, "1"):
        with pytest.raises(ValueError, match="coldness="):
            selection.REGISTRY[name](coldness=coldness)


def test_scores_without_a_positive_one_are_shifted():
    # −inf is the score of an example that is all padding; it has no weight and moves nobody else.
    for scores, available, expected in (
        ([-3.0, -1.0, -2.0], None, [0, 2 / 3, 1 / 3]),
        ([-3.0, -1.0, -np.inf, -2.0], None, [0, 2 / 3, 0, 1 / 3]),
        ([-3.0, -1.0, -9.0, -2.0, 5.0], [True, True, False, True, False], [0, 2 / 3, 0, 1 / 3, 0]),
    ):
        np.testing.assert_allclose(weights_of("power", scores, 1.0, available), expected, rtol=1e-6)


# By name


def test_acquisitions_by_name(monkeypatch):
    built = {}  # what the registry is asked for
    for name in selection.REGISTRY:
        keep = lambda *given, name=name, **named: built.setdefault(name, (*given, *named.values()))  # noqa: E731
        monkeypatch.setitem(selection.REGISTRY, name, keep)
    for name in selection.REGISTRY:
        if name not in ("grid", "top_k", "power", "softmax", "softrank"):
            assert selection.by_name(name, coldness=2.0) is built[name] == ()
    assert selection.by_name("power_bald") == (heuristics.bald,)
    assert selection.by_name("softmax_mean_std", coldness=0.5) == (heuristics.mean_std, 0.5)
    assert selection.by_name("softrank_entropy", coldness=2.0) == (heuristics.entropy, 2.0)
    for name, score_fn in (("margin", heuristics.margin), ("top_k_expected_entropy", heuristics.expected_entropy)):
        scores = selection.by_name(name).summarise(Predictions(LOGITS))
        np.testing.assert_array_equal(scores, score_fn(LOGITS))
        picked = selection.by_name(name).select(jax.random.key(0), scores, EVERY, NUM)
        assert picked.indices.tolist() == best_first(np.asarray(scores))
    for name in ("top_k_top", "power_", "topk_bald", "grid", "top_k", "power", "bald_power", ""):
        with pytest.raises(ValueError, match=f"name='{name}' is no strategy: use one of badge, .*, or a heuristic"):
            selection.by_name(name)


@every_stochastic
def test_an_automatic_coldness_draws_from_as_many_as_a_query_wants(name):
    number = lambda p: 1 / np.sum(p**2)  # noqa: E731
    for seed in range(4):
        rng = np.random.default_rng(seed)
        scores, available = rng.gamma(0.5, 0.01, 600).astype(np.float32), rng.random(600) < 0.8
        most = number(weights_of("power", scores, 1.0, available))
        for query_size in (1, 4, 100):
            found = float(_rank.auto_coldness(getattr(_rank, f"{name}_log_weights"), scores, available, query_size))
            wanted = min(20 * query_size, most)
            np.testing.assert_allclose(number(weights_of(name, scores, found, available)), wanted, rtol=1e-3)
            if name == "power":
                assert found > 0.999
            both = [build(name, coldness=how) for how in ("auto", found)]
            both = [one.select(jax.random.key(seed), scores, available, query_size).indices for one in both]
            np.testing.assert_array_equal(*both)
    with pytest.raises(ValueError, match="coldness='warm' must be"):
        build(name, coldness="warm")
    assert selection.by_name(f"{name}_bald").summarise is not None
