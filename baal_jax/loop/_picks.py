"""What a round may pick from, and its picks: samples, neighbours, query sizes, costs and quotas."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax import pool as pools
from baal_jax._util import checks, meshes, numerics, random
from baal_jax.typing import Acquisition, Key, LoopState, PyTree, Selection, StepInfo, Targeted


def sample(max_sample: int | None, key: Key, state: LoopState) -> tuple[Array | None, Array]:
    available = pools.available(state.pool)
    if max_sample is None or max_sample >= available.shape[0]:
        return None, available
    values = jax.random.uniform(key, available.shape, jnp.float32)
    if state.pool.quota is not None:  # first what may all be picked together
        values += pools.together(state.pool, values).astype(values.dtype)
    ids = numerics.top_indices(numerics.rank_values(values, available), max_sample)
    return ids, ids >= 0


def near(
    candidates: Callable[[np.ndarray], Any], sizes: tuple[int, ...], with_labelled: bool, key: Key, state: LoopState
) -> tuple[Array | None, Array]:
    """Available candidates, filled up at random to a query; padded, so that few sizes are compiled."""
    if not checks.is_concrete(state.pool):
        raise ValueError("candidates are looked for on the host, which is not possible inside jit, vmap or grad")
    available, labelled = np.asarray(pools.available(state.pool)), np.flatnonzero(pools.labelled(state.pool))
    if not len(labelled):
        return None, jnp.asarray(available)
    near, chosen = np.asarray(candidates(labelled)).ravel(), np.zeros(len(available), bool)
    chosen[near[near >= 0]] = True
    chosen &= available
    if (missing := max(sizes) - np.count_nonzero(chosen)) > 0:
        order = np.asarray(jax.random.uniform(random.vectorised(key), chosen.shape, jnp.float32))
        order = np.argsort(np.where(available & ~chosen, order, np.inf), kind="stable")[:missing]
        chosen[order] = available[order]
    chosen[labelled] = with_labelled
    ids = np.flatnonzero(chosen).astype(np.int32)
    ids = np.pad(ids, (0, room_for(len(ids), len(chosen)) - len(ids)), constant_values=-1)
    return jnp.asarray(ids), jnp.asarray((ids >= 0) & available[ids])


def rows_of(leaf: Any, ids: Array | None) -> Any:
    return leaf if ids is None else jnp.asarray(leaf)[jnp.maximum(ids, 0)]


def room_for(count: int, total: int) -> int:
    """A power of two: a growing labelled part is compiled a few times, not in every round."""
    return min(1 << max(count - 1, 31).bit_length(), total)


def select_within(
    acquisition: Acquisition,
    sizes: tuple[int, ...],
    key: Key,
    state: LoopState,
    summary: PyTree,
    ids: Array | None,
    available: Array,
) -> tuple[Selection, StepInfo]:
    """What the acquisition picks at this round's size, padded to the largest size."""
    labelled = rows_of(pools.labelled(state.pool), ids)
    labelled = labelled if ids is None else labelled & (ids >= 0)
    raw = summary
    if state.pool.quota is not None and acquisition.keep is not None:
        raise ValueError(f"the {acquisition.keep} survivors may all be of full groups: leave quotas or survivors out")
    if state.pool.costs is not None:
        summary = _per_cost(acquisition, summary, rows_of(state.pool.costs, ids), available)

    def select(size: int) -> Selection:
        possible = min(size, available.shape[0])
        ask = partial(acquisition.select, key, summary)
        if state.pool.quota is None:
            picked = ask(available, possible, labelled)
        else:
            groups = rows_of(state.pool.groups, ids)
            on_host = any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(summary))
            room = pools.room(state.pool)
            picked = pools.within_quota(ask, groups, room, available, possible, labelled, on_host)
        missing = 0, max(sizes) - possible
        indices = jnp.pad(picked.indices, missing, constant_values=-1)
        return Selection(indices, jnp.pad(picked.scores, missing, constant_values=jnp.nan))

    different = sorted(set(sizes))
    if len(different) == 1:
        picked = select(different[0])
    else:
        which = jnp.array([different.index(size) for size in sizes])[jnp.minimum(state.step, len(sizes) - 1)]
        asked = [lambda size=size: select(size) for size in different]
        picked = asked[int(which)]() if checks.is_concrete(which) else jax.lax.switch(which, asked)
    if ids is not None:
        picked = picked._replace(indices=numerics.take_or(ids, picked.indices, -1))
    picked = meshes.everywhere(picked)
    # Not before there are picks, so that what both compute on the way is not in memory at the same time.
    # A barrier would copy what it holds back.
    chosen = picked.indices[0] > -2
    pool = state.pool._replace(labelled_at=jnp.where(chosen, state.pool.labelled_at, 0))
    return picked, _describe(pool, picked, raw, available & chosen)


def _per_cost(acquisition: Acquisition, summary: PyTree, costs: Array, available: Array) -> PyTree:
    if acquisition.summarise is None:
        return summary
    if not getattr(acquisition.select, "ranks", False):
        raise ValueError("the pool has costs, by which scores are divided, but this is no ranking: take top_k or power")
    scores = numerics.as_float(jnp.asarray(summary))
    counted = available & jnp.isfinite(scores)
    shift = jnp.minimum(jnp.min(jnp.where(counted, scores, jnp.inf)), 0.0)
    return (scores - shift) / costs


def _describe(state: pools.PoolState, picked: Selection, summary: PyTree, available: Array) -> StepInfo:
    rows = summary.summary if isinstance(summary, Targeted) else summary
    leaves = [leaf for leaf in jax.tree.leaves(rows) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    broken = jnp.zeros(available.shape, bool)
    for leaf in leaves:
        numpy = np if isinstance(leaf, np.ndarray) else jnp  # the one takes part after part
        parts = np.array_split(leaf, -(-leaf.nbytes // 2**22)) if numpy is np else [leaf]
        broken |= numpy.concatenate([numpy.isnan(part).any(axis=tuple(range(1, leaf.ndim))) for part in parts])
    mean_score = picked.scores[0] * jnp.nan  # of each seed: under vmap a constant is spread where NaN would be an error
    if len(leaves) == 1 and leaves[0].ndim == 1:
        mean_score = jnp.mean(leaves[0].astype(jnp.float32), where=available & ~broken)
    return StepInfo(
        round=state.round,
        num_labelled=pools.num_labelled(state),
        indices=picked.indices,
        scores=picked.scores,
        num_picked=jnp.sum(picked.indices >= 0, dtype=jnp.int32),
        mean_score=mean_score,
        num_nan=jnp.sum(broken & available, dtype=jnp.int32),
    )
