"""Networks of the experiments, plain flax linen (and one of them in nnx). Nothing in them knows about active learning.

Images come as stored: integers are scaled to [-1, 1] inside the network, so data sets stay bytes on the device. Every
network with convolutions takes ``dtype=jnp.bfloat16`` for the arithmetic; parameters and outputs stay float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
HE = nn.initializers.he_normal()


def scaled(x: jax.Array, dtype: Any = None) -> jax.Array:
    """Integer pixels as floats in [-1, 1]; floats as they are."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.float32) / 127.5 - 1.0
    return x if dtype is None else x.astype(dtype)


class MLP(nn.Module):
    """Dense layers, each followed by ReLU and dropout, and dropout of the inputs at ``input_rate``."""

    num_classes: int = 10
    hidden: Sequence[int] = (256, 256)
    rate: float = 0.5
    input_rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, …] -> [B, num_classes]``."""
        x = scaled(x).reshape(x.shape[0], -1)
        if self.input_rate:
            x = nn.Dropout(self.input_rate, deterministic=not train)(x)
        return _head(x, self.hidden, self.num_classes, self.rate, train)


class SmallCNN(nn.Module):
    """Convolutions with 2×2 pooling and one dense layer with dropout: small enough for a CPU.

    Its draws share everything up to the last layer. ``patch`` reads the image in patches of that size, which makes the
    first layers of a 32×32 image affordable.
    """

    num_classes: int = 10
    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    rate: float = 0.5
    patch: int = 1
    batch_norm: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_classes]``."""
        x = patches(scaled(x, self.dtype), self.patch)
        for width in self.channels:
            x = conv(width, use_bias=not self.batch_norm, dtype=self.dtype)(x)
            if self.batch_norm:
                x = _norm(train, self.dtype)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class VGG16(nn.Module):
    """VGG16, configuration D of `Simonyan and Zisserman <https://arxiv.org/abs/1409.1556>`_, with dropout in the head.

    ``hidden=(4096, 4096)`` is the original's head, ``hidden=(512,)`` the small one that is common for 32×32 images. The
    head reads the last map as it is: 512 values of a 32×32 image. Networks that blow this 1×1 map up to 7×7 before the
    head compute the same function, with the first dense kernel being the sum of its 49 blocks.
    """

    num_classes: int = 10
    hidden: Sequence[int] = (4096, 4096)
    rate: float = 0.5
    batch_norm: bool = False
    stages: Sequence[Sequence[int]] = VGG16_STAGES
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_classes]``."""
        x = scaled(x, self.dtype)
        for stage in self.stages:
            for width in stage:
                x = conv(width, kernel_init=HE, use_bias=not self.batch_norm, dtype=self.dtype)(x)
                if self.batch_norm:
                    x = _norm(train, self.dtype)(x)
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return _head(x.reshape(x.shape[0], -1), self.hidden, self.num_classes, self.rate, train, self.dtype)


class WideResNet(nn.Module):
    """A wide residual network with dropout in its blocks, `Zagoruyko and Komodakis <https://arxiv.org/abs/1605.07146>`_.

    WRN-16-4 by default; ``depth=28, width=10`` is the large one. Dropout sits inside the blocks, so that nearly all of
    the network is random: its draws share little, unlike those of a network with dropout in the head.
    """

    num_classes: int = 10
    depth: int = 16
    width: int = 4
    rate: float = 0.3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_classes]``."""
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth} is not 6n + 4 with n of at least 1: take 16, 22 or 28")
        plain, norm = partial(conv, kernel_init=HE, use_bias=False, dtype=self.dtype), partial(_norm, train, self.dtype)
        x = plain(16)(scaled(x, self.dtype))
        for stage, width in enumerate((16 * self.width, 32 * self.width, 64 * self.width)):
            for block in range((self.depth - 4) // 6):
                strides = 2 if stage and not block else 1
                before = nn.relu(norm()(x))
                y = nn.relu(norm()(plain(width, strides=strides)(before)))
                y = plain(width)(nn.Dropout(self.rate, deterministic=not train)(y))
                if x.shape[-1] != width:
                    x = plain(width, kernel=1, strides=strides)(before)
                x = x + y
        x = nn.relu(norm()(x)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


class SmallCNNnnx(nnx.Module):
    """:class:`SmallCNN` as an nnx module: ``baal.from_nnx(lambda rngs: SmallCNNnnx((32, 32, 3), rngs=rngs))``."""

    def __init__(self, shape: Sequence[int], *, rngs: nnx.Rngs, **fields: Any):
        like = SmallCNN(**fields)
        self.patch, self.dtype = like.patch, like.dtype
        side, depth = [n // like.patch >> len(like.channels) for n in shape[:2]], shape[2] * like.patch**2
        widths = [depth, *like.channels]
        options = {"use_bias": not like.batch_norm, "dtype": like.dtype}
        pairs = itertools.pairwise(widths)
        self.convs = nnx.List(nnx.Conv(inner, outer, (3, 3), **options, rngs=rngs) for inner, outer in pairs)
        norms = widths[1:] if like.batch_norm else []
        self.norms = nnx.List(nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for width in norms)
        self.dense = nnx.Linear(side[0] * side[1] * widths[-1], like.hidden, dtype=like.dtype, rngs=rngs)
        self.dropout = nnx.Dropout(like.rate, rngs=rngs)
        self.out = nnx.Linear(like.hidden, like.num_classes, dtype=like.dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C] -> [B, num_classes]``."""
        x = patches(scaled(x, self.dtype), self.patch)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if len(self.norms):
                x = self.norms[i](x.astype(jnp.float32)).astype(x.dtype)
            x = nnx.max_pool(nnx.relu(x), (2, 2), (2, 2))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.out(self.dropout(x)).astype(jnp.float32)


def patches(x: jax.Array, size: int) -> jax.Array:
    """``[B, H, W, C] -> [B, H / size, W / size, C · size²]``."""
    batch, height, width, channels = x.shape
    if height % size or width % size:
        raise ValueError(f"patch={size} does not divide images of {height} × {width}: choose a divisor of both")
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, size**2 * channels)


def _head(
    x: jax.Array, hidden: Sequence[int], num_classes: int, rate: float, train: bool, dtype: Any = None
) -> jax.Array:
    before = None
    for width in hidden:
        dropout = nn.Dropout(rate, deterministic=not train)
        if x.shape[0] > 1:
            x = dropout(nn.relu(nn.Dense(width, dtype=dtype)(x)))
            continue
        # One row, or one of many under vmap and one key: its mask can be known before the layer that it cuts.
        ones = jnp.ones((1, width), x.dtype)
        after = dropout(ones)
        at_rest = after is ones  # such a dropout layer hands back what it was given
        dot = None if before is None or at_rest else dropped_dot(before, after, rate)
        x = nn.relu(nn.Dense(width, dtype=dtype, dot_general=dot)(x)) * after
        before = after
    return nn.Dense(num_classes, dtype=dtype)(x).astype(jnp.float32)


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


def conv(width: int, kernel: int = 3, strides: int = 1, **options: Any) -> nn.Conv:
    """A convolution with a square kernel."""
    return nn.Conv(width, (kernel, kernel), strides, **options)


def _norm(train: bool, dtype: Any) -> Callable:
    def apply(x: jax.Array) -> jax.Array:
        # Statistics are taken in float32, whatever the arithmetic around them.
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.astype(jnp.float32))
        return y if dtype is None else y.astype(dtype)

    return apply
