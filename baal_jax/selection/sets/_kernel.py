"""Features as a kernel: inner products of factors that multiply, the noise of predictions, and nearest centres."""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from baal_jax._util import linalg
from baal_jax.selection import _common


class Features(NamedTuple):
    r"""What transforms pass on and selectors read.

    .. math:: k(x_i, x_j) = \prod_f \langle \phi^f_i, \phi^f_j \rangle + \sigma^2\, [i = j]

    Attributes:
        factors: arrays ``[N, D_f]``. One is the usual case; the outer product of several is never formed.
        noise: ``float[]``, the variance ``σ²`` of observation noise.
    """

    factors: tuple[Array, ...]
    noise: Array


# (key, features, labelled bool[N], counted bool[N]) -> features
Transform = Callable[[Array, Features, Array, Array], Features]
# (key, features, available bool[N], query_size, labelled bool[N]) -> (indices [Q], scores [Q])
Selector = Callable[[Array, Features, Array, int, Array], tuple[Array, Array]]


def dense(features: Features, who: str) -> Array:
    """The only factor, ``[N, D]``."""
    if len(features.factors) != 1:
        cure = "put transforms.sketch before it"
        raise ValueError(f"{who} needs plain features [N, D], not {len(features.factors)} factors: {cure}")
    if features.factors[0].ndim != 2:
        raise ValueError(f"{who} needs one row an example, [N, D], but features are {features.factors[0].shape}")
    return features.factors[0]


def diagonal(features: Features) -> Array:
    """``k(x_i, x_i)``, ``[N]``, noise included."""
    for factor in features.factors:
        if factor.ndim != 2:
            need = "not one row an example, [N, D]: bait alone reads several"
            raise ValueError(f"features of shape {factor.shape}, {need}")
    return trace(features)


def trace(features: Features) -> Array:
    """As :func:`diagonal`, summed over the rows of an example, where factors ``[N, r, D]`` have several."""
    squares = [jnp.sum(factor * factor, axis=tuple(range(1, factor.ndim))) for factor in features.factors]
    return functools.reduce(operator.mul, squares) + features.noise


def column(features: Features, index: Array) -> Array:
    """``k(x_i, x_index)``, ``[N]``, noise included."""
    return _common.inner_products(features.factors, index).at[index].add(features.noise)


def centred(features: Features, counted: Array) -> Features:
    """Minus the mean of the rows that count, where features are plain: distances do not change, rounding shrinks."""
    first, *others = features.factors
    return features if others or first.ndim != 2 else features._replace(factors=(_common.centred(first, counted),))


def sketched(factors: tuple[Array, ...], size: int, key: Array) -> Array:
    """The product of factors ``[…, D_f]`` projected at random, ``[…, K]``; inner products are unbiased."""
    keys = jax.random.split(key, len(factors))
    matrices = [jax.random.normal(k, (f.shape[-1], size), f.dtype) for k, f in zip(keys, factors, strict=True)]
    projected = [jnp.matmul(f, m, precision="highest") for f, m in zip(factors, matrices, strict=True)]
    return functools.reduce(operator.mul, projected) / jnp.sqrt(float(size))


def posterior_root(phi: Array, known: Array, noise: float = 1.0) -> Array:
    """Upper triangular ``R [D, D]`` with ``RᵀR = I + σ⁻² Σ φ φᵀ`` over the rows of a mask."""
    # By QR factorisations of blocks of rows: a sum of squares would lose what is small beside the largest feature.

    def visit(root: Array, ids: Array, valid: Array) -> Array:
        return linalg.triangular_root(jnp.concatenate([root, jnp.where(valid[:, None], phi[ids] / noise, 0.0)]))

    num, size = phi.shape
    return _common.over_rows(known, visit, jnp.eye(size, dtype=phi.dtype), min(size, num))


def conditioned(features: Features, known: Array, noise: float, who: str) -> Features:
    """``R⁻ᵀ φ``, whose kernel is the posterior covariance given noisy labels of some rows."""
    phi = dense(features, who)
    return features._replace(factors=(linalg.solve_triangular(posterior_root(phi, known, noise), phi.T, trans="T").T,))


class Nearest(NamedTuple):
    """The nearest centre of every example."""

    distances: Array  # [N], squared; infinite while there is no centre
    centres: Array  # int32[N], ids of examples; −1 while there is none


def nearest_of(features: Features, diag: Array, centres: Array) -> Nearest:
    """The nearest of the examples in a mask ``bool[N]``, worked through in blocks; ``[N, block]`` is the memory."""

    def visit(nearest: Nearest, ids: Array, valid: Array) -> Nearest:
        distances = _common.squared_distances(features.factors, diag, ids)
        distances = jnp.where(valid[None], distances, jnp.inf)
        return _closer(nearest, Nearest(jnp.min(distances, axis=1), ids[jnp.argmin(distances, axis=1)]))

    none = Nearest(jnp.full(diag.shape, jnp.inf, jnp.float32), jnp.full(diag.shape, -1, jnp.int32))
    return _common.over_rows(centres, visit, none)


def with_centre(features: Features, diag: Array, nearest: Nearest, index: Array) -> Nearest:
    """One centre more."""
    distances = _common.squared_distances(features.factors, diag, index)
    return _closer(nearest, Nearest(distances, jnp.full(distances.shape, index, jnp.int32)))


def _closer(old: Nearest, new: Nearest) -> Nearest:
    """The nearer of two; the old one where they are equally near."""
    better = new.distances < old.distances
    return jax.tree.map(lambda one, other: jnp.where(better, other, one), old, new)
