"""Statistics agree with scipy, with the definitions in loops, and with what simulated studies contain."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from baal_jax.study import statistics

floats = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
NAN, INF = float("nan"), float("inf")


# Curves


def test_band_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=(7, 3))
    for confidence in (0.9, 0.95):
        found = statistics.mean_curve([1, 2, 3], values, confidence)
        expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)
        np.testing.assert_allclose(found.mean, values.mean(axis=0))
        np.testing.assert_allclose(found.low, expected.low)
        np.testing.assert_allclose(found.high, expected.high)


def test_band_leaves_out_what_did_not_happen():
    values = np.array([[1.0, 2.0, NAN, NAN], [3.0, NAN, NAN, NAN], [8.0, 6.0, 5.0, NAN]])
    labels = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 4, 5, 6]]
    found = statistics.mean_curve(labels, values)
    np.testing.assert_array_equal(found.mean, [4.0, 4.0, 5.0, NAN])
    np.testing.assert_array_equal(found.num_labelled, [1.0, 3.0, 5.0, NAN])
    expected = scipy.stats.ttest_1samp([2.0, 6.0], 0).confidence_interval()
    np.testing.assert_allclose([found.low[1], found.high[1]], expected)
    assert np.isnan(found.low[2:]).all()  # one seed has no spread, none has nothing
    assert np.isnan(found.high[2:]).all()
    assert np.isnan(statistics.mean_curve(labels[:1], values[:1]).low).all()


def test_areas_by_hand():
    labels = [10, 20, 40]
    np.testing.assert_allclose(statistics.area(labels, [[0.5, 0.7, 0.9]]), (0.6 * 10 + 0.8 * 20) / 30)
    # From 15 to 30 the curve runs through 0.6, 0.7 and 0.8.
    found = statistics.area(labels, [[0.5, 0.7, 0.9]], low=15, high=30)
    np.testing.assert_allclose(found, (0.65 * 5 + 0.75 * 10) / 15)
    np.testing.assert_allclose(statistics.area(labels, [[0.5, 0.7, 0.9]], low=30, high=30), 0.8)
    assert np.isnan(statistics.area(labels, [[0.5, 0.7, 0.9]], low=5, high=30)).all()
    assert np.isnan(statistics.area(labels, np.full((2, 3), NAN))).all()
    np.testing.assert_array_equal(statistics.area([10], [[0.5], [0.7]]), [0.5, 0.7])


def test_runs_that_stop_are_compared_where_all_have_been():
    labels = np.array([10, 20, 30])
    long, short = np.array([[0.1, 0.2, 0.9]]), np.array([[0.3, 0.4, NAN]])
    both = statistics.area(labels, np.concatenate([long, short]))
    np.testing.assert_allclose(both, [0.15, 0.35])
    low, high = statistics.shared_range([(labels, long), (labels, short), (labels, np.full((1, 3), NAN))])
    assert (low, high) == (10, 20)
    for values, expected in zip((long, short), both, strict=True):
        np.testing.assert_allclose(statistics.area(labels, values, low=low, high=high), expected)


@hypothesis.given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_an_area_is_a_mean_height_and_does_not_depend_on_the_steps(steps, data):
    labels = np.cumsum([5, *steps])
    values = np.array([data.draw(st.lists(floats, min_size=len(labels), max_size=len(labels)))])
    found = statistics.area(labels, values)
    assert values.min() - 1e-9 <= found[0] <= values.max() + 1e-9
    dense = np.arange(labels[0], labels[-1] + 1)
    finer = np.interp(dense, labels, values[0])[None]
    np.testing.assert_allclose(statistics.area(dense, finer), found, atol=1e-9)
    np.testing.assert_allclose(statistics.area(labels, 2 * values + 1), 2 * found + 1, atol=1e-9)
    # Rounds that did not happen, whatever they say of labels, and rounds that failed on a straight line do not count.
    padded = np.append(labels, labels[0])[None], np.append(values, [[NAN]], axis=1)
    np.testing.assert_allclose(statistics.area(*padded), found)
    holes = np.where(np.isin(dense, labels), finer, NAN)
    np.testing.assert_allclose(statistics.area(dense, holes), found, atol=1e-9)


def test_labels_to_target_in_both_directions():
    values = [[0.1, 0.9, 0.8], [0.2, 0.3, 0.4], [0.95, 0.1, 0.1], [NAN, 0.9, NAN]]
    np.testing.assert_array_equal(statistics.labels_to_target([10, 20, 30], values, 0.9), [20, INF, 10, 20])
    found = statistics.labels_to_target([10, 20, 30], values, 0.15, higher_is_better=False)
    np.testing.assert_array_equal(found, [10, INF, 20, INF])
    own = statistics.labels_to_target([[10, 20], [11, 21]], [[0.0, 1.0], [0.0, 1.0]], 1.0)
    np.testing.assert_array_equal(own, [20, 21])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        *((name, True) for name in ("accuracy", "top_5_accuracy", "f1", "average_precision", "log_likelihood")),
        *((name, False) for name in ("nll", "adaptive_ece", "crps_fair", "val/RMSE", "negative_log_likelihood")),
    ],
)
def test_metrics_whose_direction_is_known(metric, expected):
    assert statistics.is_higher_better(metric) is expected


def test_an_unknown_direction_is_asked_for():
    for metric in ("coverage", "accuracy_error"):
        with pytest.raises(ValueError, match=r"metric='.*' does not tell .* pass higher_is_better"):
            statistics.is_higher_better(metric)


# Comparisons


@hypothesis.given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_sign_flip_test_counts_every_flip(differences):
    # Small integers: many sums are equal, and the counts exact.
    total = abs(sum(differences))
    flips = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(flip, differences, strict=True))) for flip in flips]
    tenths = np.array(differences) / 10  # whose sums round
    found = statistics.compare(1 + tenths, np.ones(len(tenths)), num_resamples=99)
    assert found.p_value == pytest.approx(np.mean([value >= total for value in sums]), abs=1e-12)
    assert found.p_value >= found.least_p_value == 2.0 ** (1 - len(differences))


def test_the_sign_flip_test_is_scipys_permutation_test():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=12) + 0.4, rng.normal(size=12)
    expected = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert statistics.compare(a, b).p_value == pytest.approx(expected.pvalue, rel=1e-12)


def test_many_seeds_are_tested_by_chance_and_agree_with_t():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=60) + 0.3, rng.normal(size=60)
    found = statistics.compare(a, b, num_resamples=9999)
    assert found.p_value == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.02)
    assert 0.01 < found.p_value < 0.5
    assert found.least_p_value == 1e-4
    assert statistics.compare(a + 9, b, num_resamples=9999).p_value == 1e-4


def test_the_interval_is_the_studentised_bootstrap():
    rng = np.random.default_rng(3)
    d = rng.normal(size=12)
    found = statistics.compare(d, np.zeros(12), num_resamples=19999)
    chosen = d[np.random.default_rng(4).integers(12, size=(19999, 12))]  # other draws, and Bessel's correction
    t = (chosen.mean(axis=1) - d.mean()) / (chosen.std(axis=1, ddof=1) / np.sqrt(12))
    low, high = d.mean() - np.quantile(t, [0.975, 0.025]) * d.std(ddof=1) / np.sqrt(12)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.05 * (high - low))


def test_the_interval_covers_the_truth_where_percentiles_do_not():
    rng = np.random.default_rng(5)
    covered, by_percentiles = [], []
    for _ in range(400):
        d = rng.exponential(size=6)
        found = statistics.compare(d, np.zeros(6), num_resamples=999)
        covered.append(found.low <= 1 <= found.high)
        means = d[rng.integers(6, size=(999, 6))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        by_percentiles.append(low <= 1 <= high)
    assert np.mean(covered) > 0.90
    assert np.mean(by_percentiles) < 0.85


@hypothesis.given(st.lists(floats, min_size=4, max_size=12), st.integers(0, 3))
def test_comparisons_mirror_shift_and_repeat(differences, seed):
    d, zero = np.array(differences), np.zeros(len(differences))
    found = statistics.compare(d, zero, num_resamples=199, seed=seed)
    assert found == statistics.compare(d, zero, num_resamples=199, seed=seed)
    mirrored = statistics.compare(zero, d, num_resamples=199, seed=seed)
    np.testing.assert_allclose(
        [mirrored.difference, mirrored.low, mirrored.high], [-found.difference, -found.high, -found.low], atol=1e-9
    )
    assert mirrored.p_value == found.p_value
    assert found.low <= found.difference + 1e-9
    assert found.difference <= found.high + 1e-9
    with_nan = statistics.compare([*d, NAN, INF, INF], [*zero, 1.0, 1.0, INF], num_resamples=199, seed=seed)
    assert with_nan == found


def test_few_seeds_say_little():
    one = statistics.compare([0.9], [0.5])
    assert (one.p_value, one.num_seeds) == (1.0, 1)
    assert math.isnan(one.low)
    three = statistics.compare([0.9, 0.8, 0.7], [0.5, 0.6, 0.6])
    assert (three.low, three.high) == (-INF, INF)
    assert three.p_value == 0.25
    none = statistics.compare([NAN], [0.5])
    assert none.num_seeds == 0
    assert all(map(math.isnan, none[:5]))
    alike = statistics.compare([0.5] * 6, [0.5] * 6)
    assert alike[:4] == (0.0, 0.0, 0.0, 1.0)


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.5, NAN, 0.02, 0.9]), [1.0, NAN, 0.06, 1.0])
    assert statistics.holm([]).shape == (0,)
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.holm([1.2])


@hypothesis.given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p_values, alpha):
    rejected = np.zeros(len(p_values), bool)
    for step, i in enumerate(np.argsort(p_values, kind="stable")):
        # Compared as the function does, so that a threshold is not crossed by rounding.
        if p_values[i] * (len(p_values) - step) > alpha:
            break
        rejected[i] = True
    np.testing.assert_array_equal(statistics.holm(p_values) <= alpha, rejected)


def _areas(rng, strategies, seeds, effect=0.0, scale=0.01):
    """Areas of strategies that are all random, but for the last; a seed's start is shared."""
    shared = rng.normal(size=seeds)
    areas = {f"s{i}": 0.8 + scale * (shared + rng.gamma(2.0, 1.0, seeds)) for i in range(strategies)}
    areas[f"s{strategies - 1}"] += effect
    return areas


