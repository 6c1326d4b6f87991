"""Ranks agree with SciPy and with Demšar's tables."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from baal_jax.study import statistics


@hypothesis.given(st.sampled_from([(3, 2), (3, 3)]), st.integers(2, 5), st.integers(0, 99))
@hypothesis.settings(max_examples=6, deadline=None)
def test_friedman_is_scipys_in_every_order_with_ties(shape, levels, seed):
    (k, n), friedman = shape, scipy.stats.friedmanchisquare
    table = np.random.default_rng(seed).integers(0, levels, (n, k)).astype(float)
    hypothesis.assume((table != table[:, :1]).any())
    found = statistics.rank({f"s{j}": table[:, j] for j in range(k)})
    tables = itertools.product(*(itertools.permutations(row) for row in table))
    statistic = friedman(*table.T).statistic - 1e-9
    assert found.p_value == pytest.approx(
        np.mean([friedman(*np.transpose(one)).statistic >= statistic for one in tables])
    )
    # The rank of a seed is how many are better, and half of those that are as good, itself included.
    ranks = 0.5 + (table[:, None] > table[:, :, None]).sum(-1) + 0.5 * (table[:, None] == table[:, :, None]).sum(-1)
    assert found.mean_ranks == pytest.approx({f"s{j}": ranks[:, j].mean() for j in range(k)})
    assert list(found.mean_ranks.values()) == sorted(found.mean_ranks.values())


def test_of_many_seeds_tests_are_demsars_and_scipys():
    # Demšar 2006, table 5.
    for k, q, confidence in ((2, 1.960, 0.95), (5, 2.728, 0.95), (10, 3.164, 0.95), (5, 2.459, 0.9)):
        values = np.random.default_rng(k).normal(size=(k, 200))
        found = statistics.rank({f"s{j}": values[j] for j in range(k)}, confidence=confidence)
        assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 200)), rel=0.04)
        assert k == 2 or found.p_value == pytest.approx(scipy.stats.friedmanchisquare(*values).pvalue, abs=0.02)


def test_groups_are_what_is_not_shown_to_differ():
    order = np.arange(5.0)[:, None] + 0.1 * np.random.default_rng(0).uniform(-1, 1, (5, 12))
    found = statistics.rank(dict(zip("abcde", order, strict=True)))
    assert list(found.mean_ranks) == ["e", "d", "c", "b", "a"]
    assert 1 < found.critical_difference < 2
    assert found.groups == (("e", "d"), ("d", "c"), ("c", "b"), ("b", "a"))
    lower = statistics.rank(dict(zip("abcde", order, strict=True)), higher_is_better=False)
    assert list(lower.mean_ranks) == ["a", "b", "c", "d", "e"]
    far = statistics.rank({"a": np.zeros(40), "b": np.ones(40), "c": 1 + (np.arange(40) % 8 == 0)})
    assert far.groups == (("c", "b"), ("a",))
    assert far.mean_ranks == {"c": 1.4375, "b": 1.5625, "a": 3.0}
    # The best and the worst of six are farther apart than the critical difference, but Friedman's test does not reject.
    table = np.random.default_rng(47).integers(0, 10, (6, 6))
    careful = statistics.rank(dict(zip("abcdef", table, strict=True)), confidence=0.5)
    assert careful.mean_ranks["b"] - careful.mean_ranks["e"] > careful.critical_difference
    assert careful.groups == (tuple("edacfb"),)
    alike = statistics.rank({name: np.ones(6) for name in "abc"})
    assert (alike.p_value, alike.groups) == (1.0, (("a", "b", "c"),))
    gaps = statistics.rank({"a": [1.0, 2.0, np.nan], "b": [2.0, 3.0, 9.0]})
    assert (gaps.num_seeds, gaps.mean_ranks) == (2, {"b": 1.0, "a": 2.0})
    none = statistics.rank({"a": [np.nan, 1.0], "b": [1.0, np.nan]})
    assert (none.num_seeds, none.groups) == (0, (("a", "b"),))
    assert np.isnan([*none.mean_ranks.values(), none.p_value, none.critical_difference]).all()


def test_bad_input_is_named():
    for values, message in (
        ({"a": [1.0]}, "values has 1 strategies"),
        ({"a": [1.0], "b": [1.0, 2.0]}, r"values have shapes \[\(1,\), \(2,\)\], but .* NaN where"),
        ({"a": [[1.0]], "b": [[2.0]]}, "values have shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.rank(values)
    with pytest.raises(ValueError, match="confidence=2"):
        statistics.rank({"a": [1.0], "b": [1.0]}, confidence=2)
