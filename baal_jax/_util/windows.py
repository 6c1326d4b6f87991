"""Convolutions and poolings in forms that XLA compiles well on a CPU: the same numbers, every transformation.

A compiled fit is a loop, in which XLA has weak spots, each an order of magnitude: both gradients of a convolution
(`jax#12868 <https://github.com/jax-ml/jax/issues/12868>`_), maps smaller than their kernel, the gradient of a pooling.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive, primitives
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

_MOST_SHIFTS = 4  # pooling over more entries of an axis is left to XLA, which is good at wide windows

conv_p = Primitive("baal_conv")  # conv_general_dilated_p for ``[B, …, C]``, without groups; its parameters are the same
CONVOLUTIONS = (primitives.conv_general_dilated_p, conv_p)
as_on_cpu = jax.make_user_context(False)  # traces what a CPU would compute; jax keeps such traces apart


def rules() -> dict[Primitive, Callable[..., list[Array] | None]]:
    """Of this backend, for ``programs.rewritten``."""
    if jax.default_backend() != "cpu" and not as_on_cpu.value:
        return {}
    return {
        primitives.conv_general_dilated_p: _convolution,
        primitives.reduce_window_max_p: functools.partial(_pooling, _first_largest, -jnp.inf),
        primitives.reduce_window_sum_p: functools.partial(_pooling, lax.add, 0.0),
    }


def _convolution(equation: Any, inputs: Array, kernel: Array) -> list[Array] | None:
    options, (batch, *space, channels) = equation.params, range(kernel.ndim)
    images, kernels = (batch, channels, *space), (channels, channels - 1, *range(channels - 1))
    asked = tuple(options["dimension_numbers"]), options["feature_group_count"], options["batch_group_count"]
    outputs = equation.outvars[0].aval
    is_empty = 0 in (*inputs.shape, *kernel.shape, *outputs.shape)
    # Types that say how they are split over devices are known for gradients in XLA's own form alone.
    is_split = AxisType.Explicit in outputs.sharding.mesh.axis_types
    is_covered = asked == ((images, kernels, images), 1, 1) and jnp.issubdtype(inputs.dtype, jnp.floating)
    return [conv_p.bind(inputs, kernel, **options)] if is_covered and not is_empty and not is_split else None


def _forward(inputs: Array, kernel: Array, **options: Any) -> Array:
    return (_dense if _is_small(inputs, kernel, options) else lax.conv_general_dilated)(inputs, kernel, **options)


def _input_gradient(cotangent: Array, inputs: Any, kernel: Array, **options: Any) -> Array:
    form = _dense if _is_small(inputs.aval, kernel, options) else _of_inputs
    return jax.linear_transpose(lambda inputs: form(inputs, kernel, **options), inputs.aval)(cotangent)[0]


def _kernel_gradient(cotangent: Array, inputs: Array, kernel: Any, **options: Any) -> Array:
    form = _dense if _is_small(inputs, kernel.aval, options) else _of_kernel
    return jax.linear_transpose(lambda kernel: form(inputs, kernel, **options), kernel.aval)(cotangent)[0]


def _of_inputs(inputs: Array, kernel: Array, **options: Any) -> Array:
    """Only to be transposed, which makes it an ordinary convolution: inner and outer channels are exchanged."""
    lhs, (outer, inner, *space), out = options["dimension_numbers"]
    numbers = lax.ConvDimensionNumbers(lhs, (inner, outer, *space), out)
    return lax.conv_general_dilated(inputs, kernel.swapaxes(-1, -2), **{**options, "dimension_numbers": numbers})


def _of_kernel(inputs: Array, kernel: Array, **options: Any) -> Array:
    """Only to be transposed, which makes it an ordinary convolution: channels play the batch, and images the channels.

    Without the barriers XLA folds the moves of axes into the convolution, for which it then has no fast code in a loop.
    """
    first, *space, last = range(kernel.ndim)
    down = tuple(axis - 1 for axis in space)
    # [C, …, B] with [C, …, F] gives […, B, F]
    numbers = lax.ConvDimensionNumbers((last, first, *space), (last, first, *space), (last - 1, last, *down))
    inputs = lax.optimization_barrier(inputs.transpose(last, *space, first))
    kernel = kernel.transpose(last - 1, *down, last)
    outputs = lax.conv_general_dilated(inputs, kernel, **{**options, "dimension_numbers": numbers})
    return lax.optimization_barrier(outputs).transpose(last - 1, *down, last)


def _is_small(inputs: Any, kernel: Any, options: dict) -> bool:
    """Whether nearly every output sees every input: the matrix between them is hardly larger than the kernel."""
    pairs = math.prod(inputs.shape[1:-1]) * math.prod(map(len, _starts(inputs, kernel, options)))
    return {*options["lhs_dilation"], *options["rhs_dilation"]} == {1} and pairs <= 2 * math.prod(kernel.shape[:-2])


def _starts(inputs: Any, kernel: Any, options: dict) -> list[range]:
    given = zip(inputs.shape[1:], kernel.shape[:-2], options["window_strides"], options["padding"], strict=False)
    return [range(-low, size + high - taps + 1, stride) for size, taps, stride, (low, high) in given]


def _dense(inputs: Array, kernel: Array, **options: Any) -> Array:
    """One matrix product, and no work on padding."""
    zero, starts, taps = jnp.zeros((), kernel.dtype), _starts(inputs, kernel, options), kernel.shape[:-2]
    windows = [
        [(at, size - tap - at, 0) for at, size, tap in zip(window, inputs.shape[1:], taps, strict=False)]
        for window in itertools.product(*starts)
    ]
    columns = [lax.pad(kernel, zero, [*window, (0, 0, 0), (0, 0, 0)]) for window in windows]
    matrix = jnp.stack(columns, axis=-2).reshape(-1, len(columns) * kernel.shape[-1])
    precision, kind = options["precision"], options["preferred_element_type"]
    outputs = jnp.matmul(inputs.reshape(len(inputs), -1), matrix, precision=precision, preferred_element_type=kind)
    return outputs.reshape(-1, *map(len, starts), kernel.shape[-1])


def _batched(operands: Sequence[Array], axes: Sequence[int | None], **options: Any) -> tuple[Array, int]:
    inputs, kernel = operands
    if axes[1] is not None:  # a kernel each, as with seeds side by side
        return jax.vmap(functools.partial(_forward, **options), axes)(inputs, kernel), 0
    inputs = jnp.moveaxis(inputs, axes[0] or 0, 0)
    outputs = conv_p.bind(inputs.reshape(-1, *inputs.shape[2:]), kernel, **options)
    return outputs.reshape(*inputs.shape[:2], *outputs.shape[1:]), 0


conv_p.def_impl(_forward)
conv_p.def_effectful_abstract_eval(primitives.conv_general_dilated_p.abstract_eval)
mlir.register_lowering(conv_p, mlir.lower_fun(_forward, multiple_results=False))
ad.defbilinear(conv_p, _input_gradient, _kernel_gradient)
batching.primitive_batchers[conv_p] = _batched


def _pooling(join: Callable[[Array, Array], Array], start: float, equation: Any, inputs: Array) -> list[Array] | None:
    """One axis after another, as shifted views that are joined in pairs."""
    options, outputs = equation.params, equation.outvars[0].aval
    is_dilated = {*options["base_dilation"], *options["window_dilation"]} != {1}
    is_wide = max(options["window_dimensions"]) > _MOST_SHIFTS
    if is_dilated or is_wide or 0 in outputs.shape or not jnp.issubdtype(inputs.dtype, jnp.floating):
        return None
    # The last axis first: of equal entries the first one in reading order is taken.
    for axis in reversed(range(inputs.ndim)):
        size, stride, ends = (options[name][axis] for name in ("window_dimensions", "window_strides", "padding"))
        if (size, stride, ends) == (1, 1, (0, 0)):
            continue
        config = [(*ends, 0) if i == axis else (0, 0, 0) for i in range(inputs.ndim)]
        inputs = lax.pad(inputs, jnp.asarray(start, inputs.dtype), config)
        last = (inputs.shape[axis] - size) // stride * stride
        views = [lax.slice_in_dim(inputs, i, i + last + 1, stride, axis) for i in range(size)]
        inputs = functools.reduce(join, views)
    return [inputs]


def _first_largest(left: Array, right: Array) -> Array:
    """The gradient goes to one of them, as a window reduction's does; that of ``maximum`` is halved between equals."""
    return jnp.where((left >= right) | jnp.isnan(left), left, right)
