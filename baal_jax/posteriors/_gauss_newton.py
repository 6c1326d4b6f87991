"""Gauss–Newton matrices ``H = Σ_n h_n h_nᵀ ⊗ Λ_n`` of labelled examples: sums, draws, covariances, marginal likelihood.

A matrix is kept whole, as two Kronecker factors or as its diagonal. A whole one with its prior has a Cholesky factor,
at a tenth of the cost of eigenvalues, which are looked for only where hyperparameters depend on them.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import linalg, numerics

Structure = Literal["full", "kronecker", "diagonal"]
Curvature = tuple[Array, ...]  # as in LaplaceState

product = linalg.product
_MOST_PARAMETERS = 4096  # of a full matrix: 64 MiB, and a Cholesky factor of some tenths of a second
_RANGE = 16.0  # α is looked for within a factor e^±16 of the largest eigenvalue: beyond, float32 cannot tell
_HALVINGS = 30  # to the last digit of a float32


def sum_over_labelled(function: Callable, dataset: Any, labelled: Array, batch_size: int) -> tuple[Any, Any]:
    """Sums over the labelled examples, of which as many batches are run as they fill, all of one shape."""
    # ``function(batch, counts bool[B])`` returns what is added up, and what is wanted of the last batch, filled up.
    size = min(batch_size, labelled.shape[0])
    ids, number = numerics.true_rows(labelled)

    def run(index: Array) -> tuple[Any, Any]:
        rows = index * size + jnp.arange(size, dtype=jnp.int32)
        chosen = ids(jnp.minimum(rows, jnp.maximum(number - 1, 0)))
        return function(jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], dataset), rows < number)

    def add(total: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
        def more() -> tuple[Any, Any]:
            sums, last = jax.checkpoint(run)(index)
            return jax.tree.map(jnp.add, total[0], sums), last

        # As many as the labels need; one at least, for what is wanted of the last batch.
        return jax.lax.cond(numerics.largest((index == 0) | (index * size < number)), more, lambda: total), None

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(run, jnp.zeros((), jnp.int32)))
    return jax.lax.scan(add, start, jnp.arange(-(-labelled.shape[0] // size), dtype=jnp.int32))[0]


def sums(structure: Structure | None, hidden: Array, hessians: Array) -> tuple[Array, ...]:
    """What is kept of a batch, from ``h [B, D]`` and ``Λ [B, K, K]``; batches add up. None chooses by size."""
    (_, rows), width = hidden.shape, hessians.shape[1]
    if structure is None:
        structure = "full" if rows * width <= _MOST_PARAMETERS else "kronecker"
    if structure == "diagonal":
        return (jnp.einsum("bd,bkk->dk", hidden**2, hessians, precision="highest"),)
    if structure == "kronecker":
        return product(hidden.T, hidden), jnp.sum(hessians, axis=0)
    if rows * width > _MOST_PARAMETERS:
        most = f'{rows} × {width} weights, more than {_MOST_PARAMETERS}: use structure="kronecker"'
        raise ValueError(f'structure="full" would keep a matrix of {rows * width} rows for {most}')
    # One matrix product over h ⊗ Λ or h ⊗ h, whichever is smaller; a Jacobian [B, K, D K] would be larger than both.
    pairs = hessians[:, *np.triu_indices(width)]  # Λ is symmetric
    if rows > pairs.shape[1]:
        blocks = product((pairs[:, :, None] * hidden[:, None, :]).reshape(len(hidden), -1).T, hidden)
    else:
        blocks = product(pairs.T, (hidden[:, :, None] * hidden[:, None, :]).reshape(-1, rows**2))
    return (blocks.reshape(-1, rows, rows),)


def decompose(sums: tuple[Array, ...], num_examples: Array) -> Curvature:
    """What ``num_examples`` examples add up to, by its eigenvalues; a whole matrix ``H [D, K, D, K]`` as it is."""
    match sums:
        case (left, right):  # the mean over examples of one factor, times the sum of the other
            (left_values, left), (right_values, right) = map(linalg.eigh, (left, right))
            # Rounding makes eigenvalues negative that are zero in truth, and a negative one may cancel the prior's.
            left_values = jnp.maximum(left_values, 0.0) / jnp.maximum(num_examples, 1.0)
            return left_values[:, None] * jnp.maximum(right_values, 0.0)[None], left, right
        case (blocks,) if blocks.ndim == 3:
            width = math.isqrt(2 * len(blocks))
            places = np.zeros((width, width), int)
            places[np.triu_indices(width)] = np.arange(len(blocks))
            return (blocks[np.maximum(places, places.T)].transpose(2, 0, 3, 1),)
        case _:
            return sums


def with_prior(curvature: Curvature, precision: Array, noise_precision: Array) -> tuple[Curvature, Array]:
    """The curvature at a prior and a noise precision, from :func:`decompose`, and ``log det(I + H / τ)``."""
    scaled = noise_precision * curvature[0]
    if scaled.ndim == 2:
        return (scaled, *curvature[1:]), jnp.sum(jnp.log1p(scaled / precision))
    matrix = _square(scaled) / precision
    # Rounding leaves eigenvalues uncertain by this share of the diagonal, which may be more than the prior's 1.
    least = 2.0 * len(matrix) ** 0.5 * jnp.finfo(matrix.dtype).eps
    root = linalg.cholesky(matrix + jnp.diag(jnp.maximum(least * jnp.diagonal(matrix), 1.0)))
    return (root.reshape(scaled.shape),), 2.0 * jnp.sum(jnp.log(jnp.diagonal(root)))


def deviations(curvature: Curvature, precision: Array, noise: Array) -> Array:
    """Draws ``[S, D, K]`` with covariance ``(H + τ I)⁻¹`` from standard normal ``noise [S, D, K]``."""
    match curvature:
        case (root,) if root.ndim == 4:
            turned = linalg.solve_triangular(_square(root), noise.reshape(len(noise), -1).T, lower=True, trans="T")
            return turned.T.reshape(noise.shape) * jax.lax.rsqrt(precision)
        case (values, left, right):
            turned = product(product(left.T, noise), right) * jax.lax.rsqrt(values + precision)[None]
            return product(product(left, turned), right.T)  # back again: signs of eigenvectors differ between machines
        case _:
            return noise * jax.lax.rsqrt(curvature[0] + precision)[None]


def covariance(curvature: Curvature, precision: Array) -> Callable[[Array], Array]:
    """From ``h [D]`` to the covariance ``[K, K]`` of ``hᵀ ΔW``."""
    values, *basis = curvature
    if values.ndim == 4:
        unit = jnp.eye(math.prod(values.shape[:2]), dtype=values.dtype)
        inverse = linalg.solve_triangular(_square(values), unit, lower=True, trans="T").reshape(*values.shape[:2], -1)
        seen = lambda hidden: jnp.einsum("d,dkp->kp", hidden, inverse, precision="highest")  # noqa: E731
        return lambda hidden: product(seen(hidden), seen(hidden).T) / precision
    variances = 1.0 / (values + precision)
    if not basis:
        return lambda hidden: jnp.diag(product(hidden**2, variances))
    left, right = basis
    return lambda hidden: product(right * product(product(hidden, left) ** 2, variances)[None], right.T)


def _square(matrix: Array) -> Array:
    """``[D K, D K]`` from ``[D, K, D, K]``."""
    return matrix.reshape(matrix.shape[0] * matrix.shape[1], -1)


def likeliest_precision(square_norm: Array, curvature: Curvature) -> Array:
    """Of the prior under which the weights themselves would be the likeliest."""
    size = math.prod(curvature[0].shape[:2])
    return jnp.where(square_norm > 0, size / jnp.where(square_norm > 0, square_norm, 1.0), 1.0)


def maximise(curvature: Curvature, fit: tuple, precision: Any, noise_precision: float | None) -> tuple[Any, Array]:
    r"""The prior precision ``τ`` and noise precision ``β`` of the largest evidence, where one is not given.

    ``fit`` is the square norm of the weights, the error (squares or minus log-likelihood) and the number of labels.
    Everything is a function of ``α = τ/β``. With the number of parameters that the data determine,
    :math:`\gamma(\alpha) = \sum_i \mu_i / (\mu_i + \alpha)`, the derivatives of the log evidence vanish where

    .. math:: \tau \|\theta\|^2 = \gamma(\alpha), \qquad \beta E = n - \gamma(\alpha),

    and with both unknown :math:`\beta = n / (E + \alpha \|\theta\|^2)`, their sum. Each time one monotone equation in
    ``α`` is left, whose only root is the maximum: bisection finds it where fixed-point iterations may creep or jump.
    """
    (square_norm, error, num_labels), eigenvalues = fit, curvature[0]
    if eigenvalues.ndim == 4:
        eigenvalues = jnp.maximum(linalg.eigh(_square(eigenvalues))[0], 0.0)

    def beta_at(alpha: Array) -> Array:
        if noise_precision is not None:
            return jnp.full_like(alpha, noise_precision)
        return num_labels / (error + alpha * square_norm) if precision is None else precision / alpha

    def slope(alpha: Array) -> Array:
        gamma, beta = jnp.sum(eigenvalues / (eigenvalues + alpha)), beta_at(alpha)
        return gamma - alpha * beta * square_norm if precision is None else gamma - (num_labels - beta * error)

    largest, known = jnp.max(eigenvalues), num_labels > 0
    scale = jnp.where(largest > 0, largest, 1.0)
    ends = jnp.full_like(scale, -_RANGE), jnp.full_like(scale, _RANGE)
    alpha = scale * jnp.exp(numerics.bisect(lambda log: ~(slope(scale * jnp.exp(log)) > 0), ends, _HALVINGS))
    # Without a label there is no equation, whatever the bisection returns: unit noise, and the prior of the weights.
    beta = beta_at(alpha) if noise_precision is not None else jnp.where(known, beta_at(alpha), 1.0)
    if precision is not None:
        return precision, beta
    return jnp.where(known, alpha * beta, likeliest_precision(square_norm, curvature)), beta
