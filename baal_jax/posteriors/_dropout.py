"""What is random in a network as a posterior: masks over units or weights as draws, and a Gaussian process of them."""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, linalg, numerics, random
from baal_jax.models import require_stochastic
from baal_jax.posteriors._gauss_newton import product, sum_over_labelled
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, of_network, short

Select = Callable[[str, Array], bool]  # ("Dense_0/kernel", leaf) -> whether to drop entries of it


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
        >>> import baal_jax as baal, flax.linen as nn, optax
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
