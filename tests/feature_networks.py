"""Networks whose last hidden layer is sown as `h`, for the tests of features."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class MLP(nn.Module):
    outputs: int = 1
    bias: bool = True
    dtype: Any = None
    normed: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5, name="first", dtype=self.dtype)(x))
        x = nn.relu(nn.Dense(7, name="hidden", dtype=self.dtype)(x))
        self.sow("seen", "h", x)
        last = nn.Dense(self.outputs, use_bias=self.bias, dtype=self.dtype)
        return (nn.WeightNorm(last) if self.normed else last)(x).astype(jnp.float32)


class Flattened(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3), strides=2)(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        self.sow("seen", "h", x)
        return nn.softmax(nn.Dense(3)(x) / 0.3)


class MeanMap(nn.Module):
    """A 1 × 1 convolution as head, with a global mean after it."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        self.sow("seen", "h", x.mean(axis=(1, 2)))
        return nn.Conv(3, (1, 1))(x).mean(axis=(1, 2))


class Nested(nn.Module):
    """Layers in compiled and rematerialised modules, and the last one in such a module too."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.remat(nn.Dense)(6)(nn.gelu(nn.jit(nn.Dense)(6)(x))))
        self.sow("seen", "h", x)
        return nn.jit(nn.Dense)(3, use_bias=False)(x)


class Tied(nn.Module):
    """The embedding is read twice: as a table, and as the last layer."""

    @nn.compact
    def __call__(self, x):
        embedding = nn.Embed(9, 4)
        x = nn.Dense(4)(embedding((jnp.abs(x) * 3).astype(jnp.int32)).mean(axis=1))
        self.sow("seen", "h", x)
        return embedding.attend(x)


class Shared(nn.Module):
    """Every kind of leaf: shared and single kernels, biases, scales, convolutions with strides, groups and dilation."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.gelu(nn.Conv(4, (3, 2), strides=(2, 1), padding=((1, 0), (0, 1)), kernel_dilation=(1, 2))(x))
        x = nn.Conv(4, (2, 2), feature_group_count=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dense(5)(x)  # at every position
        x = nn.DenseGeneral((2, 3), axis=(1, 3))(x[:, :2, :3])
        x = nn.tanh(nn.Dropout(0.5, deterministic=not train)(x).reshape(x.shape[0], -1))
        twice = nn.Dense(18)
        return nn.Dense(2)(twice(nn.softplus(twice(x))))
