"""Traced programs, read and rewritten: equations replaced, and weight layers found with what their gradients are of.

A network of any module system becomes one flat list of equations (:func:`trace`), in which a weight layer is a
``dot_general`` or a convolution between a parameter and something that depends on the inputs. Run again by
:func:`evaluate`, it shows what a layer reads, and the gradient that comes back by a number added to what it returns.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend import core, source_info_util
from jax.extend.core import primitives

from baal_jax._util import numerics, windows

_CALLS = (primitives.jit_p, primitives.closed_call_p, primitives.call_p, primitives.remat_p)  # and nothing else
_WITH_RULES = (primitives.custom_jvp_call_p, primitives.custom_vjp_call_p)  # functions with derivatives of their own
_WHOLE = ("custom_vjp_call", "shard_map")  # with a backward pass of their own, or with axes that are named there
_PRODUCTS = (primitives.dot_general_p, *windows.CONVOLUTIONS)
_RESHAPES = (primitives.reshape_p, primitives.transpose_p, primitives.squeeze_p, primitives.convert_element_type_p)


class Program(NamedTuple):
    """A traced function without calls and without dead code."""

    equations: list  # what is computed, in order
    arguments: list[list]  # variables of the leaves of its arguments, one list an argument
    outputs: list  # variables (or literals) of the leaves of what it returns
    structure: Any  # of what it returns
    constants: dict  # variable → value, of what the function closes over


class Layer(NamedTuple):
    """A product of a weight and something else."""

    equation: Any  # dot_general or conv_general_dilated
    read: Any  # variable of what the weight meets
    on_left: bool  # whether that is the left operand


def trace(function: Callable, *arguments: Any, keep_rules: bool = False) -> Program:
    """Traces a function of pytrees of arrays into a flat :class:`Program`.

    With ``keep_rules``, functions with derivatives of their own stay whole, as differentiation needs.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)

    def opened(equation: Any, *operands: Any) -> list:
        return _replayed(equation.params.get("jaxpr") or equation.params["call_jaxpr"], operands, rules)

    rules: dict = dict.fromkeys((*_CALLS, *(() if keep_rules else _WITH_RULES)), opened)
    flat = rewritten(closed, rules)
    variables = iter(flat.jaxpr.invars)
    grouped = [list(itertools.islice(variables, len(jax.tree.leaves(argument)))) for argument in arguments]
    constants = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
    outputs, structure = list(flat.jaxpr.outvars), jax.tree.structure(shapes)
    return Program(_needed(flat.jaxpr.eqns, outputs), grouped, outputs, structure, constants)


def run(equation: Any, operands: list) -> list:
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return results if equation.primitive.multiple_results else [results]


def rewritten(closed: core.ClosedJaxpr, rules: Mapping[core.Primitive, Callable]) -> core.ClosedJaxpr:
    """The program with equations computed by ``rules`` of their primitives, wherever they are; itself without any.

    A rule is ``(equation, *operands) -> results``, or None to leave the equation as it is. Programs inside (calls,
    loops, branches, remat) are rewritten as well, except where ``_WHOLE`` says.
    """
    if not _holds(closed.jaxpr, rules):
        return closed
    return jax.make_jaxpr(lambda *arguments: _replayed(closed, arguments, rules))(*closed.in_avals)


def evaluate(program: Program, *arguments: Any, step: Callable[[Any, list], list] = run) -> list:
    """Leaves of the outputs. ``step``, by default :func:`run`, may look at what equations read and change results."""
    values = dict(zip(itertools.chain(*program.arguments), jax.tree.leaves(arguments), strict=True))
    return _interpret(program.equations, {**program.constants, **values}, program.outputs, step)


