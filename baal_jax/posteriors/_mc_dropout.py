"""MC-dropout: a network trained with dropout, and its dropout masks as draws from an approximate posterior."""

import jax

from baal_jax._util import random
from baal_jax.models import require_stochastic
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Array, Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState


def mc_dropout(model: Model, trainer: Trainer, *, shared_masks: bool = True) -> Posterior:
    """Monte-Carlo dropout: dropout masks as draws from an approximate posterior.

    A draw is a key, and so a set of dropout masks that the whole pool shares: one draw is one function. Layers before
    the first dropout do not depend on the draw and are computed once for all of them.

    With ``shared_masks=False`` a draw gives every example masks of its own, as other libraries do, made from the key
    and the values of the example: equal examples have equal masks, whatever the batch. Marginal scores (BALD, entropy,
    …) estimate the same numbers, but with errors that differ between examples that are alike, so the ``Q`` highest are
    less often ``Q`` of a kind. BatchBALD, EPIG and BAIT read how examples depend on each other: share masks for these.

    Args:
        model: from :func:`~baal_jax.from_linen`, :func:`~baal_jax.from_nnx` or :func:`~baal_jax.from_functions`.
        trainer: from :func:`~baal_jax.trainer`.
        shared_masks: whether all examples have the same masks in a draw. Training has masks for every example anyhow.

    Returns:
        A :class:`~baal_jax.Posterior` whose state is a :class:`~baal_jax.TrainState`.

    Raises:
        ValueError: when it is first used, if the output of ``model`` does not depend on the key.

    References:
        Gal and Ghahramani, `Dropout as a Bayesian approximation <https://arxiv.org/abs/1506.02142>`_, 2016.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.mc_dropout(baal.from_linen(net), trainer)
        >>> train = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 0, 1]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.ones(4, bool))
        >>> baal.predict(jax.random.key(1), posterior, state, train.inputs, num_samples=5).shape
        (5, 4, 2)
    """
    train = trainer(model)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: TrainState | None = None) -> TrainState:
        row = jax.tree.map(lambda leaf: leaf[:1], dataset.inputs)
        require_stochastic(model, jax.eval_shape(model.init, key, row), row)
        return train(key, dataset, labelled, previous)

    def sample(key: Key, state: TrainState, num_samples: int) -> Key:
        return random.split(key, num_samples)

    def apply(state: TrainState, draw: Key, inputs: PyTree) -> PyTree:
        require_stochastic(model, state.variables, jax.tree.map(lambda leaf: leaf[:1], inputs))
        if shared_masks:
            return model.apply(state.variables, inputs, draw)

        def one(example: PyTree) -> PyTree:
            batch = jax.tree.map(lambda leaf: leaf[None], example)
            outputs = model.apply(state.variables, batch, random.of_example(draw, example))
            return jax.tree.map(lambda leaf: leaf[0], outputs)

        return jax.vmap(one)(inputs)

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))
