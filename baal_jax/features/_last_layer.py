"""The last layer of any network: what it reads, its gradients, and what a change of it changes."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from baal_jax._util import checks, numerics, programs
from baal_jax.typing import Array, FeatureFn, Model, PyTree, Variables

VariablesFn = Callable[[Any], Variables]


class Head(NamedTuple):
    """Outputs of one example as a function of a deviation ``ΔW [D, K]`` of the last layer: ``f + J(hᵀ ΔW)``.

    Attributes:
        hidden: ``h [D]``, what the layer reads.
        outputs: ``f``, ``[C]`` or ``[]``, of the network as it is.
        push: ``J``, from a deviation ``[K]`` of what the layer returns to ``[C]`` of the outputs, by all that follows.
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

    def with_bias_row(self, rows: int) -> Array:
        """``h [rows]``, with a constant 1 as last entry where ``ΔW`` has a row more than the layer reads, the bias."""
        return self.hidden if self.hidden.shape[0] == rows else _with_one(self.hidden)


def variables_of(state: Any) -> Variables:
    """Where features find the network in the state of a posterior, or weights by themselves."""
    if isinstance(state, Variables):
        return state
    if not hasattr(state, "variables"):
        raise ValueError(f"state is a {type(state).__name__} without variables: pass variables=(state) -> Variables")
    return state.variables


def apply_to_one(model: Model, variables: Variables, example: PyTree) -> PyTree:
    """Outputs of one example, without randomness."""
    outputs = model.deterministic(variables, jax.tree.map(lambda leaf: leaf[None], example))
    return jax.tree.map(lambda leaf: leaf[0], outputs)


def last_hidden(model: Model, *, bias: bool = False, variables: VariablesFn = variables_of) -> FeatureFn:
    r"""What the last weight layer of a network reads: its penultimate representation.

    The layer is found in the traced program of any module system: the last matrix product or convolution, in program
    order, of what depends on parameters alone with what depends on the inputs. What comes after it is not computed.

    .. math:: h(x) \quad\text{of}\quad f(x) = g(W h(x))

    Positions that meet the same weights (the pixels of a final convolution, the tokens of a dense layer) are averaged,
    so a convolutional head with a global mean after it gives the mean map. Of several outputs the last layer counts.

    Args:
        model: the network.
        bias: whether to append a constant 1, the input of a bias.
        variables: ``state -> Variables``, for a state that has no ``variables`` itself.

    Returns:
        ``(state, inputs [B, …]) -> float [B, D]``, or ``[B, D + 1]`` with ``bias``.

    Example:
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> hidden = baal.features.last_hidden(model, variables=lambda state: state)
        >>> hidden(variables, jnp.ones((2, 4))).shape
        (2, 5)
    """

    def features(state: Any, inputs: PyTree) -> Array:
        hidden = jax.vmap(lambda example: _hidden_and_outputs(model, variables(state), example)[0])(inputs)
        return _with_one(hidden) if bias else hidden

    return numerics.jit(features)


def last_layer_gradient(
    model: Model, *, bias: bool | None = None, variables: VariablesFn = variables_of
) -> Callable[[Any, PyTree], Any]:
    r"""Gradients with respect to the weights of the last layer, never multiplied out.

    With one output (regression), that of the last layer's output with respect to its kernel and bias; with classes,
    that of the cross-entropy with the predicted class :math:`\hat y` as label, as BADGE has it (Ash et al. 2020;
    ``selection.badge`` makes its own, of the mean over draws and :func:`last_hidden`):

    .. math:: \nabla_W f = (h, 1), \qquad \nabla_W \ell = (p - e_{\hat y}) \otimes h

    The second is returned as its two factors, whose inner products multiply. Exact where the outputs are what that
    layer gives, met once; after a temperature, a sum over positions or another function use :func:`gradient`.

    Args:
        model: a network with outputs ``[B, C]`` (or ``[B]``), logits where ``C > 1``.
        bias: whether the bias counts, as a constant 1 beside ``h``; by default for one output and not for classes.
        variables: ``state -> Variables``, for a state that has no ``variables`` itself.

    Returns:
        ``(state, inputs [B, …]) -> [B, D + 1]`` for one output, else ``(p − e_ŷ [B, C], h [B, D])``.

    Example:
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> badge = baal.features.last_layer_gradient(model, variables=lambda state: state)
        >>> [part.shape for part in badge(variables, jnp.ones((2, 4)))]
        [(2, 3), (2, 5)]
    """

    def features(state: Any, inputs: PyTree) -> Any:
        hidden, outputs = hidden_and_outputs(model, variables(state), inputs)
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            return hidden if bias is False else _with_one(hidden)
        log_p = numerics.log_probs(outputs)
        residual = jnp.exp(log_p) - jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1], dtype=log_p.dtype)
        return residual, _with_one(hidden) if bias else hidden

    return numerics.jit(features)