def last_layer(program: Program, params: Sequence, inputs: Sequence) -> Layer:
    """The last product of what depends on parameters alone and what depends on the inputs; one that is in sight."""
    of_inputs = _depending(program, inputs)
    # Not the parameters themselves but all that is computed from them alone: kernels are cast, transposed, normalised.
    weights = _depending(program, params) - of_inputs
    chosen = _chosen(program, weights)
    cure = "write the features as (state, inputs) -> [B, D] yourself"
    for equation in reversed(program.equations):
        operands = [atom for atom in equation.invars if _is_variable(atom)]
        if equation.primitive in _PRODUCTS and not chosen.isdisjoint(operands):
            raise ValueError(f"the last weight layer sits in a branch (cond) of the inputs: move it out, or {cure}")
        if weights.isdisjoint(operands) or of_inputs.isdisjoint(operands):
            continue
        if equation.primitive not in _PRODUCTS:
            if any(_holds(inner, _PRODUCTS) for inner in core.jaxprs_in_params(equation.params)):
                # A scan, a while, a kernel: it is one equation here, and opaque.
                where = f"a {equation.primitive.name}, where what it reads cannot be seen"
                raise ValueError(f"the last weight layer sits inside of {where}: move it out, or {cure}")
            continue
        left, right = equation.invars
        if left in of_inputs and right in weights:
            return Layer(equation, left, True)
        if right in of_inputs and left in weights and equation.primitive is primitives.dot_general_p:
            return Layer(equation, right, False)
    layer = "a matrix product or a convolution of a parameter with something that depends on the inputs"
    raise ValueError(f"the network has no weight layer, {layer}: {cure}")


def features_of(layer: Layer, read: Array) -> Array:
    """What a layer reads as one vector: its channels, averaged over positions that meet the same weight."""
    if layer.equation.primitive is primitives.dot_general_p:
        contracted, shared = (pair[0 if layer.on_left else 1] for pair in layer.equation.params["dimension_numbers"])
        channels = {*contracted, *shared}
    else:
        channels = {layer.equation.params["dimension_numbers"].lhs_spec[1]}
    positions = tuple(axis for axis in range(read.ndim) if axis not in channels)
    return jnp.mean(numerics.as_float(read), axis=positions).reshape(-1)


def dense_layers(program: Program, params: Sequence) -> dict[int, Layer]:
    """Products by which alone a parameter enters, up to shape and type, for :func:`factors`; by position of these."""
    users: dict[Any, list] = {}
    for equation in program.equations:
        for atom in equation.invars:
            if _is_variable(atom):
                users.setdefault(atom, []).append(equation)
    returned = {atom for atom in program.outputs if _is_variable(atom)}
    layers = {}
    for position, variable in enumerate(params):
        # Followed through transpositions and casts to its one use. A weight that is used twice (tied, or returned
        # itself) has a gradient of two parts, which the factors of one product do not give.
        while len(used := users.get(variable, [])) == 1 and variable not in returned:
            if _is_reshape(used[0]):
                variable = used[0].outvars[0]
                continue
            if (layer := _plain_product(used[0], variable)) is not None:
                layers[position] = layer
            break
    return layers


def factors(layer: Layer, read: Array, cotangent: Array) -> tuple[Array, Array]:
    """The gradient of a layer's weight as ``Σ_t h_t ⊗ δ_t``, up to the order of its entries.

    From what the weight met and the gradient of what the layer returned; ``h [T, I]``, ``δ [T, O]``, at least float32.
    """
    options = layer.equation.params
    read, cotangent = numerics.as_float(read), numerics.as_float(cotangent)
    if layer.equation.primitive in windows.CONVOLUTIONS:
        rows, channels, *space = options["dimension_numbers"].out_spec
        maps = cotangent.transpose(rows, *space, channels)
        return _patches(layer.equation, read), maps.reshape(-1, maps.shape[-1])
    contracted = options["dimension_numbers"][0][0 if layer.on_left else 1]
    free = [axis for axis in range(read.ndim) if axis not in contracted]
    rows = math.prod(read.shape[axis] for axis in free)
    read = read.transpose(*free, *contracted).reshape(rows, -1)
    return read, cotangent.reshape(rows, -1) if layer.on_left else cotangent.reshape(-1, rows).T


def _replayed(closed: Any, arguments: Sequence, rules: Mapping[core.Primitive, Callable]) -> list:
    def inside(value: Any) -> Any:
        if isinstance(value, core.Jaxpr):
            return rewritten(core.ClosedJaxpr(value, ()), rules).jaxpr
        if isinstance(value, core.ClosedJaxpr):
            return rewritten(value, rules)
        return tuple(map(inside, value)) if type(value) is tuple else value

    def step(equation: Any, operands: list) -> list:
        rule = rules.get(equation.primitive)
        if rule is not None and (results := rule(equation, *operands)) is not None:
            return results
        if equation.primitive.name not in _WHOLE:
            equation = equation.replace(params={name: inside(value) for name, value in equation.params.items()})
        return run(equation, operands)

    jaxpr = getattr(closed, "jaxpr", closed)
    values = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    return _interpret(jaxpr.eqns, values, jaxpr.outvars, step)


