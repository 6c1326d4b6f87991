"""Factorisations that may be vectorised on any device.

On a CPU, jaxlib shares the matrices of a batch among the threads of a pool, and waits for them in one of these threads:
where as many factorisations as there are threads do so at once (seeds under ``vmap``, devices side by side), they wait
for ever. So large matrices are factorised one after the other there, and many small ones by array operations.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import Array

_SMALL = 16  # rows, up to which elimination is written out


class Eliminated(NamedTuple):
    """What :func:`eliminate` leaves."""

    pivots: Array  # [N, C], the diagonal of D
    half: Array  # [N, C, R], L⁻¹ B, where L has ones on its diagonal
    solution: Array  # [N, C, R], A⁻¹ B


def each(function: Callable[..., Any], *arguments: Array) -> Any:
    """``function(*arguments)``, one after the other on a CPU wherever ``vmap`` makes a batch of it."""
    alone = jax.custom_batching.sequential_vmap(function)
    return jax.lax.platform_dependent(*arguments, cpu=alone, default=function)


def cholesky(matrix: Array) -> Array:
    """Lower triangular ``L`` with ``L Lᵀ = matrix [D, D]``."""
    return each(jnp.linalg.cholesky, matrix)


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues ``[D]``, ascending, and eigenvectors ``[D, D]`` of a symmetric matrix."""
    return each(lambda matrix: tuple(jnp.linalg.eigh(matrix)), matrix)


def triangular_root(rows: Array) -> Array:
    """Upper triangular ``R`` with ``RᵀR = rowsᵀ rows``, for ``rows [N, D]`` and ``N ≥ D``."""
    return each(lambda rows: jnp.linalg.qr(rows, mode="r"), rows)


def inverse(matrix: Array) -> Array:
    """Of one matrix ``[D, D]``."""
    return each(jnp.linalg.inv, matrix)


def solve_triangular(matrix: Array, right: Array, **options: Any) -> Array:
    """As ``jax.scipy.linalg.solve_triangular``, for one matrix ``[D, D]``."""
    return each(lambda matrix, right: jax.scipy.linalg.solve_triangular(matrix, right, **options), matrix, right)


def eliminate(matrices: Array, right: Array) -> Eliminated:
    """Elimination without pivoting (Gauss, Jordan) in many small symmetric systems, ``A X = B`` with ``A = L D Lᵀ``.

    ``matrices``, ``A [N, C, C]``, are positive definite, and ``right`` is ``B [N, C, R]``.
    """
    size = matrices.shape[-1]
    if size > _SMALL:
        return jax.vmap(lambda matrix, right: each(_by_cholesky, matrix, right))(matrices, right)
    rest = jnp.moveaxis(jnp.concatenate([matrices, right], axis=-1), 0, -1)  # [C, C + R, N]: vectorised over matrices
    pivots, halves = [], []
    for turn in range(size):
        pivots.append(rest[turn, 0])
        halves.append(rest[turn, size - turn :])
        row = rest[turn, 1:] / rest[turn, :1]
        rest = rest[:, 1:] - rest[:, :1] * row[None]
        rest = rest.at[turn].set(row)
    return Eliminated(jnp.stack(pivots, axis=-1), *(jnp.moveaxis(x, -1, 0) for x in (jnp.stack(halves), rest)))


def _by_cholesky(matrix: Array, right: Array) -> Eliminated:
    root = jnp.linalg.cholesky(matrix)
    diagonal = jnp.diagonal(root)
    half = jax.scipy.linalg.solve_triangular(root, right, lower=True)
    whole = jax.scipy.linalg.solve_triangular(root, half, lower=True, trans="T")
    return Eliminated(diagonal**2, half * diagonal[:, None], whole)
