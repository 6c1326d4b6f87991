"""Masks over units or over weights as draws: MC-dropout and MC-DropConnect."""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax._util import random
from baal_jax.models import require_stochastic
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Array, Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables

Select = Callable[[str, Array], bool]  # ("Dense_0/kernel", leaf) -> whether to drop entries of it


def mc_dropout(model: Model, trainer: Trainer | None = None, *, shared_masks: bool = True) -> Posterior:
    """Monte-Carlo dropout: dropout masks as draws from an approximate posterior.

    A draw is a key, and so a set of dropout masks that the whole pool shares: one draw is one function. Layers before
    the first dropout do not depend on the draw and are computed once for all of them.

    With ``shared_masks=False`` a draw gives every example masks of its own, as other libraries do, made from the key
    and the values of the example: equal examples have equal masks, whatever the batch. Marginal scores (BALD, entropy,
    …) estimate the same numbers, but with errors that differ between examples that are alike, so the ``Q`` highest are
    less often ``Q`` of a kind. BatchBALD, EPIG and BAIT read how examples depend on each other: share masks for these.

    Args:
        model: from :func:`~baal_jax.from_linen`, :func:`~baal_jax.from_nnx` or :func:`~baal_jax.from_functions`.
        trainer: from :func:`~baal_jax.trainer`; None for a network that you train: the state is its
            :class:`~baal_jax.Variables` then.
        shared_masks: whether all examples have the same masks in a draw. Training has masks for every example anyhow.

    Returns:
        A :class:`~baal_jax.Posterior` whose state is a :class:`~baal_jax.TrainState`.

    Raises:
        ValueError: when it is first used, if the output of ``model`` does not depend on the key; or ``fit`` is called
            without a trainer.

    References:
        Gal and Ghahramani, `Dropout as a Bayesian approximation <https://arxiv.org/abs/1506.02142>`_, 2016.

    Example:
        >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.mc_dropout(baal.from_linen(net), trainer)
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.ones(4, bool))
        >>> baal.predict(jax.random.key(1), posterior, state, train.inputs, num_samples=5).shape
        (5, 4, 2)
    """
    train = None if trainer is None else trainer(model)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: TrainState | None = None) -> TrainState:
        if train is None:
            raise ValueError("trainer is None, so nothing can be fitted: pass one, or predict from Variables of yours")
        row = jax.tree.map(lambda leaf: leaf[:1], dataset.inputs)
        require_stochastic(model, jax.eval_shape(model.init, key, row), row)
        return train(key, dataset, labelled, previous)

    def sample(key: Key, state: TrainState, num_samples: int) -> Key:
        return random.split(key, num_samples)

    def apply(state: TrainState | Variables, draw: Key, inputs: PyTree) -> PyTree:
        variables = state if isinstance(state, Variables) else state.variables
        require_stochastic(model, variables, jax.tree.map(lambda leaf: leaf[:1], inputs))
        if shared_masks:
            return model.apply(variables, inputs, draw)
        own = lambda row: model.apply(variables, row, random.of_example(draw, row))  # noqa: E731
        outputs = jax.vmap(own)(jax.tree.map(lambda leaf: leaf[:, None], inputs))
        return jax.tree.map(lambda leaf: leaf[:, 0], outputs)

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))


def mc_dropconnect(model: Model, trainer: Trainer, rate: float = 0.5, *, select: Select | None = None) -> Posterior:
    r"""Monte-Carlo DropConnect: Bernoulli masks over weights, in training and in prediction.

    .. math:: f_s(x) = f(x;\, M_s \odot W / (1 - p)), \qquad M_s \sim \mathrm{Bernoulli}(1 - p)

    Every training step masks the weights anew; those that the state keeps, the mean of the masked ones, are those of
    validation and ``features``. State and draws are those of :func:`mc_dropout`: a key is one mask for all of the pool.
    Layers before the first masked weight are computed once for all draws. Dropout works in training alone.

    Args:
        model: any network, with random layers or without; its ``params`` are a pytree.
        trainer: from :func:`~baal_jax.trainer`.
        rate: :math:`p`, the share of weights dropped; half is much for a narrow network: compare the NLL at 0.1 to 0.3.
        select: ``("Dense_0/kernel", leaf) -> bool``, which arrays of ``params`` to mask; by default those of at least
            two axes that are called ``kernel``, ``weight`` or ``w``, as in dense and convolutional layers.

    Raises:
        ValueError: ``rate`` is not between 0 and 1; or, when it is first used, ``select`` picks nothing.

    References:
        Mobiny et al., `DropConnect is effective in modeling uncertainty of Bayesian deep networks
        <https://arxiv.org/abs/1906.04569>`_, 2021. Wan et al., `Regularization of neural networks using DropConnect
        <https://proceedings.mlr.press/v28/wan13.html>`_, 2013.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.mc_dropconnect(baal.from_linen(nn.Dense(2)), trainer, rate=0.3)
    """
    if isinstance(rate, bool) or not 0.0 < rate < 1.0:
        raise ValueError(f"rate={rate!r} must lie between 0 and 1: it is the share of the weights that is dropped")
    usual = lambda path, leaf: path.rsplit("/", 1)[-1] in ("kernel", "weight", "w") and leaf.ndim >= 2  # noqa: E731
    choose = usual if select is None else select

    def masked(variables: Variables, key: Key) -> Variables:
        return variables._replace(params=_masked(variables.params, key, float(rate), choose))

    def apply(variables: Variables, inputs: PyTree, key: Key) -> PyTree:
        return model.deterministic(masked(variables, key), inputs)

    def train(variables: Variables, inputs: PyTree, key: Key) -> tuple[PyTree, PyTree]:
        key_masks, key_model = jax.random.split(key)
        return model.train(masked(variables, key_masks), inputs, key_model)

    return mc_dropout(model._replace(apply=apply, train=train), trainer)


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
