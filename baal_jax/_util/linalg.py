"""Factorisations that may be vectorised on any device.

On a CPU, jaxlib shares the matrices of a batch among the threads of a pool, and waits for them in one of these threads:
where as many factorisations as there are threads do so at once (seeds under ``vmap``, devices side by side), they wait
for ever. So large matrices are factorised one after the other there, and many small ones by array operations.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax import Array

product = partial(jnp.matmul, precision="highest")
_SMALL = 16  # rows, up to which elimination is written out


class Eliminated(NamedTuple):
    """What :func:`eliminate` leaves."""

    pivots: Array  # [N, C], the diagonal of D
    half: Array  # [N, C, R], L⁻¹ B, where L has ones on its diagonal
    solution: Array  # [N, C, R], A⁻¹ B


def _each(function: Callable[..., Any], *arguments: Array) -> Any:
    """``function(*arguments)``, one after the other on a CPU wherever ``vmap`` makes a batch of it; not transposed."""
    return jax.lax.platform_dependent(*arguments, cpu=jax.custom_batching.sequential_vmap(function), default=function)


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    """Lower triangular ``L`` with ``L Lᵀ = matrix [D, D]``, of which the lower half is read."""
    return _each(partial(jnp.linalg.cholesky, symmetrize_input=False), matrix)


@cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root, change = cholesky(*primals), (tangents[0] + tangents[0].T) / 2
    inner = solve_triangular(root, solve_triangular(root, change, lower=True).T, lower=True)
    return root, product(root, jnp.tril(inner) - jnp.diag(jnp.diagonal(inner)) / 2)


@jax.custom_jvp
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues ``[D]``, ascending, and eigenvectors ``[D, D]`` of a symmetric matrix."""
    return _each(lambda matrix: tuple(jnp.linalg.eigh(matrix)), matrix)


@eigh.defjvp
def _eigh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    values, vectors = eigh(*primals)
    inner = product(product(vectors.T, (tangents[0] + tangents[0].T) / 2), vectors)
    gaps = values[None] - values[:, None]
    # What is zero but for rounding stays so, and equal eigenvalues else have no vectors with a slope of their own.
    least = values.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    null = jnp.maximum(jnp.abs(values)[None], jnp.abs(values)[:, None]) <= least
    rate = jnp.where(gaps == 0, jnp.nan, 1.0 / jnp.where(gaps == 0, 1.0, gaps))
    turn = inner * jnp.where(null | jnp.eye(values.size, dtype=bool), 0.0, rate)
    return (values, vectors), (jnp.diagonal(inner), product(vectors, turn))


def triangular_root(rows: Array) -> Array:
    """Upper triangular ``R`` with ``RᵀR = rowsᵀ rows``, for ``rows [N, D]`` and ``N ≥ D``."""
    return _each(lambda rows: jnp.linalg.qr(rows, mode="r"), rows)


def inverse(matrix: Array) -> Array:
    return _each(jnp.linalg.inv, matrix)


def solve_triangular(matrix: Array, right: Array, *, lower: bool = False, trans: str = "N") -> Array:
    """As ``jax.scipy.linalg.solve_triangular``, for one matrix ``[D, D]``."""
    whole = jnp.tril(matrix) if lower else jnp.triu(matrix)

    def solver(trans: str) -> Callable[[Any, Array], Array]:
        call = partial(jax.scipy.linalg.solve_triangular, lower=lower, trans=trans)
        return lambda _, right: _each(call, matrix, right)

    # Derivatives in both modes are solutions of the same two kinds, so they are never a batch of calls either.
    multiply = partial(product, whole if trans == "N" else whole.T)
    return jax.lax.custom_linear_solve(multiply, right, solver(trans), solver("T" if trans == "N" else "N"))


def eliminate(matrices: Array, right: Array) -> Eliminated:
    """Solves ``A X = B`` without pivoting, ``A = L D Lᵀ``; ``A [N, C, C]`` positive definite, ``B [N, C, R]``."""
    size = matrices.shape[-1]
    if size > _SMALL:
        return jax.vmap(_by_cholesky)(matrices, right)
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
    root = cholesky(matrix)
    diagonal = jnp.diagonal(root)
    half = solve_triangular(root, right, lower=True)
    return Eliminated(diagonal**2, half * diagonal[:, None], solve_triangular(root, half, lower=True, trans="T"))
