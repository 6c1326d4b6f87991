"""Networks as users write them: stock modules, every way of giving a training flag."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class LinenKeyword(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(self.rate)(x, deterministic=not train)
        return nn.Dense(3)(x)


class LinenPosition(nn.Module):
    @nn.compact
    def __call__(self, x, train, /):
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(nn.Dropout(0.5)(x, not train))


class LinenConstructor(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.train)(x))


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=deterministic))


class LinenInline(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        if train:
            x = nn.Dropout(0.5, deterministic=False)(x)
        return nn.Dense(3)(x)


class LinenConv(nn.Module):
    """Dropout in convolutional and dense layers, and batch normalisation."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.3, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(8)(x.reshape(x.shape[0], 8, -1))
        x = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.5)(x, x, deterministic=not train)
        return nn.Dense(3)(x.mean(axis=1))


class DropPath(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, active: bool = False, training: bool = False):
        if not training:
            return x
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(keep, x / (1 - self.rate), 0.0)


class LinenDropPath(nn.Module):
    """A random layer that its network only turns on by a flag of its own."""

    @nn.compact
    def __call__(self, x, stochastic_depth: bool = False):
        x = nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(DropPath()(x, training=stochastic_depth))


class LinenCounter(nn.Module):
    """Keeps a collection of its own."""

    @nn.compact
    def __call__(self, x, train: bool):
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            calls.value = calls.value + 1
        self.sow("intermediates", "seen", x)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1)))


LINEN = [
    LinenKeyword,
    LinenPosition,
    LinenConstructor,
    LinenDeterministic,
    LinenInline,
    LinenConv,
    LinenAttention,
    LinenCounter,
]


class NnxMode(nnx.Module):
    """Modes by ``module.train()``."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden, self.out = nnx.Linear(64, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))))


class NnxKeyword(NnxMode):
    def __call__(self, x, train: bool):
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.out(self.dropout(x, deterministic=not train))


class NnxRngs(NnxMode):
    """Randomness given at the call."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs: nnx.Rngs):
        return self.out(self.dropout(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))), rngs=rngs))


class NnxConv(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.channels = nnx.Dropout(0.3, broadcast_dims=(1, 2), rngs=rngs)
        self.hidden, self.out = nnx.Linear(64, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train: bool):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train))
        x = nnx.max_pool(self.channels(x, deterministic=not train), (2, 2), (2, 2))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.out(self.dropout(x, deterministic=not train))


class NnxAttention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, dropout_rate=0.5, decode=False, rngs=rngs)
        self.out = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, deterministic: bool = True):
        return self.out(self.attention(x.reshape(x.shape[0], 8, 8), deterministic=deterministic).mean(axis=1))


class NnxNoise(nnx.Module):
    """A random layer of the user's own."""

    def __init__(self, rngs: nnx.Rngs):
        self.rngs, self.training = rngs.fork(), False

    def __call__(self, x, training: bool | None = None):
        on = self.training if training is None else training
        return x + jax.random.normal(self.rngs(), x.shape) if on else x


class NnxOwnLayer(NnxMode):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.dropout = NnxNoise(rngs)

    def __call__(self, x, noisy: bool = False):
        return self.out(self.dropout(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))), training=noisy))


NNX = [NnxMode, NnxKeyword, NnxRngs, NnxConv, NnxAttention]
