"""Networks of the experiments, plain flax linen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MLP(nn.Module):
    """Dense layers, each followed by ReLU and dropout."""

    num_classes: int = 10
    hidden: Sequence[int] = (256, 256)
    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, …] -> [B, num_classes]``."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(self.num_classes)(x)


class SmallCNN(nn.Module):
    """Two convolutions and a dense layer with dropout, for images of a few pixels; the draws share the convolutions."""

    num_classes: int = 10
    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_classes]``."""
        for width in self.channels:
            x = max_pool_2x2(nn.relu(nn.Conv(width, (3, 3), conv_general_dilated=fast_conv())(x)))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(nn.Dropout(self.rate, deterministic=not train)(x))


def fast_conv() -> Any:
    """The convolution for ``nn.Conv(conv_general_dilated=…)`` that suits this backend; either computes the same.

    XLA on a CPU takes some fifty times longer for the kernel gradient of a convolution inside a loop than outside, and
    a compiled fit is a loop. Patches and one matrix product are not affected.
    """
    return patch_conv if jax.default_backend() == "cpu" else jax.lax.conv_general_dilated


def patch_conv(
    inputs: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **unused: Any,
) -> jax.Array:
    """``lax.conv_general_dilated`` for ``[B, H, W, C]`` images as shifted views and one matrix product.

    Args:
        inputs: ``[B, H, W, C]``.
        kernel: ``[h, w, C, F]``.
        window_strides: strides along ``H`` and ``W``.
        padding: "SAME", "VALID" or ``((low, high), (low, high))``.
        lhs_dilation: must be 1.
        rhs_dilation: must be 1.
        dimension_numbers: not used, the layout is the one above.
        feature_group_count: must be 1.
        unused: precision arguments that flax passes.

    Returns:
        ``[B, H', W', F]``.

    Raises:
        ValueError: dilated or grouped convolutions.
    """
    del dimension_numbers, unused
    if feature_group_count != 1 or {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} != {1}:
        raise ValueError(
            "patch_conv knows neither groups nor dilation: leave conv_general_dilated at its default there"
        )
    height, width, in_features, features = kernel.shape
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(inputs.shape[1:3], (height, width), window_strides, padding)
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    rows = (padded.shape[1] - height) // window_strides[0] + 1
    columns = (padded.shape[2] - width) // window_strides[1] + 1
    down, across = window_strides
    views = [
        padded[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]
        for i in range(height)
        for j in range(width)
    ]
    return jnp.concatenate(views, axis=-1) @ kernel.reshape(height * width * in_features, features)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2×2 max-pooling as a reshape: several times faster backwards on a CPU than a window reduction."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
