"""Gauss–Newton matrices ``Σ_n h_n h_nᵀ ⊗ Λ_n`` of the labelled examples: sums, eigenbases, marginal likelihood.

A matrix is kept whole, as two Kronecker factors or as its diagonal. In its eigenbasis a prior precision is a number
added to every eigenvalue, so covariances, draws and the marginal likelihood cost no further factorisation.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import linalg, numerics

Structure = Literal["full", "kronecker", "diagonal"]

product = linalg.product
_MOST_PARAMETERS = 4096  # of a full matrix: 64 MiB, and an eigendecomposition of some seconds
_RANGE = 16.0  # α is looked for within a factor e^±16 of the largest eigenvalue: beyond, float32 cannot tell
_HALVINGS = 30  # to the last digit of a float32


class Curvature(NamedTuple):
    """A Gauss–Newton matrix by its eigenvalues and eigenvectors."""

    eigenvalues: Array  # [D, K], at least 0, one for each weight (D counts the bias)
    basis: tuple[Array, ...]  # orthogonal: ([D K, D K],) if full, ([D, D], [K, K]) of two factors, () of a diagonal


class Evidence(NamedTuple):
    """What the log marginal likelihood is made of."""

    eigenvalues: Array  # of the Gauss–Newton matrix at unit noise, at least 0
    square_norm: Array  # ‖θ‖², of the weights that the prior is about
    error: Array  # sum of squared errors (Gaussian) or minus the log-likelihood (categorical)
    num_labels: Array  # float[], how many numbers the known labels are


def sum_over_labelled(
    function: Callable[[Any, Array], tuple[Any, Any]], dataset: Any, labelled: Array, batch_size: int
) -> tuple[Any, Any]:
    """Sums over the labelled examples, of which as many batches are run as they fill, all of one shape.

    ``function(batch, counts bool[B])`` returns what is added up, and what is wanted of the last batch, filled up.
    """
    size = min(batch_size, labelled.shape[0])
    ids = jnp.flatnonzero(labelled, size=labelled.shape[0], fill_value=0).astype(jnp.int32)
    number = jnp.sum(labelled, dtype=jnp.int32)

    def run(index: Array) -> tuple[Any, Any]:
        rows = index * size + jnp.arange(size, dtype=jnp.int32)
        chosen = ids[jnp.minimum(rows, jnp.maximum(number - 1, 0))]
        return function(jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], dataset), rows < number)

    def add(total: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
        def more() -> tuple[Any, Any]:
            sums, last = jax.checkpoint(run)(index)
            return jax.tree.map(jnp.add, total[0], sums), last

        # As many as the labels need; one at least, for what is wanted of the last batch.
        return jax.lax.cond(numerics.largest((index == 0) | (index * size < number)), more, lambda: total), None

    shapes = jax.eval_shape(run, jnp.zeros((), jnp.int32))
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, start, jnp.arange(-(-labelled.shape[0] // size), dtype=jnp.int32))[0]


def factors(structure: Structure, hidden: Array, hessians: Array) -> tuple[Array, ...]:
    """What is kept of a batch, from ``h [B, D]`` and ``Λ [B, K, K]``; batches add up."""
    if structure == "diagonal":
        return (jnp.einsum("bd,bkk->dk", hidden**2, hessians, precision="highest"),)
    if structure == "kronecker":
        return product(hidden.T, hidden), jnp.sum(hessians, axis=0)
    rows, width = hidden.shape[1], hessians.shape[1]
    if rows * width > _MOST_PARAMETERS:
        most = f'{rows} × {width} weights, more than {_MOST_PARAMETERS}: use structure="kronecker"'
        raise ValueError(f'structure="full" would keep a matrix of {rows * width} rows for {most}')
    # One matrix product over h ⊗ Λ or h ⊗ h, whichever is smaller; a Jacobian [B, K, D K] would be larger than both.
    if rows > width**2:
        weighted = (hidden[:, :, None] * hessians.reshape(-1, 1, width**2)).reshape(len(hidden), -1)
        blocks = product(hidden.T, weighted)
    else:
        pairs = (hidden[:, :, None] * hidden[:, None, :]).reshape(-1, rows**2)
        blocks = product(pairs.T, hessians.reshape(-1, width**2))
    return (blocks.reshape(rows, rows, width, width).swapaxes(1, 2),)


def decompose(structure: Structure, factors: tuple[Array, ...], num_examples: Array | float = 1.0) -> Curvature:
    """Eigenvalues and eigenvectors, from the :func:`factors` of ``num_examples`` examples."""
    # Rounding makes eigenvalues negative that are zero in truth, and a negative one may cancel the prior's.
    if structure == "diagonal":
        return Curvature(factors[0], ())
    if structure == "kronecker":  # the mean over examples of one factor, times the sum of the other
        (left_values, left), (right_values, right) = map(linalg.eigh, factors)
        left_values = jnp.maximum(left_values, 0.0) / jnp.maximum(num_examples, 1.0)
        return Curvature(left_values[:, None] * jnp.maximum(right_values, 0.0)[None], (left, right))
    shape = rows, width = factors[0].shape[:2]
    values, vectors = linalg.eigh(factors[0].reshape(rows * width, rows * width))
    return Curvature(jnp.maximum(values, 0.0).reshape(shape), (vectors,))


def multiply(basis: tuple[Array, ...], values: Array, weights: Array) -> Array:
    """Product of the symmetric matrix with eigenvalues ``values [D, K]`` and ``weights [D, K]``.

    Signs of eigenvectors, and their choice where eigenvalues agree, do not matter: they differ between machines.
    """
    match basis:
        case (vectors,):
            coordinates = product(vectors.T, weights.ravel())
            return product(vectors, values.ravel() * coordinates).reshape(weights.shape)
        case (left, right):
            coordinates = product(product(left.T, weights), right)
            return product(product(left, values * coordinates), right.T)
        case _:
            return values * weights


def covariance(basis: tuple[Array, ...], variances: Array, hidden: Array) -> Array:
    """Covariance ``[K, K]`` of ``hᵀ ΔW``, where the coordinates of ``ΔW`` have ``variances [D, K]``."""
    match basis:
        case (vectors,):
            seen = jnp.einsum("d,dkp->kp", hidden, vectors.reshape(*variances.shape, -1), precision="highest")
            return product(seen * variances.reshape(1, -1), seen.T)
        case (left, right):
            seen = product(product(hidden, left) ** 2, variances)
            return product(right * seen[None], right.T)
        case _:
            return jnp.diag(product(hidden**2, variances))


def likeliest_precision(evidence: Evidence) -> Array:
    """Of the prior under which the weights themselves would be the likeliest."""
    square_norm = evidence.square_norm
    size = jnp.asarray(evidence.eigenvalues.size, square_norm.dtype)
    return jnp.where(square_norm > 0, size / jnp.where(square_norm > 0, square_norm, 1.0), 1.0)


def maximise(evidence: Evidence, precision: Array | float | None, noise_precision: float | None) -> tuple[Array, Array]:
    r"""The prior precision ``τ`` and noise precision ``β`` of the largest evidence, where they are not given.

    Everything is a function of ``α = τ/β``. With the number of parameters that the data determine,
    :math:`\gamma(\alpha) = \sum_i \mu_i / (\mu_i + \alpha)`, the derivatives of the log evidence vanish where

    .. math:: \tau \|\theta\|^2 = \gamma(\alpha), \qquad \beta E = n - \gamma(\alpha),

    and with both unknown :math:`\beta = n / (E + \alpha \|\theta\|^2)`, their sum. Each time one monotone equation in
    ``α`` is left, whose only root is the maximum: bisection finds it where fixed-point iterations may creep or jump.
    """
    eigenvalues, square_norm, error, num_labels = evidence

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
        return jnp.full_like(beta, precision), beta
    return jnp.where(known, alpha * beta, likeliest_precision(evidence)), beta


def complexity(eigenvalues: Array, precision: Array, square_norm: Array) -> Array:
    r""":math:`\tfrac12 \bigl(\tau \|\theta\|^2 + \log\det(H + \tau) - P \log\tau\bigr)`, subtracted from the fit."""
    return 0.5 * (precision * square_norm + jnp.sum(jnp.log1p(eigenvalues / precision)))
