"""Layers that compile well on every backend: the same numbers and the same parameters.

On an accelerator these are the stock operations. On a CPU XLA has three weak spots, each an order of magnitude: the
kernel gradient of a convolution inside a loop (and a compiled fit is a loop), a 3×3 convolution of a 2×2 map, and the
gradient of a window reduction. What is here says the same in a form that it compiles well. Between two dropout layers
whose masks all rows share, three quarters of a dense layer are multiplied by zero: `dropped_dot` leaves them out.
`docs/benchmarks.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pads = tuple[tuple[int, int], tuple[int, int]]


def fast_conv() -> Any:
    """The convolution for ``nn.Conv(conv_general_dilated=…)`` that suits this backend; either computes the same."""
    return cpu_conv if jax.default_backend() == "cpu" else lax.conv_general_dilated


def cpu_conv(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """``lax.conv_general_dilated`` for ``[B, H, W, C]`` images without groups and dilation; has no forward derivative.

    Other options, such as ``dimension_numbers`` and ``precision``, are ignored: the layout is the one above.
    """
    dilations = {*(options.get("lhs_dilation") or (1,)), *(options.get("rhs_dilation") or (1,))}
    if feature_group_count != 1 or dilations != {1}:
        raise ValueError("cpu_conv knows neither groups nor dilation: leave conv_general_dilated at its default there")
    height, width = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (height, width), window_strides, padding)
    pads: Pads = ((padding[0][0], padding[0][1]), (padding[1][0], padding[1][1]))
    outputs: Any
    if tuple(window_strides) != (1, 1):
        outputs = _patch_conv(inputs, kernel, window_strides, pads)
    elif inputs.shape[1:3] == (2, 2) and (height, width) == (3, 3) and pads == ((1, 1), (1, 1)):
        outputs = _dense_conv(inputs, kernel)
    else:
        outputs = _conv(inputs, kernel, pads)
    return outputs if preferred_element_type is None else outputs.astype(preferred_element_type)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2×2 max-pooling as a reshape: several times faster backwards on a CPU than a window reduction.

    The gradient of a reduction by ``max`` divides by the number of entries that equal the maximum, which is 0/0 if a
    compiler computes the entries again and rounds them otherwise. ``maximum`` of two divides by one or two.
    """
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


def dropped_dot(before: jax.Array, after: jax.Array, rate: float) -> Callable[..., jax.Array] | None:
    """A dense layer between two dropout layers, for ``nn.Dense(dot_general=…)``: multiplies only what is kept.

    Where all rows share their masks, a dropped input contributes nothing and a dropped output is not read, so with a
    rate of a half a quarter of the kernel is left. The masks are random and shapes are not: as many units are taken
    as a mask keeps at most, up to eight standard deviations above the mean. A mask beyond that (less often than once
    in 10¹⁵) gives NaN, never a wrong number. Every draw has a kernel of its own, once for the whole pool: 21 MB each
    for 4096 units and a rate of a half, and 38 MB more while they are made.

    ``before [1, I]`` and ``after [1, O]`` are the masks on inputs and outputs, zero where they are dropped. The inputs
    have gone through theirs, and dropped outputs come back as zero. None, which is the stock ``dot_general``, on an
    accelerator and where little would be left out.
    """
    sizes = [_most_kept(mask.shape[-1], rate) for mask in (before, after)]
    if jax.default_backend() != "cpu" or 2 * math.prod(sizes) > before.shape[-1] * after.shape[-1]:
        return None
    rows, columns = (  # ids, beyond the end where a mask keeps fewer
        jnp.flatnonzero(mask[0], size=size, fill_value=mask.size)
        for mask, size in zip((before, after), sizes, strict=True)
    )

    def dot(inputs: jax.Array, kernel: jax.Array, *unused: Any, **also_unused: Any) -> jax.Array:
        part = _take(_take(kernel, rows, 0), columns, 1)
        outputs = _take(inputs, rows, -1) @ part
        kept = after[0] != 0
        place = jnp.minimum(jnp.cumsum(kept) - 1, sizes[1] - 1)
        too_many = (jnp.sum(before != 0) > sizes[0]) | (jnp.sum(kept) > sizes[1])
        dropped = jnp.where(too_many, jnp.nan, 0.0).astype(outputs.dtype)
        return jnp.where(kept & ~too_many, outputs[..., place], dropped)

    return dot


def _most_kept(units: int, rate: float) -> int:
    most = units * (1 - rate) + 8 * math.sqrt(units * rate * (1 - rate))
    return min(units, 128 * math.ceil(most / 128))  # whole vectors and cache lines


def _take(array: jax.Array, ids: jax.Array, axis: int) -> jax.Array:
    """Zero for an id beyond the end."""
    return jnp.take(array, ids, axis, mode="fill", fill_value=0)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(inputs: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


def _conv_backward(pads: Pads, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    (top, bottom), (left, right) = pads
    rows, columns = kernel.shape[0] - 1, kernel.shape[1] - 1
    outer = ((rows - top, rows - bottom), (columns - left, columns - right))
    input_gradient = lax.conv_general_dilated(cotangent, turned, (1, 1), outer, dimension_numbers=_LAYOUT)
    # Channels play the batch and images the channels: an ordinary forward convolution, once the transposes are done.
    channels, window = lax.optimization_barrier((inputs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)))
    gradient = lax.conv_general_dilated(channels, window, (1, 1), pads, dimension_numbers=_LAYOUT)
    return input_gradient, gradient.transpose(1, 2, 0, 3)


_conv.defvjp(lambda *given: (_conv(*given), given[:2]), _conv_backward)  # pyright: ignore[reportFunctionMemberAccess]


def _dense_conv(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3×3 convolution of 2×2 maps, where every output sees every input: one dense layer, and no work on padding."""
    taps = jnp.stack([kernel[1 - i : 3 - i, 1 - j : 3 - j] for i in (0, 1) for j in (0, 1)])  # [4, 2, 2, C, F]
    channels, features = kernel.shape[2:]
    matrix = taps.transpose(1, 2, 3, 0, 4).reshape(4 * channels, 4 * features)
    return (inputs.reshape(-1, 4 * channels) @ matrix).reshape(-1, 2, 2, features)


def _patch_conv(inputs: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Pads) -> jax.Array:
    """Shifted views and one matrix product."""
    height, width, channels, features = kernel.shape
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    down, across = strides
    rows = (padded.shape[1] - height) // down + 1
    columns = (padded.shape[2] - width) // across + 1
    views = [
        padded[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(views, axis=-1) @ kernel.reshape(height * width * channels, features)
