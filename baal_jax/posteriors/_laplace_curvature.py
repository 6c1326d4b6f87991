"""A Gauss–Newton matrix ``Σ_n h_n h_nᵀ ⊗ Λ_n``, kept whole, as two Kronecker factors or as its diagonal."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from baal_jax._util import linalg
from baal_jax.typing import Array

Structure = Literal["full", "kronecker", "diagonal"]

_MOST_PARAMETERS = 4096  # of a full matrix: 64 MiB, and an eigendecomposition of some seconds


class Curvature(NamedTuple):
    """A Gauss–Newton matrix by its eigenvalues and eigenvectors.

    Attributes:
        eigenvalues: ``[D, K]``, at least 0, one for each weight (``D`` counts the bias).
        basis: orthogonal matrices: ``([D K, D K],)`` of the full matrix, ``([D, D], [K, K])`` of the Kronecker factors,
            ``()`` of a diagonal.
    """

    eigenvalues: Array
    basis: tuple[Array, ...]


def factors(structure: Structure, hidden: Array, hessians: Array) -> tuple[Array, ...]:
    """What is kept of a batch, from ``h [B, D]`` and ``Λ [B, K, K]``; batches add up."""
    if structure == "diagonal":
        return (jnp.einsum("bd,bkk->dk", hidden**2, hessians, precision="highest"),)
    if structure == "kronecker":
        return jnp.matmul(hidden.T, hidden, precision="highest"), jnp.sum(hessians, axis=0)
    rows, width = hidden.shape[1], hessians.shape[1]
    if rows * width > _MOST_PARAMETERS:
        raise ValueError(
            f'structure="full" would keep a matrix of {rows * width} rows for {rows} × {width} weights, more than '
            f'{_MOST_PARAMETERS}: use structure="kronecker"'
        )
    if rows > width**2:  # the smaller of two intermediate arrays, neither of which is a Jacobian [B, K, D K]
        weighted = (hidden[:, :, None] * hessians.reshape(-1, 1, width**2)).reshape(len(hidden), -1)
        blocks = jnp.matmul(hidden.T, weighted, precision="highest")
        return (blocks.reshape(rows, rows, width, width).swapaxes(1, 2),)
    products = (hidden[:, :, None] * hidden[:, None, :]).reshape(-1, rows**2)
    blocks = jnp.matmul(products.T, hessians.reshape(-1, width**2), precision="highest")
    return (blocks.reshape(rows, rows, width, width).swapaxes(1, 2),)


def decompose(structure: Structure, factors: tuple[Array, ...], num_examples: Array) -> Curvature:
    """Eigenvalues and eigenvectors, from the :func:`factors` of ``num_examples`` examples."""
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
            coordinates = jnp.matmul(vectors.T, weights.ravel(), precision="highest")
            scaled = values.ravel() * coordinates
            return jnp.matmul(vectors, scaled, precision="highest").reshape(weights.shape)
        case (left, right):
            return _sandwich(left, values * _sandwich(left.T, weights, right), right.T)
        case _:
            return values * weights


def covariance(basis: tuple[Array, ...], variances: Array, hidden: Array) -> Array:
    """Covariance ``[K, K]`` of ``hᵀ ΔW``, where the coordinates of ``ΔW`` have ``variances [D, K]``."""
    match basis:
        case (vectors,):
            blocks = vectors.reshape(*variances.shape, -1)
            seen = jnp.einsum("d,dkp->kp", hidden, blocks, precision="highest")
            return jnp.matmul(seen * variances.reshape(1, -1), seen.T, precision="highest")
        case (left, right):
            seen = jnp.matmul(jnp.matmul(hidden, left, precision="highest") ** 2, variances, precision="highest")
            return jnp.matmul(right * seen[None], right.T, precision="highest")
        case _:
            return jnp.diag(jnp.matmul(hidden**2, variances, precision="highest"))


def _sandwich(left: Array, middle: Array, right: Array) -> Array:
    return jnp.matmul(jnp.matmul(left, middle, precision="highest"), right, precision="highest")
