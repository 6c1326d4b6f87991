"""SWAG: a Gaussian around the mean of the last iterates of training, with their covariance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, numerics
from baal_jax.training import averaging, batches, tasks
from baal_jax.typing import Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, of_network, short

_LEAST_SNAPSHOTS = 20  # where the steps allow it and nothing else is asked for
_LEAST_VARIANCE = 1e-30
_STATISTICS_BATCHES, _STATISTICS_BATCH_SIZE = 8, 64


class SwagMoments(NamedTuple):
    """Moments of the snapshots of training, in float32 whatever the parameters are.

    Attributes:
        step: ``int32[]``, updates of this fit.
        num_snapshots: ``int32[]``.
        mean: of the snapshots, like the parameters.
        squares: sum of their squared deviations from the mean, like the parameters.
        deviations: a ring of the last ``rank`` snapshots minus the mean at that time, zeros before; None with rank 0.
    """

    step: Array
    num_snapshots: Array
    mean: PyTree
    squares: PyTree
    deviations: PyTree
    __repr__ = short


class SwagState(NamedTuple):
    """A Gaussian over the weights of a network.

    Attributes:
        variables: the network of the mean weights, with batch statistics of its own.
        train: what training returned, for a warm start: the last iterate, or that of ``average_from``, ``validation``.
        inputs: labelled inputs ``[8, 64, …]`` from which a draw gets its batch statistics; None without any.
    """

    variables: Variables
    train: TrainState
    inputs: PyTree
    _, steps, loss = of_network("train")
    __repr__ = short

    @property
    def moments(self) -> SwagMoments:
        """What the Gaussian is made from."""
        return self.train.opt_state[-1]


def swag(
    model: Model, trainer: Trainer, rank: int = 20, *, start: float = 0.75, every: int | None = None, scale: float = 1.0
) -> Posterior:
    r"""SWAG: a Gaussian around the mean of the last iterates of training.

    Snapshots :math:`\theta_1, \dots, \theta_T` of the weights are gathered over the last part of training. With their
    mean :math:`\bar\theta`, their variances :math:`\Sigma_\text{diag}` and, as columns of :math:`\hat D`, the last
    :math:`K` of the deviations :math:`\theta_i - \bar\theta_i` from the mean of the first :math:`i`,

    .. math:: \theta \sim \mathcal{N}\Bigl(\bar\theta, \; \tfrac{\text{scale}}{2}
              \bigl(\Sigma_\text{diag} + \tfrac{1}{K - 1} \hat D \hat D^\top\bigr)\Bigr),
              \qquad K = \min(T, \text{rank})

    and :math:`\mathcal{N}(\bar\theta, \text{scale} \cdot \Sigma_\text{diag})` with ``rank`` 0 (SWAG-diagonal). Draws
    are in evaluation mode, with batch statistics of their own, by passes in training mode on 512 labelled inputs in the
    state. The learning rate should stay high meanwhile; ``average_from`` and ``validation`` choose nothing here.

    Args:
        model: the network.
        trainer: from :func:`~baal_jax.trainer`.
        rank: ``K`` at most, the number of deviations kept, each as large as the parameters in float32; 0 for none.
        start: gather from this share of the steps on.
        every: steps from one snapshot to the next, the last weights always being one. By default such that there are
            at least ``max(rank, 20)`` and less than twice as many, or one a step in a shorter fit.
        scale: of the covariance. 0 makes every draw the mean: stochastic weight averaging.

    Returns:
        A :class:`~baal_jax.Posterior` with a :class:`SwagState`, whose draws are :class:`~baal_jax.Variables`.

    Raises:
        ValueError: ``rank`` is negative or 1, ``start`` outside of [0, 1), ``every`` not positive, ``scale`` negative;
            when used, fewer than two snapshots in ``num_steps`` (no spread in ``num_epochs``), or a random ``model``.

    References:
        Maddox et al., `A simple baseline for Bayesian uncertainty in deep learning
        <https://arxiv.org/abs/1902.02476>`_, 2019; Izmailov et al. 2018, of :func:`~baal_jax.trainer`.

    Example:
        >>> trainer = baal.trainer(optax.sgd(0.1), baal.losses.cross_entropy, num_steps=40, batch_size=2)
        >>> posterior = baal.posteriors.swag(baal.from_linen(nn.Dense(2)), trainer, rank=3)
    """
    rank = checks.positive_int("rank", rank, least=0)
    if rank == 1:
        raise ValueError("rank=1 is no covariance, which divides by rank − 1: give 0 for the diagonal, or 2 or more")
    if not 0.0 <= start < 1.0:
        raise ValueError(f"start={start} must be at least 0 and less than 1: it is a share of the steps")
    every = checks.optional_int("every", every)
    scale = checks.finite_float("scale", scale, 0.0)
    train = trainer(model, transform=_gather(rank, start, every, least=2 if scale > 0 else 1))

    def network(key: Key, params: PyTree, trained: TrainState, inputs: PyTree) -> Variables:
        variables = trained.variables._replace(params=averaging.cast_like(params, trained.variables.params))
        if inputs is None:
            return variables
        read = lambda i: (jax.random.fold_in(key, i), jax.tree.map(lambda leaf: leaf[i], inputs))  # noqa: E731
        # The batch statistics of training belong to other weights, those of its last steps.
        return averaging.with_new_statistics(model, variables, read, num_batches=_STATISTICS_BATCHES)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: SwagState | None = None) -> SwagState:
        key_train, key_inputs, key_statistics = jax.random.split(key, 3)
        trained = train(key_train, dataset, labelled, None if previous is None else previous.train)
        has_statistics = jax.tree.leaves(trained.variables.collections)
        inputs = _some_inputs(key_inputs, dataset.inputs, labelled) if has_statistics else None
        mean = network(key_statistics, _mean(trained), trained, inputs)
        return SwagState(mean, trained._replace(variables=trained.variables._replace(frozen=None)), inputs)

    def sample(key: Key, state: SwagState, num_samples: int) -> Variables:
        mean = _mean(state.train)

        def draw(key: Key) -> Variables:
            key_noise, key_statistics = jax.random.split(key)
            params = jax.tree.map(jnp.add, mean, _noise(key_noise, state.moments, scale))
            trained = state.train._replace(variables=state.train.variables._replace(frozen=state.variables.frozen))
            return network(key_statistics, params, trained, state.inputs)._replace(frozen=None)

        return jax.vmap(draw)(jax.random.split(key, num_samples))

    def apply(state: SwagState, draw: Variables, inputs: PyTree) -> PyTree:
        return model.deterministic(draw._replace(frozen=state.variables.frozen), inputs)

    return tasks.guarded(jax.jit(fit), sample, apply, tasks.task_of(trainer))


def _gather(rank: int, start: float, every: int | None, least: int) -> Any:
    """Leaves the updates as they are and keeps moments of the parameters that they lead to."""
    import optax

    def init(params: PyTree) -> SwagMoments:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        ring = jax.tree.map(lambda leaf: jnp.zeros((rank, *leaf.shape), jnp.float32), params) if rank else None
        return SwagMoments(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), zeros, zeros, ring)

    def update(updates: PyTree, state: Any, params: PyTree = None, *, total_steps: Any = 0, **_: Any) -> tuple:
        if isinstance(total_steps, int):
            window = total_steps - min(int(start * total_steps), total_steps - 1)
            if (number := -(-window // (every or 1))) < least:
                given = f"start={start} and every={every} leave {number} snapshot in {total_steps} steps"
                raise ValueError(f"{given}: lower them, train longer, or ask for one network with scale=0")
        first = averaging.share(start, total_steps)
        window = jnp.asarray(total_steps, jnp.int32) - first
        stride = jnp.maximum(window // max(rank, _LEAST_SNAPSHOTS), 1) if every is None else every
        # Counted from the end, so that the last weights are a snapshot.
        due = (state.step >= first) & (state.step < total_steps) & ((window - 1 - (state.step - first)) % stride == 0)
        new = optax.apply_updates(params, updates)
        state = jax.lax.cond(numerics.largest(due), lambda: _with_snapshot(state, new, due), lambda: state)
        return updates, state._replace(step=jnp.minimum(state.step + 1, total_steps))

    return optax.GradientTransformationExtraArgs(init, update)


def _with_snapshot(state: SwagMoments, params: PyTree, due: Array) -> SwagMoments:
    """Welford's recursion where ``due``: no difference of large numbers, no negative variance."""
    number, ring = state.num_snapshots, state.deviations
    share = jnp.where(due, 1.0 / (number + 1).astype(jnp.float32), 0.0)
    change = jax.tree.map(lambda new, old: new.astype(jnp.float32) - old, params, state.mean)
    mean = jax.tree.map(lambda old, change: old + share * change, state.mean, change)
    squares = jax.tree.map(lambda old, change: old + (due - share) * change**2, state.squares, change)
    if ring is not None:
        place = number % jax.tree.leaves(ring)[0].shape[0]
        row = jax.tree.map(lambda rows, change: jnp.where(due, (1 - share) * change, rows[place]), ring, change)
        ring = jax.tree.map(lambda rows, row: rows.at[place].set(row), ring, row)
    return state._replace(num_snapshots=number + due, mean=mean, squares=squares, deviations=ring)


