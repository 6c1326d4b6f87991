"""Which examples a training step reads: shuffled passes, one after the other, without a table of the order."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import numerics, random


class Stream(NamedTuple):
    """Shuffled passes over some examples, one after the other, without an end.

    Attributes:
        key: a typed key, for the order of every pass.
        ids: from places ``[k]`` among the examples to their ids.
        size: ``int32[]``, how many examples there are.
    """

    key: Array
    ids: Callable[[Array], Array]
    size: Array

    def batch(self, index: Array, batch_size: int, num_epochs: int | None) -> tuple[Array, Array]:
        """Ids of the ``index``-th batch, and weights: zero beyond the last pass and where there are no examples."""
        size = jnp.maximum(self.size, 1)
        positions = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        passes = positions // size  # a batch may hold the end of one pass and the beginning of the next
        keys = jax.vmap(lambda number: step_key(self.key, number))(passes)
        order = jax.vmap(lambda key, i: random.shuffled(key, i, size))(keys, positions - passes * size)
        weights = jnp.full(batch_size, self.size > 0)
        if num_epochs is not None:
            weights &= passes < num_epochs
        return self.ids(order), weights.astype(jnp.float32)


def stream_of(key: Array, labelled: Array) -> Stream:
    """Passes over the examples of a mask."""
    return Stream(key, *numerics.true_rows(labelled))


def step_key(key: Array, number: Array) -> Array:
    """``fold_in(key, number)``, with bits that a CPU makes faster."""
    return jax.random.fold_in(random.vectorised(key), number)
