"""Curves, comparisons and ranks agree with SciPy, with Demšar's tables, and with the definitions in loops."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from baal_jax.study import statistics

NAN, INF = float("nan"), float("inf")

# Curves


def test_a_band_is_the_t_interval_of_what_happened():
    values = np.random.default_rng(0).normal(size=(7, 4))
    values[2:, 1], values[1:, 2], values[:, 3] = NAN, NAN, NAN
    found = statistics.mean_curve(np.arange(7)[:, None] + [1, 2, 3, 4], values, 0.9)
    np.testing.assert_array_equal(found.num_labelled, [4.0, 2.5, 3.0, NAN])
    np.testing.assert_allclose(found.mean, [values[:, 0].mean(), values[:2, 1].mean(), values[0, 2], NAN])
    bands = [scipy.stats.ttest_1samp(part, 0).confidence_interval(0.9) for part in (values[:, 0], values[:2, 1])]
    # One seed has no spread, none has nothing.
    np.testing.assert_allclose(np.transpose([found.low, found.high]), [*bands, [NAN, NAN], [NAN, NAN]])
    np.testing.assert_allclose(statistics.standard_error(values)[[0, 2]], [scipy.stats.sem(values[:, 0]), NAN])
    assert statistics.mean_curve([1, 2], values[:, :2]).num_labelled.tolist() == [1, 2]


def test_areas_by_hand_and_where_all_runs_have_been():
    def area(values, **ends):
        return statistics.area([10, 20, 40], values, **ends)

    curve = [[0.5, 0.7, 0.9]]
    np.testing.assert_allclose(area(curve), (0.6 * 10 + 0.8 * 20) / 30)
    # From 15 to 30 the curve runs through 0.6, 0.7 and 0.8.
    for low, high, expected in ((15, 30, (0.65 * 5 + 0.75 * 10) / 15), (25, 40, 0.825), (10, 15, 0.55), (30, 30, 0.8)):
        np.testing.assert_allclose(area(curve, low=low, high=high), expected)
    for low, high in ((9, 30), (15, 41), (30, 15)):  # nothing is guessed beyond the ends
        assert np.isnan(area(curve, low=low, high=high)).all()
    np.testing.assert_allclose(area(2 * curve, low=[10, 20], high=[20, 30]), [0.6, 0.75])
    np.testing.assert_array_equal(statistics.area([10], [[0.5], [0.7]]), [0.5, 0.7])
    # Rounds that failed, or did not happen, whatever they say of labels, do not count; steps of no label are allowed.
    found = statistics.area([10, 15, 20, 40, 40, 5], [[0.5, NAN, 0.7, 0.9, 0.9, NAN]])
    np.testing.assert_allclose(found, area(curve))
    labels = np.array([[10, 20, 30], [12, 22, 32]])
    long, short = np.array([[0.1, 0.2, 0.9], [0.4, 0.6, 0.8]]), np.array([[0.3, 0.4, NAN], [NAN, NAN, NAN]])
    # By itself, from where the latest of the runs begins to where the first of them ends.
    np.testing.assert_allclose(statistics.area(labels, long), [(0.16 * 8 + 0.55 * 10) / 18, (0.5 * 10 + 0.68 * 8) / 18])
    low, high = statistics.shared_range([(labels, long), (labels[0], short)])
    np.testing.assert_array_equal([low, high], [[10, 12], [20, 32]])
    np.testing.assert_allclose(statistics.area(labels, long, low=low, high=high), [0.15, 0.6])
    np.testing.assert_allclose(statistics.area(labels, short, low=low, high=high), [0.35, NAN])
    apart = statistics.shared_range([([1, 2], [[0.0, 1.0]]), ([5, 6], [[0.0, 1.0]]), ([1, 2], [[NAN, NAN]])])
    np.testing.assert_array_equal(apart, [[5], [2]])


def test_labels_to_target_and_the_direction_of_a_metric():
    values = [[0.1, 0.9, 0.8], [0.2, 0.3, 0.4], [0.95, 0.1, 0.1], [NAN, 0.9, NAN]]
    np.testing.assert_array_equal(statistics.labels_to_target([10, 20, 30], values, 0.9), [20, INF, 10, 20])
    found = statistics.labels_to_target([10, 20, 30], values, 0.1, higher_is_better=False)
    np.testing.assert_array_equal(found, [10, INF, 20, INF])
    own = statistics.labels_to_target([[10, 20], [11, 21]], [[0.0, 1.0], [0.0, 1.0]], 1.0)
    np.testing.assert_array_equal(own, [20, 21])
    higher = ("accuracy", "top_5_accuracy", "f1", "average_precision", "log_likelihood", "negative_nll")
    lower = ("nll", "adaptive_ece", "crps_fair", "val/RMSE", "negative_log_likelihood")
    assert {name for name in (*higher, *lower) if statistics.is_higher_better(name)} == {*higher}
    for name in ("coverage", "accuracy_error"):
        with pytest.raises(ValueError, match=f"metric='{name}' does not tell .* pass higher_is_better"):
            statistics.is_higher_better(name)


# Comparisons


@hypothesis.given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_the_sign_flip_test_counts_every_flip(differences):
    # Small integers: many sums are equal, and the counts exact.
    flips = np.array([*itertools.product((-1, 1), repeat=len(differences))])
    tenths = np.array(differences) / 10  # whose sums round
    found = statistics.compare(1 + tenths, np.ones(len(tenths)), num_resamples=99)
    assert found.p_value == pytest.approx(np.mean(abs(flips @ differences) >= abs(sum(differences))), abs=1e-12)
    assert found.p_value >= found.least_p_value == 2.0 ** (1 - len(differences))


def test_up_to_32_seeds_are_tested_exactly_and_more_by_chance():
    d = np.random.default_rng(2).normal(size=33) + 0.3
    exact = statistics.compare(d[:32], np.zeros(32))
    assert exact.p_value == pytest.approx(scipy.stats.ttest_1samp(d[:32], 0).pvalue, abs=0.02)
    assert (exact.p_value * 2.0**31) % 1 == 0  # flips are counted in pairs
    assert exact.least_p_value == 2.0**-31
    found = statistics.compare(d, np.zeros(33), num_resamples=199, seed=5)
    signs = 2.0 * np.random.default_rng(5).integers(0, 2, (199, 33), np.int8) - 1
    assert found.p_value == (1 + sum(abs(row @ d) >= d.sum() for row in signs)) / 200
    assert 0.005 == found.least_p_value < found.p_value < 0.5
    assert statistics.compare(d + 9, np.zeros(33), num_resamples=199).p_value == 0.005


def test_the_interval_is_the_studentised_bootstrap():
    # Of 99 draws, the second smallest leaves 2 %, and the fifth 5 %; there is none that leaves 0.5 %.
    places = ((99, 0.95, 2), (99, 0.9, 5), (199, 0.95, 5), (99, 0.99, 0))
    differences = (
        np.random.default_rng(3).normal(size=8),
        np.array([0.0, 0.0, 0.0, 1.0, 0.1]),
        np.array([1.0, 2.0, 4.0]),
    )
    for (num_resamples, confidence, place), d in itertools.product(places, differences):
        times = np.random.default_rng(7).multinomial(len(d), np.full(len(d), 1 / len(d)), num_resamples)
        draws, t = [np.repeat(d, counts) for counts in times], []
        for draw in draws:  # one seed drawn every time bounds nothing on its side
            gap = draw.mean() - d.mean()
            t.append(gap / draw.std() if np.ptp(draw) else math.copysign(INF, gap))
        low, high = (sorted(t)[-place], sorted(t)[place - 1]) if place else (INF, -INF)
        found = statistics.compare(d, np.zeros(len(d)), num_resamples=num_resamples, confidence=confidence, seed=7)
        np.testing.assert_allclose([found.low, found.high], d.mean() - d.std() * np.array([low, high]), rtol=1e-9)


def test_comparisons_leave_out_what_is_not_finite_and_few_seeds_say_little():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    found, mirrored = statistics.compare(a, b), statistics.compare(b, a)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    np.testing.assert_allclose(mirrored[:4], [-found.difference, -found.high, -found.low, found.p_value])
    assert statistics.compare([*a, NAN, INF, INF], [*b, 1.0, 1.0, INF]) == found
    np.testing.assert_allclose(statistics.compare([0.9], [0.5]), (0.4, NAN, NAN, 1.0, 1.0, 1))
    assert statistics.compare([0.9, 0.8, 0.7], [0.5, 0.6, 0.6])[1:] == (-INF, INF, 0.25, 0.25, 3)
    np.testing.assert_array_equal(statistics.compare([NAN], [0.5]), (*[NAN] * 5, 0))
    assert statistics.compare([0.5] * 6, [0.5] * 6)[:4] == (0.0, 0.0, 0.0, 1.0)
    assert statistics.compare([0.75] * 6, [0.5] * 6) == (0.25, 0.25, 0.25, 2 / 64, 2 / 64, 6)


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    # The running maximum: 0.021 · 2 and 0.022 · 1 alone would be below 0.02 · 3.
    np.testing.assert_allclose(statistics.holm([0.022, 0.021, 0.02]), [0.06, 0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([0.5, NAN, 0.02, 0.9]), [1.0, NAN, 0.06, 1.0])
    assert statistics.holm([]).shape == (0,)


def test_verdicts_know_the_direction_the_order_and_where_seeds_are_too_few():
    start, better, worse = np.random.default_rng(8).normal(size=12), ["better", "worse"], ["worse", "better"]
    areas = {"high": start + 0.1, "base": start, "low": start - 0.1 * np.arange(1, 13)}
    options = {"seed": 3, "confidence": 0.9, "num_resamples": 199}
    for metric, higher, expected in (
        ("f1", None, better),
        ("nll", None, worse),
        ("f1", False, worse),
        (None, True, better),
    ):
        found = statistics.compare_all(areas, "base", metric=metric, higher_is_better=higher, **options)
        assert {name: one.verdict for name, one in found.items()} == dict(zip(("high", "low"), expected, strict=True))
    assert found["low"].comparison == statistics.compare(areas["low"], start, **options)
    assert found["low"].adjusted_p_value == 2 * 2.0**-11

    def verdicts(**areas):
        return [one.verdict for one in statistics.compare_all(areas, "random", metric="f1").values()]

    random, few = np.linspace(0.5, 0.6, 8), "too few seeds to show a difference"
    clear = random + 0.1 + 0.01 * np.arange(8)
    assert verdicts(random=random[:5], bald=clear[:5]) == [few]
    assert verdicts(random=random[:6], bald=clear[:6]) == ["better"]
    # Of 2 / 2^8 seven times is above 5 %, and six times is not.
    for others, expected in ((7, few), (6, "no difference shown")):
        alike = {f"s{i}": random + 0.01 * (-1.0) ** np.arange(8) for i in range(others)}
        assert verdicts(random=random, **alike) == [expected] * others
    # Seeds that are missing are not there to show anything.
    gone = np.where(np.arange(8) < 5, clear, NAN)
    assert verdicts(random=random, bald=gone, margin=clear, none=random * NAN) == [few, "better", few]


def test_labels_saved_by_hand():
    found = statistics.labels_saved([30, 40, 30, 35, 30], [60, 50, INF, 70, 60])
    assert found[:4] == (30, 60, 0.5, 0)
    # Three draws or more of five are the seed that did not reach it, with a chance of 5.8 %: a ratio of 0.
    assert 0.5 <= found.high < 1
    assert found[5:] == (5, 4, 5)
    for a, b, expected in (
        ([1.0, 1.0], [2.0, 2.0], (1, 2, 0.5, 0.5, 0.5, 2, 2, 2)),
        ([20, 20], [40, INF], (20, INF, 0.0, 0.0, 0.5, 2, 1, 2)),
        ([INF, INF, INF], [INF, INF, 20], (INF, INF, NAN, 0.0, INF, 0, 1, 3)),
        ([NAN, 20, 30], [20, 40, 60], (25, 50, 0.5, 0.5, 0.5, 2, 2, 2)),
        ([NAN, 20], [20, 40], (20, 40, 0.5, NAN, NAN, 1, 1, 1)),
        ([NAN], [20], (*[NAN] * 5, 0, 0, 0)),
    ):
        np.testing.assert_array_equal(statistics.labels_saved(a, b), expected)


def test_the_interval_of_labels_saved_leaves_out_as_many_draws_on_either_side():
    rng = np.random.default_rng(9)
    a, b = rng.uniform(20, 40, 6), rng.uniform(50, 90, 6)
    for num_resamples, confidence, left_out in ((99, 0.95, 2), (100, 0.9, 5), (99, 0.9, 4)):
        chosen = np.random.default_rng(4).integers(6, size=(num_resamples, 6))
        ratios = sorted(np.median(a[rows]) / np.median(b[rows]) for rows in chosen)
        found = statistics.labels_saved(a, b, num_resamples=num_resamples, confidence=confidence, seed=4)
        np.testing.assert_allclose([found.low, found.high], [ratios[left_out], ratios[-1 - left_out]], rtol=1e-12)


@hypothesis.given(st.lists(st.sampled_from([10, 20, 30, INF]), min_size=4, max_size=16))
def test_swapping_turns_a_ratio_over(labels):
    a, b = np.array_split(labels[: len(labels) // 2 * 2], 2)
    found, turned = (statistics.labels_saved(*pair, num_resamples=199) for pair in ((a, b), (b, a)))
    with np.errstate(divide="ignore"):
        over = 1 / np.float64([found.ratio, found.high, found.low])
    np.testing.assert_allclose(over, turned[2:5])


# Ranks


@hypothesis.given(st.integers(3, 5), st.integers(2, 9), st.integers(2, 5), st.integers(0, 99))
@hypothesis.settings(max_examples=12)
def test_friedman_is_scipys_with_ties(k, n, levels, seed):
    table = np.random.default_rng(seed).integers(0, levels, (n, k)).astype(float)
    hypothesis.assume((table != table[:, :1]).any())
    found = statistics.rank({f"s{j}": table[:, j] for j in range(k)})
    assert found.p_value == pytest.approx(scipy.stats.friedmanchisquare(*table.T).pvalue, rel=1e-9)
    ranks = scipy.stats.rankdata(-table, axis=1).mean(axis=0)
    assert found.mean_ranks == pytest.approx({f"s{j}": ranks[j] for j in range(k)})
    assert list(found.mean_ranks.values()) == sorted(found.mean_ranks.values())


def test_groups_are_what_is_not_shown_to_differ_by_demsars_critical_differences():
    # Demšar 2006, table 5, and 14 data sets as in his example.
    for k, q, confidence in ((2, 1.960, 0.95), (5, 2.728, 0.95), (10, 3.164, 0.95), (5, 2.459, 0.9)):
        values = np.random.default_rng(k).normal(size=(k, 14))
        found = statistics.rank({f"s{j}": values[j] for j in range(k)}, confidence=confidence)
        assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 14)), abs=2e-3)
    order = np.arange(5.0)[:, None] + 0.1 * np.random.default_rng(0).uniform(-1, 1, (5, 12))
    found = statistics.rank(dict(zip("abcde", order, strict=True)))
    assert list(found.mean_ranks) == ["e", "d", "c", "b", "a"]
    assert found.groups == (("e", "d"), ("d", "c"), ("c", "b"), ("b", "a"))
    lower = statistics.rank(dict(zip("abcde", order, strict=True)), higher_is_better=False)
    assert list(lower.mean_ranks) == ["a", "b", "c", "d", "e"]
    far = statistics.rank({"a": np.zeros(40), "b": np.ones(40), "c": 2 - np.arange(40) % 2})
    assert (far.groups, far.mean_ranks) == ((("c", "b"), ("a",)), {"c": 1.25, "b": 1.75, "a": 3.0})
    # The best and the worst of six are farther apart than the critical difference, but Friedman's test does not reject.
    table = np.random.default_rng(47).integers(0, 10, (6, 6))
    careful = statistics.rank(dict(zip("abcdef", table, strict=True)), confidence=0.5)
    assert careful.mean_ranks["b"] - careful.mean_ranks["e"] > careful.critical_difference
    assert careful.groups == (tuple("edacfb"),)
    alike = statistics.rank({name: np.ones(6) for name in "abc"})
    assert (alike.p_value, alike.groups) == (1.0, (("a", "b", "c"),))
    gaps = statistics.rank({"a": [1.0, 2.0, np.nan], "b": [2.0, 3.0, 9.0]})
    assert (gaps.num_seeds, gaps.mean_ranks) == (2, {"b": 1.0, "a": 2.0})
    none = statistics.rank({"a": [np.nan], "b": [1.0]})
    assert (none.num_seeds, none.groups) == (0, (("a", "b"),))
    assert np.isnan([*none.mean_ranks.values(), none.p_value, none.critical_difference]).all()


def test_bad_input_is_named():
    one = {"s": [1.0]}
    for function, arguments, options, message in (
        (statistics.mean_curve, ([1, 2], [0.5, 0.6]), {}, r"values has shape \(2,\), but \[seeds, R\] is needed"),
        (statistics.mean_curve, ([1], [[0.5]], 95), {}, "confidence=95 must be between 0 and 1"),
        (statistics.mean_curve, ([1], [[0.5]], 1.0), {}, r"confidence=1\.0 must be between 0 and 1"),
        (statistics.area, ([1, 2, 3], [[0.5, 0.6]]), {}, r"num_labelled has shape \(3,\), but \(2,\)"),
        (statistics.area, ([20, 10], [[0.5, 0.6]]), {}, "num_labelled must not decrease"),
        (statistics.area, ([20, NAN, 10], [[0.5, NAN, 0.6]]), {}, "num_labelled must not decrease"),
        (statistics.area, ([20, NAN], [[0.5, 0.6]]), {}, "num_labelled must not decrease"),
        (statistics.labels_to_target, ([1], [[0.5]], NAN), {}, "target=nan is not a number"),
        (statistics.shared_range, ([],), {}, "runs is empty"),
        (statistics.shared_range, ([([1], [[0.5]]), ([1], [[0.5], [0.6]])],), {}, r"runs have \[1, 2\] seeds"),
        (statistics.compare, ([1.0], [1.0, 2.0]), {}, r"shapes \(1,\) and \(2,\)"),
        (statistics.compare, ([[1.0]], [[1.0]]), {}, r"but both must be \[seeds\], in pairs"),
        (statistics.compare, ([1.0], [1.0]), {"num_resamples": 98}, "num_resamples=98 must be at least 99"),
        (statistics.compare, ([1.0], [1.0]), {"confidence": 0.0}, "confidence=0.0 must be between"),
        (statistics.labels_saved, ([0.0], [1.0]), {}, "0 labels are not a number of labels"),
        (statistics.holm, ([1.2],), {}, "between 0 and 1"),
        (statistics.holm, ([-0.1],), {}, "between 0 and 1"),
        (statistics.holm, ([[0.1]],), {}, "must be a list"),
        (statistics.compare_all, (one, "s"), {}, "metric=None does not tell"),
        (statistics.compare_all, (one, "bald"), {"metric": "f1"}, "baseline='bald' is not .* there are s"),
        (statistics.rank, (one,), {}, "values has 1 strategies"),
        (statistics.rank, ({"a": [1.0], "b": [1.0, 2.0]},), {}, "values have shapes"),
        (statistics.rank, ({"a": [[1.0]], "b": [[2.0]]},), {}, "values have shapes"),
        (statistics.rank, ({"a": [1.0], "b": [1.0]},), {"confidence": 2}, "confidence=2"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)
