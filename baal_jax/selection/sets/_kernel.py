"""Features as a kernel: inner products of factors that multiply, the noise of predictions, and nearest centres."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import linalg, numerics
from baal_jax.selection import _common

_BYTES = 2**19  # of a block of rows


class Features(NamedTuple):
    r"""What transforms pass on and selectors read.

    .. math:: k(x_i, x_j) = \prod_f \langle \phi^f_i, \phi^f_j \rangle + \sigma^2\, [i = j]

    Attributes:
        factors: arrays ``[N, D_f]``. One is the usual case; the outer product of several is never formed.
        noise: ``float[]``, the variance ``σ²`` of observation noise.
        num_targets: how many of the rows, the last ones, are of target inputs.
    """

    factors: tuple[Array, ...]
    noise: Array
    num_targets: int = 0


# (key, features, labelled bool[N], counted bool[N]) -> features
Transform = Callable[[Array, Features, Array, Array], Features]
# (key, features, available bool[N], query_size, labelled bool[N]) -> (indices [Q], scores [Q])
Selector = Callable[[Array, Features, Array, int, Array], tuple[Array, Array]]


class Blocks(NamedTuple):
    """Stands for :class:`Features` that stay in NumPy, of which some rows at a time are copied and centred."""

    factors: tuple[np.ndarray, ...]
    mean: np.ndarray | None = None

    def rows(self, ids: Any) -> list[np.ndarray]:
        """Factors of some rows; what is broken stays so."""
        rows = [leaf[ids].astype(np.float32, copy=False) for leaf in self.factors]
        return rows if self.mean is None else [rows[0] - self.mean]

    def each(self, function: Callable[[slice, list[np.ndarray]], Any]) -> list[Any]:
        """What a function gives of every block."""
        step = max(1, _BYTES // max(leaf[0].nbytes for leaf in self.factors))
        with np.errstate(all="ignore"):
            ids = [slice(start, start + step) for start in range(0, len(self.factors[0]), step)]
            return [function(some, self.rows(some)) for some in ids]

    def add(self, diag: np.ndarray, nearest: "Nearest", centres: np.ndarray) -> None:
        """Tells every example of a few more centres."""
        others = self.rows(centres)

        def visit(ids: slice, rows: list[np.ndarray]) -> None:
            products = functools.reduce(operator.mul, [a @ b.T for a, b in zip(rows, others, strict=True)])
            distances = np.maximum(diag[ids, None] + diag[centres] - 2 * products, 0)
            places = np.arange(len(distances))
            distances[(ids.start + places)[:, None] == centres] = 0
            which = distances.argmin(axis=1)
            better = distances[places, which] < nearest.distances[ids]
            nearest.distances[ids][better] = distances[places, which][better]
            nearest.centres[ids][better] = centres[which][better]

        self.each(visit)


def in_blocks(summary: Any) -> tuple[Blocks, Any]:
    """A summary that stays in NumPy, and which rows have no finite squares."""
    factors = tuple(leaf[:, None] if leaf.ndim == 1 else leaf for leaf in jax.tree.leaves(summary))
    _require_rows(factors)
    blocks = Blocks(factors)
    squares = np.concatenate(blocks.each(lambda _, rows: [np.sum(row * row, axis=1) for row in rows]), axis=1)
    typical = np.sqrt(np.median(squares, axis=1))
    if ((typical > 0) & ((typical < 1e-12) | (typical > 1e12))).any():  # where arrays are brought in range
        raise ValueError(f"features are typically {typical} long, which float32 cannot square: scale them to about 1")
    return blocks, ~np.isfinite(squares).all(axis=0)


def dense(features: Features, who: str) -> Array:
    """The only factor, ``[N, D]``."""
    if len(features.factors) != 1:
        cure = "put transforms.sketch before it"
        raise ValueError(f"{who} needs plain features [N, D], not {len(features.factors)} factors: {cure}")
    if features.factors[0].ndim != 2:
        raise ValueError(f"{who} needs one row an example, [N, D], but features are {features.factors[0].shape}")
    return features.factors[0]


def target_rows(features: Features, who: str) -> Array:
    """``bool[N]``, the rows of target inputs, which are the last ones."""
    if not features.num_targets:
        raise ValueError(f"{who} reads target inputs, and there are none: build a grid with it, and pass target_inputs")
    num = features.factors[0].shape[0]
    return jnp.arange(num, dtype=jnp.int32) >= num - features.num_targets


def diagonal(features: Any) -> Any:
    """``k(x_i, x_i)``, ``[N]``, noise included."""
    _require_rows(features.factors)
    if isinstance(features, Blocks):
        squares = lambda _, rows: functools.reduce(operator.mul, [np.sum(row * row, axis=1) for row in rows])  # noqa: E731
        return np.concatenate(features.each(squares))
    return trace(features)


def _require_rows(factors: tuple[Any, ...]) -> None:
    for factor in factors:
        if factor.ndim != 2:
            need = "not one row an example, [N, D]: bait alone reads several"
            raise ValueError(f"features of shape {factor.shape}, {need}")


def trace(features: Features) -> Array:
    """As :func:`diagonal`, summed over the rows of an example, where factors ``[N, r, D]`` have several."""
    squares = [jnp.sum(factor * factor, axis=tuple(range(1, factor.ndim))) for factor in features.factors]
    return functools.reduce(operator.mul, squares) + features.noise


def column(features: Features, index: Array) -> Array:
    """``k(x_i, x_index)``, ``[N]``, noise included."""
    return _common.inner_products(features.factors, index).at[index].add(features.noise)


def centred(features: Any, counted: Array) -> Any:
    """Minus the mean of the rows that count, where features are plain: distances do not change, rounding shrinks."""
    first, *others = features.factors
    if isinstance(features, Blocks) and not others:
        mask = np.asarray(counted)
        total = np.sum(features.each(lambda ids, rows: rows[0][mask[ids]].sum(axis=0, dtype=np.float64)), axis=0)
        return features._replace(mean=(total / max(np.count_nonzero(mask), 1)).astype(np.float32))
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


def pivoted(features: Features, query_size: int, least: Any = 0.0) -> tuple[tuple[Array, Array], Callable]:
    """Conditional variances ``[N]`` beside a Cholesky factor ``[N, Q]``, and what a pick makes of both."""

    def update(state: tuple[Array, Array], index: Array, turn: Array) -> tuple[Array, Array]:
        # One column more of the pivoted Cholesky factor L of the kernel, K ≈ L Lᵀ. The covariance given the picks is
        # what L does not explain: its column, over the root of the pivot, is the new one. The pivots multiply to
        # det(K_PP), so that the largest variance is the pick with the largest determinant.
        variances, roots = state
        pivot, row = numerics.rows_at(variances, index), numerics.rows_at(roots, index)
        covariances = column(features, index) - jnp.matmul(roots, row, precision="highest")
        # Below `least` a pivot is a rounding error, and dividing by it would spread noise over all variances.
        root = jnp.where(pivot > least, covariances * jax.lax.rsqrt(jnp.where(pivot > least, pivot, 1.0)), 0.0)
        return variances - root**2, roots.at[:, turn].set(root)

    variances = diagonal(features)
    return (variances, jnp.zeros((variances.shape[0], query_size), variances.dtype)), update


class Nearest(NamedTuple):
    """The nearest centre of every example."""

    distances: Any  # [N], squared; infinite while there is no centre
    centres: Any  # int32[N], ids of examples; −1 while there is none


def nearest_of(features: Any, diag: Any, centres: Any) -> Nearest:
    """The nearest of the examples in a mask ``bool[N]``, worked through in blocks; ``[N, block]`` is the memory."""

    def visit(nearest: Nearest, ids: Array, valid: Array) -> Nearest:
        distances = _common.squared_distances(features.factors, diag, ids)
        distances = jnp.where(valid[None], distances, jnp.inf)
        return _closer(nearest, Nearest(jnp.min(distances, axis=1), ids[jnp.argmin(distances, axis=1)]))

    if isinstance(features, Blocks):
        nearest, ids = (
            Nearest(np.full(diag.shape, np.inf, np.float32), np.full(diag.shape, -1, np.int32)),
            np.flatnonzero(centres),
        )
        for some in np.split(ids, range(64, len(ids), 64)) if len(ids) else ():
            features.add(diag, nearest, some)
        return nearest
    none = Nearest(jnp.full(diag.shape, jnp.inf, jnp.float32), jnp.full(diag.shape, -1, jnp.int32))
    return _common.over_rows(centres, visit, none)


def with_centre(features: Any, diag: Any, nearest: Nearest, index: Any) -> Nearest:
    """One centre more."""
    if isinstance(features, Blocks):
        features.add(diag, nearest, np.array([index]))
        return nearest
    distances = _common.squared_distances(features.factors, diag, index)
    return _closer(nearest, Nearest(distances, jnp.full(distances.shape, index, jnp.int32)))


def _closer(old: Nearest, new: Nearest) -> Nearest:
    """The nearer of two; the old one where they are equally near."""
    better = new.distances < old.distances
    return jax.tree.map(lambda one, other: jnp.where(better, other, one), old, new)
