"""Paired comparisons and ranks: bootstrap intervals, the sign-flip test, Holm's correction, Friedman's test."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from baal_jax.study.statistics._curves import check_confidence, is_higher_better

_EXACT = 32  # seeds up to which every one of the sign flips is counted
_EXACT_ORDERS = 2**19  # orders of strategies up to which every one is counted
_DRAWS = 10_000  # of them, where there are more


class Comparison(NamedTuple):
    """Comparison of two strategies over the seeds that they share.

    Attributes:
        difference: mean of ``a - b``.
        low: lower bound of its interval; −inf where there are too few seeds to bound it.
        high: upper bound of its interval, likewise.
        p_value: how often chance alone gives a difference as large, in either direction.
        least_p_value: the smallest ``p_value`` that as many seeds can give.
        num_seeds: pairs that counted.
    """

    difference: float
    low: float
    high: float
    p_value: float
    least_p_value: float
    num_seeds: int


class Verdict(NamedTuple):
    """Verdict of one of many comparisons.

    Attributes:
        comparison: :class:`Comparison` with the baseline.
        adjusted_p_value: its p-value after :func:`holm`'s correction.
        verdict: ``"better"``, ``"worse"``, ``"no difference shown"`` or ``"too few seeds to show a difference"``.
    """

    comparison: Comparison
    adjusted_p_value: float
    verdict: str


class Saved(NamedTuple):
    """Number of labels that a strategy needed for a target, against a baseline's.

    Attributes:
        median: of the strategy's labels; inf if half of the seeds or more did not reach the target.
        baseline_median: of the baseline's labels, likewise.
        ratio: ``median / baseline_median``: below 1, labels are saved. 0 or inf where only one of them reached the
            target, or needed no label; NaN where neither did.
        low: lower bound of the ratio's interval; 0 with too few seeds.
        high: upper bound of the ratio's interval; inf with too few seeds.
        reached: how many seeds of the strategy reached the target.
        baseline_reached: how many seeds of the baseline did.
        num_seeds: pairs of seeds.
    """

    median: float
    baseline_median: float
    ratio: float
    low: float
    high: float
    reached: int
    baseline_reached: int
    num_seeds: int


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


def compare(a: Any, b: Any, *, confidence: float = 0.95, num_resamples: int = 4999, seed: int = 0) -> Comparison:
    r"""Mean difference of paired numbers, with a bootstrap interval and a permutation test.

    The interval is the studentised bootstrap. With ``d = a - b`` of mean :math:`\bar d` and standard error ``s``, and
    :math:`t^* = (\bar d^* - \bar d) / s^*` of seeds drawn with replacement,

    .. math:: [\,\bar d - s\, t^*_{(1 + c)/2},\; \bar d - s\, t^*_{(1 - c)/2}\,].

    In simulated studies of 4 to 20 seeds, the interval of 95 % held the true difference in 94 to 95 % for normal, 92 to
    95 % for exponential and Student's t(3), 89 to 92 % for log-normal ones. With fewer than four seeds it is infinite.

    The p-value is that of the sign-flip test: if the two do not differ, each difference could have had the other sign,

    .. math:: p = 2^{-n} \sum_{\sigma \in \{-1, 1\}^n} \mathbf 1\Bigl[\bigl|\sum_i \sigma_i d_i\bigr| \ge
              \bigl|\sum_i d_i\bigr|\Bigr].

    It assumes nothing but that, and is exact to 32 seeds; beyond, it is a Monte-Carlo estimate :math:`(1 + k)/(1 + m)`.
    No p-value is below :math:`2^{1-n}`: five seeds cannot show a difference at 5 %.

    Args:
        a: ``float[seeds]``.
        b: ``float[seeds]``, of the same seeds. Pairs whose difference is non-finite are left out.
        confidence: ``c``.
        num_resamples: how often seeds are drawn, and signs beyond 32 seeds.
        seed: of the resampling; the same seed gives the same numbers.

    Returns:
        A :class:`Comparison`; NaN without any pair, and NaN bounds with one.

    References:
        Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 12 and 15.

    Example:
        >>> comparison = statistics.compare([0.8, 0.9, 0.7, 0.8, 0.9, 0.8], [0.7, 0.7, 0.6, 0.6, 0.8, 0.7])
        >>> round(comparison.difference, 3), comparison.p_value, comparison.least_p_value
        (0.133, 0.03125, 0.03125)
    """
    first, second = _pairs(a, b, confidence, num_resamples)
    with np.errstate(invalid="ignore"):
        differences = first - second
    differences = differences[np.isfinite(differences)]
    if not (count := len(differences)):
        return Comparison(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    low, high = _studentised(differences, confidence, num_resamples, seed)
    # With all differences of one sign, only the flips that change none or all of them give a sum as large.
    least = 2.0 ** (1 - count) if count <= _EXACT else 1 / (num_resamples + 1)
    return Comparison(float(differences.mean()), low, high, _sign_flip(differences, num_resamples, seed), least, count)


def holm(p_values: Any) -> np.ndarray:
    r"""Holm's correction: that any adjusted p-value below ``α`` is a false positive has a chance of at most ``α``.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\bigl(1, (m - j + 1)\, p_{(j)}\bigr)

    Args:
        p_values: ``float[m]``; a NaN stays one and does not count.

    Returns:
        ``float[m]``, in the order given.

    References:
        Holm, *A simple sequentially rejective multiple test procedure*, 1979.

    Example:
        >>> statistics.holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, np.float64)
    there = ~np.isnan(values)
    if values.ndim != 1 or ((values < 0) | (values > 1))[there].any():
        raise ValueError(f"p_values={p_values!r} must be a list of numbers between 0 and 1")
    order = np.argsort(values)[: there.sum()]  # NaN is last
    # The smallest p-value has to stand against all m comparisons (Bonferroni), the next against those that are left.
    # The running maximum keeps the order: once one is not shown, none with a larger p-value is.
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(values.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return adjusted


def compare_all(
    values: Mapping[str, Any],
    baseline: str,
    *,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    confidence: float = 0.95,
    num_resamples: int = 4999,
    seed: int = 0,
) -> dict[str, Verdict]:
    """Comparison of every strategy with a baseline, with verdicts that hold all together.

    The chance that any ``"better"`` or ``"worse"`` is false is at most ``1 - confidence`` (:func:`holm`). ``"no
    difference shown"`` never means that there is none. Intervals are not widened for their number.

    Args:
        values: name → ``float[seeds]``, such as areas, of the same seeds in the same order.
        baseline: one of the names.
        metric: its name, which tells whether more is better (:func:`is_higher_better`).
        higher_is_better: says so itself.
        confidence: of the intervals and the verdicts.
        num_resamples: as in :func:`compare`.
        seed: as in :func:`compare`.

    Returns:
        Name → :class:`Verdict`, for all but the baseline, in the order given.

    Example:
        >>> areas = {"random": [0.7, 0.6, 0.8, 0.7], "bald": [0.8, 0.7, 0.9, 0.8]}
        >>> statistics.compare_all(areas, "random", metric="accuracy")["bald"].verdict
        'too few seeds to show a difference'
    """
    if baseline not in values:
        raise ValueError(f"baseline={baseline!r} is not among the strategies: there are {', '.join(values)}")
    higher = is_higher_better(metric, higher_is_better)
    alpha = 1 - check_confidence(confidence)
    pair = functools.partial(compare, b=values[baseline], confidence=confidence, num_resamples=num_resamples, seed=seed)
    comparisons = {name: pair(value) for name, value in values.items() if name != baseline}
    p_values = np.array([one.p_value for one in comparisons.values()])
    adjusted = holm(p_values)
    verdicts = {}
    for i, (name, one) in enumerate(comparisons.items()):
        # What Holm would have said had this comparison come out as clear as its number of seeds allows.
        best_case = p_values.copy()
        best_case[i] = one.least_p_value
        if adjusted[i] <= alpha:
            text = "better" if (one.difference > 0) == higher else "worse"
        elif not holm(best_case)[i] <= alpha:
            text = "too few seeds to show a difference"
        else:
            text = "no difference shown"
        verdicts[name] = Verdict(one, float(adjusted[i]), text)
    return verdicts


def labels_saved(a: Any, b: Any, *, confidence: float = 0.95, num_resamples: int = 4999, seed: int = 0) -> Saved:
    r"""Labels needed for a target, as a share of what a baseline needed.

    .. math:: \rho = \operatorname{median}(a) / \operatorname{median}(b)

    Seeds that never reached the target, or stopped before, are censored: they count as needing more labels than any
    other. The interval holds the percentiles of :math:`\rho^*` over seeds drawn with replacement, in pairs. Where
    neither median of a draw is finite, or both are 0, the ratio could be anything: such a draw counts as 0 below and as
    inf above, and so does every draw of fewer than six seeds (at 95 %), which chance alone too often puts on one side.
    Of equal strategies, 5 to 7 % of intervals left out 1 in simulated studies of 6 or 7 seeds, 0 to 5 % of 8 to 20.

    Args:
        a: ``float[seeds]``, from :func:`labels_to_target`; inf where the target was not reached.
        b: ``float[seeds]``, the baseline's, of the same seeds. Pairs with a NaN are left out.
        confidence: of the interval.
        num_resamples: how often seeds are drawn.
        seed: of the resampling.

    Returns:
        A :class:`Saved`; NaN without any pair.

    Example:
        >>> saved = statistics.labels_saved([30, 40, 30, 35, 30], [60, 50, float("inf"), 70, 60])
        >>> saved.ratio, saved.baseline_reached
        (0.5, 4)
    """
    pairs = np.stack(_pairs(a, b, confidence, num_resamples))
    pairs = pairs[:, ~np.isnan(pairs).any(axis=0)]
    if (pairs < 0).any():
        raise ValueError(f"{pairs.min():g} labels are not a number of labels: pass what labels_to_target returns")
    if not (count := pairs.shape[1]):
        return Saved(math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, 0)
    reached, baseline_reached = np.isfinite(pairs).sum(axis=1).tolist()
    median, baseline_median = np.median(pairs, axis=1).tolist()
    # Seeds are drawn in pairs, so that what a lucky start gives to both cancels in the ratio.
    chosen = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    with np.errstate(invalid="ignore", divide="ignore"):  # inf / inf and 0 / 0 are NaN: nobody knows
        ratio, ratios = (np.divide(*np.median(part, axis=-1)) for part in (pairs, pairs[:, chosen]))
    # A draw of which nobody knows bounds nothing: for each bound it lies where it widens the interval.
    open_ended = np.isnan(ratios) | (2.0 ** (1 - count) > 1 - confidence)
    below, above = (np.sort(np.where(open_ended, unknown, ratios)) for unknown in (0.0, np.inf))
    position = int(num_resamples * (1 - confidence) / 2 + 1e-9)
    low, high = below[position], above[num_resamples - 1 - position]
    return Saved(median, baseline_median, float(ratio), float(low), float(high), reached, baseline_reached, count)


def rank(values: Mapping[str, Any], *, higher_is_better: bool = True, confidence: float = 0.95) -> Ranking:
    r"""Rank strategies seed by seed, and test whether they differ at all, and if so, which.

    With ranks :math:`r_{ij}` of ``k`` strategies over ``n`` seeds, Friedman's statistic and the largest difference are

    .. math:: \chi^2 = \frac{(k - 1)\, n^2 \sum_j \bigl(\bar r_j - \frac{k + 1}{2}\bigr)^2}
              {\sum_{ij} \bigl(r_{ij} - \frac{k + 1}{2}\bigr)^2},
              \qquad D = \max_j \bar r_j - \min_j \bar r_j.

    If strategies are alike, each seed could as well have ranked them in any other order. The p-value is the share of
    these :math:`(k!)^n` orders whose :math:`\chi^2` is as large, and the critical difference the smallest that ``D``
    exceeds in at most ``α`` of them. Up to half a million are counted; of more, 10,000 are drawn, always the same.
    Unless Friedman's test rejects, all strategies are one group: the chance to tell equal ones apart is at most ``α``.

    Args:
        values: name → ``float[seeds]``, such as areas, of the same seeds in the same order. A strategy without values
            is left out and named; a seed that is NaN for any other is left out for all; equal values share their ranks.
        higher_is_better: False for metrics such as the NLL.
        confidence: ``1 - α``.

    Returns:
        A :class:`Ranking`; NaN without seeds.

    References:
        Demšar, *Statistical Comparisons of Classifiers over Multiple Data Sets*, 2006, with data sets for our seeds.

    Example:
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


def _pairs(a: Any, b: Any, confidence: float, num_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as ``float64[seeds]``, when all arguments are right."""
    check_confidence(confidence)
    if num_resamples < 99:
        raise ValueError(f"num_resamples={num_resamples!r} must be at least 99: tails need some draws")
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"a and b have shapes {first.shape} and {second.shape}, but both must be [seeds], in pairs")
    return first, second


