"""Accuracy, negative log-likelihood, Brier score, confusion matrix, and what tells each class from the rest.

AUROC and average precision look at no thresholds or pairs. The examples are sorted once by score, and a cumulative sum
counts the positives among the ``k`` best: the true positives at that threshold. A curve bends only where the score
changes, so a run of equal scores is one step, taken at its last example, and the order within it does not matter.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics
from baal_jax.metrics._common import averaged, compiled, count_into, fit_classes, is_soft, mean, predicted_class


@compiled("k")
def accuracy(log_probs: Array, targets: Array, *, k: int = 1) -> Array:
    """Accuracy: share of examples whose target is among the ``k`` most probable classes (of equal ones, the first).

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        k: how many classes count, at most ``C``.

    Returns:
        ``float32[]`` between 0 and 1.

    Example:
        >>> print(metrics.accuracy(jnp.log(jnp.array([[0.7, 0.3], [0.6, 0.4]])), jnp.array([0, 1])))
        0.5
    """
    log_probs, targets, known = fit_classes(log_probs, targets)
    if checks.positive_int("k", k) > log_probs.shape[-1]:
        raise ValueError(f"k={k} exceeds the {log_probs.shape[-1]} classes: choose a smaller k")
    best = jax.lax.top_k(log_probs, k)[1]
    return mean(jnp.any(best == targets[..., None], axis=-1) & (predicted_class(log_probs) >= 0), known)


@compiled()
def nll(log_probs: Array, targets: Array) -> Array:
    r"""Negative log-likelihood of the model average, in nats.

    .. math:: -\tfrac1N \sum_n \log \bar p_{n y_n}

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``, or probabilities ``y`` of the classes, ``float[N, …, C]``: ``Σ_c y_c log p̄_c`` then.

    Example:
        >>> print(metrics.nll(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([1])))
        0.6931472
    """
    soft = numerics.as_float(targets) if is_soft(log_probs, targets) else None
    log_probs, targets, known = fit_classes(log_probs, targets)
    if soft is not None:
        return mean(-jnp.sum(jnp.where(soft > 0, soft * log_probs, 0.0), axis=-1), known)
    return mean(-jnp.take_along_axis(log_probs, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0], known)


@compiled()
def brier(log_probs: Array, targets: Array) -> Array:
    r"""Brier score, the squared distance to the one-hot target.

    .. math:: \tfrac1N \sum_n \sum_c (\bar p_{nc} - [c = y_n])^2

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.

    Returns:
        ``float32[]`` between 0 and 2.

    References:
        Brier, `Verification of forecasts expressed in terms of probability
        <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_, 1950.

    Example:
        >>> print(metrics.brier(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([1])))
        0.5
    """
    soft = numerics.as_float(targets) if is_soft(log_probs, targets) else None
    log_probs, targets, known = fit_classes(log_probs, targets)
    probs = jnp.exp(log_probs)
    one_hot = jax.nn.one_hot(targets, probs.shape[-1], dtype=probs.dtype) if soft is None else soft
    return mean(jnp.sum((probs - one_hot) ** 2, axis=-1), known)


@compiled()
def confusion_matrix(log_probs: Array, targets: Array) -> Array:
    """Confusion matrix: counts of (true class, predicted class).

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.

    Returns:
        ``int32[C, C]``; rows are true classes. An example without a prediction (NaN) is in no cell.

    Example:
        >>> print(metrics.confusion_matrix(jnp.log(jnp.array([[0.7, 0.3], [0.6, 0.4]])), jnp.array([0, 1])))
        [[1 0]
         [1 0]]
    """
    log_probs, targets, known = fit_classes(log_probs, targets)
    classes, predicted = log_probs.shape[-1], predicted_class(log_probs)
    in_a_cell = known & (targets < classes) & (predicted >= 0)
    return count_into(targets * classes + predicted, in_a_cell, classes * classes).reshape(classes, classes)


@compiled("average")
def precision(log_probs: Array, targets: Array, *, average: str | None = "macro", zero_division: float = 0.0) -> Array:
    r"""Precision: share of the predictions of a class that are right.

    .. math:: P_c = \frac{\mathrm{TP}_c}{\mathrm{TP}_c + \mathrm{FP}_c}

    Averages are scikit-learn's. ``"macro"`` is the mean over the classes that occur, as targets or as predictions;
    ``"weighted"`` weights classes by their examples; ``"micro"`` counts all classes together, which is the accuracy.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: ``"macro"``, ``"micro"``, ``"weighted"``, or None for a value a class.
        zero_division: the precision of a class that is never predicted. NaN leaves it out of averages.

    Returns:
        ``float32[]``, or ``float32[C]`` without an average.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.7, 0.3, 0.0], [0.6, 0.4, 0.0]]))
        >>> print(metrics.precision(log_probs, jnp.array([0, 1]), average=None))
        [0.5 0.  0. ]
        >>> print(metrics.precision(log_probs, jnp.array([0, 1])))      # nothing is said of the third class
        0.25
    """
    counts = _class_counts(log_probs, targets)
    return _ratio(counts.hits, counts.predicted, counts, average, zero_division)


@compiled("average")
def recall(log_probs: Array, targets: Array, *, average: str | None = "macro", zero_division: float = 0.0) -> Array:
    r"""Recall: share of the examples of a class that are predicted as such, its accuracy.

    .. math:: R_c = \frac{\mathrm{TP}_c}{\mathrm{TP}_c + \mathrm{FN}_c}

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: as in :func:`precision`, and so is what is returned.
        zero_division: the recall of a class without examples. NaN leaves it out of averages.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]]))
        >>> print(metrics.recall(log_probs, jnp.array([0, 1, 1]), average=None))
        [1.  0.5]
    """
    counts = _class_counts(log_probs, targets)
    return _ratio(counts.hits, counts.targets, counts, average, zero_division)


@compiled("average")
def f1(log_probs: Array, targets: Array, *, average: str | None = "macro", zero_division: float = 0.0) -> Array:
    r"""F1 score: harmonic mean of :func:`precision` and :func:`recall`.

    .. math:: F_c = \frac{2\,\mathrm{TP}_c}{2\,\mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c}

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: as in :func:`precision`, and so is what is returned.
        zero_division: the value of a class that is neither a target nor predicted. ``"macro"`` leaves it out.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.7, 0.3], [0.2, 0.8], [0.2, 0.8]]))
        >>> print(metrics.f1(log_probs, jnp.array([0, 1, 1])))
        1.0
    """
    counts = _class_counts(log_probs, targets)
    return _ratio(2 * counts.hits, counts.predicted + counts.targets, counts, average, zero_division)


@compiled("average")
def average_precision(log_probs: Array, targets: Array, *, average: str | None = None) -> Array:
    r"""Area under the precision-recall curve of each class against the rest, as a step function.

    .. math:: \mathrm{AP} = \sum_t (R_t - R_{t-1}) P_t, \qquad t \text{ over distinct scores}

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: ``"macro"`` for the mean over the classes that have examples, None for a value a class.

    Returns:
        ``float32[C]``, or ``float32[]`` with an average; 1 for a perfect ranking; NaN without examples or with a NaN.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
        >>> print(metrics.average_precision(log_probs, jnp.array([0, 0, 1])))
        [1. 1.]
    """

    def area(hits: Array, misses: Array, new_hits: Array, new_misses: Array) -> Array:
        seen = jnp.maximum(hits + misses, 1).astype(jnp.float32)
        gained = new_hits.astype(jnp.float32) * (hits.astype(jnp.float32) / seen)
        return jnp.sum(gained) / jnp.sum(new_hits).astype(jnp.float32)  # 0 / 0 is NaN where the class is absent

    return _by_class(area, log_probs, targets, average)


@compiled("average")
def auroc(log_probs: Array, targets: Array, *, average: str | None = None) -> Array:
    r"""Area under the ROC curve of each class against the rest.

    The probability that an example of the class has a higher score than one of another class, ties counting half:

    .. math:: \mathrm{AUROC}_c = \frac{1}{N_c \, N_{\bar c}} \sum_{n:\, y_n = c} \; \sum_{m:\, y_m \neq c}
              \bigl( [\bar p_{nc} > \bar p_{mc}] + \tfrac12 [\bar p_{nc} = \bar p_{mc}] \bigr)

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: ``"macro"`` for the mean over the classes where it is defined, None for a value a class.

    Returns:
        ``float32[C]``, 1 for a perfect ranking and ½ for chance; NaN for a class that is absent or alone, or with a
        score that is NaN. ``float32[]`` with an average.

    References:
        Hanley and McNeil, `The meaning and use of the area under a receiver operating characteristic (ROC) curve
        <https://doi.org/10.1148/radiology.143.1.7063747>`_, 1982.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
        >>> print(metrics.auroc(log_probs, jnp.array([0, 1, 0])))
        [0.5 0.5]
    """

    def area_under(hits: Array, misses: Array, new_hits: Array, new_misses: Array) -> Array:
        positives, negatives = (jnp.sum(part, dtype=jnp.int32).astype(jnp.float32) for part in (new_hits, new_misses))
        # A step as wide as the negatives of a run, and as high as the positives before it and half of those in it: the
        # trapezoid under a run of ties, in which half of the pairs are won.
        width = new_misses.astype(jnp.float32) / negatives
        height = (hits.astype(jnp.float32) - 0.5 * new_hits.astype(jnp.float32)) / positives
        area = jnp.minimum(jnp.sum(jnp.where(new_misses > 0, width * height, 0.0)), 1.0)
        return jnp.where((positives > 0) & (negatives > 0), area, jnp.nan)

    return _by_class(area_under, log_probs, targets, average)


class _ClassCounts(NamedTuple):
    """What precision, recall and F1 are made of, ``int32[C]`` each, and the examples there are, ``int32[]``."""

    hits: Array
    predicted: Array
    targets: Array
    total: Array


def _class_counts(log_probs: Array, targets: Array) -> _ClassCounts:
    log_probs, targets, known = fit_classes(log_probs, targets)
    classes, predicted = log_probs.shape[-1], predicted_class(log_probs)
    hits = count_into(targets, known & (predicted == targets), classes)
    guessed, there = (count_into(part, known, classes) for part in (predicted, targets))
    return _ClassCounts(hits, guessed, there, jnp.sum(known, dtype=jnp.int32))


def _ratio(part: Array, whole: Array, counts: _ClassCounts, average: str | None, zero_division: float | Array) -> Array:
    if average not in ("macro", "micro", "weighted", None):
        raise ValueError(f"average={average!r} must be 'macro', 'micro', 'weighted', or None for a value a class")
    if average == "micro":
        part, whole = jnp.sum(part, dtype=jnp.int32), jnp.sum(whole, dtype=jnp.int32)
        return part.astype(jnp.float32) / whole.astype(jnp.float32)
    values = part.astype(jnp.float32) / jnp.maximum(whole, 1).astype(jnp.float32)
    values = jnp.where(whole > 0, values, zero_division)
    if average is None:
        return jnp.where(counts.total > 0, values, jnp.nan)
    if average == "macro":  # scikit-learn cannot know of a class that never occurs
        return averaged(jnp.where(counts.predicted + counts.targets > 0, values, jnp.nan), average)
    weights = jnp.where(jnp.isnan(values), 0, counts.targets).astype(jnp.float32)
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0)) / jnp.sum(weights)


def _by_class(area: Callable[..., Array], log_probs: Array, targets: Array, average: str | None) -> Array:
    log_probs, targets, known = fit_classes(log_probs, targets)
    scores, truth, known = log_probs.reshape(targets.size, log_probs.shape[-1]), targets.ravel(), known.ravel()

    def one_class(c: Array, score: Array) -> Array:
        return jnp.where(jnp.any(jnp.isnan(score) & known), jnp.nan, area(*_rank(score, truth == c, known)))

    return averaged(jax.vmap(one_class, in_axes=(0, 1))(jnp.arange(scores.shape[1], dtype=jnp.int32), scores), average)


def _rank(score: Array, positive: Array, known: Array) -> tuple[Array, Array, Array, Array]:
    """Positives and known negatives ``int32[N]`` among the best, and those of the run that ends here, 0 elsewhere."""
    # Unknown examples sort behind all others, −inf included: they must not cut a run of equal scores in two.
    unknown, falling, positive = jax.lax.sort((~known, -score, positive), num_keys=2)
    known = ~unknown
    hits, misses = (jnp.cumsum(part, dtype=jnp.int32) for part in (positive, known & ~positive))
    changes = (falling[1:] != falling[:-1]) | (known[1:] != known[:-1])
    last = known & jnp.concatenate([changes, jnp.ones(1, bool)])[: score.shape[0]]

    def gained(so_far: Array) -> Array:
        # The sum at the end of a run, minus that at the end of the run before, which a running maximum carries along.
        ends = jax.lax.cummax(jnp.where(last, so_far, 0))
        before = jnp.concatenate([jnp.zeros(1, ends.dtype), ends])[: score.shape[0]]
        return jnp.where(last, so_far - before, 0)

    return hits, misses, gained(hits), gained(misses)
