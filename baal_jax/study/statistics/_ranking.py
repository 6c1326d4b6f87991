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
        mean_ranks: name → mean rank over seeds, the best first; 1 is best in every seed. Those in ``unranked`` are not
            among them.
        p_value: of Friedman's test that all strategies are alike.
        critical_difference: mean ranks farther apart than this differ; where seeds are too few to show a difference it
            is the largest that there can be.
        groups: sets of strategies in order of rank, within which no difference is shown; none is inside another.
        num_seeds: seeds that counted.
        unranked: strategies without any value.
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
    exceeds in at most ``α`` of them (Nemenyi's, but for so many seeds, and with ties). Up to half a million orders are
    counted, which are 20 seeds of two strategies and 8 of three; of more, 10,000 are drawn, and always the same.

    Unless Friedman's test rejects, all strategies are one group. So where all are alike, the chance that any are told
    apart is at most ``α``, for every number of strategies and seeds. In simulated studies, equal strategies beside a
    clearly better one were told apart in less than 1 % at ``α = 5 %``, and strategies that are equal in the mean but
    differ tenfold in spread, whose orders are not equally likely, in 7 % at most.

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
        Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, 2006 (there blocks are data sets, here
        they are seeds of one, and both tests are approximations for many).

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
    shapes = list(dict.fromkeys(array.shape for array in arrays.values()))
    if len(shapes) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"values have shapes {', '.join(map(str, shapes[:3]))}, but all must be [seeds], of the same seeds: "
            "put NaN where one is missing"
        )
    names = [name for name, array in arrays.items() if not np.isnan(array).all()]
    unranked = tuple(name for name in arrays if name not in names)
    table = np.stack([arrays[name] for name in names], axis=1) if names else np.zeros((0, 0))
    table = table[~np.isnan(table).any(axis=1)]
    count, k = table.shape
    if not count:
        return Ranking(dict.fromkeys(names, math.nan), math.nan, math.nan, (tuple(names),), 0, unranked)
    signed = table if higher_is_better else -table
    before, after = signed[:, None], signed[:, :, None]
    ranks = (before > after).sum(axis=-1) + ((before == after).sum(axis=-1) + 1) / 2
    spreads, ranges = _by_chance(tuple(sorted(tuple(row) for row in np.sort(ranks, axis=1).tolist())))
    sums = ranks.sum(axis=0)
    p_value = float(np.mean(spreads >= _spread(sums)))
    critical = float(ranges[len(ranges) - 1 - int(alpha * len(ranges) + 1e-9)]) / count
    order = np.argsort(sums, kind="stable")
    ranked = {names[j]: float(sums[j]) / count for j in order}
    # Pairs come after Friedman's test: alone the critical difference would find some where nothing differs at all.
    groups = _groups(sums[order] / count, critical) if p_value <= alpha + 1e-12 else [(0, k)]
    parts = tuple(tuple([*ranked][start:end]) for start, end in groups)
    return Ranking(ranked, p_value, critical, parts, count, unranked)


@functools.lru_cache(maxsize=4)  # without ties it is the same for every metric of a study
def _by_chance(ranks: tuple[tuple[float, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Spreads and ranges of the sums of ranks, where every seed orders the strategies in any way; ascending ranges."""
    k = len(ranks[0])
    first, *others = ranks
    if math.factorial(k) ** len(others) <= _EXACT:
        sums = np.array([first])  # other names change neither number: one seed may keep its order
        for row in others:
            sums = (sums[:, None] + np.array([*itertools.permutations(row)])).reshape(-1, k)
    else:
        rng, sums = np.random.default_rng(0), np.zeros((_DRAWS, k))
        for row in ranks:
            orders = rng.random(sums.shape).argsort(axis=1)
            orders[0] = np.arange(
                k
            )  # all seeds agree: as one of the draws it keeps p-values above 0, and the test exact
            sums += np.array(row)[orders]
    return _spread(sums), np.sort(np.ptp(sums, axis=1))


def _spread(sums: np.ndarray) -> np.ndarray:
    """Friedman's statistic but for a factor; sums of ranks are multiples of ½, so that equal ones are equal."""
    return ((sums - sums.sum(axis=-1, keepdims=True) / sums.shape[-1]) ** 2).sum(axis=-1)


def _groups(means: np.ndarray, critical: float) -> list[tuple[int, int]]:
    """Longest stretches of ascending mean ranks that are within the critical difference."""
    groups: list[tuple[int, int]] = []
    for start in range(len(means)):
        end = int(np.searchsorted(means, means[start] + critical * (1 + 1e-12), side="right"))
        if not groups or end > groups[-1][1]:  # else it is inside of the one before
            groups.append((start, end))
    return groups
