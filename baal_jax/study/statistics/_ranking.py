"""Ranks of strategies: Friedman's test and a critical difference, both by permutation."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from baal_jax.study.statistics._curves import check_confidence

_EXACT = 2**19  # orders up to which every one is counted
_DRAWS = 10_000  # of them, where there are more


class Ranking(NamedTuple):
    """Ranks of strategies, with what a diagram of critical differences needs.

    Attributes:
        mean_ranks: name → mean rank over seeds, the best first; 1 is best in every seed.
        p_value: of Friedman's test that all strategies are alike.
        critical_difference: mean ranks farther apart than this differ; with too few seeds, none can be.
        groups: sets of strategies in order of rank, within which no difference is shown; none is inside another.
        num_seeds: seeds that counted.
        unranked: strategies without any value, which are in neither.
    """

    mean_ranks: dict[str, float]
    p_value: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]
    num_seeds: int
    unranked: tuple[str, ...] = ()


def rank(values: Mapping[str, Any], *, higher_is_better: bool = True, confidence: float = 0.95) -> Ranking:
    r"""Rank strategies seed by seed, and test whether they differ at all, and if so, which.

    With ranks :math:`r_{ij}` of ``k`` strategies over ``n`` seeds and their means :math:`\bar r_j`, Friedman's
    statistic and the largest difference are

    .. math:: \chi^2 = \frac{(k - 1)\, n^2 \sum_j \bigl(\bar r_j - \frac{k + 1}{2}\bigr)^2}
              {\sum_{ij} \bigl(r_{ij} - \frac{k + 1}{2}\bigr)^2},
              \qquad D = \max_j \bar r_j - \min_j \bar r_j.

    If strategies are alike, each seed could as well have ranked them in any other order. The p-value is the share of
    these :math:`(k!)^n` orders whose :math:`\chi^2` is as large, and the critical difference the smallest that ``D``
    exceeds in at most ``α`` of them. Up to half a million are counted, as those of 20 seeds of two strategies; of more,
    10,000 are drawn, always the same. Unless Friedman's test rejects, all strategies are one group. So where all are
    alike, the chance that any are told apart is at most ``α``, for every number of strategies and seeds.

    Args:
        values: name → ``float[seeds]``, such as areas, of the same seeds in the same order. A strategy without values
            is left out and named; a seed that is NaN for any other is left out for all; equal values share their ranks.
        higher_is_better: False for metrics such as the NLL.
        confidence: ``1 - α``.

    Returns:
        A :class:`Ranking`; NaN without seeds.

    Raises:
        ValueError: there are fewer than two strategies, shapes differ, or the confidence is out of range.

    References:
        Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, 2006, with data sets for our seeds.

    Example:
        >>> from baal_jax.study import statistics
        >>> areas = {"random": [0.5, 0.6, 0.5, 0.4], "bald": [0.8, 0.9, 0.9, 0.7], "margin": [0.7, 0.8, 0.8, 0.6]}
        >>> ranking = statistics.rank(areas)
        >>> ranking.mean_ranks, ranking.critical_difference, ranking.groups
        ({'bald': 1.0, 'margin': 2.0, 'random': 3.0}, 1.5, (('bald', 'margin'), ('margin', 'random')))
    """
    alpha = 1 - check_confidence(confidence)
    if len(values) < 2:
        raise ValueError(f"values has {len(values)} strategies: pass two or more to rank")
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    shapes = sorted({array.shape for array in arrays.values()})
    if len(shapes) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"values have shapes {shapes[:3]}, but all must be [seeds], with NaN where one is missing")
    names = [name for name, array in arrays.items() if not np.isnan(array).all()]
    unranked = tuple(name for name in arrays if name not in names)
    table = np.stack([arrays[name] for name in names], axis=1) if names else np.zeros((0, 0))
    table = table[~np.isnan(table).any(axis=1)]
    if not (count := len(table)):
        return Ranking(dict.fromkeys(names, math.nan), math.nan, math.nan, (tuple(names),), 0, unranked)
    signed = table if higher_is_better else -table
    before, after = signed[:, None], signed[:, :, None]
    ranks = (before > after).sum(axis=-1) + ((before == after).sum(axis=-1) + 1) / 2
    variances, ranges = _by_chance(tuple(sorted(tuple(row) for row in np.sort(ranks, axis=1).tolist())))
    sums = ranks.sum(axis=0)
    p_value = float(np.mean(variances >= sums.var()))
    critical = float(ranges[len(ranges) - 1 - int(alpha * len(ranges) + 1e-9)]) / count
    order = np.argsort(sums, kind="stable")
    ranked = {names[j]: float(sums[j]) / count for j in order}
    # Pairs come after Friedman's test: alone the critical difference would find some where nothing differs at all.
    alike = critical * count if p_value <= alpha + 1e-12 else math.inf
    ends = np.searchsorted(sums[order], sums[order] + alike + 1e-6, side="right").tolist()
    groups = [(start, end) for start, end in enumerate(ends) if start == 0 or end > ends[start - 1]]  # the longest
    return Ranking(ranked, p_value, critical, tuple(tuple([*ranked][a:b]) for a, b in groups), count, unranked)


@functools.lru_cache(maxsize=4)  # without ties it is the same for every metric of a study
def _by_chance(ranks: tuple[tuple[float, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Variances, and ascending ranges, of sums of ranks where every seed orders the strategies in any way."""
    (first, *others), k = ranks, len(ranks[0])
    if math.factorial(k) ** len(others) <= _EXACT:
        sums = np.array([first])  # other names change neither number: one seed may keep its order
        for row in others:
            sums = (sums[:, None] + np.array([*itertools.permutations(row)])).reshape(-1, k)
    else:
        rng, sums = np.random.default_rng(0), np.zeros((_DRAWS, k))
        for row in ranks:
            orders = rng.random(sums.shape).argsort(axis=1)
            orders[0] = range(k)  # one draw in which all seeds agree keeps p-values above 0, and the test exact
            sums += np.array(row)[orders]
    # The variance is Friedman's statistic but for a factor. Ranks are multiples of ½, so that equal ones stay equal.
    return sums.var(axis=1), np.sort(np.ptp(sums, axis=1))
