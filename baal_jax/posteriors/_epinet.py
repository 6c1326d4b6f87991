"""Epinet: a small network beside a trained one that turns a random index into joint predictions."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax import features
from baal_jax._util import checks
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, of_network, short


class EpinetState(NamedTuple):
    """A trained network and its epinet.

    Attributes:
        base: what ``trainer`` returned, a :class:`~baal_jax.TrainState`.
        epinet: what ``epinet_trainer`` returned, with the learned part in ``params`` and the prior in ``collections``.
    """

    base: TrainState
    epinet: TrainState
    variables, steps, _ = of_network("base")
    _, _, loss = of_network("epinet")
    __repr__ = short


def epinet(
    model: Model,
    trainer: Trainer,
    *,
    epinet_trainer: Trainer | None = None,
    index_dim: int = 8,
    hidden: Sequence[int] = (15, 15),
    prior_scale: float = 1.0,
) -> Posterior:
    r"""Epistemic neural network: a trained network, and an epinet that says what it does not know.

    .. math:: f(x, z) = \mu(x) + \bigl(g_\eta(h(x), z) + \alpha\, g_0(h(x), z)\bigr)^\top z,
              \qquad z \sim \mathcal N(0, I)

    with outputs :math:`\mu` and :func:`~baal_jax.features.last_hidden` features :math:`h` of the trained network, both
    frozen, a small network :math:`g_\eta` that is learned for random indices ``z``, and :math:`g_0` of the same shape,
    which keeps its random weights: where labels do not teach :math:`g_\eta` to undo it, draws differ. The trained
    network is computed once for all draws, so thousands of them cost little more than one.

    First ``trainer`` fits the network, then ``epinet_trainer`` :math:`g_\eta` with its own loss, augmentation and
    validation on the same examples, each with another index in every batch. With nothing labelled it stays random.

    Args:
        model: a network with outputs ``[B, C]`` (or ``[B]``).
        trainer: from :func:`~baal_jax.trainer`.
        epinet_trainer: from :func:`~baal_jax.trainer`, by default ``trainer``; where that is slow to move small random
            weights (plain SGD, say), give another. A ``regularizer`` in it sees the parameters of the epinet.
        index_dim: length of ``z``.
        hidden: widths of the hidden layers of :math:`g_\eta` and :math:`g_0`.
        prior_scale: ``α``. With 0 only the learned part is left.

    Returns:
        A :class:`~baal_jax.Posterior` with an :class:`EpinetState`, whose draws are indices ``float32[index_dim]``.

    Raises:
        ValueError: an argument is out of its range; when it is traced, a last layer that is not seen or other outputs.

    References:
        Osband et al., `Epistemic neural networks <https://arxiv.org/abs/2107.08924>`_, 2023.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> net = baal.from_linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]))
        >>> posterior = baal.posteriors.epinet(net, trainer)
    """
    index_dim = checks.positive_int("index_dim", index_dim)
    widths = [checks.positive_int("hidden", width) for width in hidden]
    prior_scale = checks.finite_float("prior_scale", prior_scale, 0.0)
    train_base, train_epinet = trainer(model), epinet_trainer or trainer

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: EpinetState | None = None) -> EpinetState:
        key_base, key_epinet = jax.random.split(key)
        old_base, old_epinet = (None, None) if previous is None else previous
        base = train_base(key_base, dataset, labelled, old_base)
        train = train_epinet(_model(model, base.variables, index_dim, widths, prior_scale))
        return EpinetState(base, train(key_epinet, dataset, labelled, old_epinet))

    def sample(key: Key, state: EpinetState, num_samples: int) -> Array:
        keys = jax.random.split(key, num_samples)
        return jax.vmap(lambda key: jax.random.normal(key, (index_dim,), jnp.float32))(keys)

    def apply(state: EpinetState, draw: Array, inputs: PyTree) -> Array:
        hidden, outputs = features.hidden_and_outputs(model, state.variables, inputs)
        return outputs + _epinet(state.epinet.variables, hidden, draw[None], prior_scale).reshape(outputs.shape)

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))


def _model(base: Model, frozen: Variables, index_dim: int, widths: Sequence[int], prior_scale: float) -> Model:
    """The epinet as a network that a trainer can fit: its prior is in the collections, which no optimizer moves."""

    def init(key: Key, inputs: PyTree) -> Variables:
        hidden, outputs = jax.eval_shape(lambda: features.hidden_and_outputs(base, frozen, inputs))
        sizes = [hidden.shape[1] + index_dim, *widths, index_dim * math.prod(outputs.shape[1:])]
        learned, prior = (_init(key, sizes, hidden.dtype) for key in jax.random.split(key))
        return Variables(learned, prior, {})  # parted: what a trainer selects is the network's

    def at(variables: Variables, inputs: PyTree, indices: Array) -> Array:
        hidden, outputs = jax.lax.stop_gradient(features.hidden_and_outputs(base, frozen, inputs))
        return outputs + _epinet(variables, hidden, indices, prior_scale).reshape(outputs.shape)

    def apply(variables: Variables, inputs: PyTree, key: Key) -> Array:
        return at(variables, inputs, jax.random.normal(key, (1, index_dim), jnp.float32))

    def train(variables: Variables, inputs: PyTree, key: Key) -> tuple[Array, PyTree]:
        indices = jax.random.normal(key, (checks.leading_axis("inputs", inputs), index_dim), jnp.float32)
        return at(variables, inputs, indices), variables.collections

    def deterministic(variables: Variables, inputs: PyTree) -> Array:
        # What a trainer validates: one fixed index for each row, as index zero would show the base network alone.
        return train(variables, inputs, jax.random.key(0))[0]

    return Model(init, apply, train, deterministic)


def _epinet(variables: Variables, hidden: Array, indices: Array, prior_scale: float) -> Array:
    """``(g_η + α g_0)ᵀ z``, for ``[B, D]`` and indices ``[B, Z]`` or ``[1, Z]``: ``[B, C]``."""
    learned, prior, _ = variables
    indices = indices.astype(hidden.dtype)

    def network(layers: Sequence[tuple[Array, Array]]) -> Array:
        (kernel, bias), *others = layers
        # The features meet their rows of the first kernel by themselves: once, whatever the number of indices.
        units = hidden @ kernel[: hidden.shape[1]] + indices @ kernel[hidden.shape[1] :] + bias[None]
        for kernel, bias in others:
            units = jax.nn.relu(units) @ kernel + bias[None]
        return jnp.sum(units.reshape(*units.shape[:1], indices.shape[1], -1) * indices[:, :, None], axis=1)

    return network(learned) + prior_scale * jax.lax.stop_gradient(network(prior))


def _init(key: Key, sizes: Sequence[int], dtype: jnp.dtype) -> list[tuple[Array, Array]]:
    return [
        (jax.random.normal(key, shape, dtype) / math.sqrt(shape[0]), jnp.zeros(shape[1:], dtype))
        for key, shape in zip(jax.random.split(key, len(sizes) - 1), itertools.pairwise(sizes), strict=True)
    ]
