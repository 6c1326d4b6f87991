"""Stochastic weight averaging: the running mean of weights, and batch statistics that belong to it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax.typing import Array, Key, Model, PyTree, Variables


def share(average_from: float, total: Array | int) -> Array:
    """The first of ``total`` steps that counts, where those from the share ``average_from`` on do."""
    first = jnp.floor(average_from * jnp.asarray(total, jnp.float32)).astype(jnp.int32)
    return jnp.minimum(first, jnp.asarray(total, jnp.int32) - 1)


def running_mean(average: PyTree, params: PyTree, before: Array) -> PyTree:
    """Adds weights to a mean.

    Args:
        average: mean so far.
        params: the next weights, a tree like ``average``.
        before: ``int32[]``, how many weights the mean holds already; while it is negative, nothing is added.

    Returns:
        The new mean, in the dtypes of ``average``.
    """
    import optax

    def update() -> PyTree:
        share = 1.0 / (before.astype(jnp.float32) + 1.0)
        with jax.numpy_dtype_promotion("standard"):
            return cast_like(optax.incremental_update(params, average, share), average)

    return jax.lax.cond(before >= 0, update, lambda: average)


def with_new_statistics(
    model: Model, variables: Variables, inputs_of: Callable[[Array], tuple[Key, PyTree]], num_batches: int = 100
) -> Variables:
    """Estimates batch statistics anew, for weights that training never ran with.

    Args:
        model: the network.
        variables: the weights, and batch statistics of others.
        inputs_of: ``index int32[] -> (key, inputs [B, …])``, a batch and the key of its pass.
        num_batches: how many batches to estimate from.

    Returns:
        The same weights with statistics of the batches alone.
    """
    old = variables.collections
    if not jax.tree.leaves(old):
        return variables

    def is_float(leaf: Array) -> bool:
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    def step(index: Array, carried: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        key, inputs = inputs_of(index.astype(jnp.int32))
        # Training reads no running statistics: the compiler runs the network once for both.
        one, other = (model.train(Variables(variables.params, start), inputs, key)[1] for start in carried)
        return cast_like(one, carried[0]), cast_like(other, carried[1])

    # A running mean keeps a share of what it started from: 37 % after 100 batches with a momentum of 0.99, and the
    # momentum is not known here. Two passes that start one apart end apart by just that share, so it can be taken out.
    shifted = jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype) if is_float(leaf) else leaf, old)
    ends = jax.lax.fori_loop(0, num_batches, step, (old, shifted))

    def without_start(start: Array, end: Array, other_end: Array) -> Array:
        if not is_float(end):
            return end
        share = other_end - end
        running = (share > 1e-3) & (share < 0.999)  # others have forgotten their start, or no batch changes them
        return jnp.where(running, (end - share * start) / jnp.where(running, 1 - share, 1), end).astype(end.dtype)

    return variables._replace(collections=jax.tree.map(without_start, old, *ends))


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """``tree`` in the dtypes of ``like``, none of them weak; keys stay what they are."""

    def cast(leaf: Array, old: Array) -> Array:
        dtype = jnp.asarray(old).dtype
        return leaf if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.asarray(leaf).astype(dtype)

    return jax.tree.map(cast, tree, like)
