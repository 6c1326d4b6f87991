"""Statistics agree with SciPy, with Demšar's tables, and with the definitions in loops. See also test_golden.py."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from baal_jax.study import statistics
from tests.study.files import make_results

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


# Ranks


@hypothesis.given(st.sampled_from([(3, 2), (3, 3)]), st.integers(2, 5), st.integers(0, 99))
@hypothesis.settings(max_examples=6, deadline=None)
def test_friedman_is_scipys_in_every_order_with_ties(shape, levels, seed):
    (k, n), friedman = shape, scipy.stats.friedmanchisquare
    table = np.random.default_rng(seed).integers(0, levels, (n, k)).astype(float)
    hypothesis.assume((table != table[:, :1]).any())
    found = statistics.rank({f"s{j}": table[:, j] for j in range(k)})
    statistic, tables = friedman(*table.T).statistic - 1e-9, itertools.product(*map(itertools.permutations, table))
    assert found.p_value == pytest.approx(np.mean([friedman(*np.transpose(t)).statistic >= statistic for t in tables]))
    ranks = scipy.stats.rankdata(-table, axis=1).mean(axis=0)
    assert found.mean_ranks == pytest.approx({f"s{j}": ranks[j] for j in range(k)})
    assert list(found.mean_ranks.values()) == sorted(found.mean_ranks.values())


def test_tests_of_many_seeds_are_demsars_and_scipys():
    # Demšar 2006, table 5.
    for k, q, confidence in ((2, 1.960, 0.95), (5, 2.728, 0.95), (10, 3.164, 0.95), (5, 2.459, 0.9)):
        values = np.random.default_rng(k).normal(size=(k, 200))
        found = statistics.rank({f"s{j}": values[j] for j in range(k)}, confidence=confidence)
        assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 200)), rel=0.04)
        assert k == 2 or found.p_value == pytest.approx(scipy.stats.friedmanchisquare(*values).pvalue, abs=0.02)


def test_bad_input_is_named():
    one, study = {"s": [1.0]}, make_results()
    unnamed = study._replace(description={**study.description, "metric": None})
    for function, arguments, options, message in (
        (statistics.mean_curve, ([1, 2], [0.5, 0.6]), {}, r"values has shape \(2,\), but \[seeds, R\] is needed"),
        (statistics.mean_curve, ([1], [[0.5]], 95), {}, "confidence=95 must be between 0 and 1"),
        (statistics.mean_curve, ([1], [[0.5]], 1.0), {}, r"confidence=1\.0 must be between 0 and 1"),
        (statistics.area, ([1, 2, 3], [[0.5, 0.6]]), {}, r"num_labelled has shape \(3,\), but \(2,\)"),
        (statistics.area, ([20, 10], [[0.5, 0.6]]), {}, "num_labelled must not decrease"),
        (statistics.area, ([20, NAN, 10], [[0.5, NAN, 0.6]]), {}, "num_labelled must not decrease"),
        (statistics.area, ([20, NAN], [[0.5, 0.6]]), {}, "num_labelled must not decrease"),
        (statistics.labels_to_target, ([1], [[0.5]], NAN), {}, "target=nan is not a number"),
        (statistics.is_higher_better, ("coverage",), {}, "metric='coverage' does not tell .* pass higher_is_better"),
        (statistics.is_higher_better, ("accuracy_error",), {}, "metric='accuracy_error' does not tell"),
        (statistics.is_higher_better, ("f1", "lower"), {}, "higher_is_better='lower' is no answer: pass True or False"),
        (statistics.shared_range, ([],), {}, "runs is empty"),
        (statistics.shared_range, ([([1], [[0.5]]), ([1], [[0.5], [0.6]])],), {}, r"runs have \[1, 2\] seeds"),
        (statistics.compare, ([1.0], [1.0, 2.0]), {}, r"shapes \(1,\) and \(2,\)"),
        (statistics.compare, ([[1.0]], [[1.0]]), {}, r"but both must be \[seeds\], in pairs"),
        (statistics.compare, ([1.0], [1.0]), {"num_resamples": 98}, "num_resamples=98 must be at least 99"),
        (statistics.compare, ([1.0], [1.0]), {"confidence": 0.0}, "confidence=0.0 must be between"),
        (statistics.labels_saved, ([-1.0], [1.0]), {}, "-1 labels are not a number of labels"),
        (statistics.holm, ([1.2],), {}, "between 0 and 1"),
        (statistics.holm, ([-0.1],), {}, "between 0 and 1"),
        (statistics.holm, ([[0.1]],), {}, "must be a list"),
        (statistics.compare_all, (one, "s"), {}, "metric='None' does not tell"),
        (statistics.compare_all, (one, "bald"), {"metric": "f1"}, "baseline='bald' is not .* there are s"),
        (statistics.rank, (one,), {}, "values has 1 strategies"),
        (
            statistics.summary,
            (study, "f1"),
            {},
            "metric='f1' is not among the results of 'random': accuracy, brier",
        ),
        (statistics.summary, (study, None, "badge"), {}, "baseline='badge' is not among the results: there are random"),
        (statistics.summary, (unnamed,), {}, "metric=None, and the study names none"),
        (statistics.rank, ({"a": [1.0], "b": [1.0, 2.0]},), {}, r"values have shapes \[\(1,\), \(2,\)\], but"),
        (statistics.rank, ({"a": [[1.0]], "b": [[2.0]]},), {}, "values have shapes"),
        (statistics.rank, ({"a": [1.0], "b": [1.0]},), {"confidence": 2}, "confidence=2"),
    ):
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)
