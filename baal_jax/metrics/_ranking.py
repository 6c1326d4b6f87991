"""AUROC and average precision of each class against the rest, from ranks: exact, ties included.

Neither looks at thresholds or pairs. The examples are sorted once by score, and a cumulative sum counts the
positives among the ``k`` best: the true positives at that threshold. A curve bends only where the score changes, so a
run of equal scores is one step, taken at its last example, and the order within it does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax.metrics._common import averaged, compiled, fit_classes, gather


class _Ranking(NamedTuple):
    """The examples of one class against the rest, best score first; what is unknown comes last."""

    hits: Array  # positives so far, this example included
    misses: Array  # known negatives so far
    new_hits: Array  # positives of the run that ends here, 0 elsewhere
    new_misses: Array  # negatives of the run that ends here
    positives: Array  # []
    negatives: Array  # []
    valid: Array  # [], False where a known score is NaN


@compiled("average")
def average_precision(log_probs: Array, targets: Array, *, average: str | None = None) -> Array:
    r"""Area under the precision-recall curve of each class against the rest, as a step function.

    .. math:: \mathrm{AP} = \sum_t (R_t - R_{t-1}) P_t, \qquad t \text{ over distinct scores}

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: ``"macro"`` for the mean over the classes that have examples, None for a value a class.

    Returns:
        ``float32[C]``, 1 for a perfect ranking; NaN for a class without examples, or with a score that is NaN.
        ``float32[]`` with an average.

    Raises:
        ValueError: the shapes differ, or there is no such average.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
        >>> print(metrics.average_precision(log_probs, jnp.array([0, 0, 1])))
        [1. 1.]
    """

    def one_class(score: Array, positive: Array, known: Array) -> Array:
        ranking = _rank(score, positive, known)
        seen = jnp.maximum(ranking.hits + ranking.misses, 1).astype(jnp.float32)
        gained = ranking.new_hits.astype(jnp.float32) * (ranking.hits.astype(jnp.float32) / seen)
        area = jnp.sum(gained) / ranking.positives.astype(jnp.float32)  # 0 / 0 is NaN where the class is absent
        return jnp.where(ranking.valid, area, jnp.nan)

    return averaged(_by_class(one_class, log_probs, targets), average)


@compiled("average")
def auroc(log_probs: Array, targets: Array, *, average: str | None = None) -> Array:
    r"""Area under the ROC curve of each class against the rest.

    The probability that an example of the class has a higher score than one of another class, ties counting half:

    .. math:: \mathrm{AUROC}_c = \frac{1}{N_c \, N_{\bar c}} \sum_{n:\, y_n = c} \; \sum_{m:\, y_m \neq c}
              \bigl( [\bar p_{nc} > \bar p_{mc}] + \tfrac12 [\bar p_{nc} = \bar p_{mc}] \bigr)

    Exact, in ``O(N log N)`` a class.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        average: ``"macro"`` for the mean over the classes where it is defined, None for a value a class.

    Returns:
        ``float32[C]``, 1 for a perfect ranking and ½ for chance; NaN for a class that is absent or alone, or with a
        score that is NaN. ``float32[]`` with an average.

    Raises:
        ValueError: the shapes differ, or there is no such average.

    References:
        Hanley and McNeil, `The meaning and use of the area under a receiver operating characteristic (ROC) curve
        <https://doi.org/10.1148/radiology.143.1.7063747>`_, 1982.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]))
        >>> print(metrics.auroc(log_probs, jnp.array([0, 1, 0])))
        [0.5 0.5]
    """

    def one_class(score: Array, positive: Array, known: Array) -> Array:
        ranking = _rank(score, positive, known)
        negatives, positives = ranking.negatives.astype(jnp.float32), ranking.positives.astype(jnp.float32)
        # A step as wide as the negatives of a run, and as high as the positives before it and half of those in it: the
        # trapezoid under a run of ties, in which half of the pairs are won.
        width = ranking.new_misses.astype(jnp.float32) / negatives
        height = (ranking.hits.astype(jnp.float32) - 0.5 * ranking.new_hits.astype(jnp.float32)) / positives
        area = jnp.minimum(jnp.sum(jnp.where(ranking.new_misses > 0, width * height, 0.0)), 1.0)
        return jnp.where(ranking.valid & (positives > 0) & (negatives > 0), area, jnp.nan)

    return averaged(_by_class(one_class, log_probs, targets), average)


def _by_class(one_class: Callable[[Array, Array, Array], Array], log_probs: Array, targets: Array) -> Array:
    log_probs, targets, known = gather(*fit_classes(log_probs, targets))
    num_classes = log_probs.shape[-1]
    scores, truth = log_probs.reshape(targets.size, num_classes), targets.ravel()
    return jax.vmap(lambda c, score: one_class(score, truth == c, known.ravel()), in_axes=(0, 1))(
        jnp.arange(num_classes, dtype=jnp.int32), scores
    )


def _rank(score: Array, positive: Array, known: Array) -> _Ranking:
    # Unknown examples sort behind all others, −inf included: they must not cut a run of equal scores in two.
    unknown, falling, positive = jax.lax.sort((~known, -score, positive), num_keys=2)
    known = ~unknown
    hits = jnp.cumsum(positive, dtype=jnp.int32)
    misses = jnp.cumsum(known & ~positive, dtype=jnp.int32)
    changes = (falling[1:] != falling[:-1]) | (known[1:] != known[:-1])
    last = known & jnp.concatenate([changes, jnp.ones(1, bool)])[: score.shape[0]]

    def gained(so_far: Array) -> Array:
        # The sum at the end of a run, minus that at the end of the run before, which a running maximum carries along.
        ends = jax.lax.cummax(jnp.where(last, so_far, 0))
        before = jnp.concatenate([jnp.zeros(1, ends.dtype), ends])[: score.shape[0]]
        return jnp.where(last, so_far - before, 0)

    return _Ranking(
        hits,
        misses,
        gained(hits),
        gained(misses),
        jnp.sum(positive, dtype=jnp.int32),
        jnp.sum(known & ~positive, dtype=jnp.int32),
        ~jnp.any(jnp.isnan(falling) & known),
    )
