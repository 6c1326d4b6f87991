"""Metrics of real-valued predictions: point errors, quantiles and intervals, and the CRPS of whole distributions.

Targets ``[N, …]`` have the shape of a prediction; where that has a single output dimension, they may lack it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import numerics
from baal_jax.metrics._common import fit_outputs, mean


@numerics.jit_with_nan
def rmse(predicted: Array, targets: Array) -> Array:
    r"""Root of the mean squared error, over all examples and output dimensions.

    .. math:: \sqrt{\tfrac1N \sum_n (\hat y_n - y_n)^2}

    Args:
        predicted: ``[N, …]``, the mean over draws.
        targets: ``float[N, …]``; NaN is unknown.

    Example:
        >>> print(metrics.rmse(jnp.array([1.0, 2.0]), jnp.array([8.0, 3.0])))
        5.0
    """
    errors, known = _errors(predicted, targets)
    return jnp.sqrt(mean(errors**2, known))


@numerics.jit_with_nan
def mae(predicted: Array, targets: Array) -> Array:
    r"""Mean absolute error, over all examples and output dimensions.

    .. math:: \tfrac1N \sum_n |\hat y_n - y_n|

    Args:
        predicted: ``[N, …]``, the mean over draws.
        targets: ``float[N, …]``; NaN is unknown.

    Example:
        >>> print(metrics.mae(jnp.array([1.0, 2.0]), jnp.array([4.0, jnp.nan])))
        3.0
    """
    errors, known = _errors(predicted, targets)
    return mean(jnp.abs(errors), known)


def quantiles(draws: Array, levels: Sequence[float]) -> Array:
    """Quantiles over the draws, linear between order statistics.

    Args:
        draws: ``[S, N, …]``.
        levels: ``L`` numbers between 0 and 1; static.

    Returns:
        ``float32[L, N, …]``; NaN where a draw is.

    Example:
        >>> print(metrics.quantiles(jnp.arange(5.0)[:, None], (0.25, 0.5)))
        [[1.]
         [2.]]
    """
    _some_draws(draws)
    draws, levels = numerics.as_float(draws), static_levels(levels)
    return jnp.quantile(draws, jnp.asarray(np.array(levels), draws.dtype), axis=0)


def pinball(predicted: Array, targets: Array, *, levels: Sequence[float]) -> Array:
    r"""Pinball loss of predicted quantiles; :func:`quantiles` makes them of draws.

    .. math:: \tfrac1N \sum_n \max\bigl( \tau (y_n - q_n), \, (\tau - 1) (y_n - q_n) \bigr)

    Its expectation is least where ``q`` is the quantile at level ``τ``; at level ½ it is half the absolute error.

    Args:
        predicted: ``[L, N, …]``, a quantile for each level.
        targets: ``float[N, …]``; NaN is unknown.
        levels: ``τ``, ``L`` numbers between 0 and 1; static.

    Returns:
        ``float32[L]``, in units of the targets.

    References:
        Koenker and Bassett, `Regression quantiles <https://doi.org/10.2307/1913643>`_, 1978.

    Example:
        >>> print(metrics.pinball(jnp.array([[2.0], [5.0]]), jnp.array([4.0]), levels=(0.25, 0.75)))
        [0.5  0.25]
    """
    levels = static_levels(levels)
    if predicted.ndim < 2 or predicted.shape[0] != len(levels):
        raise ValueError(f"predicted has shape {predicted.shape}, but levels={levels} needs [{len(levels)}, N, …]")
    return _pinball(predicted, targets, levels)


@numerics.jit_with_nan
def coverage(lower: Array, upper: Array, targets: Array) -> Array:
    r"""Coverage: share of targets within their interval, bounds included; a calibrated interval of 90 % covers 0.9.

    .. math:: \tfrac1N \sum_n [l_n \le y_n \le u_n]

    Args:
        lower: ``[N, …]``.
        upper: ``[N, …]``.
        targets: ``float[N, …]``; NaN is unknown.

    Returns:
        ``float32[]`` between 0 and 1; NaN if a bound of a known target is.

    Example:
        >>> lower, upper = metrics.quantiles(jnp.arange(11.0)[:, None], (0.05, 0.95))
        >>> print(metrics.coverage(lower, upper, jnp.array([10.0])))
        0.0
    """
    lower, known_targets, known = fit_outputs("lower", lower, targets)
    upper, _, _ = fit_outputs("upper", upper, targets)
    inside = ((lower <= known_targets) & (known_targets <= upper)).astype(jnp.float32)
    return mean(jnp.where(jnp.isnan(lower) | jnp.isnan(upper), jnp.nan, inside), known)


@functools.partial(numerics.jit_with_nan, static_argnames="fair")
def crps(draws: Array, targets: Array, *, fair: bool = False) -> Array:
    r"""Continuous ranked probability score of draws of a label, averaged over examples and output dimensions.

    .. math:: \tfrac1S \sum_s |f_s - y| - \frac{1}{2 S^2} \sum_{s,t} |f_s - f_t|

    The score of the empirical distribution of the draws, and of one draw the absolute error. It favours many draws:
    those of the true distribution expect ``1 + 1/S`` times the score of the distribution itself. ``fair`` divides the
    second sum by ``2 S (S − 1)`` instead: unbiased for any ``S``, but it may fall below zero.

    Args:
        draws: ``[S, N, …]``. Draws of a mean know nothing of the noise: add it, or use :func:`gaussian_crps`.
        targets: ``float[N, …]``; NaN is unknown.
        fair: unbiased in ``S``. NaN for a single draw.

    References:
        Gneiting and Raftery, `Strictly proper scoring rules, prediction, and estimation
        <https://doi.org/10.1198/016214506000001437>`_, 2007; Ferro, `Fair scores for ensemble forecasts
        <https://doi.org/10.1002/qj.2270>`_, 2014.

    Example:
        >>> draws, targets = jnp.array([[0.0], [1.0]]), jnp.array([2.0])
        >>> print(metrics.crps(draws, targets), metrics.crps(draws, targets, fair=True))
        1.25 1.0
    """
    _some_draws(draws)
    return crps_of_sorted(sorted_draws(draws), targets, fair)


@numerics.jit_with_nan
def gaussian_crps(predicted: Array, variance: Array, targets: Array) -> Array:
    r"""CRPS of Gaussian predictions in closed form, averaged over examples and output dimensions.

    .. math:: \sigma \Bigl( z \, (2 \Phi(z) - 1) + 2 \varphi(z) - \tfrac{1}{\sqrt\pi} \Bigr),
              \qquad z = \frac{y - \mu}{\sigma}

    Args:
        predicted: ``μ``, ``[N, …]``.
        variance: ``σ²``, ``[N, …]``, noise included; where it is 0 the score is the absolute error.
        targets: ``float[N, …]``; NaN is unknown.

    References:
        Gneiting et al., `Calibrated probabilistic forecasting using ensemble model output statistics and minimum CRPS
        estimation <https://doi.org/10.1175/MWR2904.1>`_, 2005.

    Example:
        >>> print(f"{metrics.gaussian_crps(jnp.zeros(1), jnp.ones(1), jnp.zeros(1)):.4f}")
        0.2337
    """
    errors, known, variance = _gaussian_errors(predicted, variance, targets)
    certain = variance == 0
    scale = jnp.sqrt(jnp.where(certain, 1.0, variance))  # the root has no gradient at 0
    z = errors / scale
    density = jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    # 2 Φ(z) − 1 = erf(z / √2), which keeps its digits near 0. Far out the score tends to |error|.
    score = errors * jax.lax.erf(z / math.sqrt(2)) + scale * (2 * density - 1 / math.sqrt(math.pi))
    return mean(jnp.where(certain, jnp.abs(errors), score), known)


def gaussian_nll(predicted: Array, variance: Array, targets: Array) -> Array:
    """Negative log-likelihood of Gaussian predictions, ``float32[]``; arguments as in :func:`gaussian_crps`."""
    errors, known, variance = _gaussian_errors(predicted, variance, targets)
    return mean(0.5 * (jnp.log(2 * math.pi * variance) + errors**2 / variance), known)


def noise_of(predicted: Array, variance: Array, targets: Array) -> Array:
    """What a variance leaves of the mean squared error, at least 0, for each output dimension."""
    errors, known, variance = _gaussian_errors(predicted, variance, targets)
    rest = jnp.where(known, errors**2 - variance, 0.0)
    axes = tuple(range(max(predicted.ndim - 1, 1)))
    left = jnp.sum(rest, axis=axes) / jnp.maximum(jnp.sum(known, axis=axes), 1).astype(rest.dtype)
    return jnp.broadcast_to(jnp.maximum(left, 0.0), predicted.shape)


def sorted_draws(draws: Array) -> Array:
    """``[S, N, …]`` to ``[N, …, S]`` in rising order, NaN last."""
    return jnp.moveaxis(jnp.sort(numerics.as_float(draws), axis=0), 0, -1)


def crps_of_sorted(draws: Array, targets: Array, fair: bool) -> Array:
    """:func:`crps` of draws ``[N, …, S]`` in rising order."""
    num_draws = draws.shape[-1]
    _, targets, known = fit_outputs("draws", draws[..., 0], targets)
    distance = jnp.mean(jnp.abs(draws - targets[..., None]), axis=-1)
    # In rising order, the s-th draw is the larger one of s − 1 pairs and the smaller one of S − s, so that
    # Σ_st |f_s − f_t| = 2 Σ_s (2s − S − 1) f_(s). The weights sum to 0, so a large common part only adds rounding.
    centred = draws - draws[..., num_draws // 2, None]
    weights = 2 * jnp.arange(1, num_draws + 1, dtype=draws.dtype) - (num_draws + 1)
    spread = jnp.einsum("...s,s->...", centred, weights, precision="highest") / num_draws
    pairs = num_draws - 1 if fair else num_draws
    return mean(distance - spread / pairs if pairs else jnp.full_like(distance, jnp.nan), known)


def static_levels(levels: Sequence[float]) -> tuple[float, ...]:
    """Levels of quantiles as a tuple."""
    try:
        numbers = tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(0 <= level <= 1 for level in numbers):
        raise ValueError(f"levels={levels!r} must be one or more numbers between 0 and 1, such as (0.05, 0.5, 0.95)")
    return numbers


@functools.partial(numerics.jit_with_nan, static_argnums=2)
def _pinball(predicted: Array, targets: Array, levels: tuple[float, ...]) -> Array:
    def at_level(quantile: Array, level: float) -> Array:
        errors, known = _errors(quantile, targets)
        return mean(jnp.maximum(-level * errors, (1 - level) * errors), known)

    return jnp.stack([at_level(predicted[i], level) for i, level in enumerate(levels)])


def _errors(predicted: Array, targets: Array) -> tuple[Array, Array]:
    """Predictions minus targets, 0 where these are unknown (NaN would reach the gradient), and which are known."""
    predicted, targets, known = fit_outputs("predicted", predicted, targets)
    return jnp.where(known, predicted - targets, 0.0), known


def _gaussian_errors(predicted: Array, variance: Array, targets: Array) -> tuple[Array, Array, Array]:
    if predicted.shape != variance.shape:
        raise ValueError(f"variance has shape {variance.shape}, but predicted {predicted.shape}: make them equal")
    return *_errors(predicted, targets), fit_outputs("variance", variance, targets)[0]


def _some_draws(draws: Array) -> None:
    if draws.ndim < 2 or not draws.shape[0]:
        raise ValueError(f"draws has shape {draws.shape}, but [S, N, …] with at least one draw is needed")
