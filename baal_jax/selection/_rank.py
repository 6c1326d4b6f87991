"""Selections that rank scores: the best, random ones, given ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax import heuristics
from baal_jax._util import checks, numerics
from baal_jax.heuristics import bald
from baal_jax.typing import Acquisition, Array, Key, Predictions, ScoreFn, Selection


def top_k(score_fn: ScoreFn = bald) -> Acquisition:
    """Picks the examples with the highest scores; of equal scores, those with the lowest ids.

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

    def rank(key: Key, scores: Array, available: Array) -> Array:
        del key
        return numerics.rank_values(scores, available)

    return ranking(score_fn, rank)


def epig(score_fn: Callable[[Array, Array], Array] = heuristics.epig) -> Acquisition:
    """Picks what tells most about predictions that matter: those on ``target_inputs``, given to ``step`` or ``run``.

    Args:
        score_fn: ``(logits [S, B, C], target_logits [S, M, C]) -> scores [B]``; for regression
            ``lambda *outputs: heuristics.gaussian_epig(*outputs, noise=0.1)``.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are nats.

    References:
        Bickford Smith et al., `Prediction-oriented Bayesian active learning <https://arxiv.org/abs/2304.08151>`_, 2023.
    """

    def summarise(predictions: Predictions) -> Array:
        return score_fn(predictions.logits, predictions.target_logits)

    return top_k()._replace(summarise=summarise)


def random(score_fn: ScoreFn | None = None) -> Acquisition:
    """Picks uniformly at random: the baseline. Nothing is predicted.

    Args:
        score_fn: not used; it is there so that every entry of the registry is built alike.

    Returns:
        An :class:`~baal_jax.Acquisition` whose scores are the random numbers that were ranked.

    Example:
        >>> from baal_jax import selection
        >>> picked = selection.random().select(jax.random.key(0), None, jnp.array([False, True, False]), 2)
        >>> picked.indices.tolist()
        [1, -1]
    """
    del score_fn

    def select(key: Key, summary: Any, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        del summary, labelled
        scores = jax.random.uniform(key, available.shape)
        return _pick(scores, numerics.rank_values(scores, available), query_size)

    return Acquisition(None, jax.jit(select, static_argnames="query_size"))


def precomputed(scores: Array) -> Acquisition:
    """Picks the highest of scores that were made elsewhere. Nothing is predicted.

    Args:
        scores: ``[N]``, higher is more informative, for the whole data set.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Raises:
        ValueError: ``scores`` has not one axis.

    Example:
        >>> from baal_jax import selection
        >>> acquisition = selection.precomputed(jnp.array([0.3, 0.9, 0.5]))
        >>> acquisition.select(jax.random.key(0), None, jnp.ones(3, bool), 2).indices.tolist()
        [1, 2]
    """
    given = jnp.asarray(scores)
    _require_vector(given)

    def select(key: Key, summary: Any, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        del key, summary, labelled
        _require_one_each(given, available)
        return _pick(given, numerics.rank_values(given, available), query_size)

    return Acquisition(None, jax.jit(select, static_argnames="query_size"))


def ranking(score_fn: ScoreFn, rank: Any) -> Acquisition:
    """An acquisition that keeps one score an example and picks by ``rank(key, scores, available) -> float32[N]``."""

    def summarise(predictions: Predictions) -> Array:
        return score_fn(predictions.logits)

    def select(key: Key, summary: Array, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        del labelled
        scores = numerics.as_float(summary)
        _require_one_each(scores, available)
        return _pick(scores, rank(key, scores, available), query_size)

    return Acquisition(summarise, jax.jit(select, static_argnames="query_size"))


def _pick(scores: Array, values: Array, query_size: int) -> Selection:
    query_size = checks.positive_int("query_size", query_size)
    if query_size > values.shape[0]:
        raise ValueError(f"query_size={query_size} exceeds the {values.shape[0]} examples: ask for fewer")
    scores = numerics.replicate(scores)
    indices = numerics.top_indices(values, query_size)
    return Selection(indices, numerics.take_or(scores.astype(jnp.float32), indices, jnp.nan))


def _require_one_each(scores: Array, available: Array) -> None:
    _require_vector(scores)
    if scores.shape != available.shape:
        raise ValueError(f"{scores.shape[0]} scores for {available.shape[0]} examples: pass one for each")


def _require_vector(scores: Array) -> None:
    if scores.ndim != 1:
        raise ValueError(
            f"scores of shape {scores.shape} cannot be ranked: one score an example [N] is needed, "
            "for example by heuristics.reduce_spatial"
        )
