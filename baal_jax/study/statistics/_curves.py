"""Learning curves: means with bands, areas, labels to a target."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_HIGHER = {"accuracy", "precision", "recall", "f1", "f1_micro", "f1_macro", "exact_match", "auroc", "average_precision"}
_HIGHER |= {"joint_log_likelihood"}
_LOWER = {"nll", "gaussian_nll", "cross_entropy", "brier", "ece", "adaptive_ece", "classwise_ece", "squared_error"}
_LOWER |= {"hamming_loss", "rmse", "mae", "crps", "crps_draws", "crps_fair", "gaussian_crps", "pinball"}


class Curve(NamedTuple):
    """Mean learning curve with its confidence band.

    Attributes:
        num_labelled: ``float[R]``, mean over the seeds that have a value; NaN where none has.
        mean: ``float[R]``, likewise.
        low: ``float[R]``, NaN where fewer than two seeds are left.
        high: ``float[R]``, likewise.
    """

    num_labelled: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def is_higher_better(metric: str | None, higher_is_better: bool | None = None) -> bool:
    """Whether more of a metric is better: known for the metrics of this library, and asked for otherwise.

    Args:
        metric: a name such as ``"top_5_accuracy"`` (more is better) or ``"nll"`` (less is).
        higher_is_better: the answer itself, whatever the name.

    Raises:
        ValueError: the name is another, or of no direction, as ``"coverage"`` is; the answer is not True or False.

    Example:
        >>> statistics.is_higher_better("accuracy"), statistics.is_higher_better("adaptive_ece")
        (True, False)
    """
    if isinstance(higher_is_better, bool | np.bool_):
        return bool(higher_is_better)
    if higher_is_better is not None:
        raise ValueError(f"higher_is_better={str(higher_is_better)[:60]!r} is no answer: pass True or False")
    # Words in a name say little: of "neg_log_loss" more is better, of "log_loss" it is worse.
    name = re.sub(r"^top_\d+_accuracy$", "accuracy", str(metric).lower())
    if name not in _HIGHER | _LOWER:
        cure = "pass higher_is_better=True or False; a study keeps it, About(higher_is_better={name: True or False})"
        raise ValueError(f"metric={str(metric)[:60]!r} does not tell whether more is better: {cure}")
    return name in _HIGHER


def mean_curve(num_labelled: Any, values: Any, confidence: float = 0.95) -> Curve:
    r"""Mean over seeds, with the interval of Student's t for every round by itself.

    .. math:: \bar x \pm t_{n-1,\,(1 + c)/2}\; s / \sqrt{n}

    Seeds that are NaN in a round, as their run has stopped or failed, are left out of it: late rounds are of the rest.

    Args:
        num_labelled: ``[R]``, or ``[seeds, R]`` where runs differ; not decreasing.
        values: ``float[seeds, R]``.
        confidence: ``c``.

    Example:
        >>> curve = statistics.mean_curve([10, 20], [[0.5, 0.8], [0.6, 0.9], [0.7, 0.7]])
        >>> curve.mean.round(3).tolist(), curve.low.round(3).tolist()
        ([0.6, 0.8], [0.352, 0.552])
    """
    from scipy import special

    (labels, values), level = _checked(num_labelled, values), check_confidence(confidence)
    mean, error, count = mean_and_error(values)
    half = special.stdtrit(np.maximum(count - 1, 1), (1 + level) / 2) * error
    return Curve(mean_and_error(np.where(np.isnan(values), np.nan, labels))[0], mean, mean - half, mean + half)


def standard_error(values: Any) -> np.ndarray:
    r"""Standard error of the mean over seeds.

    .. math:: \sqrt{\tfrac{1}{n (n - 1)} \sum_i (x_i - \bar x)^2}

    Args:
        values: ``float[seeds, …]``; NaN is left out.

    Returns:
        The array without its first axis; NaN where there are fewer than two values.

    Example:
        >>> f"{statistics.standard_error(np.array([1.0, 2.0, 3.0])):.3f}"
        '0.577'
    """
    return mean_and_error(np.asarray(values, np.float64))[1]


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis, its standard error and the count, of what is not NaN."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    mean = np.where(there, values, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
    with np.errstate(invalid="ignore"):  # infinite values have no spread
        squares = (np.where(there, values - mean, 0.0) ** 2).sum(axis=0)
    return mean, np.sqrt(squares / np.where(count > 1, (count - 1) * count, np.nan)), count


def shared_range(runs: Iterable[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of labels that all strategies have seen, seed by seed: only there can they be compared.

    Args:
        runs: for each strategy ``num_labelled`` and ``values`` as in :func:`area`, all with the same seeds.

    Returns:
        ``low`` and ``high``, ``float[seeds]``; NaN for a seed without values, ``low`` above ``high`` without overlap.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> low, high = statistics.shared_range(digits.runs)  # doctest: +SKIP
    """
    ends = [_ends(*_checked(num_labelled, values)) for num_labelled, values in runs]
    if not ends:
        raise ValueError("runs is empty: pass at least one strategy")
    if len({len(low) for low, _ in ends}) > 1:
        raise ValueError(f"runs have {[len(low) for low, _ in ends]} seeds: pass the same seeds of every strategy")
    return np.fmax.reduce([low for low, _ in ends]), np.fmin.reduce([high for _, high in ends])


