"""Class probabilities under a Gaussian over logits, in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from baal_jax._util import numerics
from baal_jax.typing import Array


@jax.jit
def probit(mean: Array, covariance: Array) -> Array:
    r"""Class probabilities under a Gaussian over logits, without drawing from it.

    .. math:: \mathbb E\,[\operatorname{softmax}(f)]_c \propto
              \Bigl( \sum_k \exp\bigl(-\kappa_{ck} (\bar f_c - \bar f_k)\bigr) \Bigr)^{-1}, \qquad
              \kappa_{ck} = 1 / \sqrt{1 + \tfrac\pi8 \operatorname{Var}(f_c - f_k)}

    The logistic function is nearly the distribution function of a Gaussian, whose mean under another one is known: with
    two classes this is MacKay's formula, and more are made of their pairs, which is rougher the more there are: draw
    where that matters. Only differences of logits count, as in a softmax, so what all logits have in common may be as
    uncertain as it likes.

    Args:
        mean: ``[N, …, C]`` mean logits.
        covariance: ``[N, …, C, C]``, or ``[N, …, C]`` variances of logits that are independent of one another.

    Returns:
        ``[N, …, C]`` log-probabilities; as one draw, ``[None]``, they go where draws do.

    Raises:
        ValueError: the shapes do not fit.

    References:
        MacKay, `The evidence framework applied to classification networks
        <https://doi.org/10.1162/neco.1992.4.5.720>`_, 1992; Lu, Ie and Sha, `Mean-field approximation to
        Gaussian-softmax integral <https://arxiv.org/abs/2006.07584>`_, 2020.

    Example:
        >>> from baal_jax import posteriors
        >>> log_probs = posteriors.probit(jnp.array([[1.0, -1.0]]), jnp.array([[12.0, 12.0]]) / jnp.pi)
        >>> bool(jnp.allclose(jnp.exp(log_probs)[0, 0], jax.nn.sigmoid(2.0 / 2.0)))      # κ = ½
        True
    """
    mean, covariance = numerics.as_float(mean), numerics.as_float(covariance)
    num_classes = mean.shape[-1]
    if covariance.shape == mean.shape:
        covariance = jnp.vectorize(jnp.diag, signature="(c)->(c,c)")(covariance)
    if covariance.shape != (*mean.shape, num_classes):
        raise ValueError(f"covariance has shape {covariance.shape}, but {(*mean.shape, num_classes)} is needed")
    variance = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    of_gap = jnp.maximum(variance[..., :, None] + variance[..., None, :] - 2.0 * covariance, 0.0)
    gaps = (mean[..., :, None] - mean[..., None, :]) * jax.lax.rsqrt(1.0 + (jnp.pi / 8.0) * of_gap)
    return numerics.log_probs(-jax.nn.logsumexp(-gaps, axis=-1))
