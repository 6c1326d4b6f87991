"""What greedy selectors share: the loop over picks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax._util import numerics
from baal_jax.selection.sets._kernel import Features
from baal_jax.typing import Array, Key

Selector = Callable[[Key, Features, Array, int, Array], tuple[Array, Array]]


def one_by_one(
    pick: Callable[[Any, Array, Array], tuple[Array, Array]],
    update: Callable[[Any, Array, Array], Any],
    state: Any,
    available: Array,
    query_size: int,
) -> tuple[Array, Array]:
    """Picks ``query_size`` examples, each with the knowledge of those before.

    Args:
        pick: ``(state, left bool[N], turn) -> (index, score)``; never asked for more than is left.
        update: ``(state, index, turn) -> state``.
        state: before the first pick.
        available: ``bool[N]``.
        query_size: ``Q``.

    Returns:
        ``(indices int32[Q], scores [Q])``, −1 and NaN where nothing is left.
    """

    def step(carry: tuple[Any, Array], turn: Array) -> tuple[tuple[Any, Array], tuple[Array, Array]]:
        state, left = carry
        some = jnp.any(left)
        index, score = pick(state, left, turn)
        left &= jnp.arange(left.shape[0]) != index
        picked = jnp.where(some, index, -1).astype(jnp.int32), jnp.where(some, score, jnp.nan)
        return (update(state, index, turn), left), picked

    _, found = jax.lax.scan(step, (state, available), jnp.arange(query_size, dtype=jnp.int32))
    return found


def best_of(values: Array, left: Array) -> Array:
    """Where the largest value is among what is left; of equal ones the lowest id, NaN last."""
    return jnp.argmax(numerics.rank_values(values, left)).astype(jnp.int32)
