"""What every selection from features shares: checks, rows that are not finite, and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, Selection


class Find(Protocol):
    """``find(key, features, available bool[N], query_size, labelled bool[N]) -> (indices [Q], scores [Q])``."""

    def __call__(
        self, key: Key, features: PyTree, available: Array, query_size: int, labelled: Array
    ) -> tuple[Array, Array]: ...


def over_features(
    find: Find, summarise: Callable[[Predictions], PyTree] | None = None, *, reads_labelled: bool = False
) -> Acquisition:
    """An acquisition from a search over finite features.

    Rows with NaN, or with values whose squares are infinite, are hidden from ``find`` (their features are 0, they are
    neither available nor labelled) and picked last, in order of their ids. ``find`` gives −1 where nothing is left.

    Args:
        find: the search.
        summarise: ``Predictions -> features``, an array ``[B, D]`` or a pytree; by default the features themselves.
        reads_labelled: whether what is labelled matters.

    Returns:
        An :class:`~baal_jax.Acquisition`.
    """

    def select(
        key: Key, summary: PyTree, available: Array, query_size: int, labelled: Array | None = None
    ) -> Selection:
        query_size = checks.positive_int("query_size", query_size)
        available = jnp.asarray(available)
        num_examples = checks.leading_axis("features", summary)
        if available.shape != (num_examples,):
            raise ValueError(f"features of {num_examples} examples for {available.shape[0]}: one row each is needed")
        if query_size > num_examples:
            raise ValueError(f"query_size={query_size} exceeds the {num_examples} examples: ask for fewer")
        labelled = jnp.zeros(available.shape, bool) if labelled is None else jnp.asarray(labelled)
        if labelled.shape != available.shape:
            raise ValueError(f"labelled has shape {labelled.shape}, but available {available.shape}: make them equal")
        available = numerics.replicate(available.astype(bool))
        labelled = numerics.replicate(labelled.astype(bool)) & ~available
        features = jax.tree.map(lambda leaf: numerics.replicate(jnp.asarray(leaf)).astype(jnp.float32), summary)
        broken = broken_rows(features)
        features = jax.tree.map(lambda leaf: _without(leaf, broken), features)
        indices, scores = find(key, features, available & ~broken, query_size, labelled & ~broken)
        indices = _append(indices, available & broken)
        scores = jnp.where(indices < 0, jnp.nan, _with_nan(scores, broken, indices))
        return Selection(indices.astype(jnp.int32), scores.astype(jnp.float32))

    return Acquisition(
        read_features if summarise is None else summarise,
        jax.jit(select, static_argnames="query_size"),
        reads_labelled,
    )


def read_features(predictions: Predictions) -> Array:
    """The features ``[B, D]``; longer axes are flattened."""
    if predictions.features is None:
        raise ValueError(
            "features is None: pass features=(state, inputs) -> [B, D] to active_loop, for example "
            "baal_jax.features.last_hidden(model), or embeddings to loop.init"
        )
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), predictions.features)


def broken_rows(features: PyTree) -> Array:
    """``bool[N]``: whether a row has no finite length in float32."""
    lengths = [jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(features)]
    return jnp.any(~jnp.isfinite(jnp.stack(lengths)), axis=0)


def _without(leaf: Array, broken: Array) -> Array:
    return jnp.where(broken.reshape(-1, *[1] * (leaf.ndim - 1)), jnp.zeros((), leaf.dtype), leaf)


def _append(indices: Array, late: Array) -> Array:
    """Fills the −1 slots, which stand at the end, with the ids of ``late`` in order."""
    ids = jnp.flatnonzero(late, size=indices.shape[0], fill_value=-1)
    missing = indices < 0
    place = jnp.cumsum(missing) - 1
    return jnp.where(missing, ids[jnp.maximum(place, 0)], indices)


def _with_nan(scores: Array, broken: Array, indices: Array) -> Array:
    return jnp.where(broken[jnp.maximum(indices, 0)], jnp.nan, scores)
