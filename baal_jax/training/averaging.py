"""Stochastic weight averaging: the running mean of weights, and batch statistics that belong to it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax.models import sown_losses
from baal_jax.typing import Array, Key, Model, PyTree, Variables


def share(average_from: float, total: Array | int) -> Array:
    """The first of ``total`` steps that counts, where those from the share ``average_from`` on do."""
    first = jnp.floor(average_from * jnp.asarray(total, jnp.float32)).astype(jnp.int32)
    return jnp.minimum(first, jnp.asarray(total, jnp.int32) - 1)


def running_mean(average: PyTree, params: PyTree, before: Array) -> PyTree:
    """Adds weights to a mean, whose dtypes stay.

    Args:
        average: mean so far.
        params: the next weights, a tree like ``average``.
        before: ``int32[]``, how many weights the mean holds already; while it is negative, nothing is added.

    Example:
        >>> from baal_jax.training import averaging
        >>> averaging.running_mean({"w": jnp.array(1.0)}, {"w": jnp.array(4.0)}, jnp.array(2))
        {'w': Array(2., dtype=float32, weak_type=True)}
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
    """Estimates batch statistics anew, from batches alone, for weights that training never ran with.

    Args:
        model: the network.
        variables: the weights, and batch statistics of others.
        inputs_of: ``index int32[] -> (key, inputs [B, …])``, a batch and the key of its pass.
        num_batches: how many batches to estimate from.

    Example:
        >>> from baal_jax.training import averaging
        >>> options = {"train_kwargs": {"use_running_average": False}, "predict_kwargs": {"use_running_average": True}}
        >>> model, inputs = baal.from_linen(nn.BatchNorm(momentum=0.9), **options), jnp.array([[1.0], [3.0]])
        >>> variables = model.init(jax.random.key(0), inputs)
        >>> batch = lambda index: (jax.random.key(0), inputs)
        >>> new = averaging.with_new_statistics(model, variables, batch, num_batches=3)
        >>> [f"{leaf[0]:.1f}" for leaf in jax.tree.leaves(new.collections)]
        ['2.0', '1.0']
    """
    old = variables.collections
    if not jax.tree.leaves(old):
        return variables

    def floats(function: Callable[..., Array], *trees: PyTree) -> PyTree:
        return jax.tree.map(lambda x, *more: function(x, *more) if jnp.issubdtype(x.dtype, jnp.floating) else x, *trees)

    def step(index: Array, carried: tuple[PyTree, PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
        key, inputs = inputs_of(index.astype(jnp.int32))

        def after(start: PyTree) -> PyTree:
            # Training reads no running statistics: the compiler runs the network once for all three.
            after = model.train(variables._replace(collections=start), inputs, key)[1]
            return cast_like(sown_losses(after)[0], start)

        end, own, share = carried
        added = after(floats(jnp.zeros_like, end))
        # The difference to another start, as large as what is added, tells the momentum to the last bit.
        start = floats(lambda added: jnp.where(added == 0, 1, jnp.abs(added)), added)
        momentum = floats(lambda moved, added, start: (moved - added) / start, after(start), added, start)
        own = floats(lambda own, momentum, added: momentum * own + added, own, momentum, added)
        return after(end), own, floats(jnp.multiply, share, momentum)

    # A running mean keeps a share of what it started from: 37 % after 100 batches with a momentum of 0.99, and the
    # momentum is not known here. So what it makes of the batches alone is gathered beside it, with that share.
    first = old, floats(jnp.zeros_like, old), floats(jnp.ones_like, old)
    end, own, share = jax.lax.fori_loop(0, num_batches, step, first)

    def without_start(end: Array, start: Array, own: Array, share: Array) -> Array:
        rest = share * start
        # Others are no such mean (power iterations), or no batch changes them.
        running = (share < 0.9999) & (jnp.abs(end - rest - own) <= 0.01 * (jnp.abs(rest) + jnp.abs(own)))
        return jnp.where(running, own / jnp.where(running, 1 - share, 1), end)

    return variables._replace(collections=floats(without_start, end, old, own, share))


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """``tree`` in the dtypes of ``like``, none of them weak; keys stay what they are."""

    def cast(leaf: Array, old: Array) -> Array:
        dtype = jnp.asarray(old).dtype
        return leaf if jnp.issubdtype(dtype, jax.dtypes.prng_key) else jnp.asarray(leaf).astype(dtype)

    return jax.tree.map(cast, tree, like)