def test_random_is_seldom_better_than_random():
    rng = np.random.default_rng(6)
    false, ranked = 0, 0
    for _ in range(600):
        verdicts = statistics.compare_all(_areas(rng, 8, 20), "s0", metric="accuracy", num_resamples=99)
        false += any(one.verdict != "no difference shown" for one in verdicts.values())
    for _ in range(100):  # quantiles of the studentised range take their time
        ranked += len(statistics.rank(_areas(rng, 8, 20)).groups) > 1
    assert false <= 0.06 * 600
    assert false >= 0.01 * 600  # a test that never rejects would pass, and show nothing
    assert ranked <= 10


def test_a_real_effect_is_found():
    rng = np.random.default_rng(7)
    found = [
        [one.verdict for one in statistics.compare_all(areas, "s0", metric="accuracy", num_resamples=99).values()]
        for areas in (_areas(rng, 8, 20, effect=0.02) for _ in range(50))
    ]
    assert np.mean([verdicts[-1] == "better" for verdicts in found]) > 0.9
    assert np.mean([verdict != "no difference shown" for verdicts in found for verdict in verdicts[:-1]]) < 0.03


def test_verdicts_know_the_direction():
    rng = np.random.default_rng(8)
    areas = _areas(rng, 2, 12, effect=0.1)
    for metric, override, expected in [
        ("accuracy", None, "better"),
        ("nll", None, "worse"),
        ("accuracy", False, "worse"),
        (None, True, "better"),
    ]:
        found = statistics.compare_all(areas, "s0", metric=metric, higher_is_better=override)
        assert found["s1"].verdict == expected
    with pytest.raises(ValueError, match="metric=None does not tell"):
        statistics.compare_all(areas, "s0")
    with pytest.raises(ValueError, match="baseline='bald' is not among the strategies: there are s0, s1"):
        statistics.compare_all(areas, "bald", metric="accuracy")


