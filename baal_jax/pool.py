"""Which examples are labelled, available or excluded: an immutable record and the transitions between records.

Indices are always ids into the whole data set; there is no second, pool-relative numbering. Every transition takes a
:class:`PoolState` and returns a new one, costs O(N) on the device, and goes through ``jit``, ``vmap`` and ``scan``.
"""

from collections.abc import Callable
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
        costs: ``float32[N]``, what a label of each costs: scores are divided by it. None for no difference.
        groups: ``int32[N]``, the group of each, −1 for none; None without quotas.
        quota: ``int32[G]``, how many labels a group may have: one that has as many is not available.
    """

    labelled_at: Array
    round: Array
    targets: Any = None
    costs: Any = None
    groups: Any = None
    quota: Any = None
    __repr__ = short


def init(
    num_examples: int, targets: Any = None, *, costs: Any = None, groups: Any = None, quota: Any = None
) -> PoolState:
    """A pool of ``num_examples`` with nothing labelled.

    A loop divides scores by ``costs``; where some available score is below 0 (a margin), all are shifted first, the
    least to 0. An acquisition that is no ranking is refused, and one that scores nothing does not look at costs.
    No query takes more of a group than its quota allows: picks that would are dropped, and others are asked for.

    Args:
        num_examples: ``N``.
        targets: ``[N, …]`` to store labels in as they arrive (``jnp.full(N, -1)``); None where the data set has them.
        costs: ``[N]``, above 0.
        groups: ``int[N]`` from 0, such as the video of every frame; −1 for none. Needs a quota.
        quota: how many labels a group may have in all, a number or ``int[G]``.

    Returns:
        The :class:`PoolState`.

    Raises:
        ValueError: ``num_examples`` is not a positive integer, an array has another length or is out of its range, or
            only one of ``groups`` and ``quota`` is there.

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
    costs = None if costs is None else _one_each("costs", costs, num_examples, np.floating).astype(np.float32)
    if costs is not None and not (np.isfinite(costs) & (costs > 0)).all():
        raise ValueError(f"costs hold {costs[~(costs > 0) | np.isinf(costs)][0]}: give numbers above 0")
    if (groups is None) != (quota is None):
        raise ValueError("groups and quota belong together: give both or neither")
    if groups is not None:
        groups, quota = _one_each("groups", groups, num_examples, np.integer), np.asarray(quota)
        quota = np.full(max(groups.max() + 1, 1), quota) if quota.ndim == 0 else quota
        if quota.dtype.kind not in "iu" or quota.ndim != 1 or (quota < 0).any() or groups.max() >= len(quota):
            raise ValueError(f"quota {quota.dtype}{quota.shape} must be integers of at least 0, one for each group")
        if groups.min() < -1:
            raise ValueError(f"groups hold {groups.min()}: count from 0, and give -1 to what has no group")
    extra = (
        None if costs is None else jnp.asarray(costs, jnp.float32),
        *(None if part is None else jnp.asarray(part, jnp.int32) for part in (groups, quota)),
    )
    return PoolState(jnp.full(num_examples, _AVAILABLE, jnp.int32), jnp.zeros((), jnp.int32), targets, *extra)


