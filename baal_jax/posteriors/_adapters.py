"""Posteriors whose draws come from samplers of other packages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks
from baal_jax.training import batches, tasks
from baal_jax.typing import Array, Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, of_network, short


class ChainState(NamedTuple):
    """A trained network, and the weights that a chain visited from there.

    Attributes:
        network: where the chain began.
        positions: parameters with leading axis ``K``, in the order of the chain.
    """

    network: TrainState
    positions: PyTree
    variables, steps, loss = of_network("network")
    __repr__ = short


def from_blackjax(
    model: Model,
    trainer: Trainer,
    algorithm: Callable[[Callable], Any],
    loss: Callable[[PyTree, Array], Array],
    *,
    step_size: float,
    num_kept: int = 20,
    burn_in: int = 100,
    thinning: int = 10,
    batch_size: int = 32,
    prior_std: float = 1.0,
    temperature: float = 1.0,
) -> Posterior:
    r"""Stochastic-gradient Markov-chain Monte Carlo with a sampler of blackjax, started at a trained network.

    The chain sees the log-posterior through batches ``B`` of the ``n`` labelled examples,

    .. math:: \log p(\theta \mid L) \approx -\frac{n}{|B|} \sum_{i \in B} \ell_i(\theta)
              - \frac{\lVert\theta\rVert^2}{2\sigma^2}

    in evaluation mode: dropout off, batch statistics as training left them. A draw is weights that the chain visited.

    Args:
        model: any network.
        trainer: from :func:`~baal_jax.trainer`; finds where the chain begins.
        algorithm: ``blackjax.sgld``, or another of its samplers with that signature: ``(gradient function) ->
            algorithm``. For options: ``lambda grad: blackjax.sghmc(grad, num_integration_steps=5)``.
        loss: ``(outputs [B, …, C], targets [B, …]) -> [B]``, a negative log-likelihood in nats, summed over outputs and
            positions (those of :mod:`baal_jax.losses` average over positions and real outputs).
        step_size: of the sampler. The gradient is that of the whole log-posterior, so the step falls with ``1/n``.
        num_kept: ``K``, how many positions to keep.
        burn_in: steps before the first that is kept.
        thinning: steps from one that is kept to the next.
        batch_size: ``|B|``.
        prior_std: :math:`\sigma` of the Gaussian prior on every parameter.
        temperature: of the posterior; below 1 it is colder.

    Returns:
        A :class:`~baal_jax.Posterior` with a :class:`ChainState`. The first ``K`` draws differ; more repeat them.

    References:
        Welling and Teh, `Bayesian learning via stochastic gradient Langevin dynamics
        <https://icml.cc/2011/papers/398_icmlpaper.pdf>`_, 2011. Cabezas et al., `BlackJAX: composable Bayesian
        inference in JAX <https://arxiv.org/abs/2402.10797>`_, 2024.

    Example:
        >>> import blackjax  # doctest: +SKIP
        >>> posterior = posteriors.from_blackjax(
        ...     model, trainer, blackjax.sgld, losses.cross_entropy, step_size=1e-4
        ... )  # doctest: +SKIP
    """
    num_kept, thinning = checks.positive_int("num_kept", num_kept), checks.positive_int("thinning", thinning)
    batch_size, burn_in = checks.positive_int("batch_size", batch_size), checks.positive_int("burn_in", burn_in, 0)
    temperature = checks.finite_float("temperature", temperature, 0.0)
    step_size = checks.positive_float("step_size", step_size)
    prior_std = checks.positive_float("prior_std", prior_std)
    train = trainer(model)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: ChainState | None = None) -> ChainState:
        key_train, key_order, key_chain = jax.random.split(key, 3)
        network = train(key_train, dataset, labelled, None if previous is None else previous.network)
        start = network.variables.params
        stream = batches.stream_of(key_order, labelled)

        def log_density(params: PyTree, seen: tuple[Dataset, Array]) -> Array:
            batch, weights = seen  # which are zero where nothing is labelled
            losses = loss(model.deterministic(network.variables._replace(params=params), batch.inputs), batch.targets)
            if losses.shape != (batch_size,):
                raise ValueError(f"loss gives {losses.shape}, not {(batch_size,)}: sum over the other axes")
            mean = jnp.sum(losses.astype(jnp.float32) * weights) / batch_size
            squares = sum(jnp.sum(leaf.astype(jnp.float32) ** 2) for leaf in jax.tree.leaves(params))
            return -stream.size.astype(jnp.float32) * mean - squares / (2.0 * prior_std**2)

        sampler = algorithm(jax.grad(log_density))

        def step(position: PyTree, index: Array) -> tuple[PyTree, None]:
            chosen, weights = stream.batch(index, batch_size, None)
            batch = jax.tree.map(lambda leaf: leaf[chosen], dataset)
            key_step = jax.random.fold_in(key_chain, index)
            # Code of another package, written for jax's defaults.
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return sampler.step(key_step, position, (batch, weights), step_size, temperature), None

        def keep(position: PyTree, first: Array) -> tuple[PyTree, PyTree]:
            position, _ = jax.lax.scan(step, position, first + jnp.arange(thinning, dtype=jnp.int32))
            return position, position

        start, _ = jax.lax.scan(step, sampler.init(start), jnp.arange(burn_in, dtype=jnp.int32))
        firsts = burn_in + thinning * jnp.arange(num_kept, dtype=jnp.int32)
        return ChainState(network, jax.lax.scan(keep, start, firsts)[1])

    def sample(key: Key, state: ChainState, num_samples: int) -> Array:
        return jax.random.permutation(key, num_kept)[jnp.arange(num_samples) % num_kept]

    def apply(state: ChainState, draw: Array, inputs: PyTree) -> PyTree:
        params = jax.tree.map(lambda leaf: leaf[draw], state.positions)
        return model.deterministic(state.variables._replace(params=params), inputs)

    return tasks.guarded(jax.jit(fit), sample, apply, tasks.task_of(trainer))._replace(num_draws=num_kept)