def test_few_seeds_for_many_strategies_are_too_few():
    random = np.linspace(0.5, 0.6, 8)
    clear = random + 0.1 + 0.01 * np.arange(8)
    five = {"random": random[:5], "bald": clear[:5]}
    assert statistics.compare_all(five, "random", metric="f1")["bald"].verdict == "too few seeds to show a difference"
    six = {"random": random[:6], "bald": clear[:6]}
    assert statistics.compare_all(six, "random", metric="f1")["bald"].verdict == "better"
    # Of 2 / 2^8 seven times is above 5 %, and six times is not.
    for others, expected in ((7, "too few seeds to show a difference"), (6, "no difference shown")):
        eight = {"random": random, **{f"s{i}": random + 0.01 * (-1.0) ** np.arange(8) for i in range(others)}}
        assert {one.verdict for one in statistics.compare_all(eight, "random", metric="f1").values()} == {expected}
    # Seeds that are missing are not there to show anything.
    gaps = {"random": random, "bald": np.where(np.arange(8) < 5, clear, NAN), "margin": clear}
    found = statistics.compare_all(gaps, "random", metric="f1")
    assert found["margin"].verdict == "better"
    assert found["bald"].verdict.startswith("too few")


def test_labels_saved_by_hand():
    found = statistics.labels_saved([30, 40, 30, 35, 30], [60, 50, INF, 70, 60])
    assert found[:3] == (30, 60, 0.5)
    assert (found.reached, found.baseline_reached, found.num_seeds) == (5, 4, 5)
    # Three draws or more of five are the seed that did not reach it, with a chance of 5.8 %: a ratio of 0.
    assert found.low == 0
    assert 0.5 <= found.high < 1
    reached = statistics.labels_saved([30, 40, 30, 35, 30], [60, 50, 80, 70, 60])
    assert 30 / 80 <= reached.low <= 0.5 <= reached.high < 1
    np.testing.assert_array_equal(statistics.labels_saved([20, 20], [40, INF])[2:5], [0.0, 0.0, 0.5])
    neither = statistics.labels_saved([INF, INF, INF], [INF, INF, 20])
    assert math.isnan(neither.ratio)
    assert (neither.low, neither.high) == (0.0, INF)
    assert statistics.labels_saved([NAN, 20, 30], [20, 40, 60])[:3] == (25, 50, 0.5)
    assert statistics.labels_saved([NAN], [20]).num_seeds == 0


