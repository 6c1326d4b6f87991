"""Scores for regression: networks whose outputs are the mean, or mean and log-variance, of a Gaussian."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import checks, linalg, numerics
from baal_jax.heuristics._information import Uncertainty, require_same_draws


def gaussian_bald(outputs: Array, noise: float | None = None) -> Array:
    r"""BALD for regression: what a label would tell about the parameters, if the mean prediction were Gaussian.

    .. math:: I(y; \theta) \approx \tfrac12 \sum_c \Bigl( \log\bigl(\operatorname{Var}_s \mu_{sc} +
              \tfrac1S \sum_s \sigma_{sc}^2\bigr) - \tfrac1S \sum_s \log \sigma_{sc}^2 \Bigr)

    The entropy of the mixture of draws, and so the score, is at most that of the Gaussian of its mean and variance.

    Args:
        outputs: ``[S, N, …, 2C]``, ``C`` means and then ``C`` log-variances, as in
            :func:`~baal_jax.losses.gaussian_nll`; with ``noise`` given, ``[S, N, …, C]`` means.
        noise: ``σ``, standard deviation of the labels, where the network does not predict it.

    Returns:
        ``[N, …]`` scores in nats, at least 0; with the papers of :func:`bald` and :func:`expected_entropy`.

    Example:
        >>> means = jnp.array([[[-1.0]], [[1.0]]])                              # two draws, one example
        >>> print(heuristics.gaussian_bald(means, noise=1.0))                   # ½ log(1 + 1)
        [0.3465736]
    """
    return _bald(outputs, checks.noise(noise))


@partial(numerics.jit, static_argnames="noise")
def _bald(outputs: Array, noise: float | None) -> Array:
    average, log_average, epistemic = _parts(outputs, noise)
    # log(V + A) − E log σ² = log1p(V / A) + (log A − E log σ²) for V = Var μ, A = E σ². Both terms are small where the
    # score is, so it keeps its digits; the second is at least 0 by Jensen, up to rounding.
    return 0.5 * jnp.sum(jnp.log1p(epistemic / average) + jnp.maximum(jnp.log(average) - log_average, 0.0), axis=-1)


def gaussian_epig(outputs: Array, target_outputs: Array, noise: float | None = None) -> Array:
    r"""EPIG for regression: what a label would tell about predictions that matter, if they were jointly Gaussian.

    .. math:: \tfrac1M \sum_m -\tfrac12 \log\det\bigl(I - R_m R_m^\top\bigr), \qquad
              R_m = L^{-1}\, \operatorname{Cov}_s(\mu, \mu_m)\, L_m^{-\top}

    where :math:`L L^\top` is the predictive covariance of an example, noise included. With one output it is
    :math:`-\tfrac12 \log(1 - \rho^2)` for the correlation :math:`\rho` of the two labels.

    Args:
        outputs: ``[S, N, 2C]``, or ``[S, N, C]`` with ``noise`` given, as in :func:`gaussian_bald`.
        target_outputs: ``[S, M, …]``, the same for the target inputs, under the same draws.
        noise: ``σ``, standard deviation of the labels, where the network does not predict it.

    Returns:
        ``[N]`` scores in nats, at least 0; with the paper of :func:`epig`.

    Example:
        >>> means = jnp.array([[[-1.0]], [[1.0]]])
        >>> print(heuristics.gaussian_epig(means, means, noise=1.0).round(5))   # ρ = ½
        [0.14384]
    """
    require_same_draws("outputs", outputs, target_outputs)
    return _epig(outputs, target_outputs, checks.noise(noise))


@partial(numerics.jit, static_argnames="noise")
def _epig(outputs: Array, target_outputs: Array, noise: float | None) -> Array:
    white = _whitened(*numerics.gaussian("outputs", outputs, noise)(outputs))
    target_white = _whitened(*numerics.gaussian("target_outputs", target_outputs, noise)(target_outputs))
    num_draws, num_examples, size = white.shape

    def information(target: Array) -> Array:  # [S, C] -> [N]
        shared = jnp.einsum("snc,sd->ncd", white, target, precision="highest") / num_draws
        if size == 1:  # ½ log of 1 − ρ²; rounding may carry ρ² beyond 1
            return -0.5 * jnp.log1p(-jnp.minimum(shared[:, 0, 0] ** 2, 1.0))
        shared = jnp.matmul(shared, jnp.swapaxes(shared, 1, 2), precision="highest")
        # The determinant of I − R Rᵀ is the product of its pivots.
        rest = jnp.broadcast_to(jnp.eye(size, dtype=shared.dtype), shared.shape) - shared
        return -0.5 * jnp.sum(jnp.log(linalg.eliminate(rest, rest[..., :0]).pivots), axis=-1)

    scores = jax.lax.map(information, jnp.moveaxis(target_white, 1, 0), batch_size=16)
    return jnp.mean(scores, axis=0).reshape(num_examples)


def gaussian_uncertainty(outputs: Array, noise: float | None = None) -> Uncertainty:
    r"""Aleatoric and epistemic variance of a label in regression: that of the noise and that of the mean.

    .. math:: \operatorname{Var} y_c = \tfrac1S \sum_s \sigma_{sc}^2 + \operatorname{Var}_s \mu_{sc}

    Args:
        outputs: ``[S, N, …, 2C]``, or ``[S, N, …, C]`` with ``noise`` given, as in :func:`gaussian_bald`.
        noise: ``σ``, standard deviation of the labels, where the network does not predict it.

    Returns:
        :class:`Uncertainty` in squared units of the outputs, ``[N, …, C]`` each.

    References:
        Kendall and Gal, `What uncertainties do we need in Bayesian deep learning for computer vision?
        <https://arxiv.org/abs/1703.04977>`_, 2017.

    Example:
        >>> means = jnp.array([[[-1.0]], [[1.0]]])
        >>> print(jnp.stack(heuristics.gaussian_uncertainty(means, noise=2.0)).ravel())
        [5. 4. 1.]
    """
    aleatoric, _, epistemic = _parts(outputs, checks.noise(noise))
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


@partial(numerics.jit, static_argnames="noise")
def _parts(outputs: Array, noise: float | None) -> tuple[Array, Array, Array]:
    """Over draws: mean variance of the noise, mean of its logarithm, variance of the mean; ``[N, …, C]``."""
    split = numerics.gaussian("outputs", outputs, noise)

    def of_noise(outputs: Array) -> tuple[Array, Array]:
        log_variance = split(outputs)[1]
        return jnp.exp(log_variance), log_variance

    variance = numerics.variance_over_draws(lambda outputs: split(outputs)[0], outputs)
    return *numerics.mean_over_draws(of_noise, outputs), variance


def _whitened(mean: Array, log_variance: Array) -> Array:
    """Centred means ``[S, N, C]`` in units of the predictive covariance."""
    centred = mean - jnp.mean(mean, axis=0, keepdims=True)
    aleatoric = jnp.mean(jnp.exp(log_variance), axis=0)
    if mean.shape[-1] == 1:
        return centred / jnp.sqrt(jnp.mean(centred**2, axis=0) + aleatoric)[None]
    covariance = jnp.einsum("snc,snd->ncd", centred, centred, precision="highest") / mean.shape[0]
    covariance += jax.vmap(jnp.diag)(aleatoric)
    pivots, half, _ = linalg.eliminate(covariance, jnp.moveaxis(centred, 0, -1))
    return jnp.moveaxis(half / jnp.sqrt(pivots)[..., None], -1, 0)
