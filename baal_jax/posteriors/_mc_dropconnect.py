"""MC-DropConnect: a network trained with weights dropped at random, and its weight masks as draws."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax._util import random
from baal_jax.posteriors._mc_dropout import mc_dropout
from baal_jax.typing import Array, Key, Model, Posterior, PyTree, Trainer, Variables

Select = Callable[[str, Array], bool]  # ("Dense_0/kernel", leaf) -> whether to drop entries of it


def mc_dropconnect(model: Model, trainer: Trainer, rate: float = 0.5, *, select: Select | None = None) -> Posterior:
    r"""Monte-Carlo DropConnect: Bernoulli masks over weights, in training and in prediction.

    .. math:: f_s(x) = f(x;\, M_s \odot W / (1 - p)), \qquad M_s \sim \mathrm{Bernoulli}(1 - p)

    Every training step masks the weights anew; those that the state keeps, the mean of the masked ones, are those of
    validation and ``features``. A draw is a key, and so one mask for each weight that the whole pool shares. Layers
    before the first masked weight are computed once for all draws. Dropout works in training alone.

    Args:
        model: any network, with random layers or without; its ``params`` are a pytree.
        trainer: from :func:`~baal_jax.trainer`.
        rate: :math:`p`, the share of weights dropped; half is much for a narrow network: compare the NLL at 0.1 to 0.3.
        select: ``("Dense_0/kernel", leaf) -> bool``, which arrays of ``params`` to mask; by default those of at least
            two axes that are called ``kernel``, ``weight`` or ``w``, as in dense and convolutional layers.

    Returns:
        A :class:`~baal_jax.Posterior` whose state is a :class:`~baal_jax.TrainState`.

    Raises:
        ValueError: ``rate`` is not between 0 and 1; or, when it is first used, ``select`` picks nothing.

    References:
        Mobiny et al., `DropConnect is effective in modeling uncertainty of Bayesian deep networks
        <https://arxiv.org/abs/1906.04569>`_, 2021. Wan et al., `Regularization of neural networks using DropConnect
        <https://proceedings.mlr.press/v28/wan13.html>`_, 2013.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.mc_dropconnect(baal.from_linen(nn.Dense(2)), trainer, rate=0.3)
    """
    if isinstance(rate, bool) or not 0.0 < rate < 1.0:
        raise ValueError(f"rate={rate!r} must lie between 0 and 1: it is the share of the weights that is dropped")
    choose = _is_weight if select is None else select

    def masked(variables: Variables, key: Key) -> Variables:
        return variables._replace(params=_masked(variables.params, key, float(rate), choose))

    def apply(variables: Variables, inputs: PyTree, key: Key) -> PyTree:
        return model.deterministic(masked(variables, key), inputs)

    def train(variables: Variables, inputs: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        key_masks, key_model = jax.random.split(key)
        return model.train(masked(variables, key_masks), inputs, key_model)

    return mc_dropout(model._replace(apply=apply, train=train), trainer)


def _is_weight(path: str, leaf: Array) -> bool:
    return path.rsplit("/", 1)[-1] in ("kernel", "weight", "w") and leaf.ndim >= 2


def _masked(params: PyTree, key: Key, rate: float, select: Select) -> PyTree:
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    chosen = [bool(select(path, leaf)) for path, leaf in named]
    if not any(chosen):
        paths = ", ".join(f"{path!r} {leaf.shape}" for path, leaf in named)
        raise ValueError(f"select picks no weights to drop: let select(path, leaf) be true for some of {paths}")
    key = random.vectorised(key)

    def drop(path: str, leaf: Array) -> Array:
        # Keys by name: the mask of a layer stays the same when others come or go.
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        keep = jax.random.bernoulli(own, jnp.float32(1.0 - rate), leaf.shape)
        # Divided by what is kept, so that the mean over masks is the stored weight.
        return jnp.where(keep, leaf / (1.0 - rate), 0.0).astype(leaf.dtype)

    return structure.unflatten(drop(*leaf) if use else leaf[1] for leaf, use in zip(named, chosen, strict=True))