@hypothesis.given(st.lists(st.sampled_from([10, 20, 30, INF]), min_size=2, max_size=8), st.data())
def test_swapping_turns_a_ratio_over(a, data):
    b = data.draw(st.lists(st.sampled_from([10, 20, 30, INF]), min_size=len(a), max_size=len(a)))
    found, turned = (statistics.labels_saved(*pair, num_resamples=199) for pair in ((a, b), (b, a)))

    def over(value):
        return INF if value == 0 else 0.0 if value == INF else 1 / value

    np.testing.assert_allclose([over(found.ratio), over(found.high), over(found.low)], turned[2:5])


def test_the_interval_of_labels_saved_covers():
    rng = np.random.default_rng(9)
    covered = []
    for _ in range(200):
        a, b = 30 + 10 * rng.integers(0, 4, 9), 60 + 10 * rng.integers(0, 4, 9)
        found = statistics.labels_saved(a.astype(float), b.astype(float), num_resamples=199)
        covered.append(found.low <= 45 / 75 <= found.high)
    assert np.mean(covered) > 0.9


# Ranks


@hypothesis.given(st.integers(3, 5), st.integers(2, 9), st.integers(2, 5), st.integers(0, 99))
def test_friedman_is_scipys_with_ties(k, n, levels, seed):
    table = np.random.default_rng(seed).integers(0, levels, (n, k)).astype(float)
    hypothesis.assume((table != table[:, :1]).any())
    found = statistics.rank({f"s{j}": table[:, j] for j in range(k)})
    assert found.p_value == pytest.approx(scipy.stats.friedmanchisquare(*table.T).pvalue, rel=1e-9)
    assert sum(found.mean_ranks.values()) == pytest.approx(k * (k + 1) / 2)
    assert list(found.mean_ranks.values()) == sorted(found.mean_ranks.values())
    turned = statistics.rank({f"s{j}": -table[:, j] for j in range(k)}, higher_is_better=False)
    assert turned.mean_ranks == found.mean_ranks


