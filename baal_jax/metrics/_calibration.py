"""Are predictions as often right as they are sure? Reliability diagrams and the errors that sum them up."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.metrics import _sums
from baal_jax.metrics._common import averaged, count_into, equal_width_bins, fit_classes, gather, predicted_class
from baal_jax.typing import Array

ENTROPY_BINS = 20


@functools.partial(jax.jit, static_argnames="num_bins")
def ece(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    r"""Expected calibration error over bins of equal width.

    .. math:: \sum_b \tfrac{n_b}{N} \, |\mathrm{acc}_b - \mathrm{conf}_b|

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence; a confidence of exactly 1 falls in the last one.

    Returns:
        ``float32[]`` between 0 and 1.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.

    References:
        Guo et al., `On calibration of modern neural networks <https://arxiv.org/abs/1706.04599>`_, 2017.

    Example:
        >>> from baal_jax import metrics
        >>> print(metrics.ece(jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]])), jnp.array([0, 1])))
        0.25
    """
    confidence, correct, targets = _confidence(log_probs, targets)
    num_bins = checks.positive_int("num_bins", num_bins)
    bins = equal_width_bins(confidence, num_bins)
    return _mean_gap(confidence, correct, bins, targets >= 0, num_bins)


class Reliability(NamedTuple):
    """A reliability diagram, by bins of equal width of the confidence.

    Attributes:
        num_examples: ``float32[num_bins]``, examples in each bin.
        confidence: ``float32[num_bins]``, their mean confidence; NaN in an empty bin.
        accuracy: ``float32[num_bins]``, the share of them that is right; NaN in an empty bin.
    """

    num_examples: Array
    confidence: Array
    accuracy: Array


@functools.partial(jax.jit, static_argnames="num_bins")
def reliability(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Reliability:
    """What :func:`ece` sums up: how often predictions are right, against how sure they were.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence; a confidence of exactly 1 falls in the last one.

    Returns:
        A :class:`Reliability`.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]))
        >>> bins = metrics.reliability(log_probs, jnp.array([0, 1, 1]), num_bins=2)
        >>> bins.num_examples.tolist(), round(float(bins.confidence[1]), 3), round(float(bins.accuracy[1]), 3)
        ([0.0, 3.0], 0.767, 0.667)
    """
    return reliability_of(bin_counts(log_probs, targets, num_bins))


@functools.partial(jax.jit, static_argnames="num_bins")
def ece_per_class(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    """:func:`ece` among the examples of each true class, as Baal has it.

    It asks whether the confidence is right where the truth is ``c``; :func:`classwise_ece` asks whether the probability
    of ``c`` is right.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence.

    Returns:
        ``float32[C]``; NaN for a class without examples.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]]))
        >>> print(metrics.ece_per_class(log_probs, jnp.array([2, 1]), num_bins=3).round(3))
        [nan 0.2 0.5]
    """
    confidence, correct, targets = _confidence(log_probs, targets)
    num_bins, num_classes = checks.positive_int("num_bins", num_bins), log_probs.shape[-1]
    cells = targets * num_bins + equal_width_bins(confidence, num_bins)
    gaps, counts = _gaps(confidence, correct, cells, targets >= 0, num_classes * num_bins)
    return _shares(jnp.abs(gaps).reshape(num_classes, num_bins), counts.reshape(num_classes, num_bins))


@functools.partial(jax.jit, static_argnames=("num_bins", "average"))
def classwise_ece(log_probs: Array, targets: Array, *, num_bins: int = 15, average: str | None = "macro") -> Array:
    r"""Calibration error of the probability of each class, over all examples: all of a prediction counts, not its peak.

    .. math:: \frac1C \sum_c \sum_b \tfrac{n_{cb}}{N} \,
              \Bigl| \tfrac{1}{n_{cb}} \sum_{n \in b} [y_n = c] - \tfrac{1}{n_{cb}} \sum_{n \in b} \bar p_{nc} \Bigr|

    The bins ``b`` have equal width in :math:`\bar p_{nc}`. Nixon et al. call it static calibration error.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the probability of a class.
        average: ``"macro"`` for the mean over classes, None for a value a class.

    Returns:
        ``float32[]``, or ``float32[C]`` without an average. A class without examples is as well defined as the others.

    Raises:
        ValueError: the shapes differ, ``num_bins`` is not positive, or there is no such average.

    References:
        Kull et al., `Beyond temperature scaling <https://arxiv.org/abs/1910.12656>`_, 2019; Nixon et al., `Measuring
        calibration in deep learning <https://arxiv.org/abs/1904.01685>`_, 2019.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
        >>> print(metrics.classwise_ece(log_probs, jnp.array([0, 1]), average=None))
        [0.25 0.25]
    """
    probs, hits, cells, counts, num_bins = _classwise(log_probs, targets, num_bins)
    num_classes = probs.shape[-1]
    gaps, numbers = _gaps(probs.ravel(), hits.ravel(), cells.ravel(), counts.ravel(), num_classes * num_bins)
    shape = (num_classes, num_bins)
    return averaged(_shares(jnp.abs(gaps).reshape(shape), numbers.reshape(shape)), average)


@functools.partial(jax.jit, static_argnames="num_bins")
def adaptive_ece(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    r"""Expected calibration error over bins of equal mass, which a narrow spread of confidences does not leave empty.

    .. math:: \sum_b \tfrac{n_b}{N} \, |\mathrm{acc}_b - \mathrm{conf}_b|

    In the order of confidence, bin ``b`` of ``B`` ends at rank :math:`\lfloor b \, N / B \rfloor`. Examples with equal
    confidence share their accuracy evenly where a bin ends among them, so that no order of the examples matters.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins; of fewer examples each has a bin of its own.

    Returns:
        ``float32[]`` between 0 and 1.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.

    References:
        Nguyen and O'Connor, `Posterior calibration and exploratory analysis for natural language processing models
        <https://arxiv.org/abs/1508.05154>`_, 2015; Nixon et al., `Measuring calibration in deep learning
        <https://arxiv.org/abs/1904.01685>`_, 2019.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]))
        >>> print(metrics.adaptive_ece(log_probs, jnp.array([0, 0, 1, 1]), num_bins=2).round(3))
        0.4
    """
    num_bins = checks.positive_int("num_bins", num_bins)
    confidence, correct, targets = _confidence(log_probs, targets)
    unknown, confidence, correct = jax.lax.sort((targets < 0, confidence, correct), num_keys=2)
    known = ~unknown
    ranks, total = jnp.arange(confidence.shape[0], dtype=jnp.int32), jnp.sum(known, dtype=jnp.int32)
    runs = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), confidence[1:] != confidence[:-1]])[: ranks.shape[0]])
    shared = _run_means(correct, known, runs)
    # ⌊b N / B⌋, in a form that does not overflow.
    b = jnp.arange(1, num_bins, dtype=jnp.int32)
    ends = b * (total // num_bins) + (b * (total % num_bins)) // num_bins
    bins = jnp.searchsorted(ends, ranks, side="right").astype(jnp.int32)
    return _mean_gap(confidence, shared, bins, known, num_bins)


def _run_means(values: Array, counts: Array, runs: Array) -> Array:
    """The mean over the run that each value is in."""
    zeros = jnp.zeros(values.shape[0], values.dtype)
    totals = zeros.at[runs].add(jnp.where(counts, values, 0.0))
    return (totals / jnp.maximum(zeros.at[runs].add(counts.astype(values.dtype)), 1.0))[runs]


class BinCounts(NamedTuple):
    """Exact sums by cell: a cell is a bin, or a bin of a class."""

    num_examples: Array  # int32[cells]
    correct: Array  # int32[cells]
    confidence: _sums.FixedSum  # [cells]


def bin_counts(log_probs: Array, targets: Array, num_bins: int) -> BinCounts:
    """What :func:`reliability` and :func:`ece` are made of."""
    confidence, correct, targets = _confidence(log_probs, targets)
    num_bins = checks.positive_int("num_bins", num_bins)
    return _count(confidence, correct, equal_width_bins(confidence, num_bins), targets >= 0, num_bins)


def bin_counts_per_class(log_probs: Array, targets: Array, num_bins: int) -> BinCounts:
    """What :func:`ece_per_class` is made of."""
    confidence, correct, targets = _confidence(log_probs, targets)
    num_classes = log_probs.shape[-1]
    cells = targets * num_bins + equal_width_bins(confidence, num_bins)
    return _by_class(_count(confidence, correct, cells, targets >= 0, num_classes * num_bins), num_classes)


def classwise_counts(log_probs: Array, targets: Array, num_bins: int) -> BinCounts:
    """What :func:`classwise_ece` is made of."""
    probs, hits, cells, counts, num_bins = _classwise(log_probs, targets, num_bins)
    num_classes = probs.shape[-1]
    flat = _count(probs.ravel(), hits.ravel(), cells.ravel(), counts.ravel(), num_classes * num_bins)
    return _by_class(flat, num_classes)


def reliability_of(counts: BinCounts) -> Reliability:
    """The diagram from counts."""
    number = counts.num_examples.astype(jnp.float32)
    confidence, correct = _sums.fixed_value(counts.confidence), counts.correct.astype(jnp.float32)
    return Reliability(number, confidence / number, correct / number)


def calibration_error_of(counts: BinCounts) -> Array:
    """The calibration error over the last axis of counts."""
    return _shares(jnp.abs(_sums.minus_fixed(counts.correct, counts.confidence)), counts.num_examples)


def entropy_histogram(log_probs: Array, targets: Array) -> Array:
    """``int32[20]``: examples by the entropy of their prediction, in bins of equal width between 0 and ``log C``."""
    log_probs, targets = fit_classes(log_probs, targets)
    share = numerics.entropy(log_probs) / jnp.log(jnp.asarray(log_probs.shape[-1], log_probs.dtype))
    counts = (targets >= 0) & ~jnp.isnan(share)
    return count_into(equal_width_bins(share, ENTROPY_BINS), counts, ENTROPY_BINS)


def _confidence(log_probs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Flat confidences, whether they were right (1 or 0), and targets."""
    log_probs, targets = fit_classes(log_probs, targets)
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    correct = predicted_class(log_probs) == targets
    confidence, correct, targets = gather(confidence, correct.astype(confidence.dtype), targets)
    return confidence.ravel(), correct.ravel(), targets.ravel()


