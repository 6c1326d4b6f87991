"""Variational inference with Gaussian weights: for any network, and for networks of Bayesian layers.

Anywhere among parameters a dict ``{"mean": tree, "raw_std": tree}`` is one factorised Gaussian. Its standard deviation
is ``softplus(raw_std)``, so any real number is allowed; a None in ``raw_std`` is a weight that is not random.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, random
from baal_jax.training.tasks import guarded, task_of
from baal_jax.typing import Array, Dataset, Key, Model, Posterior, PyTree, Trainer, TrainState, Variables, short


class VariationalState(NamedTuple):
    """A fitted Gaussian over the weights of a network.

    Attributes:
        variables: the mean weights, and batch statistics.
        raw_std: as the parameters: ``softplus(raw_std)`` is the standard deviation of a weight; None if not random.
        opt_state: state of the optimizer.
        steps: ``int32[]``, updates since the weights were initialised.
        loss: ``float32[]``, running mean of the training loss, divergence included.
    """

    variables: Variables
    raw_std: PyTree
    opt_state: PyTree
    steps: Array
    loss: Array
    __repr__ = short


def bayes_by_backprop(
    model: Model,
    trainer: Trainer,
    *,
    prior_std: float = 1.0,
    initial_std: float = 0.01,
    kl_weight: float = 1.0,
    select: Callable[[str, Array], bool] | None = None,
) -> Posterior:
    r"""Bayes by backprop: a Gaussian with a mean and a standard deviation for every weight of an unedited network.

    Every step trains one set of sampled weights, :math:`w = \mu + \sigma \circ \epsilon`, and so the negative evidence
    lower bound per labelled example, of which there are ``n``:

    .. math:: \frac1B \sum_b -\log p(y_b \mid x_b, w) + \frac{\lambda}{n}\, \mathrm{KL}\bigl( \mathcal{N}(\mu, \sigma^2)
              \,\|\, \mathcal{N}(0, \sigma_p^2) \bigr)

    The loss of ``trainer`` has to be a negative log-likelihood in nats: ``losses.cross_entropy``,
    ``losses.gaussian_nll``, or ``losses.squared_error`` divided by the variance of the noise. These average over
    positions and real outputs: with ``m`` of them an example divide ``kl_weight`` by ``m``. With few labels and many
    weights the network falls back to its prior: a ``kl_weight`` below one, colder than Bayes' rule, is then usual.

    Args:
        model: the network.
        trainer: from :func:`~baal_jax.trainer`; its optimizer without weight decay, which the prior replaces.
        prior_std: ``σ_p``.
        initial_std: standard deviation of every weight at the start.
        kl_weight: ``λ``.
        select: ``("Dense_0/kernel", leaf) -> bool``, which parameters are random, by default all; others have no prior.

    Returns:
        A :class:`~baal_jax.Posterior` with a :class:`VariationalState`, whose draws are weights in evaluation mode.

    Raises:
        ValueError: a number is not positive (``kl_weight`` may be zero), or ``select`` picks nothing.

    References:
        Blundell et al., `Weight uncertainty in neural networks <https://arxiv.org/abs/1505.05424>`_, 2015.

    Example:
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.bayes_by_backprop(baal.from_linen(nn.Dense(2)), trainer, initial_std=0.1)
    """
    # The part that is trained, by its own paths, not by those of means and deviations.
    model = getattr(trainer, "part", lambda model: model)(model)
    gaussian = _gaussian_model(model, checks.positive_float("initial_std", initial_std), select)
    inner = bayesian_layers(gaussian, trainer, prior_std=prior_std, kl_weight=kl_weight)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: VariationalState | None = None) -> VariationalState:
        state = inner.fit(key, dataset, labelled, None if previous is None else _to_train_state(previous))
        params = state.variables.params
        return VariationalState(state.variables._replace(params=params["mean"]), params["raw_std"], *state[1:])

    def sample(key: Key, state: VariationalState, num_samples: int) -> PyTree:
        return inner.sample(key, _to_train_state(state), num_samples)

    def apply(state: VariationalState, draw: PyTree, inputs: PyTree) -> PyTree:
        return inner.apply(_to_train_state(state), draw, inputs)

    return guarded(jax.jit(fit), sample, apply, task_of(trainer))


def bayesian_layers(model: Model, trainer: Trainer, *, prior_std: float = 1.0, kl_weight: float = 1.0) -> Posterior:
    r"""Variational inference in a network of Bayesian layers, those of :mod:`baal_jax.posteriors.layers`.

    The same objective as :func:`bayes_by_backprop`, with the noise in training that the layers bring: one for every
    example, so gradients are less noisy. Parameters of other layers have one value, without a prior.

    Args:
        model: a network with :class:`~baal_jax.posteriors.layers.BayesianDense` or
            :class:`~baal_jax.posteriors.layers.BayesianConv`, told by a training flag when to be deterministic.
        trainer: from :func:`~baal_jax.trainer`, with a negative log-likelihood as loss.
        prior_std: ``σ_p``, the standard deviation of the prior.
        kl_weight: ``λ``, the weight of the divergence.

    Returns:
        A :class:`~baal_jax.Posterior` with a :class:`~baal_jax.TrainState`, whose draws are weights in evaluation mode.

    Raises:
        ValueError: a number is not positive (``kl_weight`` may be zero); when it is used, there is no Bayesian layer.

    References:
        Shridhar et al., `A comprehensive guide to Bayesian convolutional neural network with variational inference
        <https://arxiv.org/abs/1901.02731>`_, 2019.

    Example:
        >>> from baal_jax.posteriors.layers import BayesianDense
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train: bool):
        ...         x = nn.relu(BayesianDense(8)(x, deterministic=not train))
        ...         return BayesianDense(2)(x, deterministic=not train)
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = baal.posteriors.bayesian_layers(baal.from_linen(Net()), trainer)
    """
    prior_std = checks.positive_float("prior_std", prior_std)
    kl_weight = checks.finite_float("kl_weight", kl_weight, 0.0)

    def penalty(params: PyTree, num_labelled: Array) -> Array:
        divergence = kl_divergence(params, prior_std)
        return kl_weight * divergence / jnp.maximum(num_labelled, 1).astype(divergence.dtype)

    def sample(key: Key, state: TrainState, num_samples: int) -> PyTree:
        return jax.vmap(lambda key: _draw(key, state.variables.params))(jax.random.split(key, num_samples))

    def apply(state: TrainState, draw: PyTree, inputs: PyTree) -> PyTree:
        return model.deterministic(state.variables._replace(params=_with_draw(state.variables.params, draw)), inputs)

    return guarded(trainer(model, penalty=penalty), sample, apply, task_of(trainer))


def _gaussian_model(model: Model, initial_std: float, select: Callable[[str, Array], bool] | None) -> Model:
    """The network whose parameters are a mean and a standard deviation of each of its weights."""

    def raw_std(path: tuple, leaf: Array) -> Array | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_random = jnp.issubdtype(leaf.dtype, jnp.floating) and (select is None or select(name, leaf))
        return constant_raw_std(leaf, initial_std) if is_random else None

    def init(key: Key, inputs: PyTree) -> Variables:
        variables = model.init(key, inputs)
        spread = jax.tree_util.tree_map_with_path(raw_std, variables.params)
        return variables._replace(params={"mean": variables.params, "raw_std": spread})

    def drawn(call: Callable[..., PyTree], variables: Variables, inputs: PyTree, key: Key) -> PyTree:
        key_weights, key_model = jax.random.split(key)
        params = _with_draw(variables.params, _draw(key_weights, variables.params))["mean"]
        return call(variables._replace(params=params), inputs, key_model)

    def deterministic(variables: Variables, inputs: PyTree) -> PyTree:
        return model.deterministic(variables._replace(params=variables.params["mean"]), inputs)

    return Model(init, partial(drawn, model.apply), partial(drawn, model.train), deterministic)


def _to_train_state(state: VariationalState) -> TrainState:
    params = {"mean": state.variables.params, "raw_std": state.raw_std}
    return TrainState(state.variables._replace(params=params), *state[2:])


def constant_raw_std(mean: Array, std: float) -> Array:
    """What makes the standard deviation ``std`` everywhere: the inverse of softplus."""
    return jnp.full_like(mean, std + math.log(-math.expm1(-std)))


def standard_normal(key: Key, like: Sequence[Array]) -> list[Array]:
    """Noise of the shapes and types of some arrays, from one generator: several take that much longer to compile."""
    ends = list(itertools.accumulate(leaf.size for leaf in like))
    pieces = jnp.split(jax.random.normal(random.vectorised(key), (ends[-1],), jnp.float32), ends[:-1])
    return [piece.reshape(leaf.shape).astype(leaf.dtype) for piece, leaf in zip(pieces, like, strict=True)]


def _draw(key: Key, params: PyTree) -> PyTree:
    """One set of random weights, in place of every mean; None for the others, which all draws share."""
    noise = iter(standard_normal(key, [mean for mean, _ in _random_weights(params)]))
    one = lambda raw, mean: None if raw is None else mean + jax.nn.softplus(raw) * next(noise)  # noqa: E731

    def drawn(part: PyTree) -> PyTree:
        if not _is_gaussian(part):
            return None
        return {"mean": jax.tree.map(one, part["raw_std"], part["mean"], is_leaf=lambda leaf: leaf is None)}

    return jax.tree.map(drawn, params, is_leaf=_is_gaussian)


def _with_draw(params: PyTree, draw: PyTree) -> PyTree:
    """The parameters with drawn weights in place of the means, and without ``raw_std``."""

    def merged(part: PyTree, drawn: PyTree) -> PyTree:
        if not _is_gaussian(part):
            return part
        return {"mean": jax.tree.map(lambda mean, w: mean if w is None else w, part["mean"], drawn["mean"])}

    return jax.tree.map(merged, params, draw, is_leaf=_is_gaussian)


def kl_divergence(params: PyTree, prior_std: float = 1.0) -> Array:
    r"""Divergence of all Gaussian weights from an isotropic Gaussian prior around zero, in nats.

    .. math:: \mathrm{KL}(q \| p) = \sum_i \Bigl( \log \frac{\sigma_p}{\sigma_i}
              + \frac{\sigma_i^2 + \mu_i^2}{2 \sigma_p^2} - \frac12 \Bigr)

    Args:
        params: parameters of a network, Bayesian layers among them. Other parameters do not count.
        prior_std: ``σ_p``.

    Raises:
        ValueError: no parameter is a Gaussian.

    Example:
        >>> net = layers.BayesianDense(2, initial_std=1.0, kernel_init=jax.nn.initializers.zeros)
        >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)), deterministic=True)["params"]
        >>> bool(abs(layers.kl_divergence(params)) < 1e-5)
        True
    """

    def one(mean: Array, raw_std: Array) -> Array:
        std = jax.nn.softplus(raw_std.astype(jnp.float32)) / prior_std
        return jnp.sum(0.5 * (std**2 + (mean.astype(jnp.float32) / prior_std) ** 2 - 1.0) - jnp.log(std))

    return jnp.sum(jnp.stack([one(*weight) for weight in _random_weights(params)]))


def _is_gaussian(tree: PyTree) -> bool:
    return isinstance(tree, Mapping) and {*tree} == {"mean", "raw_std"}


def _random_weights(params: PyTree) -> list[tuple[Array, Array]]:
    """Pairs of mean and ``raw_std``, at least one."""
    weights = []
    for part in filter(_is_gaussian, jax.tree.leaves(params, is_leaf=_is_gaussian)):
        raws, means = (jax.tree.leaves(part[name], is_leaf=lambda leaf: leaf is None) for name in ("raw_std", "mean"))
        weights += [(mean, raw) for mean, raw in zip(means, raws, strict=True) if raw is not None]
    if not weights:
        raise ValueError("no Gaussian weights: build the network from posteriors.layers, or let select pick parameters")
    return weights
