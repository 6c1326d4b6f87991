"""Conversions of outputs into logits ``[S, N, …, C]``, and combinations of several scores into one."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.typing import Array, PyTree, ScoreFn

_REDUCTIONS = {"mean": (jnp.sum, 0.0), "sum": (jnp.sum, 0.0), "max": (jnp.max, -jnp.inf), "min": (jnp.min, jnp.inf)}


@numerics.jit
def binary_logits(logit: Array) -> Array:
    r"""Two-class logits of a sigmoid model, so that every classification heuristic applies.

    .. math:: (\log(1 - \sigma(z)), \log \sigma(z))

    Args:
        logit: ``[…, 1]``, one logit for each independent label.

    Returns:
        ``[…, 2]`` log-probabilities of "no" and "yes". A multi-label output ``[S, N, L]`` goes in as
        ``logits[..., None]`` and its labels then are a middle axis, for ``reduce_spatial``.

    Example:
        >>> print(heuristics.entropy(heuristics.binary_logits(jnp.zeros((8, 2, 1)))))
        [0.6931472 0.6931472]
    """
    if logit.ndim == 0 or logit.shape[-1] != 1:
        raise ValueError(f"logit has shape {logit.shape}, but a last axis of 1 is needed: pass logit[..., None]")
    logit = numerics.as_float(logit)
    return jnp.concatenate([jax.nn.log_sigmoid(-logit), jax.nn.log_sigmoid(logit)], axis=-1)


class MultiLabel(NamedTuple):
    """A heuristic of classes, summed over labels that are each there or not."""

    score_fn: ScoreFn

    def __call__(self, logits: Array) -> Array:
        return jnp.sum(self.score_fn(binary_logits(jnp.asarray(logits)[..., None])), axis=-1)


def multi_label(score_fn: ScoreFn) -> ScoreFn:
    r"""A heuristic of classes for multi-label outputs: the sum over labels, each of which is there or not.

    .. math:: s(x) = \sum_c s\bigl(\log(1 - \sigma(z_c)), \log \sigma(z_c)\bigr)

    Of BALD and entropies it is the information about all labels, if those are independent given the weights.

    Args:
        score_fn: a heuristic of classes, such as :func:`bald` or :func:`margin`.

    Returns:
        A heuristic ``logits [S, N, …, C] -> [N, …]``, a logit for each label.

    Raises:
        TypeError: ``score_fn`` is no function.

    Example:
        >>> print(heuristics.multi_label(heuristics.entropy)(jnp.zeros((8, 1, 3))).round(4))   # 3 log 2
        [2.0794]
    """
    return MultiLabel(checks.function("score_fn", score_fn, "heuristics.bald"))


@numerics.jit
def from_baal_layout(predictions: Array) -> Array:
    """Baal's ``[N, C, …, S]`` as ``[S, N, …, C]``. Values stay as they are: pass logits, or log-probabilities.

    Args:
        predictions: ``[N, C, …, S]``.

    Example:
        >>> heuristics.from_baal_layout(jnp.zeros((5, 10, 32, 32, 20))).shape
        (20, 5, 32, 32, 10)
    """
    if predictions.ndim < 3:
        raise ValueError(f"predictions has shape {predictions.shape}, but Baal's [N, C, …, S] has at least three axes")
    return jnp.moveaxis(jnp.moveaxis(predictions, -1, 0), 2, -1)


def combine(
    score_fns: Sequence[ScoreFn], weights: Sequence[float] | None = None, *, outputs: Sequence[Any] | None = None
) -> ScoreFn:
    r"""A weighted mean of several scores, of one output or of several.

    .. math:: s = \sum_j \frac{w_j}{\sum_i w_i} s_j

    Args:
        score_fns: ``J`` heuristics.
        weights: ``J`` non-negative weights, not all zero; equal ones by default.
        outputs: which output each heuristic reads, as index or key into what the model returns. By default a list,
            tuple or dict of ``J`` outputs is read in order, and a single array is given to every heuristic.

    Returns:
        A heuristic: ``logits`` (or a list, tuple or dict of them) ``-> [N, …]``.

    Example:
        >>> half = heuristics.combine([heuristics.bald, heuristics.entropy], weights=[1, 1])
        >>> print(half(jnp.zeros((4, 2, 2))))
        [0.3465736 0.3465736]
    """
    score_fns = tuple(score_fns)
    values = [1.0] * len(score_fns) if weights is None else [checks.finite_float("weights", w, 0.0) for w in weights]
    if not score_fns or len(values) != len(score_fns) or sum(values) <= 0:
        raise ValueError(f"weights={weights} do not fit {len(score_fns)} heuristics: pass a non-negative weight each")
    if outputs is not None and len(outputs) != len(score_fns):
        raise ValueError(f"outputs={outputs} do not fit {len(score_fns)} heuristics: pass one index or key for each")
    shares = [value / sum(values) for value in values]

    def score(logits: PyTree) -> Array:
        parts = zip(shares, score_fns, pick(logits), strict=True)
        return functools.reduce(jnp.add, [share * fn(part) for share, fn, part in parts])

    def pick(logits: PyTree) -> list[Array]:
        if outputs is not None:
            return [logits[name] for name in outputs]
        if not isinstance(logits, list | tuple | dict):
            return [logits] * len(score_fns)
        parts = list(logits.values() if isinstance(logits, dict) else logits)
        if len(parts) != len(score_fns):
            raise ValueError(f"{len(parts)} outputs for {len(score_fns)} heuristics: name them with outputs=")
        return parts

    return numerics.jit(score)


@functools.partial(numerics.jit, static_argnames="reduction")
def reduce_spatial(scores: Array, reduction: str = "mean", where: Array | None = None) -> Array:
    r"""One score an example out of a map or a sequence of scores, so that segmentation and token outputs rank.

    Args:
        scores: ``[N, …]``.
        reduction: "mean", "sum", "max" or "min", over all axes after the first.
        where: ``bool[N, …]`` (or anything that broadcasts to ``scores``), True where a position counts and False where
            it is padding. When padding depends on the example, let the model return its mask beside the logits:
            ``lambda out: reduce_spatial(bald(out["logits"]), "mean", where=out["mask"][0])``.

    Returns:
        ``[N]`` scores. An example without any position that counts scores −inf, and so comes last.

    Example:
        >>> scores = jnp.array([[1.0, 3.0], [5.0, 100.0]])
        >>> print(heuristics.reduce_spatial(scores, "mean", where=jnp.array([[True, True], [True, False]])))
        [2. 5.]
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is unknown: choose one of {', '.join(_REDUCTIONS)}")
    scores = numerics.as_float(scores)
    axes = tuple(range(1, scores.ndim))
    counts = jnp.broadcast_to(True if where is None else where, scores.shape)
    reduce, neutral = _REDUCTIONS[reduction]
    reduced = reduce(jnp.where(counts, scores, neutral), axis=axes)
    number = jnp.sum(counts, axis=axes)
    if reduction == "mean":
        reduced = reduced / jnp.maximum(number, 1).astype(scores.dtype)
    return jnp.where(number == 0, -jnp.inf, reduced)
