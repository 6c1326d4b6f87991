"""Comparisons agree with SciPy and with the definitions in loops."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from baal_jax.study import statistics

NAN, INF = float("nan"), float("inf")


@hypothesis.given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_the_sign_flip_test_counts_every_flip(differences):
    # Small integers: many sums are equal, and the counts exact.
    total = abs(sum(differences))
    flips = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(flip, differences, strict=True))) for flip in flips]
    tenths = np.array(differences) / 10  # whose sums round
    found = statistics.compare(1 + tenths, np.ones(len(tenths)), num_resamples=99)
    assert found.p_value == pytest.approx(np.mean([value >= total for value in sums]), abs=1e-12)
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


def test_comparisons_mirror_and_leave_out_what_is_not_finite():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    found = statistics.compare(a, b)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    mirrored = statistics.compare(b, a)
    np.testing.assert_allclose(mirrored[:4], [-found.difference, -found.high, -found.low, found.p_value])
    assert statistics.compare([*a, NAN, INF, INF], [*b, 1.0, 1.0, INF]) == found


def test_few_seeds_say_little():
    one = statistics.compare([0.9], [0.5])
    np.testing.assert_allclose(one, (0.4, NAN, NAN, 1.0, 1.0, 1))
    three = statistics.compare([0.9, 0.8, 0.7], [0.5, 0.6, 0.6])
    assert three[1:] == (-INF, INF, 0.25, 0.25, 3)
    np.testing.assert_array_equal(statistics.compare([NAN], [0.5]), (*[NAN] * 5, 0))
    assert statistics.compare([0.5] * 6, [0.5] * 6)[:4] == (0.0, 0.0, 0.0, 1.0)
    assert statistics.compare([0.75] * 6, [0.5] * 6) == (0.25, 0.25, 0.25, 2 / 64, 2 / 64, 6)


def test_holm_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    # The running maximum: 0.021 · 2 and 0.022 · 1 alone would be below 0.02 · 3.
    np.testing.assert_allclose(statistics.holm([0.022, 0.021, 0.02]), [0.06, 0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([0.5, NAN, 0.02, 0.9]), [1.0, NAN, 0.06, 1.0])
    assert statistics.holm([]).shape == (0,)


def test_verdicts_know_the_direction_and_the_order():
    start = np.random.default_rng(8).normal(size=12)
    areas = {"high": start + 0.1, "base": start, "low": start - 0.1 * np.arange(1, 13)}
    for metric, override, expected in (
        ("accuracy", None, ["better", "worse"]),
        ("nll", None, ["worse", "better"]),
        ("accuracy", False, ["worse", "better"]),
        (None, True, ["better", "worse"]),
    ):
        options = {"seed": 3, "confidence": 0.9, "num_resamples": 199}
        found = statistics.compare_all(areas, "base", metric=metric, higher_is_better=override, **options)
        assert [*found] == ["high", "low"]
        assert [one.verdict for one in found.values()] == expected
    assert found["low"].comparison == statistics.compare(areas["low"], start, **options)
    assert found["low"].adjusted_p_value == 2 * 2.0**-11


def test_few_seeds_for_many_strategies_are_too_few():
    random = np.linspace(0.5, 0.6, 8)
    clear = random + 0.1 + 0.01 * np.arange(8)

    def verdicts(**areas):
        return [one.verdict for one in statistics.compare_all(areas, "random", metric="f1").values()]

    few = "too few seeds to show a difference"
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
    found = statistics.labels_saved([30, 40, 30, 35, 30, 30], [60, 50, INF, 70, 60, 60])
    assert found[:4] == (30, 60, 0.5, 0)
    # Three draws or more of six are the seed that did not reach it, with a chance of 6.2 %: a ratio of 0.
    assert 0.5 <= found.high < 1
    assert found[5:] == (6, 5, 6)
    # Fewer than six are all on one side too often, where nothing differs: 2 of 32.
    assert statistics.labels_saved([1.0] * 6, [2.0] * 6)[:5] == (1, 2, 0.5, 0.5, 0.5)
    assert statistics.labels_saved([1.0] * 5, [2.0] * 5)[:5] == (1, 2, 0.5, 0, INF)
    assert statistics.labels_saved([1.0] * 5, [2.0] * 5, confidence=0.9)[2:5] == (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(statistics.labels_saved([20, 20], [40, INF])[2:5], [0.0, 0.0, INF])
    # Curves that begin without labels may be at the target there.
    none, some = np.zeros(6), np.full(6, 20)
    for pair, ratio in (((none, some), (0, 0, 0)), ((some, none), (INF, INF, INF)), ((none, none), (NAN, 0, INF))):
        np.testing.assert_array_equal(statistics.labels_saved(*pair)[2:5], ratio)
    neither = statistics.labels_saved([INF, INF, INF], [INF, INF, 20])
    np.testing.assert_array_equal(neither, (INF, INF, NAN, 0.0, INF, 0, 1, 3))
    assert statistics.labels_saved([NAN, 20, 30], [20, 40, 60])[:3] == (25, 50, 0.5)
    np.testing.assert_array_equal(statistics.labels_saved([NAN, 20], [20, 40]), (20, 40, 0.5, 0, INF, 1, 1, 1))
    np.testing.assert_array_equal(statistics.labels_saved([NAN], [20]), (*[NAN] * 5, 0, 0, 0))


def test_the_interval_of_labels_saved_leaves_out_as_many_draws_on_either_side():
    rng = np.random.default_rng(9)
    a, b = rng.uniform(20, 40, 6), rng.uniform(50, 90, 6)
    for num_resamples, confidence, left_out in ((99, 0.95, 2), (100, 0.9, 5), (99, 0.9, 4)):
        chosen = np.random.default_rng(4).integers(6, size=(num_resamples, 6))
        ratios = sorted(np.median(a[rows]) / np.median(b[rows]) for rows in chosen)
        found = statistics.labels_saved(a, b, num_resamples=num_resamples, confidence=confidence, seed=4)
        np.testing.assert_allclose([found.low, found.high], [ratios[left_out], ratios[-1 - left_out]], rtol=1e-12)


@hypothesis.given(st.lists(st.sampled_from([10, 20, 30, INF]), min_size=2, max_size=8), st.data())
def test_swapping_turns_a_ratio_over(a, data):
    b = data.draw(st.lists(st.sampled_from([10, 20, 30, INF]), min_size=len(a), max_size=len(a)))
    found, turned = (statistics.labels_saved(*pair, num_resamples=199) for pair in ((a, b), (b, a)))
    with np.errstate(divide="ignore"):
        over = 1 / np.float64([found.ratio, found.high, found.low])
    np.testing.assert_allclose(over, turned[2:5])


def test_bad_input_is_named():
    for call, message in (
        (lambda: statistics.compare([1.0], [1.0, 2.0]), r"shapes \(1,\) and \(2,\)"),
        (lambda: statistics.compare([[1.0]], [[1.0]]), r"but both must be \[seeds\], in pairs"),
        (lambda: statistics.compare([1.0], [1.0], num_resamples=98), "num_resamples=98 must be at least 99"),
        (lambda: statistics.compare([1.0], [1.0], confidence=0.0), "confidence=0.0 must be between"),
        (lambda: statistics.labels_saved([-1.0], [1.0]), "-1 labels are not a number of labels"),
        (lambda: statistics.holm([1.2]), "between 0 and 1"),
        (lambda: statistics.holm([-0.1]), "between 0 and 1"),
        (lambda: statistics.holm([[0.1]]), "must be a list"),
        (lambda: statistics.compare_all({"s": [1.0]}, "s"), "metric='None' does not tell"),
        (lambda: statistics.compare_all({"s": [1.0]}, "bald", metric="f1"), "baseline='bald' is not .* there are s"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
