"""Which examples are labelled, available or excluded: an immutable record and the transitions between records.

Indices are always ids into the whole data set; there is no second, pool-relative numbering. Every transition takes a
:class:`PoolState` and returns a new one, costs O(N) on the device, and goes through ``jit``, ``vmap`` and ``scan``.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, meshes, numerics, random, sources
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, Selection, short

_AVAILABLE, _EXCLUDED = -1, -2


class PoolState(NamedTuple):
    """Which examples are labelled, and since when.

    Attributes:
        labelled_at: ``int32[N]``, the round in which an example was labelled; −1 while available, −2 once excluded.
        round: ``int32[]``, the round that the next labels belong to.
        targets: ``[N, …]`` labels collected so far, where people give them; None when the data set knows them already.
    """

    labelled_at: Array
    round: Array
    targets: Any = None
    __repr__ = short


def init(num_examples: int, targets: Array | None = None) -> PoolState:
    """A pool of ``num_examples`` with nothing labelled.

    Args:
        num_examples: ``N``.
        targets: ``[N, …]`` to store labels in as they arrive (``jnp.full(N, -1)``); None where the data set has them.

    Returns:
        The :class:`PoolState`.

    Raises:
        ValueError: ``num_examples`` is not a positive integer, or ``targets`` has another length.

    Example:
        >>> state = pool.label(pool.init(5), [3, 1])
        >>> state.labelled_at.tolist(), int(state.round), int(pool.num_labelled(state))
        ([-1, 0, -1, 0, -1], 1, 2)
    """
    num_examples = checks.positive_int("num_examples", num_examples)
    if targets is not None:
        with jax.debug_nans(False):  # what is unknown may be NaN
            targets = jnp.array(targets, jnp.result_type(targets))  # with a dtype of its own, never a weak one
        if targets.shape[:1] != (num_examples,):
            raise ValueError(f"targets has shape {targets.shape}, but rows for num_examples={num_examples} are needed")
    return PoolState(jnp.full(num_examples, _AVAILABLE, jnp.int32), jnp.zeros((), jnp.int32), targets)


def label(state: PoolState, indices: Any, targets: Any = None, *, advance: bool = True) -> PoolState:
    """Labels examples in the current round.

    A labelled example keeps its round, an excluded one stays excluded, and −1 labels nothing. Eager calls refuse
    repeated and out-of-range ids; in compiled code a repeated id counts once and an out-of-range one not at all.

    Args:
        state: the pool.
        indices: ``int[Q]`` ids into the data set (or a single id).
        targets: ``[Q, …]`` labels to store, when the pool was made with ``targets``.
        advance: whether the round ends here. ``False`` keeps it open, for labels that arrive one by one.

    Returns:
        The new :class:`PoolState`.

    Raises:
        ValueError: repeated or out-of-range ids, or ``targets`` that do not fit.

    Example:
        >>> state = pool.init(4, targets=jnp.full(4, -1))
        >>> state = pool.label(state, [2, 0], targets=[7, 9])
        >>> state.targets.tolist(), pool.labelled(state).tolist()
        ([9, -1, 7, -1], [True, False, True, False])
    """
    indices = _as_ids(state, indices)
    if targets is not None:
        state = annotate(state, indices, targets)
    return _label(state, indices, advance=advance)


@partial(numerics.jit_with_nan, static_argnames="advance")
def _label(state: PoolState, indices: Array, *, advance: bool) -> PoolState:
    old = _get(state, indices)
    labelled_at = _set(state.labelled_at, indices, jnp.where(old == _AVAILABLE, state.round, old))
    return state._replace(labelled_at=labelled_at, round=state.round + int(advance))


def annotate(state: PoolState, indices: Any, targets: Any) -> PoolState:
    """Stores (or corrects) labels without changing which examples count as labelled.

    Args:
        state: a pool made with ``targets``.
        indices: ``int[Q]`` ids; −1 stores nothing.
        targets: ``[Q, …]``.

    Returns:
        The new :class:`PoolState`.

    Raises:
        ValueError: the pool stores no targets, the lengths differ, or ids are repeated or out of range.
    """
    indices = _as_ids(state, indices)
    if state.targets is None:
        raise ValueError("targets given to a pool that stores none: make it with pool.init(num_examples, targets=…)")
    targets = jnp.asarray(targets, state.targets.dtype).reshape((-1, *state.targets.shape[1:]))
    if targets.shape[0] != indices.shape[0]:
        raise ValueError(f"targets holds {targets.shape[0]} labels for {indices.shape[0]} indices: pass one for each")
    return state._replace(targets=_set(state.targets, indices, targets))


def random_query(key: Key, state: PoolState, num: int) -> Array:
    """Draws available examples uniformly without replacement.

    Args:
        key: a typed key.
        state: the pool.
        num: how many.

    Returns:
        ``int32[num]`` distinct ids, −1 where fewer are left.

    Raises:
        ValueError: ``num`` is negative or exceeds what the pool holds (eagerly: what is available).
    """
    num = checks.positive_int("num", num, least=0)
    left = state.labelled_at.shape[0]
    if checks.is_concrete(state.labelled_at):
        left = np.count_nonzero(meshes.on_host(state.labelled_at) == _AVAILABLE)  # jax.numpy would trace it inside jit
    if num > left:
        raise ValueError(f"num={num} exceeds the {left} unlabelled examples: ask for fewer")
    return _random_query(key, state, num)


@partial(numerics.jit, static_argnums=2)
def _random_query(key: Key, state: PoolState, num: int) -> Array:
    values = jax.random.uniform(random.vectorised(key), state.labelled_at.shape, jnp.float32)
    return meshes.everywhere(numerics.top_indices(numerics.rank_values(values, available(state)), num))


def label_randomly(key: Key, state: PoolState, num: int) -> PoolState:
    """Labels what :func:`random_query` draws, as one round.

    Args:
        key: a typed key.
        state: the pool.
        num: how many; where fewer are left, all of them are labelled.

    Returns:
        The new :class:`PoolState`.

    Raises:
        ValueError: ``num`` is negative or exceeds what the pool holds (eagerly: what is available).
    """
    return _label(state, random_query(key, state, num), advance=True)


def unlabel(state: PoolState, indices: Any) -> PoolState:
    """Takes labels back: the examples are available again. Stored targets stay where they are.

    Args:
        state: the pool.
        indices: ``int[Q]`` ids; −1, unlabelled and excluded examples are left alone.

    Returns:
        The new :class:`PoolState`, in the same round.

    Raises:
        ValueError: repeated or out-of-range ids.
    """
    return _unlabel(state, _as_ids(state, indices))


@numerics.jit_with_nan
def _unlabel(state: PoolState, indices: Array) -> PoolState:
    return state._replace(labelled_at=_set(state.labelled_at, indices, jnp.minimum(_get(state, indices), _AVAILABLE)))


def exclude(state: PoolState, indices: Any) -> PoolState:
    """Excludes examples for good: they are never queried and, where they are labelled, no longer trained on.

    Args:
        state: the pool.
        indices: ``int[Q]`` ids; −1 excludes nothing.

    Returns:
        The new :class:`PoolState`, in the same round. Ids and stored targets stay what they are.

    Raises:
        ValueError: repeated or out-of-range ids.

    Example:
        >>> state = pool.label(pool.exclude(pool.init(4), [1]), [1, 2])
        >>> pool.labelled(state).tolist(), pool.available(state).tolist()
        ([False, False, True, False], [True, False, False, True])
    """
    return state._replace(labelled_at=_set(state.labelled_at, _as_ids(state, indices), _EXCLUDED))


def labelled(state: PoolState, last_rounds: int | None = None) -> Array:
    """``bool[N]``: what is labelled.

    Args:
        state: the pool.
        last_rounds: only what the ``last_rounds`` rounds up to the latest label added; None for all.

    Returns:
        ``bool[N]``.

    Raises:
        ValueError: ``last_rounds`` is not a positive integer.

    Example:
        >>> state = pool.label(pool.label(pool.init(4), [0]), [2])
        >>> pool.labelled(state, last_rounds=1).tolist()
        [False, False, True, False]
    """
    if last_rounds is None:
        return state.labelled_at >= 0
    last_rounds = checks.positive_int("last_rounds", last_rounds)
    latest = jnp.max(state.labelled_at)
    return (state.labelled_at >= 0) & (state.labelled_at > latest - last_rounds)


def available(state: PoolState) -> Array:
    """``bool[N]``: what can still be labelled."""
    return state.labelled_at == _AVAILABLE


def num_labelled(state: PoolState) -> Array:
    """``int32[]``: how many examples are labelled."""
    return jnp.sum(state.labelled_at >= 0, dtype=jnp.int32)


def num_available(state: PoolState) -> Array:
    """``int32[]``: how many examples can still be labelled."""
    return jnp.sum(available(state), dtype=jnp.int32)


def placed(state: PoolState, size: int, num_examples: int, inputs: PyTree) -> PoolState:
    """A pool of ``size`` examples beside ``inputs [N, …]``: on their devices, and what comes behind is excluded."""

    def rows(leaf: Any) -> Array:
        leaf = leaf if leaf.shape[0] == num_examples else sources.pad(leaf, num_examples)
        return meshes.beside(leaf, inputs)

    labelled_at, targets = jax.tree.map(rows, (state.labelled_at, state.targets))
    if size < num_examples:
        labelled_at = jnp.where(jnp.arange(num_examples, dtype=jnp.int32) < size, labelled_at, _EXCLUDED)
    return state._replace(labelled_at=labelled_at, targets=targets)


def _as_ids(state: PoolState, indices: Any) -> Array:
    checks.indices("indices", indices, state.labelled_at.shape[0])
    return jnp.atleast_1d(jnp.asarray(indices, jnp.int32))


def _get(state: PoolState, indices: Array) -> Array:
    return state.labelled_at.at[indices].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@numerics.jit_with_nan  # targets that are still unknown
def _set(array: Array, indices: Array, values: Array | int) -> Array:
    # A negative index would wrap around to the last example, even under mode="drop".
    return array.at[indices].set(values, mode="drop", wrap_negative_indices=False)


def first_query(
    key: Key, state: PoolState, num: int, acquisition: Acquisition | None = None, embeddings: PyTree = None
) -> Selection:
    """Picks before there is a fit: at random, or by an acquisition that needs none (the cold start).

    Args:
        key: a typed key.
        state: of the pool.
        num: how many.
        acquisition: such as ``selection.typiclust()``; None for uniformly random picks.
        embeddings: ``[N, D]``, what the acquisition reads.

    Returns:
        A :class:`~baal_jax.Selection` of ``num`` ids, −1 where fewer are left.

    Raises:
        ValueError: the acquisition reads embeddings and there are none, or not one for every example.
    """
    free = available(state)
    if acquisition is None:
        indices = random_query(key, state, num)
        scores: Any = np.full(indices.shape, np.nan, np.float32)
        return Selection(indices, scores)
    summary = None
    if acquisition.summarise is not None:
        if embeddings is None:
            raise ValueError("embeddings is None: an acquisition that reads features needs embeddings=[N, D] here")
        if (rows := checks.leading_axis("embeddings", embeddings)) != free.shape[0]:
            raise ValueError(f"embeddings of {rows} examples for {free.shape[0]}: pass one row for every example")
        summary = acquisition.summarise(Predictions(None, jax.tree.map(jnp.asarray, embeddings)))
    return acquisition.select(key, summary, free, num, labelled(state))
