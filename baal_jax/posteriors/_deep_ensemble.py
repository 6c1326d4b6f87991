"""Deep ensembles: independently trained networks, each of them a draw."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, of_network, short


class EnsembleState(NamedTuple):
    """The trained members of an ensemble.

    Attributes:
        members: a :class:`~baal_jax.TrainState` whose arrays have a leading axis of members.
        frozen: pretrained parameters that are not trained, which all members share.
    """

    members: TrainState
    frozen: PyTree = None
    _, steps, loss = of_network("members")
    __repr__ = short

    @property
    def variables(self) -> Variables:
        """The first member's network, for what reads a single one (``features``)."""
        return _shared(self, jax.tree.map(lambda leaf: leaf[0], self.members.variables))


def deep_ensemble(model: Model, trainer: Trainer, num_members: int = 5, *, batch_size: int | None = None) -> Posterior:
    r"""Deep ensemble: independently trained networks as draws.

    Every member is trained on all labelled examples, from initial weights and in batches of its own, for the mixture

    .. math:: p(y \mid x) = \frac{1}{M} \sum_{m=1}^{M} p(y \mid x, \theta_m)

    A draw is a member in evaluation mode, dropout off. The members come in random order, and beyond ``num_members``
    draws again in the same order; scores and metrics, to which this adds nothing, ask each member once.

    Args:
        model: the network. Members need initial weights of their own: give :func:`~baal_jax.from_nnx` a function of
            ``rngs``, not a module, whose weights would be those of all members.
        trainer: from :func:`~baal_jax.trainer`.
        num_members: ``M``.
        batch_size: members that are trained at a time, by default all, in one ``vmap``. Bounds the memory of training,
            changes members by rounding alone, and as 1 may be faster on a CPU for a convolutional network.

    Returns:
        A :class:`~baal_jax.Posterior` with an :class:`EnsembleState`, whose draws are :class:`~baal_jax.Variables`.

    Raises:
        ValueError: a number is not positive; when it is used, if ``model`` stays random with every random layer off.

    References:
        Lakshminarayanan et al., `Simple and scalable predictive uncertainty estimation using deep ensembles
        <https://arxiv.org/abs/1612.01474>`_, 2017.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.deep_ensemble(baal.from_linen(nn.Dense(2)), trainer, num_members=3)
    """
    num_members = checks.positive_int("num_members", num_members)
    at_a_time = checks.optional_int("batch_size", batch_size) or num_members
    train = trainer(model)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: EnsembleState | None = None) -> EnsembleState:
        member = lambda given: train(given[0], dataset, labelled, given[1])  # noqa: E731
        given = jax.random.split(key, num_members), None if previous is None else previous.members
        if at_a_time >= num_members:
            members = jax.vmap(member)(given)
        else:
            members = jax.lax.map(member, given, batch_size=at_a_time)
        frozen = lambda member: getattr(getattr(member, "variables", None), "frozen", None)  # noqa: E731
        if frozen(members) is None or not _is_the_same_for_all(lambda key: frozen(member((key, None))), given[0]):
            return EnsembleState(members)
        shared = jax.tree.map(lambda leaf: leaf[0], frozen(members))
        return EnsembleState(members._replace(variables=members.variables._replace(frozen=None)), shared)

    def sample(key: Key, state: EnsembleState, num_samples: int) -> Variables:
        order = jax.random.permutation(key, num_members)
        return jax.tree.map(lambda leaf: leaf[order[jnp.arange(num_samples) % num_members]], state.members.variables)

    def apply(state: EnsembleState, draw: Variables, inputs: PyTree) -> PyTree:
        return model.deterministic(_shared(state, draw), inputs)

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))._replace(num_draws=num_members)


def _shared(state: EnsembleState, variables: Variables) -> Variables:
    frozen = getattr(state, "frozen", None)
    return variables if frozen is None else variables._replace(frozen=frozen)


def _is_the_same_for_all(function: Callable[[Key], PyTree], keys: Key) -> bool:
    """Whether what a function gives does not depend on its key, from its traced program."""
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), keys)
    except ValueError:
        return False
    return True