@functools.lru_cache(maxsize=8)  # a study compares many strategies over the same seeds
def _weights(count: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each seed is drawn, as shares ``[seeds, resamples]``."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), num_resamples)
    return np.ascontiguousarray(drawn.T / count)


def _studentised(differences: np.ndarray, confidence: float, num_resamples: int, seed: int) -> tuple[float, float]:
    count, mean = len(differences), differences.mean()
    if count < 2:
        return math.nan, math.nan
    centred = differences - mean
    variance = np.mean(centred**2)
    if variance == 0:
        return float(mean), float(mean)
    # A draw is a vector of weights over the seeds, so that all draws are two products of matrices.
    weights = _weights(count, num_resamples, seed)
    moved = centred @ weights
    spread = centred**2 @ weights - moved**2
    # One seed drawn every time has no spread, and no bound follows from it.
    none = spread <= 1e-12 * variance
    t = np.where(none, np.copysign(np.inf, moved), moved / np.sqrt(np.where(none, 1.0, spread)))
    position = int((num_resamples + 1) * (1 - confidence) / 2 + 1e-9) - 1
    if position < 0:
        return -math.inf, math.inf
    last = num_resamples - 1 - position
    t = np.partition(t, (position, last))
    # Where draws are high, the mean of the study is low: the upper tail of t gives the lower bound.
    scale = math.sqrt(variance)  # both spreads are without Bessel's correction, which cancels
    return float(mean - scale * t[last]), float(mean - scale * t[position])


def _sign_flip(differences: np.ndarray, num_resamples: int, seed: int) -> float:
    count, total = len(differences), np.abs(differences).sum()
    # Sums that are equal on paper differ by rounding.
    bound = abs(differences.sum()) - 1e-12 * total
    if bound <= 0:
        return 1.0
    if count > _EXACT:
        sums = (2.0 * np.random.default_rng(seed).integers(0, 2, (num_resamples, count), np.int8) - 1.0) @ differences
        # The study itself is one of the draws: an estimate of 0 would claim more than the draws can show.
        return float((1 + (np.abs(sums) >= bound).sum()) / (1 + num_resamples))
    # A sum of all is one of the first half plus one of the second: 2^n sums are counted in 2^(n/2) searches.
    more = lambda sums, value: np.concatenate([sums - value, sums + value])  # noqa: E731
    left, right = (functools.reduce(more, part, np.zeros(1)) for part in np.array_split(differences, 2))
    right.sort()
    above = len(right) - np.searchsorted(right, bound - left, side="left")
    return float(2 * above.sum() / 2.0**count)  # flipping every sign mirrors the sums: as many are below −bound


@functools.lru_cache(maxsize=4)  # without ties it is the same for every metric of a study
def _by_chance(ranks: tuple[tuple[float, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Variances, and ascending ranges, of sums of ranks where every seed orders the strategies in any way."""
    (first, *others), k = ranks, len(ranks[0])
    if math.factorial(k) ** len(others) <= _EXACT_ORDERS:
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
