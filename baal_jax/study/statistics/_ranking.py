"""Ranks of strategies: Friedman's test and Nemenyi's critical difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from baal_jax.study.statistics._curves import check_confidence


class Ranking(NamedTuple):
    """Ranks of strategies, with what a diagram of critical differences needs.

    Attributes:
        mean_ranks: name → mean rank over seeds, the best first; 1 is best in every seed.
        p_value: of Friedman's test that all strategies are alike.
        critical_difference: mean ranks farther apart than this differ (Nemenyi).
        groups: sets of strategies in order of rank, within which no difference is shown; none is inside another.
        num_seeds: seeds that counted.
    """

    mean_ranks: dict[str, float]
    p_value: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]
    num_seeds: int


def rank(values: Mapping[str, Any], *, higher_is_better: bool = True, confidence: float = 0.95) -> Ranking:
    r"""Rank strategies seed by seed, and test whether they differ at all, and if so, which.

    With mean ranks :math:`\bar r_j` of ``k`` strategies over ``n`` seeds, Friedman's statistic, corrected for ties, is

    .. math:: \chi^2 = \frac{(k - 1)\, n^2 \sum_j \bigl(\bar r_j - \frac{k + 1}{2}\bigr)^2}
              {\sum_{ij} \bigl(r_{ij} - \frac{k + 1}{2}\bigr)^2}

    and is compared with :math:`\chi^2_{k-1}`. Nemenyi's critical difference, with the quantile ``q`` of the studentised
    range for infinite degrees of freedom, is

    .. math:: \mathrm{CD} = \frac{q_{1-\alpha,\,k,\,\infty}}{\sqrt 2} \sqrt{\frac{k (k + 1)}{6 n}}.

    Unless Friedman's test rejects, all strategies are one group. Both are approximations for many seeds; with fewer
    than ten or so the test is careful rather than sharp.

    Args:
        values: name → ``float[seeds]``, such as areas, of the same seeds in the same order. A seed that is NaN for any
            strategy is left out for all; equal values share their ranks.
        higher_is_better: False for metrics such as the NLL.
        confidence: ``1 - α``.

    Returns:
        A :class:`Ranking`; NaN without seeds.

    Raises:
        ValueError: there are fewer than two strategies, shapes differ, or the confidence is out of range.

    References:
        Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, 2006 (there blocks are data sets, here
        they are seeds of one).

    Example:
        >>> from baal_jax.study import statistics
        >>> areas = {"random": [0.5, 0.6, 0.5, 0.4], "bald": [0.8, 0.9, 0.9, 0.7], "margin": [0.7, 0.8, 0.8, 0.6]}
        >>> ranking = statistics.rank(areas)
        >>> ranking.mean_ranks, round(ranking.critical_difference, 3), ranking.groups
        ({'bald': 1.0, 'margin': 2.0, 'random': 3.0}, 1.657, (('bald', 'margin'), ('margin', 'random')))
    """
    from scipy import stats

    alpha = 1 - check_confidence(confidence)
    names = list(values)
    if len(names) < 2:
        raise ValueError(f"values has {len(names)} strategies: pass two or more to rank")
    shapes = {name: np.shape(values[name]) for name in names}
    if len(shapes[names[0]]) != 1 or len(set(shapes.values())) > 1:
        raise ValueError(f"values have shapes {shapes}, but all must be [seeds], of the same seeds")
    table = np.stack([np.asarray(values[name], np.float64) for name in names], axis=1)
    table = table[~np.isnan(table).any(axis=1)]
    count, k = table.shape
    if not count:
        return Ranking(dict.fromkeys(names, math.nan), math.nan, math.nan, (tuple(names),), 0)
    ranks = stats.rankdata(-table if higher_is_better else table, axis=1)
    means = ranks.mean(axis=0)
    spread = ((ranks - (k + 1) / 2) ** 2).sum()
    statistic = (k - 1) * count**2 * ((means - (k + 1) / 2) ** 2).sum() / spread if spread else 0.0
    p_value = float(stats.chi2.sf(statistic, k - 1))
    quantile = float(stats.studentized_range.ppf(1 - alpha, k, np.inf))
    critical = quantile / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * count))
    order = np.argsort(means, kind="stable")
    ranked = {names[j]: float(means[j]) for j in order}
    # Nemenyi's test comes after Friedman's: alone it would look for pairs where nothing is shown to differ at all.
    groups = _groups(means[order], critical) if p_value <= alpha else [(0, k)]
    return Ranking(ranked, p_value, critical, tuple(tuple([*ranked][start:end]) for start, end in groups), count)


def _groups(means: np.ndarray, critical: float) -> list[tuple[int, int]]:
    """Longest stretches of ascending mean ranks that are within the critical difference."""
    groups: list[tuple[int, int]] = []
    for start in range(len(means)):
        end = int(np.searchsorted(means, means[start] + critical * (1 + 1e-12), side="right"))
        if not groups or end > groups[-1][1]:  # else it is inside of the one before
            groups.append((start, end))
    return groups
