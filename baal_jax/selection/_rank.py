"""Selections that rank scores: the best, random ones, given ones, and samples by score.

Stochastic batch acquisition is as diverse as expensive batch methods, and as cheap as top-k. It is Gumbel-top-k (Kool,
van Hoof and Welling 2019): ranks of ``log w + Gumbel`` are draws in proportion to ``w``.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from baal_jax import heuristics
from baal_jax._util import checks, numerics
from baal_jax._util.random import vectorised
from baal_jax.selection._common import compiled, one_each, over_scores, top
from baal_jax.typing import Acquisition, Array, Key, ScoreFn, Selection

_PER_PICK = 20.0  # κ, examples that a pick of an automatic coldness is in effect drawn from
_LOWEST = -3e38


def top_k(score_fn: ScoreFn = heuristics.bald) -> Acquisition:
    """The examples with the highest scores; of equal scores, those with the lowest ids.

    Args:
        score_fn: ``logits -> scores [N]``.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Example:
        >>> scores = jnp.array([0.1, 0.7, 0.4, 0.9])
        >>> available = jnp.array([True, True, True, False])
        >>> picked = selection.top_k(heuristics.bald).select(jax.random.key(0), scores, available, 2)
        >>> picked.indices.tolist()
        [1, 2]
    """
    return over_scores(score_fn)


def top_k_epig(score_fn: Callable[[Array, Array], Array] = heuristics.epig) -> Acquisition:
    """The examples with the highest EPIG, information about predictions on ``target_inputs`` of ``step`` or ``run``.

    Args:
        score_fn: ``(logits [S, B, C], target_logits [S, M, C]) -> scores [B]``; for regression
            ``lambda *outputs: heuristics.gaussian_epig(*outputs, noise=0.1)``.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are nats, as of :func:`~baal_jax.heuristics.epig`, with its paper.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]]))
        >>> predictions = baal.Predictions(logits, target_logits=logits[:, :1])
        >>> baal.select(jax.random.key(0), selection.top_k_epig(), predictions, query_size=1).indices.tolist()
        [0]
    """
    summarise = lambda predictions: score_fn(predictions.logits, predictions.target_logits)  # noqa: E731
    return top_k()._replace(summarise=summarise, tasks=heuristics.tasks_of(score_fn))


def random() -> Acquisition:
    """Examples picked uniformly at random, the baseline. Nothing is predicted.

    Returns:
        An :class:`~baal_jax.Acquisition` whose scores are the random numbers that were ranked.

    Example:
        >>> picked = selection.random().select(jax.random.key(0), None, jnp.array([False, True, False]), 2)
        >>> picked.indices.tolist()
        [1, -1]
    """

    def select(key: Key, summary: Any, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        return top(jax.random.uniform(vectorised(key), available.shape, jnp.float32), available, query_size)

    return Acquisition(None, compiled(select))


def precomputed(scores: Array) -> Acquisition:
    """The examples with the highest of scores that were made elsewhere. Nothing is predicted.

    Args:
        scores: ``[N]``, higher is more informative, for the whole data set.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Raises:
        ValueError: ``scores`` has not one axis.

    Example:
        >>> acquisition = selection.precomputed(jnp.array([0.3, 0.9, 0.5]))
        >>> acquisition.select(jax.random.key(0), None, jnp.ones(3, bool), 2).indices.tolist()
        [1, 2]
    """
    given = one_each(jnp.asarray(scores))

    def select(key: Key, summary: Any, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        return top(one_each(given, available), available, query_size)

    return Acquisition(None, compiled(select))


def power(score_fn: ScoreFn = heuristics.bald, coldness: float | Literal["auto"] = "auto") -> Acquisition:
    r"""A sample without replacement, in proportion to a power of the score; PowerBALD with ``bald``.

    .. math:: p_i \propto s_i^\beta

    A score of 0 or below has no weight: such examples come, in random order, when those with weight are used up. Where
    none is positive (:func:`~baal_jax.heuristics.margin`), all are first shifted: the smallest available becomes 0.

    With ``"auto"``, ``β`` is found in every query such that the effective number of examples that are drawn from is

    .. math:: 1 / \textstyle\sum_i p_i^2 = \min(\kappa Q, n_1), \qquad \kappa = 20

    with ``n_1`` that of weights in proportion to the scores, here of ``β = 1``: never less cold than these.

    Args:
        score_fn: ``logits -> scores [N]``.
        coldness: ``β``, the inverse of Baal's temperature; 0 is uniform and large values approach top-k.

    Returns:
        An :class:`~baal_jax.Acquisition`; its selections carry the scores themselves, not the perturbed ones.

    Raises:
        ValueError: ``coldness`` is negative or not finite.

    References:
        Kirsch et al., `Stochastic batch acquisition: a simple baseline for deep active learning
        <https://arxiv.org/abs/2106.12059>`_, 2021.

    Example:
        >>> acquisition = selection.power(heuristics.bald, coldness=4.0)
        >>> acquisition.select(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), jnp.ones(3, bool), 1).indices.tolist()
        [1]
    """
    return _sampled(power_log_weights, score_fn, coldness)


def softmax(score_fn: ScoreFn = heuristics.bald, coldness: float | Literal["auto"] = "auto") -> Acquisition:
    r"""A sample without replacement from a Gibbs distribution over scores, which may have any sign.

    .. math:: p_i \propto \exp(\beta s_i)

    A number depends on the scale of the scores: BALD is often below 0.1 nats, where 1 picks nearly at random.

    Args:
        score_fn: ``logits -> scores [N]``.
        coldness: ``β``, as in :func:`power`, whose ``n_1`` is meant here as well.

    Returns:
        An :class:`~baal_jax.Acquisition`, of the same paper and with the same errors as :func:`power`.

    Example:
        >>> acquisition = selection.softmax(heuristics.bald, coldness=100.0)
        >>> acquisition.select(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), jnp.ones(3, bool), 1).indices.tolist()
        [1]
    """
    return _sampled(softmax_log_weights, score_fn, coldness)


def softrank(score_fn: ScoreFn = heuristics.bald, coldness: float | Literal["auto"] = 1.0) -> Acquisition:
    r"""A sample without replacement, in proportion to a power of the rank, whatever the scale of the scores.

    .. math:: p_i \propto r_i^{-\beta}

    Ranks run from 1 for the highest score of the available examples; equal scores share their average rank.

    Args:
        score_fn: ``logits -> scores [N]``.
        coldness: ``β``, as in :func:`power`.

    Returns:
        An :class:`~baal_jax.Acquisition`, of the same paper and with the same errors as :func:`power`.

    Example:
        >>> acquisition = selection.softrank(heuristics.bald, coldness=50.0)
        >>> acquisition.select(jax.random.key(0), jnp.array([0.1, 0.3, 0.2]), jnp.ones(3, bool), 2).indices.tolist()
        [1, 2]
    """
    return _sampled(softrank_log_weights, score_fn, coldness)


def _sampled(log_weights: Callable[[Array, Array, Any], Array], score_fn: ScoreFn, coldness: Any) -> Acquisition:
    """The largest perturbed log-weights; the weightless follow in random order, then NaN."""
    beta = None if isinstance(coldness, str) and coldness == "auto" else checks.finite_float("coldness", coldness, 0.0)

    def values(key: Key, scores: Array, available: Array, query_size: int) -> Array:
        key_gumbel, key_rest = jax.random.split(key)
        cold = auto_coldness(log_weights, scores, available, query_size) if beta is None else beta
        weights = log_weights(scores, available, cold)
        perturbed = weights + jax.random.gumbel(vectorised(key_gumbel), scores.shape, scores.dtype)
        at_random = numerics.weightless_tier(key_rest, scores.shape)
        return jnp.where(available & jnp.isneginf(weights), at_random, numerics.rank_values(perturbed, available))

    return over_scores(score_fn, values)


def auto_coldness(log_weights: Callable[..., Array], scores: Array, available: Array, query_size: int) -> Array:
    """``β`` at which the effective number of examples, ``1 / Σ p²``, is what a query wants; 1 where none would do."""

    def scaled(weights: Array) -> Array:
        """0 for the largest, −inf without weight."""
        weights = jnp.where(available & jnp.isfinite(weights), weights, -jnp.inf)
        return weights - jnp.max(weights, initial=_LOWEST)

    def number(weights: Array, beta: Any) -> Array:
        p = jnp.exp(beta * weights)
        return jnp.sum(p) ** 2 / jnp.maximum(jnp.sum(p * p), 1.0)  # the largest is 1

    weights, proportional = (scaled(rule(scores, available, 1.0)) for rule in (log_weights, power_log_weights))
    wanted = jnp.minimum(_PER_PICK * query_size, number(proportional, 1.0))
    spread = -jnp.min(jnp.where(jnp.isneginf(weights), 0.0, weights))  # by which a coldness has no unit
    beta = lambda place: jnp.exp2(place) / jnp.where(spread > 0, spread, 1.0)  # noqa: E731
    few = lambda place: number(weights, beta(place)) < wanted  # noqa: E731
    place = numerics.bisect(few, (jnp.asarray(-20.0, weights.dtype), jnp.asarray(20.0, weights.dtype)), 26)
    return jnp.where(spread > 0, beta(place), 1.0)


def power_log_weights(scores: Array, available: Array, coldness: Any) -> Array:
    """``β log s``, −inf where a score has no weight."""
    least = jnp.min(jnp.where(available & jnp.isfinite(scores), scores, jnp.inf))
    scores = jnp.where(~jnp.any(available & (scores > 0)) & jnp.isfinite(least), scores - least, scores)
    weighted = scores > 0
    no_weight = jnp.where(jnp.isnan(scores), scores, -jnp.inf)
    return jnp.where(weighted, _cooled(jnp.log(jnp.where(weighted, scores, 1.0)), coldness), no_weight)


def softmax_log_weights(scores: Array, available: Array, coldness: Any) -> Array:
    """``β s``."""
    return jnp.where(jnp.isneginf(scores), -jnp.inf, _cooled(scores, coldness))


def softrank_log_weights(scores: Array, available: Array, coldness: Any) -> Array:
    """``−β log rank``, where equal scores share their average rank among what is available."""
    values = -numerics.rank_values(scores, available)  # ascending; what is not available stands last, at +inf
    ordered = jnp.sort(values)
    before = jnp.searchsorted(ordered, values, side="left")
    rank = (before + jnp.searchsorted(ordered, values, side="right") + 1).astype(scores.dtype) / 2
    return jnp.where(jnp.isnan(scores), jnp.nan, -coldness * jnp.log(rank))


def _cooled(log_weights: Array, coldness: Any) -> Array:
    """``β log w``, where ``0 · inf`` is 0."""
    return jnp.where(jnp.isinf(log_weights) & (coldness == 0), 0.0, coldness * log_weights)
