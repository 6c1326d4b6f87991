"""The last weight layer of an unedited network, seen from one example: what it reads, and where its outputs go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from baal_jax._util import checks, numerics
from baal_jax.features import _features, _program
from baal_jax.typing import Array, Model, PyTree, Variables


class Head(NamedTuple):
    """Outputs of one example as a function of a deviation ``ΔW [D, K]`` of the last layer: ``f + J(hᵀ ΔW)``.

    Attributes:
        hidden: ``h [D]``, what the layer reads.
        outputs: ``f``, ``[C]`` or ``[]``, of the network as it is.
        push: ``J``, from a deviation ``[K]`` of what the layer returns to ``[C]`` of the outputs: the derivative of all
            that follows, so the identity where nothing but a bias does.
        width: ``K``.
        weight_norm: ``‖W‖²``.
        offset: ``[C]``, the outputs without what the layer returns: the bias, where nothing else follows.
    """

    hidden: Array
    outputs: Array
    push: Callable[[Array], Array]
    width: int
    weight_norm: Array
    offset: Array

    def pull(self, cotangents: Array) -> Array:
        """``G J`` for rows ``G [M, C]``, hence ``[M, K]``."""
        transpose = jax.linear_transpose(self.push, jnp.zeros(self.width, cotangents.dtype))
        return jax.vmap(lambda row: transpose(row)[0])(cotangents)


def head(model: Model, variables: Variables, example: PyTree) -> Head:
    """Finds the last layer in the traced program and differentiates what comes after it, and that alone.

    Positions that meet the same weights (tokens, the pixels of a 1×1 convolution) are averaged: the same, where what
    follows takes their mean or sum.

    Raises:
        ValueError: there is no such layer, or the outputs of one example are not ``[C]``.
    """

    def network(params: PyTree, collections: PyTree, example: PyTree) -> PyTree:
        return _features._apply_to_one(model, Variables(params, collections), example)

    arguments = *variables, example
    program = _program.trace(network, *arguments)
    layer = _program.last_layer(program, program.arguments[0], program.arguments[2])
    product = layer.equation.outvars[0].aval
    channels = _weight_axes(layer)
    width = math.prod(product.shape[axis] for axis in channels)
    spread = [size if axis in channels else 1 for axis, size in enumerate(product.shape)]

    def deviate(deviation: Array) -> tuple[Array, Any]:
        seen = []

        def after(equation: Any, read: Callable, results: list) -> list:
            if equation is not layer.equation:
                return results
            seen.extend([*map(read, equation.invars), results[0]])
            return [results[0] + jnp.broadcast_to(deviation.reshape(spread), product.shape).astype(product.dtype)]

        outputs = _program.evaluate(program, *arguments, after=after)
        array = checks.one_array(outputs, "a last-layer posterior needs outputs [B, C]")
        if array.ndim > 1:
            raise ValueError(
                f"the outputs of one example have shape {array.shape}, but a last-layer posterior needs [C]"
            )
        return numerics.as_float(array).reshape(-1), (tuple(seen), array)

    start = jnp.zeros(width, numerics.as_float(jnp.zeros((), product.dtype)).dtype)
    flat, push, ((left, right, found), outputs) = jax.linearize(deviate, start, has_aux=True)
    read, weight = (left, right) if layer.on_left else (right, left)
    positions = tuple(axis for axis in range(found.ndim) if axis not in channels)
    returned = jnp.mean(numerics.as_float(found), axis=positions).reshape(-1)
    norm = jnp.sum(numerics.as_float(weight) ** 2)
    hidden = _program.features_of(layer, read)
    return Head(hidden, numerics.as_float(outputs), push, width, norm, flat - push(returned))


def inputs_of(hidden: Array, rows: int) -> Array:
    """``h``, with a constant 1 for the bias where the deviation has a row more than ``h`` has entries."""
    return hidden if hidden.shape[0] == rows else jnp.append(hidden, jnp.ones((), hidden.dtype))


def _weight_axes(layer: _program.Layer) -> tuple[int, ...]:
    """Axes of what the layer returns that belong to its weight; all others are positions."""
    equation = layer.equation
    options, num_axes = equation.params, equation.outvars[0].aval.ndim
    if equation.primitive is primitives.dot_general_p:
        contracted, shared = options["dimension_numbers"]
        weight = equation.invars[1 if layer.on_left else 0].aval
        own = weight.ndim - len(contracted[0])
        if not shared[0]:
            return tuple(range(num_axes - own, num_axes)) if layer.on_left else tuple(range(own))
    elif options["feature_group_count"] == options["batch_group_count"] == 1:
        spatial = options["dimension_numbers"].rhs_spec[2:]
        if all(equation.invars[1].aval.shape[axis] == 1 for axis in spatial):
            return (options["dimension_numbers"].out_spec[1],)
    raise ValueError(
        "the last weight layer is a grouped product or a convolution of more than one pixel, whose weights are no "
        "matrix: end the network with a dense layer or a 1×1 convolution"
    )
