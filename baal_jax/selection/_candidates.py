"""Parts of a pool that are enough: the best by a score for a set method, and neighbours of what is labelled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import heuristics
from baal_jax._util import checks, numerics, sources
from baal_jax.selection._common import best_few, compiled, one_each
from baal_jax.typing import Acquisition, Array, Key, PyTree, ScoreFn, Selection

_QUERIES, _ROWS = 256, 2**14  # labelled examples, and rows of embeddings, in work at a time
Neighbours = Callable[[np.ndarray], Any]


def survivors(acquisition: Acquisition, num: int, score_fn: ScoreFn = heuristics.bald) -> Acquisition:
    """An acquisition that sees the ``num`` available examples with the best scores alone; a source holds no others.

    Args:
        acquisition: such as ``selection.badge()``; it must not read what is labelled (``use_labelled=False``).
        num: how many, at least a query.
        score_fn: ``logits -> scores [N]``; of equal scores the lowest ids survive.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Raises:
        ValueError: the acquisition reads labels or targets, ``num`` is not positive or less than the query size.

    Example:
        >>> few = selection.survivors(selection.random(), 2)
        >>> summary = 2 * (jnp.array([0.1, 0.9, 0.5, 0.7]),)
        >>> sorted(few.select(jax.random.key(0), summary, jnp.ones(4, bool), 2).indices.tolist())
        [1, 3]
    """
    num = checks.positive_int("num", num)
    checks.function("score_fn", score_fn, "heuristics.bald")
    if acquisition.reads_targets:
        raise ValueError(f"num={num} survivors keep no target inputs, which are read: pass the acquisition itself")
    if acquisition.reads_labelled:
        raise ValueError(f"num={num} survivors would hide the labelled examples that are read: pass use_labelled=False")
    of_scores, of_rows = heuristics.tasks_of(score_fn), acquisition.tasks

    def summarise(predictions: Any) -> tuple[Array, PyTree]:
        scores = score_fn(predictions.logits)
        return scores, scores if acquisition.summarise is None else acquisition.summarise(predictions)

    def select(key: Key, summary: Any, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        if query_size > num:
            raise ValueError(f"num={num} survivors are fewer than query_size={query_size}: let as many survive")
        scores = one_each(numerics.as_float(summary[0]), available)
        ids = best_few(scores, available, min(num, scores.shape[0]))
        rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[jnp.maximum(ids, 0)], summary[1])
        picked = acquisition.select(key, rows, ids >= 0, query_size)
        return picked._replace(indices=numerics.take_or(ids, picked.indices, -1))

    tasks = of_scores if of_rows is None else of_rows if of_scores is None else tuple({*of_scores} & {*of_rows})
    return Acquisition(summarise, compiled(select), tasks=tasks, keep=num)


def nearest(k: int, embeddings: Any = None, index: Neighbours | None = None) -> Neighbours:
    """Candidates of :func:`~baal_jax.active_loop`: the available ones among neighbours of labelled examples (SEALS).

    With ``k`` of the pool's size, picks are those of the whole pool.

    Args:
        k: neighbours of each labelled example, itself among them, looked for once, when it is labelled.
        embeddings: ``[N, D]``, an array or a memory map, for exact neighbours by Euclidean distance, of equal ones
            those with the lowest ids.
        index: in place of it, an approximate index of yours, ``ids int[q] -> int[q, k]``; −1 where it knows none.

    Returns:
        ``ids int[L] -> int[L, k]``.

    Raises:
        ValueError: ``k`` is not positive, ``embeddings`` and ``index`` are both or neither given, or not ``[N, D]``.

    References:
        Coleman et al., `Similarity search for efficient active learning and search of rare concepts
        <https://arxiv.org/abs/2007.00077>`_, 2022.

    Example:
        >>> line = np.array([[0.0], [1.0], [5.0], [6.0]], np.float32)
        >>> selection.nearest(2, line)(np.array([0, 3])).tolist()
        [[0, 1], [3, 2]]
    """
    k = checks.positive_int("k", k)
    if (embeddings is None) == (index is None):
        raise ValueError("embeddings or index, not both: pass [N, D], or a function of ids")
    if index is None and (np.ndim(embeddings) != 2 or not len(embeddings)):
        raise ValueError(f"embeddings have shape {np.shape(embeddings)}: pass one row for each example, [N, D]")
    look, seen = index or partial(_exact, k, embeddings), {}

    def near(ids: np.ndarray) -> np.ndarray:
        new = np.array([i for i in ids.tolist() if i not in seen], np.int32)
        for some in np.split(new, range(_QUERIES, len(new), _QUERIES)) if len(new) else ():
            seen.update(zip(some.tolist(), np.asarray(look(some), np.int32), strict=True))
        return np.stack([seen[i] for i in ids.tolist()])

    near.__qualname__ = f"nearest({k})"  # a study knows its programs by it
    return near


def _exact(k: int, embeddings: Any, ids: np.ndarray) -> np.ndarray:
    """``int32[q, k]``, nearest first, by blocks of rows."""
    room, k = 1 << (len(ids) - 1).bit_length(), min(k, len(embeddings))
    queries = sources.pad(sources.load(embeddings, ids).astype(np.float32), room)
    best: Any = np.full((room, k), np.inf, np.float32), np.full((room, k), -1, np.int32)
    start, total = 0, np.int32(len(embeddings))

    def visit(rows: np.ndarray) -> tuple:
        nonlocal best, start
        best, start = _nearer(best, queries, rows, np.int32(start), total), start + len(rows)
        return ()

    for _ in sources.stream(visit, embeddings, min(_ROWS, len(embeddings))):
        pass
    return np.asarray(best[1])[: len(ids)]


@jax.jit
def _nearer(best: tuple[Array, Array], queries: Array, rows: Array, start: Array, total: Array) -> tuple[Array, Array]:
    """The nearest of those so far and of rows ``start …``."""
    origin = jnp.mean(queries, axis=0, keepdims=True)  # far from which inner products would lose digits
    queries, rows = queries - origin, rows.astype(jnp.float32) - origin
    ids = start + jnp.arange(rows.shape[0], dtype=jnp.int32)
    distances = jnp.sum(rows**2, axis=1)[None] - 2 * jnp.matmul(queries, rows.T, precision="highest")
    distances = jnp.where((ids < total)[None], distances, jnp.inf)
    values = jnp.concatenate([best[0], distances], axis=1)
    order = jax.lax.top_k(-values, best[0].shape[1])[1]
    ids = jnp.concatenate([best[1], jnp.broadcast_to(ids[None], distances.shape)], axis=1)
    return jnp.take_along_axis(values, order, axis=1), jnp.take_along_axis(ids, order, axis=1)