def area(num_labelled: Any, values: Any, *, low: Any = None, high: Any = None) -> np.ndarray:
    r"""Area under each learning curve, divided by its width: the mean height of the curve.

    .. math:: \frac{1}{b - a} \int_a^b f(n)\, dn

    ``f`` is linear between rounds, and the integral runs over numbers of labels, so that steps of different sizes are
    alike. NaN rounds do not count. In the limit ``a = b`` it is the value there.

    Args:
        num_labelled: as in :func:`mean_curve`.
        values: ``float[seeds, R]``; NaN after a run has stopped.
        low: ``a``, a number or ``[seeds]``. By default, where the latest of these runs begins.
        high: ``b``, likewise. By default, where the first of these runs ends; to compare: :func:`shared_range`.

    Returns:
        ``float[seeds]``; NaN for a run that does not cover the range.

    Example:
        >>> statistics.area([10, 20, 40], [[0.5, 0.7, 0.9], [0.6, 0.6, 0.6]]).round(4).tolist()
        [0.7333, 0.6]
    """
    labels, values = _checked(num_labelled, values)
    begins, ends = _ends(labels, values)
    lows = np.broadcast_to(np.fmax.reduce(begins, initial=np.nan) if low is None else low, len(values))
    highs = np.broadcast_to(np.fmin.reduce(ends, initial=np.nan) if high is None else high, len(values))
    heights = np.full(len(values), np.nan)
    # A curve is not continued beyond its ends: guessing there would favour runs that stopped while they still rose.
    for i in np.flatnonzero((begins <= lows) & (lows <= highs) & (highs <= ends)):
        there = ~np.isnan(values[i])
        heights[i] = _mean_height(labels[i, there], values[i, there], lows[i], highs[i])
    return heights


def labels_to_target(num_labelled: Any, values: Any, target: float, *, higher_is_better: bool = True) -> np.ndarray:
    """Number of labels at which each seed first reached a target.

    Args:
        num_labelled: as in :func:`mean_curve`.
        values: ``float[seeds, R]``; NaN reaches nothing.
        target: the value to reach.
        higher_is_better: False if the metric has to fall to the target, as an NLL has.

    Returns:
        ``float[seeds]``; inf for a seed that never reached it: it is censored, and would have needed more than it had.

    Example:
        >>> statistics.labels_to_target([20, 30, 40], [[0.8, 0.91, 0.89], [0.7, 0.8, 0.85]], 0.9).tolist()
        [30.0, inf]
    """
    labels, values = _checked(num_labelled, values)
    if np.isnan(target):
        raise ValueError(f"target={target!r} is not a number: pass a value of the metric")
    reached = values >= target if higher_is_better else values <= target
    return np.where(reached, labels, np.inf).min(axis=1, initial=np.inf)


def check_confidence(confidence: float) -> float:
    """Returns a confidence that is between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must be between 0 and 1, such as 0.95")
    return float(confidence)


def _checked(num_labelled: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as ``float64[seeds, R]``."""
    labels, values = np.asarray(num_labelled, np.float64), np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ValueError(f"values has shape {values.shape}, but [seeds, R] is needed: one run becomes values[None]")
    if labels.shape not in (values.shape, values.shape[1:]):
        raise ValueError(f"num_labelled has shape {labels.shape}, but {values.shape[1:]} or {values.shape} is needed")
    labels = np.broadcast_to(labels, values.shape)
    # Rounds that did not happen may say anything, so only the others are looked at.
    seen = np.maximum.accumulate(np.where(np.isnan(values), -np.inf, labels), axis=1)
    if (np.isnan(labels) & ~np.isnan(values)).any() or (seen > labels)[~np.isnan(values)].any():
        raise ValueError("num_labelled must not decrease from round to round: put the rounds in order")
    return labels, values


def _ends(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run begins and ends; NaN for a run without values."""
    labels = np.where(np.isnan(values), np.nan, labels)
    return np.fmin.reduce(labels, axis=1, initial=np.nan), np.fmax.reduce(labels, axis=1, initial=np.nan)


def _mean_height(labels: np.ndarray, values: np.ndarray, low: float, high: float) -> float:
    if low == high:
        return float(np.interp(low, labels, values))
    inside = (labels > low) & (labels < high)
    x = np.concatenate([[low], labels[inside], [high]])
    y = np.concatenate([[np.interp(low, labels, values)], values[inside], [np.interp(high, labels, values)]])
    return float(np.trapezoid(y, x) / (high - low))
