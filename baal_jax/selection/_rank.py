"""Selections that rank scores: the best, random ones, given ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax import heuristics
from baal_jax._util.random import vectorised
from baal_jax.selection._common import compiled, one_each, over_scores, top
from baal_jax.typing import Acquisition, Array, Key, Predictions, ScoreFn, Selection


def top_k(score_fn: ScoreFn = heuristics.bald) -> Acquisition:
    """The examples with the highest scores; of equal scores, those with the lowest ids.

    Args:
        score_fn: ``logits -> scores [N]``.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Example:
        >>> from baal_jax import heuristics, selection
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
    """

    def summarise(predictions: Predictions) -> Array:
        return score_fn(predictions.logits, predictions.target_logits)

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