def test_critical_differences_are_demsars():
    # Demšar 2006, table 5 (a), for 5 %, and his example of 14 data sets and 4 classifiers.
    for k, q in ((2, 1.960), (3, 2.343), (5, 2.728), (8, 3.031), (10, 3.164)):
        values = np.random.default_rng(k).normal(size=(k, 14))
        found = statistics.rank({f"s{j}": values[j] for j in range(k)})
        assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 14)), abs=2e-3)


def test_groups_are_what_is_not_shown_to_differ():
    order = np.arange(5.0)[:, None] + 0.1 * np.random.default_rng(0).uniform(-1, 1, (5, 12))
    found = statistics.rank(dict(zip("abcde", order, strict=True)))
    assert list(found.mean_ranks) == ["e", "d", "c", "b", "a"]
    assert 1 < found.critical_difference < 2
    assert found.groups == (("e", "d"), ("d", "c"), ("c", "b"), ("b", "a"))
    alike = statistics.rank({name: np.ones(6) for name in "abc"})
    assert (alike.p_value, alike.groups) == (1.0, (("a", "b", "c"),))
    gaps = statistics.rank({"a": [1.0, 2.0, NAN], "b": [2.0, 3.0, 9.0]})
    assert (gaps.num_seeds, gaps.mean_ranks) == (2, {"b": 1.0, "a": 2.0})
    assert statistics.rank({"a": [NAN], "b": [1.0]}).num_seeds == 0


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.mean_curve([1, 2], [0.5, 0.6]), r"values has shape \(2,\), but \[seeds, R\] is needed"),
        (lambda: statistics.mean_curve([1], [[0.5]], 95), "confidence=95 must be between 0 and 1"),
        (lambda: statistics.area([1, 2, 3], [[0.5, 0.6]]), r"num_labelled has shape \(3,\), but \(2,\)"),
        (lambda: statistics.area([20, 10], [[0.5, 0.6]]), "num_labelled must not decrease"),
        (lambda: statistics.labels_to_target([1], [[0.5]], NAN), "target=nan is not a number"),
        (lambda: statistics.shared_range([]), "runs is empty"),
        (lambda: statistics.shared_range([([1], [[0.5]]), ([1], [[0.5], [0.6]])]), r"runs have \[1, 2\] seeds"),
        (lambda: statistics.compare([1.0], [1.0, 2.0]), r"shapes \(1,\) and \(2,\)"),
        (lambda: statistics.compare([1.0], [1.0], num_resamples=3), "num_resamples=3 must be at least 99"),
        (lambda: statistics.labels_saved([0.0], [1.0]), "0 labels are not a number of labels"),
        (lambda: statistics.rank({"a": [1.0]}), "values has 1 strategies"),
        (lambda: statistics.rank({"a": [1.0], "b": [1.0, 2.0]}), "values have shapes"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