def hidden_and_outputs(model: Model, variables: Variables, inputs: PyTree) -> tuple[Array, Array]:
    """What the last weight layer reads, as in :func:`last_hidden`, and what the network returns, from one pass.

    Args:
        model: a network with one array of outputs, ``[B, C]`` or ``[B]``.
        variables: its weights.
        inputs: ``[B, …]``.

    Returns:
        ``(h [B, D], outputs)``, both in at least float32.

    Example:
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> [part.shape for part in baal.features.hidden_and_outputs(model, variables, jnp.ones((2, 4)))]
        [(2, 5), (2, 3)]
    """

    def one(example: PyTree) -> tuple[Array, Array]:
        hidden, outputs = _hidden_and_outputs(model, variables, example)
        return hidden, _one_row(outputs)

    return jax.vmap(one)(inputs)


def head(model: Model, variables: Variables, example: PyTree) -> Head:
    """Outputs of one example as a function of the weights of the last layer, linear in a deviation of these.

    The last layer is found in the traced program, as by :func:`last_hidden`, and what comes after it, and that alone,
    is differentiated. Positions that meet the same weights (tokens, pixels) are averaged: right for means and sums.

    Args:
        model: a network with one array of outputs, ``[B, C]`` or ``[B]``.
        variables: its weights.
        example: one input, without a leading axis; ``vmap`` over those of a batch.

    Example:
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> baal.features.head(model, variables, jnp.ones(4)).outputs.shape
        (3,)
    """
    program, layer = _read_network(model, variables, example)
    product = layer.equation.outvars[0].aval
    channels = _weight_axes(layer)
    width = math.prod(product.shape[axis] for axis in channels)
    spread = [size if axis in channels else 1 for axis, size in enumerate(product.shape)]

    def deviate(deviation: Array) -> tuple[Array, Any]:
        seen = []

        def step(equation: Any, operands: list) -> list:
            results = programs.run(equation, operands)
            if equation is not layer.equation:
                return results
            seen.extend([*operands, *results])
            return [results[0] + jnp.broadcast_to(deviation.reshape(spread), product.shape).astype(product.dtype)]

        outputs = _one_row(programs.evaluate(program, *variables, example, step=step))
        return outputs.reshape(-1), (tuple(seen), outputs)

    # Linearised at no deviation: what comes before the layer does not depend on it and is computed once, not twice.
    start = jnp.zeros(width, numerics.as_float(jnp.zeros((), product.dtype)).dtype)
    flat, push, ((left, right, returned), outputs) = jax.linearize(deviate, start, has_aux=True)
    read, weight = (left, right) if layer.on_left else (right, left)
    positions = tuple(axis for axis in range(returned.ndim) if axis not in channels)
    mean = jnp.mean(numerics.as_float(returned), axis=positions).reshape(-1)
    norm = jnp.sum(numerics.as_float(weight) ** 2)
    return Head(programs.features_of(layer, read), outputs, push, width, norm, flat - push(mean))


def _read_network(model: Model, variables: Variables, example: PyTree) -> tuple[programs.Program, programs.Layer]:
    network = lambda params, rest, example: apply_to_one(model, Variables(params, *rest), example)  # noqa: E731
    program = programs.trace(network, variables.params, variables[1:], example)
    return program, programs.last_layer(program, program.arguments[0], program.arguments[2])


def _hidden_and_outputs(model: Model, variables: Variables, example: PyTree) -> tuple[Array, PyTree]:
    program, layer = _read_network(model, variables, example)
    read, *outputs = programs.evaluate(program._replace(outputs=[layer.read, *program.outputs]), *variables, example)
    return programs.features_of(layer, read), jax.tree.unflatten(program.structure, outputs)


def _one_row(outputs: PyTree) -> Array:
    """The outputs of one example, ``[C]`` or ``[]``."""
    need = "what reads the last layer needs [C] of one example"
    outputs = checks.one_array(outputs, need)
    if outputs.ndim > 1:
        raise ValueError(f"the outputs of one example have shape {outputs.shape}, but {need}")
    return numerics.as_float(outputs)


def _with_one(hidden: Array) -> Array:
    return jnp.concatenate([hidden, jnp.ones((*hidden.shape[:-1], 1), hidden.dtype)], axis=-1)


def _weight_axes(layer: programs.Layer) -> tuple[int, ...]:
    """Axes of what the layer returns that belong to its weight; all others are positions."""
    equation = layer.equation
    options, num_axes = equation.params, equation.outvars[0].aval.ndim
    if equation.primitive is primitives.dot_general_p:
        contracted, shared = options["dimension_numbers"]
        own = equation.invars[1 if layer.on_left else 0].aval.ndim - len(contracted[0])
        if not shared[0]:
            return tuple(range(num_axes - own, num_axes)) if layer.on_left else tuple(range(own))
    elif options["feature_group_count"] == options["batch_group_count"] == 1:
        spatial = options["dimension_numbers"].rhs_spec[2:]
        if all(equation.invars[1].aval.shape[axis] == 1 for axis in spatial):
            return (options["dimension_numbers"].out_spec[1],)
    why = "a grouped product or a convolution of more than one pixel, whose weights are no matrix"
    raise ValueError(f"the last weight layer is {why}: end the network with a dense layer or a 1×1 convolution")
