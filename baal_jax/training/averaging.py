"""Stochastic weight averaging: the running mean of weights, and batch statistics that belong to it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax.typing import Array, Key, Model, PyTree, Variables


def share(average_from: float, total: Array | int) -> Array:
    """The first step that counts."""
    first = jnp.floor(average_from * jnp.asarray(total, jnp.float32)).astype(jnp.int32)
    return jnp.minimum(first, jnp.asarray(total, jnp.int32) - 1)


def running_mean(average: PyTree, params: PyTree, before: Array) -> PyTree:
    """Mean of the weights, ``before`` steps of which it holds already; untouched while that is negative."""
    import optax

    def update() -> PyTree:
        share = 1.0 / (before.astype(jnp.float32) + 1.0)
        with jax.numpy_dtype_promotion("standard"):
            mean = optax.incremental_update(params, average, share)
        return jax.tree.map(lambda leaf, old: as_dtype(leaf, old.dtype), mean, average)

    return jax.lax.cond(before >= 0, update, lambda: average)


def with_new_statistics(
    model: Model, variables: Variables, inputs_of: Callable[[Array], tuple[Key, PyTree]], num_batches: int = 100
) -> Variables:
    """Batch statistics that belong to the averaged weights, from ``num_batches`` batches.

    A running mean keeps a share of what it started from: 37 % of it after 100 batches with a momentum of 0.99. Two
    starts that differ by one end apart by that share, and so it can be taken out.
    """
    old = variables.collections
    if not jax.tree.leaves(old):
        return variables

    def is_float(leaf: Array) -> bool:
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    def step(index: Array, carried: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        key, inputs = inputs_of(index.astype(jnp.int32))
        # Training reads no running statistics: the compiler runs the network once for both.
        new = [model.train(Variables(variables.params, collections), inputs, key)[1] for collections in carried]
        cast = [
            jax.tree.map(lambda leaf, old: as_dtype(leaf, old.dtype), *pair) for pair in zip(new, carried, strict=True)
        ]
        return cast[0], cast[1]

    shifted = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype) if is_float(leaf) else leaf, old)
    ends = jax.lax.fori_loop(0, num_batches, step, (old, shifted))

    def without_start(start: Array, end: Array, other_end: Array) -> Array:
        if not is_float(end):
            return end
        share = other_end - end
        running = (share > 1e-3) & (share < 0.999)
        return jnp.where(running, (end - share * start) / jnp.where(running, 1 - share, 1), end).astype(end.dtype)

    return variables._replace(collections=jax.tree.map(without_start, old, *ends))


def as_dtype(leaf: Array, dtype: jnp.dtype) -> Array:
    """``leaf`` in another dtype; keys stay what they are."""
    return leaf if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.asarray(leaf).astype(dtype)
