"""Calibration errors and reliability diagrams: whether predictions are as often right as they are confident.

The error of a bin with ``n_b`` of ``N`` examples, ``n_b/N · |acc_b − conf_b|``, is ``|Σ (correct − confidence)| / N``
over the bin, so one signed sum a cell will do (:func:`_gaps`), which is a bin, or a bin of a class.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics
from baal_jax.metrics._common import averaged, compiled, count_into, fit_classes, predicted_class

ENTROPY_BINS = 20


@compiled("num_bins")
def ece(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    r"""Expected calibration error over bins of equal width.

    .. math:: \sum_b \tfrac{n_b}{N} \, |\mathrm{acc}_b - \mathrm{conf}_b|

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence; a confidence of exactly 1 falls in the last one.

    Returns:
        ``float32[]`` between 0 and 1.

    References:
        Guo et al., `On calibration of modern neural networks <https://arxiv.org/abs/1706.04599>`_, 2017.

    Example:
        >>> print(metrics.ece(jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]])), jnp.array([0, 1])))
        0.25
    """
    confidence, correct, _, known = _confidence(log_probs, targets)
    return _error(*_gaps(confidence, correct, _equal_width_bins(confidence, num_bins), known, (num_bins,)))


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


@compiled("num_bins")
def reliability(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Reliability:
    """Reliability diagram, which :func:`ece` sums up: how often predictions are right, against their confidence.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence; a confidence of exactly 1 falls in the last one.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]))
        >>> bins = metrics.reliability(log_probs, jnp.array([0, 1, 1]), num_bins=2)
        >>> bins.num_examples.tolist(), round(float(bins.confidence[1]), 3), round(float(bins.accuracy[1]), 3)
        ([0.0, 3.0], 0.767, 0.667)
    """
    confidence, correct, _, known = _confidence(log_probs, targets)
    bins = _equal_width_bins(confidence, num_bins)
    gaps, numbers = _gaps(confidence, correct, bins, known, (num_bins,))
    hits = count_into(bins, known & (correct > 0), num_bins).astype(jnp.float32)
    numbers = numbers.astype(jnp.float32)
    # Not a sum of confidences: the gaps stay small where millions of examples share a bin, and so does their rounding.
    return Reliability(numbers, (hits - gaps.astype(jnp.float32)) / numbers, hits / numbers)


@compiled("num_bins")
def ece_per_class(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    """:func:`ece` among the examples of each true class, as Baal has it (:func:`classwise_ece`: of each probability).

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence.

    Returns:
        ``float32[C]``; NaN for a class without examples.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]]))
        >>> print(metrics.ece_per_class(log_probs, jnp.array([2, 1]), num_bins=3).round(3))
        [nan 0.2 0.5]
    """
    confidence, correct, targets, known = _confidence(log_probs, targets)
    cells = _equal_width_bins(confidence, num_bins) + num_bins * targets
    return _error(*_gaps(confidence, correct, cells, known, (log_probs.shape[-1], num_bins)))


@compiled("num_bins", "average")
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

    References:
        Kull et al., `Beyond temperature scaling <https://arxiv.org/abs/1910.12656>`_, 2019; Nixon et al., `Measuring
        calibration in deep learning <https://arxiv.org/abs/1904.01685>`_, 2019.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.75, 0.25], [0.75, 0.25]]))
        >>> print(metrics.classwise_ece(log_probs, jnp.array([0, 1]), average=None))
        [0.25 0.25]
    """
    log_probs, targets, known = fit_classes(log_probs, targets)
    num_classes = log_probs.shape[-1]
    probs, truth = jnp.exp(log_probs).reshape(-1, num_classes), targets.reshape(-1, 1)
    classes = jnp.arange(num_classes, dtype=jnp.int32)[None]
    cells = _equal_width_bins(probs, num_bins) + num_bins * classes
    hits, known = (truth == classes).astype(probs.dtype), jnp.broadcast_to(known.reshape(-1, 1), cells.shape)
    return averaged(_error(*_gaps(probs, hits, cells, known, (num_classes, num_bins))), average)


