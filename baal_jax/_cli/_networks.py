"""Networks that a command can be asked for by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from baal_jax import models
from baal_jax.typing import Model

BUILT_IN = ("mlp", "cnn")


class MLP(nn.Module):
    """Dense layers, each followed by ReLU and dropout."""

    num_outputs: int
    rate: float = 0.5
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, …] -> [B, num_outputs]``."""
        x = _scaled(x).reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(width)(x)))
        return nn.Dense(self.num_outputs)(x)


class SmallCNN(nn.Module):
    """Convolutions with 2×2 pooling, and one dense layer with dropout: the draws share all but the last layer."""

    num_outputs: int
    rate: float = 0.5
    channels: Sequence[int] = (32, 64)
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, C] -> [B, num_outputs]``."""
        x = _scaled(x)
        for width in self.channels:
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_outputs)(nn.Dropout(self.rate, deterministic=not train)(x))


def make(name: str, num_outputs: int, input_shape: Sequence[int], rate: float) -> Model:
    """A network by its name on a command line.

    Args:
        name: ``"mlp"``, ``"cnn"``, or ``"package.module:factory"``, where ``factory(num_outputs)`` returns a linen
            module, or ``factory(num_outputs)`` a function ``rngs -> nnx module``.
        num_outputs: ``C``, or 1 for regression.
        input_shape: of an example.
        rate: of dropout, for the networks that are built in.

    Returns:
        A :class:`~baal_jax.Model`.

    Raises:
        ValueError: there is no such network, or it does not fit the inputs.
    """
    if name == "mlp":
        return models.from_linen(MLP(num_outputs, rate))
    if name == "cnn":
        if len(input_shape) != 3:
            raise ValueError(
                f"model='cnn' needs images [H, W, C], but an example has shape {tuple(input_shape)}: use mlp"
            )
        return models.from_linen(SmallCNN(num_outputs, rate))
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(
            f"model={name!r} is unknown: use {' or '.join(BUILT_IN)}, or package.module:factory for a network of yours"
        )
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model={name!r} cannot be imported ({error}): is its folder in PYTHONPATH?") from error
    made = factory(num_outputs)
    if isinstance(made, nn.Module):
        return models.from_linen(made)
    if callable(made):
        return models.from_nnx(made)
    raise ValueError(
        f"model={name!r} made {type(made).__name__}: return a linen module, or a function from rngs to an nnx module"
    )


def _scaled(x: jax.Array) -> jax.Array:
    """Integer pixels as floats in [-1, 1]; floats as they are."""
    return x.astype(jnp.float32) / 127.5 - 1.0 if jnp.issubdtype(x.dtype, jnp.integer) else x