def _mean(state: TrainState) -> PyTree:
    """In float32; the last weights where there is no snapshot, after an epoch of no examples."""
    moments, params = state.opt_state[-1], state.variables.params
    has_mean = moments.num_snapshots > 0
    return jax.tree.map(lambda mean, last: jnp.where(has_mean, mean, last.astype(jnp.float32)), moments.mean, params)


def _noise(key: Key, moments: SwagMoments, scale: float) -> PyTree:
    """A draw from the Gaussian, minus its mean."""
    key_diagonal, key_low_rank = jax.random.split(key)
    leaves, structure = jax.tree.flatten(moments.squares)
    keys = jax.random.split(key_diagonal, len(leaves))
    count = jnp.maximum(moments.num_snapshots, 1).astype(jnp.float32)
    part = scale if moments.deviations is None else scale / 2
    # Clamped, because the root of zero has no slope.
    spread = [jnp.sqrt(part) * jnp.sqrt(jnp.maximum(leaf / count, _LEAST_VARIANCE)) for leaf in leaves]
    noise = [leaf * jax.random.normal(keys[i], leaf.shape, jnp.float32) for i, leaf in enumerate(spread)]
    if moments.deviations is not None:
        rings = jax.tree.leaves(moments.deviations)
        rank = rings[0].shape[0]
        # The same for all parameters: this is what makes them vary together.
        factors = jax.random.normal(key_low_rank, (rank,), jnp.float32)
        factors *= jnp.sqrt(part / jnp.maximum(jnp.minimum(count, rank) - 1, 1))
        noise = [leaf + jnp.tensordot(factors, ring, 1) for leaf, ring in zip(noise, rings, strict=True)]
    return jax.tree.unflatten(structure, noise)


def _some_inputs(key: Key, inputs: PyTree, labelled: Array) -> PyTree:
    """Batches from shuffled passes over the labelled examples."""
    stream = batches.stream_of(key, labelled)
    chosen, _ = stream.batch(jnp.zeros((), jnp.int32), _STATISTICS_BATCHES * _STATISTICS_BATCH_SIZE, None)
    return jax.tree.map(lambda leaf: leaf[chosen.reshape(_STATISTICS_BATCHES, -1)], inputs)
