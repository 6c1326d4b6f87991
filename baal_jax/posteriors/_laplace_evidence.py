"""The marginal likelihood of a linear-Gaussian model in its eigenbasis, and the hyperparameters that maximise it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax.typing import Array

_RANGE = 16.0  # α is looked for within a factor e^±16 of the largest eigenvalue: beyond, float32 cannot tell


class Evidence(NamedTuple):
    """What the log marginal likelihood is made of.

    Attributes:
        eigenvalues: of the Gauss–Newton matrix at unit noise, at least 0.
        square_norm: ``‖θ‖²``, of the weights that the prior is about.
        error: sum of squared errors (Gaussian) or minus the log-likelihood (categorical).
        num_labels: ``float[]``, how many numbers the known labels are.
    """

    eigenvalues: Array
    square_norm: Array
    error: Array
    num_labels: Array


def effective_dimension(eigenvalues: Array, alpha: Array) -> Array:
    r""":math:`\gamma = \sum_i \mu_i / (\mu_i + \alpha)`, the number of parameters that the data determine."""
    return jnp.sum(eigenvalues / (eigenvalues + alpha))


def likeliest_precision(evidence: Evidence) -> Array:
    """Of the prior of which the weights themselves would be the likeliest."""
    square_norm = evidence.square_norm
    size = jnp.asarray(evidence.eigenvalues.size, square_norm.dtype)
    return jnp.where(square_norm > 0, size / jnp.where(square_norm > 0, square_norm, 1.0), 1.0)


def maximise(evidence: Evidence, precision: Array | float | None, noise_precision: float | None) -> tuple[Array, Array]:
    r"""The prior precision ``τ`` and noise precision ``β`` of the largest evidence, where they are not given.

    Everything is a function of ``α = τ/β``. Where the derivative of the log evidence vanishes,

    .. math:: \tau \|\theta\|^2 = \gamma(\alpha), \qquad \beta E = n - \gamma(\alpha),

    and with both unknown :math:`\beta = n / (E + \alpha \|\theta\|^2)`, their sum. Each time one monotone equation in
    ``α`` is left, whose only root is the maximum: bisection finds it whatever the start.
    """
    eigenvalues, square_norm, error, num_labels = evidence

    def beta_at(alpha: Array) -> Array:
        if noise_precision is not None:
            return jnp.full_like(alpha, noise_precision)
        return num_labels / (error + alpha * square_norm) if precision is None else precision / alpha

    def slope(alpha: Array) -> Array:
        gamma, beta = effective_dimension(eigenvalues, alpha), beta_at(alpha)
        return gamma - alpha * beta * square_norm if precision is None else gamma - (num_labels - beta * error)

    largest = jnp.max(eigenvalues)
    known = num_labels > 0
    alpha = _decreasing_root(slope, jnp.where(largest > 0, largest, 1.0))
    beta = jnp.where(known, beta_at(alpha), 1.0)
    beta = jnp.full_like(beta, noise_precision) if noise_precision is not None else beta
    tau = (
        jnp.where(known, alpha * beta, likeliest_precision(evidence))
        if precision is None
        else jnp.full_like(beta, precision)
    )
    return tau, beta


def complexity(eigenvalues: Array, precision: Array, square_norm: Array) -> Array:
    r""":math:`\tfrac12 \bigl(\tau \|\theta\|^2 + \log\det(H + \tau) - P \log\tau\bigr)`, subtracted from the fit."""
    return 0.5 * (precision * square_norm + jnp.sum(jnp.log1p(eigenvalues / precision)))


def _decreasing_root(function: Callable[[Array], Array], scale: Array) -> Array:
    """Bisection of the logarithm, to the last digit of a float32."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        above = function(scale * jnp.exp(middle)) > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    ends = jnp.full_like(scale, -_RANGE), jnp.full_like(scale, _RANGE)
    low, high = jax.lax.fori_loop(0, 30, halve, ends)
    return scale * jnp.exp(0.5 * (low + high))