def _classwise(log_probs: Array, targets: Array, num_bins: int) -> tuple[Array, Array, Array, Array, int]:
    """Probabilities, hits, cells and what counts, ``[n, C]`` each."""
    num_bins = checks.positive_int("num_bins", num_bins)
    log_probs, targets = gather(*fit_classes(log_probs, targets))
    num_classes = log_probs.shape[-1]
    probs, targets = jnp.exp(log_probs).reshape(targets.size, num_classes), targets.reshape(targets.size, 1)
    classes = jnp.arange(num_classes, dtype=jnp.int32)[None]
    cells = classes * num_bins + equal_width_bins(probs, num_bins)
    counts = jnp.broadcast_to(targets >= 0, cells.shape)
    return probs, (targets == classes).astype(probs.dtype), cells, counts, num_bins


def _count(confidence: Array, correct: Array, cells: Array, counts: Array, num_cells: int) -> BinCounts:
    return BinCounts(
        count_into(cells, counts, num_cells),
        count_into(cells, counts & (correct > 0), num_cells),
        _sums.fixed_sum(confidence, jnp.where(counts, cells, num_cells), num_cells),
    )


def _by_class(counts: BinCounts, num_classes: int) -> BinCounts:
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], num_classes, -1), counts)


def _gaps(confidence: Array, correct: Array, cells: Array, counts: Array, num_cells: int) -> tuple[Array, Array]:
    """Sums of correct minus confidence, and numbers of examples, by cell. It has a gradient, unlike exact sums."""
    safe = jnp.where(counts & (cells >= 0), cells, num_cells)
    gaps = jnp.zeros(num_cells, confidence.dtype).at[safe].add(correct - confidence, mode="drop")
    return gaps, count_into(cells, counts, num_cells)


def _mean_gap(confidence: Array, correct: Array, cells: Array, counts: Array, num_cells: int) -> Array:
    gaps, numbers = _gaps(confidence, correct, cells, counts, num_cells)
    return _shares(jnp.abs(gaps), numbers)


def _shares(gaps: Array, numbers: Array) -> Array:
    """Sum of gaps over all examples, by row; NaN in a row without examples."""
    total = jnp.sum(numbers, axis=-1).astype(jnp.float32)
    found = jnp.sum(gaps, axis=-1).astype(jnp.float32) / jnp.maximum(total, 1.0)
    return jnp.where(total > 0, found, jnp.nan)