def _interpret(equations: Sequence, values: dict, outputs: Sequence, step: Callable[[Any, list], list]) -> list:
    read = lambda atom: values[atom] if _is_variable(atom) else atom.val  # noqa: E731
    for equation in equations:
        source = equation.source_info  # names of layers for profiles, and lines of the network for errors
        names = source_info_util.current_name_stack() + source.name_stack
        with source_info_util.user_context(source.traceback, name_stack=names):
            results = step(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in outputs]


def _is_variable(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)


def _needed(equations: Sequence, outputs: Sequence) -> list:
    """The equations that the outputs depend on: the last product of a program may be one that nothing reads."""
    needed, kept = {atom for atom in outputs if _is_variable(atom)}, []
    for equation in reversed(equations):
        if not needed.isdisjoint(equation.outvars):
            kept.append(equation)
            needed.update(atom for atom in equation.invars if _is_variable(atom))
    return kept[::-1]


def _depending(program: Program, sources: Sequence) -> set:
    depending = set(sources)
    for equation in program.equations:
        if any(_is_variable(atom) and atom in depending for atom in equation.invars):
            depending.update(equation.outvars)
    return depending


def _chosen(program: Program, weights: set) -> set:
    """Weights that the inputs choose, which is what becomes of a ``cond`` under ``vmap``."""
    chosen = set()
    for equation in program.equations:
        which, *cases = [atom for atom in equation.invars if _is_variable(atom)] or [None]
        if equation.primitive is primitives.select_n_p:
            is_chosen = which not in weights and cases and weights.issuperset(cases)
        else:
            is_chosen = _is_reshape(equation) and which in chosen
        if is_chosen:
            chosen.update(equation.outvars)
    return chosen


def _holds(jaxpr: Any, kinds: Collection) -> bool:
    inner = lambda equation: core.jaxprs_in_params(equation.params)  # noqa: E731
    return any(one.primitive in kinds or any(_holds(each, kinds) for each in inner(one)) for one in jaxpr.eqns)


def _is_reshape(equation: Any) -> bool:
    primitive, (result, *_) = equation.primitive, equation.outvars
    if not jnp.issubdtype(result.aval.dtype, jnp.floating):
        return False
    same_size = primitive is primitives.broadcast_in_dim_p and result.aval.size == equation.invars[0].aval.size
    return primitive in _RESHAPES or same_size


def _plain_product(equation: Any, weight: Any) -> Layer | None:
    left, right, *_ = (*equation.invars, None)
    if equation.primitive is primitives.dot_general_p and not any(equation.params["dimension_numbers"][1]):
        return Layer(equation, right, False) if left is weight else Layer(equation, left, True)
    is_convolution = equation.primitive in windows.CONVOLUTIONS and right is weight
    is_plain = is_convolution and equation.params["feature_group_count"] == equation.params["batch_group_count"] == 1
    return Layer(equation, left, True) if is_plain else None


def _patches(equation: Any, read: Array) -> Array:
    """What a convolution multiplies with its kernel, ``[positions, taps · channels]``: slices, which are cheap."""
    options, shape = equation.params, equation.outvars[0].aval.shape
    lhs, rhs, out = options["dimension_numbers"]
    maps = read.transpose(lhs[0], *lhs[2:], lhs[1])
    padding = [(*ends, by - 1) for ends, by in zip(options["padding"], options["lhs_dilation"], strict=True)]
    maps = jax.lax.pad(maps, jnp.zeros((), maps.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    sizes = [shape[axis] for axis in out[2:]]
    strides, steps = options["window_strides"], options["rhs_dilation"]
    slices = []
    for tap in itertools.product(*(range(equation.invars[1].aval.shape[axis]) for axis in rhs[2:])):
        start = [index * step for index, step in zip(tap, steps, strict=True)]
        stop = [first + (size - 1) * stride + 1 for first, size, stride in zip(start, sizes, strides, strict=True)]
        slices.append(jax.lax.slice(maps, [0, *start, 0], [maps.shape[0], *stop, maps.shape[-1]], [1, *strides, 1]))
    return jnp.concatenate(slices, axis=-1).reshape(-1, len(slices) * maps.shape[-1])
