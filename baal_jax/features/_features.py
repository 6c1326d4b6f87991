"""Features of a network: what its last layer reads, the gradients of that layer, and of everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics, random
from baal_jax.features import _program
from baal_jax.typing import Array, FeatureFn, Key, Model, PyTree, Variables

VariablesFn = Callable[[Any], Variables]

_CHUNK = 2**24  # numbers that a sketch of many positions holds at a time
_GATHER = 32  # what moving a number costs, in multiplications


def _of_train_state(state: Any) -> Variables:
    if not hasattr(state, "variables"):
        raise ValueError(
            f"the state is a {type(state).__name__} without variables: pass variables=(state) -> Variables, for "
            "example lambda state: baal_jax.Variables(state.params, {})"
        )
    return state.variables


def last_hidden(model: Model, *, bias: bool = False, variables: VariablesFn = _of_train_state) -> FeatureFn:
    r"""What the last weight layer of a network reads: its penultimate representation.

    The layer is found in the traced program, in whatever module system it was written: the last matrix product or
    convolution, in program order, of something that depends on parameters alone with something that depends on the
    inputs. What comes after it (biases, softmax, temperature) does not matter and is not computed.

    .. math:: h(x) \quad\text{of}\quad f(x) = g(W h(x))

    Positions that meet the same weights (the pixels of a final convolution, the tokens of a dense layer) are averaged,
    so a convolutional head with a global mean after it gives the mean map. A network with several outputs gives what
    its last layer in program order reads.

    Args:
        model: the network.
        bias: whether to append a constant 1, the input of a bias.
        variables: ``state -> Variables``, for a state that is not a :class:`~baal_jax.TrainState`.

    Returns:
        ``(state, inputs [B, …]) -> float [B, D]``, or ``[B, D + 1]`` with ``bias``.

    Raises:
        ValueError: when it is traced, where the network has no weight layer, has it within a loop or a branch, or
            stays random.

    Example:
        >>> import baal_jax as baal, flax.linen as nn
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> hidden = baal.features.last_hidden(model, variables=lambda state: state)
        >>> hidden(variables, jnp.ones((2, 4))).shape
        (2, 5)
    """

    def features(state: Any, inputs: PyTree) -> Array:
        hidden, _ = hidden_and_outputs(model, variables(state), inputs)
        return _with_one(hidden) if bias else hidden

    return jax.jit(features)


def last_layer_gradient(
    model: Model, *, bias: bool | None = None, variables: VariablesFn = _of_train_state
) -> Callable[[Any, PyTree], Any]:
    r"""Gradients with respect to the weights of the last layer, never multiplied out.

    With one output (regression), that of the last layer's output with respect to its kernel and bias; with classes,
    that of the cross-entropy with the predicted class :math:`\hat y` as label, the embedding of BADGE:

    .. math:: \nabla_W f = (h, 1), \qquad \nabla_W \ell = (p - e_{\hat y}) \otimes h

    The second is returned as its two factors. Inner products of outer products are products of inner products,
    :math:`\langle a \otimes h, a' \otimes h' \rangle = \langle a, a' \rangle \langle h, h' \rangle`, so an array
    ``[B, C · D]`` is not needed. Exact where the outputs are what that layer gives, met once; after a temperature, a
    sum over positions or another function it is a stand-in: use :func:`gradient`.

    Args:
        model: a network with outputs ``[B, C]`` (or ``[B]``), logits where ``C > 1``.
        bias: whether the bias counts, as a constant 1 beside ``h``. By default it does for one output and, as in
            BADGE, does not for classes.
        variables: ``state -> Variables``, for a state that is not a :class:`~baal_jax.TrainState`.

    Returns:
        ``(state, inputs [B, …]) -> [B, D + 1]`` for one output, else
        ``(p − e_ŷ [B, C], h [B, D])``.

    Raises:
        ValueError: when it is traced, as :func:`last_hidden`, and for outputs of another shape.

    References:
        Ash et al., `Deep batch active learning by diverse, uncertain gradient lower bounds
        <https://arxiv.org/abs/1906.03671>`_, 2020.

    Example:
        >>> import baal_jax as baal, flax.linen as nn
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> badge = baal.features.last_layer_gradient(model, variables=lambda state: state)
        >>> [part.shape for part in badge(variables, jnp.ones((2, 4)))]
        [(2, 3), (2, 5)]
    """

    def features(state: Any, inputs: PyTree) -> Any:
        hidden, outputs = hidden_and_outputs(model, variables(state), inputs)
        outputs = checks.one_array(outputs, "last_layer_gradient needs outputs [B, C]")
        if outputs.ndim > 2:
            raise ValueError(f"the outputs have shape {outputs.shape}, but last_layer_gradient needs [B, C]")
        if outputs.ndim == 1 or outputs.shape[1] == 1:
            return hidden if bias is False else _with_one(hidden)
        log_p = numerics.log_probs(outputs)
        residual = jnp.exp(log_p) - jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1], dtype=log_p.dtype)
        return residual, _with_one(hidden) if bias else hidden

    return jax.jit(features)


def gradient(
    model: Model,
    sketch_size: int | None = 512,
    *,
    key: Key | int = 0,
    scalar: Callable[[PyTree], Array] | None = None,
    variables: VariablesFn = _of_train_state,
) -> FeatureFn:
    r"""Gradients of an output with respect to all parameters, sketched: features of the neural tangent kernel.

    .. math:: \mathbb{E}_R \langle R \nabla_\theta f(x), R \nabla_\theta f(x') \rangle
              = \langle \nabla_\theta f(x), \nabla_\theta f(x') \rangle

    for random projections :math:`R` to ``sketch_size`` numbers, the same for every batch. A kernel used once has the
    gradient :math:`\sum_t h_t \otimes \delta_t` of what it reads and what comes back, with sketch
    :math:`\sum_t U h_t \odot V \delta_t` for random signs :math:`U, V`: such a gradient is never formed, unless that is
    cheaper. Everything else (biases, scales, shared weights) goes through a count sketch: coordinates get random signs
    and are summed in ``sketch_size`` bins. The relative error of an inner product falls as
    :math:`1 / \sqrt{\text{sketch\_size}}`.

    Args:
        model: the network.
        sketch_size: ``D``; None returns the gradient itself, ``[B, P]`` for ``P`` parameters, in the order of
            ``jax.tree.leaves(params)``: for small networks.
        key: of the projections, a typed key or a seed. The same key projects alike everywhere.
        scalar: ``outputs of one example [C] -> float``, what is differentiated. By default the output itself where
            ``C`` is 1, else the log-probability of the predicted class.
        variables: ``state -> Variables``, for a state that is not a :class:`~baal_jax.TrainState`.

    Returns:
        ``(state, inputs [B, …]) -> float32 [B, sketch_size]``.

    Raises:
        ValueError: ``sketch_size`` is not positive; and, when it is traced, for outputs that need ``scalar``, complex
            parameters, or a network that stays random.

    References:
        Holzmüller et al., `A framework and benchmark for deep batch active learning for regression
        <https://arxiv.org/abs/2203.09410>`_, 2023. Charikar et al., *Finding frequent items in data streams*, 2002.

    Example:
        >>> import baal_jax as baal, flax.linen as nn
        >>> model = baal.from_linen(nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(1)]))
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> sketch = baal.features.gradient(model, sketch_size=8, variables=lambda state: state)
        >>> sketch(variables, jnp.ones((2, 4))).shape
        (2, 8)
    """
    size = None if sketch_size is None else checks.positive_int("sketch_size", sketch_size)
    scalar = _default_scalar if scalar is None else scalar
    if not isinstance(key, int):
        checks.typed_key("key", key)

    def value(params: PyTree, collections: PyTree, example: PyTree) -> Array:
        result = jnp.asarray(scalar(_apply_to_one(model, Variables(params, collections), example)))
        if result.shape:
            raise ValueError(f"scalar returned shape {result.shape} for one example, but one number is needed")
        return numerics.as_float(result)

    def features(state: Any, inputs: PyTree) -> Array:
        params, collections = variables(state)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(params)):
            raise ValueError("params hold complex numbers, whose gradients are not sketched")
        if size is None:
            return jax.vmap(lambda example: _exact_gradient(value, params, collections, example))(inputs)
        pairs, rest = jax.vmap(lambda example: _gradient_parts(value, params, collections, example))(inputs)
        return _sketch(jax.random.key(key) if isinstance(key, int) else key, pairs, rest, size)

    return jax.jit(features)


def _apply_to_one(model: Model, variables: Variables, example: PyTree) -> PyTree:
    outputs = model.deterministic(variables, jax.tree.map(lambda leaf: leaf[None], example))
    return jax.tree.map(lambda leaf: leaf[0], outputs)


def hidden_and_outputs(model: Model, variables: Variables, inputs: PyTree) -> tuple[Array, PyTree]:
    """What the last weight layer reads, as in :func:`last_hidden`, and what the network returns, from one pass.

    Args:
        model: the network.
        variables: its weights.
        inputs: ``[B, …]``.

    Returns:
        ``(h [B, D], outputs [B, …])``.
    """

    def network(params: PyTree, collections: PyTree, example: PyTree) -> PyTree:
        return _apply_to_one(model, Variables(params, collections), example)

    def one(example: PyTree) -> tuple[Array, PyTree]:
        arguments = *variables, example
        program = _program.trace(network, *arguments)
        layer = _program.last_layer(program, program.arguments[0], program.arguments[2])
        read, *outputs = _program.evaluate(program._replace(outputs=[layer.read, *program.outputs]), *arguments)
        return _program.features_of(layer, read), jax.tree.unflatten(program.structure, outputs)

    return jax.vmap(one)(inputs)


def _with_one(hidden: Array) -> Array:
    return jnp.concatenate([hidden, jnp.ones((hidden.shape[0], 1), hidden.dtype)], axis=1)


def _default_scalar(outputs: PyTree) -> Array:
    need = "gradient needs one number an example: pass scalar=(outputs of one example) -> float"
    outputs = checks.one_array(outputs, need)
    if outputs.size == 1:
        return outputs.reshape(())
    if outputs.ndim != 1:
        raise ValueError(f"the outputs of one example have shape {outputs.shape}, but {need}")
    log_p = numerics.log_probs(outputs)
    return log_p[jnp.argmax(log_p)]


def _exact_gradient(value: Callable, params: PyTree, collections: PyTree, example: PyTree) -> Array:
    leaves, structure = jax.tree.flatten(params)
    moving = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def of_moving(moved: list) -> Array:
        source = iter(moved)
        merged = [next(source) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)]
        return value(jax.tree.unflatten(structure, merged), collections, example)

    found = jax.grad(of_moving)([leaf for leaf, moves in zip(leaves, moving, strict=True) if moves])
    return jnp.concatenate([numerics.as_float(leaf).ravel() for leaf in found])


def _gradient_parts(
    value: Callable, params: PyTree, collections: PyTree, example: PyTree
) -> tuple[dict[int, tuple[Array, Array]], dict[int, Array]]:
    """The gradient of one example from one backward pass.

    Returns:
        Position of a leaf → ``(h [T, I], δ [T, O])`` where its gradient is ``Σ_t h_t ⊗ δ_t``, and position of every
        other leaf → its gradient ``[P_l]``.
    """
    program = _program.trace(value, params, collections, example, keep_rules=True)
    layers = _program.dense_layers(program, program.arguments[0])
    position_of = {id(layer.equation): position for position, layer in layers.items()}
    leaves, structure = jax.tree.flatten(params)
    others = {
        position: leaf
        for position, leaf in enumerate(leaves)
        if position not in layers and jnp.issubdtype(leaf.dtype, jnp.floating)
    }

    def run(nudges: dict[int, Array], others: dict[int, Array]) -> tuple[Array, dict[int, Array]]:
        reads = {}

        def after(equation: Any, read: Callable, results: list) -> list:
            position = position_of.get(id(equation))
            if position is None:
                return results
            reads[position] = read(layers[position].read)
            return [results[0] + nudges[position]]

        moved = [others.get(position, leaf) for position, leaf in enumerate(leaves)]
        outputs = _program.evaluate(program, jax.tree.unflatten(structure, moved), collections, example, after=after)
        return outputs[0], reads

    shapes = {position: layer.equation.outvars[0].aval for position, layer in layers.items()}
    nudges = {position: jnp.zeros(shape.shape, shape.dtype) for position, shape in shapes.items()}
    (deltas, rest), reads = jax.grad(run, argnums=(0, 1), has_aux=True)(nudges, others)
    pairs = {position: _program.factors(layers[position], reads[position], deltas[position]) for position in layers}
    return pairs, {position: numerics.as_float(leaf).ravel() for position, leaf in rest.items()}


def _sketch(key: Key, pairs: dict[int, tuple[Array, Array]], rest: dict[int, Array], size: int) -> Array:
    """The sum of the sketches of all leaves, ``float32[B, size]``, each with random words of its own."""
    pairs, rest = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (pairs, rest))
    products, counted, small = [], [], []
    for position in sorted({*pairs, *rest}):
        if position in pairs:
            left, right = pairs[position]
            (positions, inner), outer = left.shape[1:], right.shape[-1]
            if not _is_cheaper_formed(positions, inner, outer, size):
                products.append((left, right))
                continue
            formed = jnp.einsum("bti,bto->bio", left, right, precision="highest").reshape(left.shape[0], -1)
        else:
            formed = rest[position]
        (small if formed.shape[1] < size else counted).append(formed)
    if small:
        counted.append(jnp.concatenate(small, axis=1))  # together, so that few of them meet in one bin
    if not products and not counted:
        raise ValueError("the network has no parameters, so there is no gradient")
    blocks = [-(-values.shape[1] // size) for values in counted]
    signs = [factor.shape[-1] * size for pair in products for factor in pair] + [n * size for n in blocks]
    lengths = [-(-count // 32) for count in signs] + blocks
    # One stream for all: every call of a generator costs a tenth of a second to compile.
    words = jax.random.bits(random.vectorised(key), (sum(lengths),), jnp.uint32)
    stream = iter(jnp.split(words, list(itertools.accumulate(lengths))[:-1]))
    signs = iter([_signs(next(stream), count) for count in signs])
    total = [_product_sketch(next(signs), next(signs), left, right, size) for left, right in products]
    total += [_count_sketch(next(signs), next(stream), values, size) for values in counted]
    return sum(total[1:], total[0])


def _is_cheaper_formed(positions: int, inner: int, outer: int, size: int) -> bool:
    """Whether ``Σ_t h_t ⊗ δ_t`` is formed and its entries summed, rather than both factors projected."""
    return inner * outer * (positions + _GATHER) <= size * positions * (inner + outer)


def _product_sketch(signs_left: Array, signs_right: Array, left: Array, right: Array, size: int) -> Array:
    """``Σ_t U h_t ⊙ V δ_t / √D``, from ``h [B, T, I]`` and ``δ [B, T, O]``, some rows of ``U [D, I]`` at a time."""
    batch, positions, _ = left.shape
    signs = signs_left.reshape(size, -1), signs_right.reshape(size, -1)

    def project(signs: tuple[Array, Array]) -> Array:
        both = [jnp.matmul(x, r.T, precision="highest") for x, r in zip((left, right), signs, strict=True)]
        return jnp.sum(both[0] * both[1], axis=1)

    least = batch * positions * size / _CHUNK
    chunks = next(n for n in range(1, size + 1) if size % n == 0 and (n >= least or n == size))
    if positions == 1 or chunks == 1:
        return project(signs) / math.sqrt(size)
    rows = jax.tree.map(lambda leaf: leaf.reshape(chunks, size // chunks, -1), signs)
    parts = jax.lax.map(project, rows)  # [chunks, B, D / chunks]
    return jnp.moveaxis(parts, 0, 1).reshape(batch, size) / math.sqrt(size)


def _count_sketch(signs: Array, turns: Array, values: Array, size: int) -> Array:
    """Random signs, and every entry of ``[B, P]`` in one of ``size`` bins: exact inner products for ``P <= size``.

    Blocks of ``size`` entries turn by a random angle each, so that any two entries of different blocks meet with
    probability ``1 / size``, and those of one block never.
    """
    batch, length = values.shape
    blocks = len(turns)
    turns = (turns % jnp.uint32(size)).astype(jnp.int32)[:, None]
    within, block = jnp.arange(size, dtype=jnp.int32), jnp.arange(blocks, dtype=jnp.int32)
    places = (within[None] + turns) % size + size * block[:, None]
    signed = jnp.pad(values, ((0, 0), (0, blocks * size - length))) * signs[None]
    return jnp.sum(jnp.take(signed, places.ravel(), axis=1, mode="clip").reshape(batch, blocks, size), axis=1)


def _signs(words: Array, count: int) -> Array:
    """Random signs, 32 from each random word."""
    bits = (words[:, None] >> jnp.arange(32, dtype=jnp.uint32)[None]) & jnp.uint32(1)
    return bits.ravel()[:count].astype(jnp.float32) * 2.0 - 1.0
