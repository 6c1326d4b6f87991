r"""Flax linen layers with Gaussian weights, for networks that are Bayesian layer by layer.

:class:`BayesianDense` and :class:`BayesianConv` are ``nn.Dense`` and ``nn.Conv`` with a mean and a standard deviation
for every weight, and noise that differs between the examples of a batch; without randomness the stock layer at its
means. Fit and sample such a network with :func:`~baal_jax.posteriors.bayesian_layers`, whose draws are weights.
Networks that are not to be edited go through :func:`~baal_jax.posteriors.bayes_by_backprop`.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import checks
from baal_jax.posteriors._bayes_by_backprop import constant_raw_std, kl_divergence, standard_normal

__all__ = ["BayesianConv", "BayesianDense", "kl_divergence"]

Estimator = Literal["local_reparameterization", "flipout"]


class _Gaussian(nn.Module):
    """What both layers are, beside the stock layer that each of them is."""

    stock_class: ClassVar[type[nn.Module]]
    estimator: Estimator = "local_reparameterization"
    initial_std: float = 0.01
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    def __post_init__(self) -> None:
        if self.estimator not in ("local_reparameterization", "flipout"):
            raise ValueError(f"estimator={self.estimator!r} must be 'local_reparameterization' or 'flipout'")
        checks.positive_float("initial_std", self.initial_std)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, deterministic: bool | None = None) -> Array:
        """``[B, …, D] -> [B, …, features]``."""
        if inputs.ndim < 2 + np.size(getattr(self, "kernel_size", ())):
            raise ValueError(f"inputs of shape {inputs.shape} lack a leading axis of examples: pass inputs[None]")
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            inputs = inputs.astype(getattr(self, "dtype", None) or jnp.float32)  # squares of bytes would wrap around
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        names = {field.name for field in dataclasses.fields(self.stock_class)} - {"parent", "name"}
        stock = self.stock_class(**{name: getattr(self, name) for name in names}, parent=None)
        # The stock layer is linear in its weights, so noise comes from the same layer with other weights.
        linear: Any = lambda weights, inputs: stock.apply({"params": weights}, inputs)  # noqa: E731
        mean: Any = self.param("mean", lambda key: stock.init(key, inputs)["params"])
        outputs = linear(mean, inputs)
        if deterministic and not self.is_initializing():
            return outputs  # also where raw_std is missing: a draw has none
        start = partial(constant_raw_std, std=self.initial_std)
        raw_std: Any = self.param("raw_std", lambda _: jax.tree.map(start, mean))
        if deterministic:
            return outputs
        std, key = jax.tree.map(jax.nn.softplus, raw_std), self.make_rng(self.rng_collection)
        if self.estimator == "flipout":
            return _flipout(linear, key, std, inputs, outputs)
        variance = linear(jax.tree.map(jnp.square, std), jnp.square(inputs))
        # The root has no gradient at zero, where inputs without a bias may stand.
        spread = jnp.sqrt(jnp.maximum(variance, jnp.finfo(variance.dtype).tiny))
        return outputs + spread * jax.random.normal(key, spread.shape, spread.dtype)


class BayesianDense(_Gaussian, nn.Dense):
    r"""A dense layer with independent Gaussian weights and biases.

    With ``estimator="local_reparameterization"`` training samples activations in place of weights,

    .. math:: y_{bj} \sim \mathcal{N}\Bigl( \sum_i x_{bi} \mu_{ij} + \mu_j,\ \sum_i x_{bi}^2 \sigma_{ij}^2 +
              \sigma_j^2 \Bigr)

    with ``"flipout"`` all examples share one perturbation of the weights, behind signs of their own:

    .. math:: y_b = x_b M + \bigl( (x_b \circ s_b)\, \Delta W \bigr) \circ r_b, \qquad \Delta W = \sigma \circ \epsilon

    The activations of one example have the distribution that sampled weights give them: with flipout always, with
    local reparameterisation except that several positions of an example (tokens) are sampled apart from each other.

    Attributes:
        estimator: ``"local_reparameterization"`` or ``"flipout"``.
        initial_std: standard deviation of every weight at the start.
        deterministic: at the means, without noise; here or in the call, as in ``nn.Dropout``.
        rng_collection: the random stream that noise comes from.

    All fields of ``nn.Dense`` are fields here too. Inputs are ``[B, …, D]``.

    References:
        Kingma et al., `Variational dropout and the local reparameterization trick
        <https://arxiv.org/abs/1506.02557>`_, 2015; Wen et al., `Flipout: efficient pseudo-independent weight
        perturbations on mini-batches <https://arxiv.org/abs/1803.04386>`_, 2018.

    Example:
        >>> from baal_jax.posteriors.layers import BayesianDense
        >>> layer = BayesianDense(3, estimator="flipout", deterministic=False)
        >>> variables = layer.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.ones((1, 4)))
        >>> layer.apply(variables, jnp.ones((2, 4)), rngs={"dropout": jax.random.key(2)}).shape
        (2, 3)
    """

    stock_class = nn.Dense


class BayesianConv(_Gaussian, nn.Conv):
    r"""A convolution with independent Gaussian weights and biases.

    The same two estimators as in :class:`BayesianDense`, with ``*`` in place of the matrix product:

    .. math:: y \sim \mathcal{N}(x * M,\ x^2 * \sigma^2) \qquad\text{or}\qquad
              y_b = x_b * M + \bigl( (x_b \circ s_b) * \Delta W \bigr) \circ r_b

    where signs have one value for a channel. Local reparameterisation draws noise for every pixel apart, as Bayesian
    convolutional networks are usually trained; flipout keeps how the pixels of an example vary together.

    Attributes are those of :class:`BayesianDense` and of ``nn.Conv``, ``conv_general_dilated`` among them. Inputs are
    ``[B, …, D]`` with as many axes between as ``kernel_size`` has.

    References:
        Those of :func:`~baal_jax.posteriors.bayesian_layers` and :class:`BayesianDense`.

    Example:
        >>> from baal_jax.posteriors.layers import BayesianConv
        >>> conv = BayesianConv(6, (5, 5), padding="VALID", deterministic=True)
        >>> variables = conv.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> conv.apply(variables, jnp.ones((2, 32, 32, 3))).shape
        (2, 28, 28, 6)
    """

    stock_class = nn.Conv


def _flipout(linear: Any, key: Array, std: Any, inputs: Array, outputs: Array) -> Array:
    """``outputs`` with the noise of one perturbation, which every example sees behind signs of its own."""
    key_weights, key_signs = jax.random.split(key)
    leaves, structure = jax.tree.flatten(std)
    shared = structure.unflatten(s * e for s, e in zip(leaves, standard_normal(key_weights, leaves), strict=True))
    channels = inputs.shape[-1] + outputs.shape[-1]
    signs = jax.random.rademacher(key_signs, (len(inputs), *(1,) * (inputs.ndim - 2), channels), inputs.dtype)
    before, after = jnp.split(signs, [inputs.shape[-1]], axis=-1)  # the same at all positions
    # Biases turn with the outputs: their noise is symmetric.
    return outputs + linear(shared, inputs * before) * after.astype(outputs.dtype)