@compiled("num_bins")
def adaptive_ece(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    r""":func:`ece` over bins of equal mass, which a narrow spread of confidences does not leave empty.

    In the order of confidence, bin ``b`` of ``B`` ends at rank :math:`\lfloor b \, N / B \rfloor`. Examples with equal
    confidence share their accuracy evenly where a bin ends among them, so that no order of the examples matters.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins; of fewer examples each has a bin of its own.

    Returns:
        ``float32[]`` between 0 and 1.

    References:
        Nguyen and O'Connor, `Posterior calibration and exploratory analysis for natural language processing models
        <https://arxiv.org/abs/1508.05154>`_, 2015; Nixon et al., of :func:`classwise_ece`.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]))
        >>> print(metrics.adaptive_ece(log_probs, jnp.array([0, 0, 1, 1]), num_bins=2).round(3))
        0.4
    """
    num_bins = checks.positive_int("num_bins", num_bins)
    confidence, correct, _, known = _confidence(log_probs, targets)
    unknown, confidence, correct = jax.lax.sort((~known, confidence, correct), num_keys=2)
    known = ~unknown
    ranks, total = jnp.arange(confidence.shape[0], dtype=jnp.int32), jnp.sum(known, dtype=jnp.int32)
    runs = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), confidence[1:] != confidence[:-1]])[: ranks.shape[0]])
    zeros = jnp.zeros(ranks.shape, correct.dtype)
    hits, sizes = (zeros.at[runs].add(jnp.where(known, part, 0.0)) for part in (correct, jnp.ones_like(correct)))
    shared = (hits / jnp.maximum(sizes, 1.0))[runs]  # the mean over the run that each is in
    # ⌊b N / B⌋ for each end b: b · N alone may overflow, the quotient and the remainder of N by B do not.
    b = jnp.arange(1, num_bins, dtype=jnp.int32)
    ends = b * (total // num_bins) + (b * (total % num_bins)) // num_bins
    bins = jnp.searchsorted(ends, ranks, side="right").astype(jnp.int32)
    return _error(*_gaps(confidence, shared, bins, known, (num_bins,)))


def entropy_histogram(log_probs: Array, targets: Array) -> Array:
    """``int32[20]``: examples by the entropy of their prediction, in bins of equal width between 0 and ``log C``."""
    log_probs, _, known = fit_classes(log_probs, targets)
    share = numerics.entropy(log_probs) / jnp.log(jnp.asarray(log_probs.shape[-1], log_probs.dtype))
    return count_into(_equal_width_bins(share, ENTROPY_BINS), known & ~jnp.isnan(share), ENTROPY_BINS)


def _confidence(log_probs: Array, targets: Array) -> tuple[Array, ...]:
    """Flat confidences, whether they were right (1 or 0), targets, and which targets are known."""
    log_probs, targets, known = fit_classes(log_probs, targets)
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    correct = (predicted_class(log_probs) == targets).astype(confidence.dtype)
    return tuple(leaf.ravel() for leaf in (confidence, correct, targets, known))


def _equal_width_bins(values: Array, num_bins: int) -> Array:
    """The bin of each value in [0, 1]; 1 falls into the last one, NaN into the first."""
    num_bins = checks.positive_int("num_bins", num_bins)
    return jnp.clip((jnp.where(jnp.isnan(values), 0.0, values) * num_bins).astype(jnp.int32), 0, num_bins - 1)


def _gaps(confidence: Array, correct: Array, cells: Array, known: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Sums of correct minus confidence, and numbers of known examples, by cell: an array of ``shape``."""
    num_cells = math.prod(shape)
    # A negative index would count from the end, one that is too large is dropped.
    safe = jnp.where(known & (cells >= 0), cells, num_cells).ravel()
    gaps = jnp.zeros(num_cells, confidence.dtype).at[safe].add((correct - confidence).ravel(), mode="drop")
    return gaps.reshape(shape), count_into(cells, known, num_cells).reshape(shape)


def _error(gaps: Array, numbers: Array) -> Array:
    """The calibration error over the last axis; NaN in a row without examples."""
    total = jnp.sum(numbers, axis=-1).astype(jnp.float32)
    error = jnp.sum(jnp.abs(gaps), axis=-1).astype(jnp.float32) / jnp.maximum(total, 1.0)
    return jnp.where(total > 0, error, jnp.nan)
