"""Which examples a training step reads: shuffled passes, one after the other, without a table of the order."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import random
from baal_jax.typing import Array, Key


class Stream(NamedTuple):
    """Shuffled passes over the labelled ids, one after the other."""

    key: Key
    ids: Array  # labelled ids first
    size: Array

    def batch(self, index: Array, batch_size: int, num_epochs: int | None) -> tuple[Array, Array]:
        """Ids of the ``index``-th batch, and weights: zero beyond the last pass and where nothing is labelled."""
        size = jnp.maximum(self.size, 1)
        positions = index * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        passes = positions // size
        keys = jax.vmap(lambda i: jax.random.fold_in(random.vectorised(self.key), i))(passes)
        order = jax.vmap(lambda key, i: random.shuffled(key, i, size))(keys, positions - passes * size)
        weights = jnp.full(batch_size, self.size > 0)
        if num_epochs is not None:
            weights &= passes < num_epochs
        return self.ids[order], weights.astype(jnp.float32)


class ViewStream(NamedTuple):
    """Shuffled passes over all examples, and keys for their views."""

    key_inputs: Key
    key_views: Key
    num_examples: int
    batch_size: int

    def plan(self, index: Array) -> tuple[Key, Array]:
        everything = jnp.arange(self.num_examples, dtype=jnp.int32)
        stream = Stream(self.key_inputs, everything, jnp.asarray(self.num_examples, jnp.int32))
        key = jax.random.fold_in(random.vectorised(self.key_views), index)
        return key, stream.batch(index, self.batch_size, None)[0]
