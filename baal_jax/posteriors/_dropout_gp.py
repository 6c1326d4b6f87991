"""A Gaussian process whose covariance is that of a network's dropout passes, conditioned on the labelled examples."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, linalg, numerics
from baal_jax.posteriors._gauss_newton import product, sum_over_labelled
from baal_jax.posteriors._mc_dropout import mc_dropout
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, of_network, short


class DropoutGPState(NamedTuple):
    """A trained network, and what is known of the weights of its passes.

    Attributes:
        network: the trained network.
        key: of the ``T`` passes.
        mean: ``float32[T]``, posterior mean of the weights of the passes.
        root: ``float32[T, T]``, symmetric square root of their posterior covariance.
        age: ``int32[]``, rounds since the network was trained.
    """

    network: TrainState
    key: Key
    mean: Array
    root: Array
    age: Array
    variables, steps, loss = of_network("network")
    __repr__ = short


def dropout_gp(
    model: Model,
    trainer: Trainer,
    *,
    num_passes: int = 128,
    noise: float = 0.1,
    retrain_every: int = 1,
    batch_size: int = 256,
) -> Posterior:
    r"""A Gaussian process whose covariance is that of ``T`` dropout passes of the trained network.

    .. math:: k(x, x') = \frac1T \sum_t \bigl(f_t(x) - \bar f(x)\bigr) \bigl(f_t(x') - \bar f(x')\bigr)^\top
              = \Phi(x)^\top \Phi(x')

    The process is conditioned on the labelled examples, seen with noise of variance :math:`\sigma^2`. Its rank is
    finite, so this is exact in weight space: a draw is one weight for each pass,

    .. math:: f(x) = \bar f(x) + \Phi(x)^\top w, \qquad
              w \mid L \sim \mathcal{N}\bigl(A^{-1} \Phi_L r_L / \sigma^2,\; A^{-1}\bigr), \quad
              A = I + \Phi_L \Phi_L^\top / \sigma^2

    All outputs of an example share the weights, which keeps the covariance between them. Where targets are real values,
    the residuals are :math:`r = y - \bar f(x)`. For classes the outputs are logits, of which no value was seen:
    :math:`r = 0`, the mean stays that of the passes and the covariance alone shrinks around what is labelled.

    Conditioning is cheap beside training: with ``retrain_every=5`` four rounds out of five keep the network, and only
    new labels sharpen the process. For the process of an infinitely wide network (NNGP) see :func:`gaussian_process`.

    Args:
        model: a network with dropout (or other random layers) and one array as output.
        trainer: from :func:`~baal_jax.trainer`.
        num_passes: ``T``. More labelled values than this leave little variance.
        noise: :math:`\sigma`, standard deviation of the noise, in the unit of the outputs.
        retrain_every: rounds from one training to the next, in between which the network of ``previous`` is kept.
            Vectorised over seeds, the compiler trains all the same and drops the result.
        batch_size: labelled examples in work at a time while conditioning.

    Returns:
        A :class:`~baal_jax.Posterior` with a :class:`DropoutGPState`. Negative classes and NaN do not count.

    Raises:
        ValueError: an argument is out of its range; when used, a model without randomness, targets that do not fit.

    References:
        Tsymbalov et al., `Deeper connections between neural networks and Gaussian processes speed-up active learning
        <https://arxiv.org/abs/1902.10350>`_, 2019.

    Example:
        >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(1)])
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.squared_error, num_steps=10)
        >>> posterior = baal.posteriors.dropout_gp(baal.from_linen(net), trainer, num_passes=16)
    """
    num_passes = checks.positive_int("num_passes", num_passes, 2)
    retrain_every = checks.positive_int("retrain_every", retrain_every)
    batch_size = checks.positive_int("batch_size", batch_size)
    noise = checks.positive_float("noise", noise)
    train = mc_dropout(model, trainer).fit

    def passes(variables: Variables, key: Key, inputs: PyTree) -> tuple[Array, Array]:
        """Mean ``[B, …, C]`` and scaled deviations ``[T, B, …, C]``."""
        keys = jax.random.split(key, num_passes)
        outputs = numerics.as_float(jax.vmap(lambda key: model.apply(variables, inputs, key))(keys))
        mean = jnp.mean(outputs, axis=0)
        return mean, (outputs - mean[None]) / math.sqrt(num_passes)

    def condition(variables: Variables, key: Key, dataset: Dataset, labelled: Array) -> tuple[Array, Array]:
        """Posterior mean ``[T]`` and root of the covariance ``[T, T]`` of the weights."""

        def batch(data: Dataset, counts: Array) -> tuple[tuple[Array, Array], None]:
            mean, deviations = passes(variables, key, data.inputs)
            residual, known = _residual(data.targets, mean)
            known &= counts.reshape(-1, *[1] * (known.ndim - 1))
            seen = jnp.where(known[None], deviations, 0.0).reshape(num_passes, -1)
            return (product(seen, seen.T), product(seen, residual.reshape(-1))), None

        (products, moments), _ = sum_over_labelled(batch, dataset, labelled, batch_size)
        # The symmetric root: a Cholesky factor would depend on the order of the passes, eigenvectors on the machine.
        values, vectors = linalg.eigh(products)
        shrink = 1.0 / (1.0 + jnp.maximum(values, 0.0) / noise**2)
        mean = product(vectors, shrink * product(vectors.T, moments)) / noise**2
        return mean, product(vectors * jnp.sqrt(shrink)[None], vectors.T)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: DropoutGPState | None = None) -> DropoutGPState:
        key_train, key_passes = jax.random.split(key)
        labelled = jnp.asarray(labelled)

        def renew() -> tuple[TrainState, Key, Array]:
            network = train(key_train, dataset, labelled, None if previous is None else previous.network)
            return network, key_passes, jnp.zeros((), jnp.int32)

        if previous is None or retrain_every == 1:
            network, key_passes, age = renew()
        else:
            old, age = previous, previous.age + 1
            due = (age >= retrain_every) | (old.steps == 0)
            network, key_passes, age = jax.lax.cond(due, renew, lambda: (old.network, old.key, age))
        return DropoutGPState(network, key_passes, *condition(network.variables, key_passes, dataset, labelled), age)

    def sample(key: Key, state: DropoutGPState, num_samples: int) -> Array:
        noise = lambda key: jax.random.normal(key, (num_passes,), state.mean.dtype)  # noqa: E731
        return jax.vmap(lambda key: state.mean + product(state.root, noise(key)))(jax.random.split(key, num_samples))

    def apply(state: DropoutGPState, draw: Array, inputs: PyTree) -> Array:
        mean, deviations = passes(state.variables, state.key, inputs)
        return mean + jnp.tensordot(draw, deviations, axes=1, precision="highest")

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))


def _residual(targets: Array, outputs: Array) -> tuple[Array, Array]:
    """What was seen beyond the mean, ``[B, …, C]``, and where anything was, up to broadcasting."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if outputs.shape[:-1] != targets.shape or outputs.shape[-1] < 2:
            need = f"outputs {(*targets.shape, 'C')}, but these are {outputs.shape}: make real values float32"
            raise ValueError(f"targets {targets.dtype}{targets.shape} are classes for {need}")
        return jnp.zeros_like(outputs), (targets >= 0)[..., None]
    targets = numerics.targets_for("the outputs", outputs, targets)
    known = ~jnp.isnan(targets)
    return jnp.where(known, targets - outputs, 0.0), known
