"""The gradient of a network with respect to all its parameters, sketched: features of the neural tangent kernel."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics, programs, random
from baal_jax.features._last_layer import VariablesFn, apply_to_one, variables_of
from baal_jax.typing import Array, FeatureFn, Key, Model, PyTree, Variables

_CHUNK = 2**24  # numbers that a sketch of many positions holds at a time
_GATHER = 32  # what moving a number costs, in multiplications


def gradient(
    model: Model,
    sketch_size: int | None = 512,
    *,
    key: Key | int = 0,
    scalar: Callable[[PyTree], Array] | None = None,
    variables: VariablesFn = variables_of,
) -> FeatureFn:
    r"""Gradients of an output with respect to all parameters, sketched: features of the neural tangent kernel.

    .. math:: \mathbb{E}_R \langle R \nabla_\theta f(x), R \nabla_\theta f(x') \rangle
              = \langle \nabla_\theta f(x), \nabla_\theta f(x') \rangle

    for random projections :math:`R` to ``sketch_size`` numbers, the same for every batch. A kernel used once has the
    gradient :math:`\sum_t h_t \otimes \delta_t` of what it reads and what comes back, with sketch
    :math:`\sum_t U h_t \odot V \delta_t` for random signs :math:`U, V`: such a gradient is never formed, unless that is
    cheaper. Everything else (biases, scales, shared weights) goes through a count sketch: random signs, and sums in
    ``sketch_size`` bins. The relative error of inner products falls as :math:`1 / \sqrt{\text{sketch\_size}}`.

    Args:
        model: the network.
        sketch_size: ``D``; None for the gradient ``[B, P]`` itself, as ``jax.tree.leaves(params)``: for small networks.
        key: of the projections, a typed key or a seed. The same key projects alike everywhere.
        scalar: ``outputs of one example [C] -> float``, what is differentiated. By default the output itself where
            ``C`` is 1, else the log-probability of the predicted class.
        variables: ``state -> Variables``, for a state that has no ``variables`` itself.

    Returns:
        ``(state, inputs [B, …]) -> float32 [B, sketch_size]``.

    Raises:
        ValueError: no positive ``sketch_size``; when traced, outputs that need ``scalar``, complex or random networks.

    References:
        Holzmüller et al., `A framework and benchmark for deep batch active learning for regression
        <https://arxiv.org/abs/2203.09410>`_, 2023. Charikar et al., *Finding frequent items in data streams*, 2002.

    Example:
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

    def value(params: PyTree, rest: tuple, example: PyTree) -> Array:
        number = jnp.asarray(scalar(apply_to_one(model, Variables(params, *rest), example)))
        if number.shape:
            raise ValueError(f"scalar returned shape {number.shape} for one example, but one number is needed")
        return numerics.as_float(number)

    def features(state: Any, inputs: PyTree) -> Array:
        params, *others = variables(state)
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in jax.tree.leaves(params)):
            raise ValueError("params hold complex numbers, whose gradients are not sketched")
        pairs, rest = jax.vmap(partial(_gradient_parts, value, params, others, factorise=size is not None))(inputs)
        if size is None:
            return jnp.concatenate([rest[position] for position in sorted(rest)], axis=1)
        return _sketch(jax.random.key(key) if isinstance(key, int) else key, pairs, rest, size)

    return numerics.jit(features)


def _default_scalar(outputs: PyTree) -> Array:
    need = "gradient needs one number an example: pass scalar=(outputs of one example) -> float"
    outputs = checks.one_array(outputs, need)
    if outputs.size == 1:
        return outputs.reshape(())
    if outputs.ndim != 1:
        raise ValueError(f"the outputs of one example have shape {outputs.shape}, but {need}")
    log_p = numerics.log_probs(outputs)
    return log_p[jnp.argmax(log_p)]


def _gradient_parts(
    value: Callable, params: PyTree, constants: PyTree, example: PyTree, *, factorise: bool
) -> tuple[dict[int, tuple[Array, Array]], dict[int, Array]]:
    """The gradient of one example from one backward pass."""
    # Leaf → ``(h [T, I], δ [T, O])`` where it is ``Σ_t h_t ⊗ δ_t`` (with ``factorise``), other leaves → ``[P_l]``.
    program = programs.trace(value, params, constants, example, keep_rules=True)
    layers = programs.dense_layers(program, program.arguments[0]) if factorise else {}
    position_of = {id(layer.equation): position for position, layer in layers.items()}
    leaves, structure = jax.tree.flatten(params)
    others = {
        position: leaf
        for position, leaf in enumerate(leaves)
        if position not in layers and jnp.issubdtype(leaf.dtype, jnp.floating)  # networks keep counters there too
    }

    def run(nudges: dict[int, Array], others: dict[int, Array]) -> tuple[Array, dict[int, Array]]:
        reads = {}

        # A zero is added to what every layer returns. Its gradient is δ, what comes back to the layer; h is what the
        # layer reads. Their product, the gradient of the weight, is as large as the weight and is not asked for.
        def step(equation: Any, operands: list) -> list:
            results, position = programs.run(equation, operands), position_of.get(id(equation))
            if position is None:
                return results
            reads[position] = operands[0 if layers[position].on_left else 1]
            return [results[0] + nudges[position]]

        merged = jax.tree.unflatten(structure, [others.get(i, leaf) for i, leaf in enumerate(leaves)])
        return programs.evaluate(program, merged, constants, example, step=step)[0], reads

    nudges = {position: jnp.zeros_like(layer.equation.outvars[0].aval) for position, layer in layers.items()}
    (deltas, rest), reads = jax.grad(run, argnums=(0, 1), has_aux=True)(nudges, others)
    pairs = {position: programs.factors(layers[position], reads[position], deltas[position]) for position in layers}
    return pairs, {position: numerics.as_float(leaf).ravel() for position, leaf in rest.items()}


def _sketch(key: Key, pairs: dict[int, tuple[Array, Array]], rest: dict[int, Array], size: int) -> Array:
    """The sum of the sketches of all leaves, ``float32[B, size]``, each with random words of its own."""
    pairs, formed = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (pairs, rest))
    products = []
    for position, (left, right) in sorted(pairs.items()):
        _, positions, inner = left.shape
        if _is_cheaper_formed(positions, inner, right.shape[-1], size):
            formed[position] = jnp.einsum("bti,bto->bio", left, right, precision="highest").reshape(left.shape[0], -1)
        else:
            products.append((left, right))
    flat = [formed[position] for position in sorted(formed)]
    if small := [values for values in flat if values.shape[1] < size]:
        small = [jnp.concatenate(small, axis=1)]  # together, so that few of them meet in one bin
    counted = [values for values in flat if values.shape[1] >= size] + small
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

    # Over one position there is nothing to add up, so both projections are no larger than the sketch itself.
    least = batch * positions * size / _CHUNK
    chunks = next(n for n in range(1, size + 1) if size % n == 0 and (n >= least or n == size))
    if positions == 1 or chunks == 1:
        return project(signs) / math.sqrt(size)
    rows = jax.tree.map(lambda leaf: leaf.reshape(chunks, size // chunks, -1), signs)
    parts = jax.lax.map(project, rows)  # [chunks, B, D / chunks]
    return jnp.moveaxis(parts, 0, 1).reshape(batch, size) / math.sqrt(size)


def _count_sketch(signs: Array, turns: Array, values: Array, size: int) -> Array:
    """Random signs, and every entry of ``[B, P]`` in one of ``size`` bins: exact inner products for ``P <= size``."""
    # Blocks of ``size`` entries turn by a random angle each: two of different blocks meet with chance ``1 / size``.
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