def _one_each(name: str, values: Any, num_examples: int, kind: Any) -> np.ndarray:
    values = meshes.on_host(values) if isinstance(values, jax.Array) else np.asarray(values)
    values = values.astype(np.float32) if kind is np.floating and values.dtype.kind in "iu" else values
    if values.shape != (num_examples,) or not np.issubdtype(values.dtype, kind):
        raise ValueError(f"{name} {values.dtype}{values.shape}, but one number for each of {num_examples} is needed")
    return values


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

    Example:
        >>> state = pool.init(3, targets=jnp.full(3, -1))
        >>> pool.annotate(state, [1], [7]).targets.tolist()
        [-1, 7, -1]
    """
    indices = _as_ids(state, indices)
    if state.targets is None:
        raise ValueError("targets given to a pool that stores none: make it with pool.init(num_examples, targets=…)")
    targets = jnp.asarray(targets, state.targets.dtype).reshape((-1, *state.targets.shape[1:]))
    if targets.shape[0] != indices.shape[0]:
        raise ValueError(f"targets holds {targets.shape[0]} labels for {indices.shape[0]} indices: pass one for each")
    return state._replace(targets=_set(state.targets, indices, targets))


def random_query(key: Key, state: PoolState, num: int, balanced: Any = None) -> Array:
    """Draws available examples uniformly without replacement.

    Args:
        key: a typed key.
        state: the pool.
        num: how many.
        balanced: ``int[N]``, classes or groups of which as equal numbers are drawn as there are.

    Returns:
        ``int32[num]`` distinct ids, −1 where fewer are left.

    Raises:
        ValueError: ``num`` is negative or exceeds what the pool holds (eagerly: what is available).

    Example:
        >>> sorted(pool.random_query(jax.random.key(0), pool.exclude(pool.init(4), [2]), 3).tolist())
        [0, 1, 3]
    """
    num = checks.positive_int("num", num, least=0)
    if num > (left := num_left(state)):
        raise ValueError(f"num={num} exceeds the {left} unlabelled examples: ask for fewer")
    return _random_query(key, state, num, None if balanced is None else jnp.asarray(balanced))


@partial(numerics.jit, static_argnums=2)
def _random_query(key: Key, state: PoolState, num: int, balanced: Array | None) -> Array:
    free = available(state)
    values = jax.random.uniform(random.vectorised(key), free.shape, jnp.float32)
    if state.groups is not None:
        free &= together(state, values)
    if balanced is not None:
        if balanced.shape != free.shape or not jnp.issubdtype(balanced.dtype, jnp.integer):
            raise ValueError(f"balanced {balanced.dtype}{balanced.shape} must be one class for each of {free.shape[0]}")
        values -= numerics.rank_within(jnp.where(free, balanced, -1), -values).astype(jnp.float32)
    return meshes.everywhere(numerics.top_indices(numerics.rank_values(values, free), num))


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

    Example:
        >>> int(pool.num_labelled(pool.label_randomly(jax.random.key(0), pool.init(9), 4)))
        4
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

    Example:
        >>> state = pool.unlabel(pool.label(pool.init(3), [0, 2]), [0])
        >>> pool.labelled(state).tolist()
        [False, False, True]
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
    free = state.labelled_at == _AVAILABLE
    return free if state.groups is None else free & _has_room(state)


@numerics.jit
def _has_room(state: PoolState) -> Array:
    return (state.groups < 0) | (room(state) > 0)[state.groups]


@numerics.jit
def room(state: PoolState) -> Array:
    """``int32[G]``: how many labels each group may still have."""
    known = (state.groups >= 0) & (state.labelled_at >= 0)
    return state.quota - jax.ops.segment_sum(known.astype(jnp.int32), jnp.maximum(state.groups, 0), len(state.quota))


@numerics.jit
def together(state: PoolState, values: Array) -> Array:
    """``bool[N]``: of each group no more than it has room for, those with the largest values first."""
    turn = numerics.rank_within(jnp.where(available(state), state.groups, -1), -values)
    return (state.groups < 0) | (turn < room(state)[state.groups])


def num_left(state: PoolState) -> int:
    """How many labels the pool can still have, where that is concrete; else how many examples there are."""
    if not checks.is_concrete(state):
        return state.labelled_at.shape[0]
    free = meshes.on_host(state.labelled_at) == _AVAILABLE  # jax.numpy would trace it inside jit
    if state.groups is None:
        return int(np.count_nonzero(free))
    groups, quota = (meshes.on_host(part) for part in (state.groups, state.quota))
    known = np.bincount(groups[(groups >= 0) & (meshes.on_host(state.labelled_at) >= 0)], minlength=len(quota))
    of_groups = np.bincount(groups[(groups >= 0) & free], minlength=len(quota))
    return int(np.minimum(of_groups, np.maximum(quota - known, 0)).sum() + np.count_nonzero(free & (groups < 0)))


def total_cost(state: PoolState) -> Array:
    """``float32[]``: what all labels cost."""
    if state.costs is None:
        raise ValueError("this pool has no costs: make it with pool.init(num_examples, costs=…)")
    return jnp.sum(jnp.where(state.labelled_at >= 0, state.costs, 0.0))


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

    of_rows = state.labelled_at, state.targets, state.costs, state.groups
    labelled_at, targets, costs, groups = jax.tree.map(rows, of_rows)
    if size < num_examples:
        labelled_at = jnp.where(jnp.arange(num_examples, dtype=jnp.int32) < size, labelled_at, _EXCLUDED)
    return state._replace(labelled_at=labelled_at, targets=targets, costs=costs, groups=groups)


def _as_ids(state: PoolState, indices: Any) -> Array:
    checks.indices("indices", indices, state.labelled_at.shape[0])
    return jnp.atleast_1d(jnp.asarray(indices, jnp.int32))


def _get(state: PoolState, indices: Array) -> Array:
    return state.labelled_at.at[indices].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@numerics.jit_with_nan  # targets that are still unknown
def _set(array: Array, indices: Array, values: Array | int) -> Array:
    # A negative index would wrap around to the last example, even under mode="drop".
    return array.at[indices].set(values, mode="drop", wrap_negative_indices=False)


def within_quota(
    ask: Callable[..., Selection],
    groups: Array,
    room: Array,
    available: Array,
    size: int,
    labelled: Array,
    on_host: bool = False,
) -> Selection:
    """Picks of which no group exceeds its room: those of a query that do not, and again of what is left.

    Args:
        ask: ``(available, query_size, labelled) -> Selection``. It uses one key each time, on purpose: what is random
            about an example stays as it is, so that of a ranking these are the first ones that may be picked.
        groups: ``int32[N]``, −1 for none.
        room: ``int32[G]``.
        available: ``bool[N]``.
        size: ``Q``.
        labelled: ``bool[N]``.
        on_host: whether what is picked from stays in NumPy.

    Example:
        >>> ask = lambda available, size, labelled: selection.random().select(jax.random.key(0), None, available, size)
        >>> groups, room, every = jnp.array([0, 0, 1], jnp.int32), jnp.array([1, 1], jnp.int32), jnp.ones(3, bool)
        >>> jnp.sort(groups[pool.within_quota(ask, groups, room, every, 2, ~every).indices]).tolist()
        [0, 1]
    """

    def more(carry: tuple) -> Array:
        _, count, free, *_ = carry
        return (count < size) & jnp.any(free)

    def again(carry: tuple) -> tuple:
        picked, count, free, known, room = carry
        new = ask(free, size, known)
        there, ids = new.indices >= 0, jnp.maximum(new.indices, 0)
        own = jnp.where(there, groups[ids], -1)
        turn = numerics.rank_within(own)
        kept = there & ((own < 0) | (turn < room[own]))
        places = count + jnp.cumsum(kept, dtype=jnp.int32) - 1
        kept &= places < size
        places = jnp.where(kept, places, size)
        picked = jax.tree.map(lambda old, one: old.at[places].set(one, mode="drop"), picked, new)
        room -= jax.ops.segment_sum((kept & (own >= 0)).astype(jnp.int32), jnp.maximum(own, 0), room.shape[0])
        taken = jnp.zeros_like(free).at[jnp.where(kept, ids, len(free))].set(True, mode="drop")
        free = free & ~taken & ((groups < 0) | (room > 0)[groups])
        return picked, count + jnp.sum(kept, dtype=jnp.int32), free, known | taken, room

    none = Selection(jnp.full(size, -1, jnp.int32), jnp.full(size, jnp.nan, jnp.float32))
    carry = none, jnp.zeros((), jnp.int32), jnp.asarray(available), labelled, room
    if on_host:  # features in NumPy
        while more(carry):
            carry = again(carry)
        return carry[0]
    return jax.lax.while_loop(more, again, carry)[0]


def first_query(
    key: Key,
    state: PoolState,
    num: int,
    acquisition: Acquisition | None = None,
    embeddings: PyTree = None,
) -> Selection:
    """Picks before there is a fit: at random, or by an acquisition that needs none (the cold start); no costs count.

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

    Example:
        >>> picked = pool.first_query(jax.random.key(0), pool.exclude(pool.init(3), [1]), 2)
        >>> sorted(picked.indices.tolist())
        [0, 2]
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
    ask = partial(acquisition.select, key, summary)
    if state.quota is None:
        return ask(free, num, labelled(state))
    return within_quota(ask, state.groups, room(state), free, num, labelled(state))
