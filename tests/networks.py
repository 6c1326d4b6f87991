"""Networks as users write them: stock modules, every way of giving a training flag."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def variables_of(model, inputs, seed=1):
    """Numbers in the shapes of a model, which cost no compilation: no zeros in biases, no ones in scales."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        scale = np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 1.0
        signs = rng.choice([-1, 1], leaf.shape) if scale > 1 else 1
        return (rng.uniform(0.2, 1.2, leaf.shape) * signs / scale).astype(leaf.dtype)

    one = jax.tree.map(lambda leaf: leaf[:1], inputs)
    return jax.tree.map(fill, jax.eval_shape(model.init, jax.random.key(0), one))


def _hidden(x):
    return nn.relu(nn.Dense(16)(x.reshape(x.shape[0], -1)))


class LinenPosition(nn.Module):
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train, /):
        return nn.Dense(3)(nn.Dropout(self.rate)(_hidden(x), not train))


class LinenConstructor(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.train)(_hidden(x)))


class LinenConv(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.Dropout(0.3, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(_hidden(x)))


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(8)(x.reshape(x.shape[0], 8, -1))
        x = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.5)(x, x, deterministic=not train)
        return nn.Dense(3)(x.mean(axis=1))


class DropPath(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool = False):
        keep = jax.random.bernoulli(self.make_rng("dropout"), 0.5, (len(x), 1)) if training else True
        return jnp.where(keep, x, 0.0)


class LinenDropPath(nn.Module):
    """A random layer that its network only turns on by a flag of its own."""

    @nn.compact
    def __call__(self, x, stochastic_depth: bool = False):
        return nn.Dense(3)(DropPath()(_hidden(x), training=stochastic_depth))


class LinenCounter(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        calls = self.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            calls.value = calls.value + 1
        self.sow("intermediates", "seen", x)
        self.sow("losses", "activity", jnp.mean(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1)))


class Centre(nn.Module):
    """A normalisation of the user's own, with a running mean."""

    @nn.compact
    def __call__(self, x, training: bool):
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros((1, x.shape[-1])))
        before, now = mean.value, x.mean(axis=0, keepdims=True)
        mean.value = 0.99 * before + 0.01 * now
        return x - (now if training else before)


class LinenNormed(nn.Module):
    """Normalisation, then dropout, and no weights."""

    own: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        x = Centre()(x, train) if self.own else nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


LINEN = [LinenPosition, LinenConstructor, LinenConv, LinenAttention, LinenCounter]


class NnxMode(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.hidden, self.out = nnx.Linear(64, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, **options):
        return self.out(self.dropout(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))), **options))


class NnxRngs(NnxMode):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs: nnx.Rngs):
        return super().__call__(x, rngs=rngs)


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
    def __init__(self, rngs: nnx.Rngs):
        self.rngs, self.training = rngs.fork(), False

    def __call__(self, x):
        return x + jax.random.normal(self.rngs(), x.shape) if self.training else x


class NnxOwnLayer(NnxMode):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs)
        self.dropout = NnxNoise(rngs)


class NnxCentre(nnx.Module):
    def __init__(self):
        self.mean, self.training = nnx.BatchStat(jnp.zeros((1, 8))), False

    def __call__(self, x):
        before, now = self.mean[...], x.mean(axis=0, keepdims=True)
        self.mean[...] = 0.99 * before + 0.01 * now
        return x - (now if self.training else before)


class NnxNormed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, own: bool = False):
        self.norm = NnxCentre() if own else nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(x))


NNX = [NnxMode, NnxRngs, NnxConv, NnxAttention]
