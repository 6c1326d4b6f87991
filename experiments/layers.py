"""Convolution and pooling that XLA compiles well on every backend: the same numbers and the same parameters.

On an accelerator these are the stock operations. On a CPU XLA has three weak spots, each an order of magnitude: the
kernel gradient of a convolution inside a loop (and a compiled fit is a loop), a 3×3 convolution of a 2×2 map, and the
gradient of a window reduction. What is here says the same in a form that it compiles well. `docs/benchmarks.md` has
the measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **unused: Any,
) -> jax.Array:
    """``lax.conv_general_dilated`` for ``[B, H, W, C]`` images. Differentiates in reverse, not forwards.

    Args:
        inputs: ``[B, H, W, C]``.
        kernel: ``[h, w, C, F]``.
        window_strides: strides along ``H`` and ``W``.
        padding: "SAME", "VALID" or ``((low, high), (low, high))``.
        lhs_dilation: must be 1.
        rhs_dilation: must be 1.
        dimension_numbers: not used, the layout is the one above.
        feature_group_count: must be 1.
        precision: as in lax, for the forward convolution.
        preferred_element_type: dtype of the result.
        unused: other keywords that flax passes.

    Returns:
        ``[B, H', W', F]``.

    Raises:
        ValueError: dilated or grouped convolutions.
    """
    del dimension_numbers, unused, precision
    if feature_group_count != 1 or {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}:
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
    """2×2 max-pooling as a reshape: several times faster backwards on a CPU than a window reduction."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(inputs: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(inputs, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


def _conv_forward(inputs: jax.Array, kernel: jax.Array, pads: Pads) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(inputs, kernel, pads), (inputs, kernel)


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


_conv.defvjp(_conv_forward, _conv_backward)  # pyright: ignore[reportFunctionMemberAccess]


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
