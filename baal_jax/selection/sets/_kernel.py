"""Features as a kernel: inner products of factors that multiply, and the noise of predictions."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import linalg
from baal_jax.typing import Array

_BLOCK = 64  # columns of the kernel in work at a time


class Features(NamedTuple):
    r"""What transforms pass on and selectors read.

    .. math:: k(x_i, x_j) = \prod_f \langle \phi^f_i, \phi^f_j \rangle + \sigma^2\, [i = j]

    Attributes:
        factors: arrays ``[N, D_f]``. One is the usual case; the outer product of several is never formed.
        noise: ``float[]``, the variance ``σ²`` of observation noise.
    """

    factors: tuple[Array, ...]
    noise: Array

    @property
    def num_examples(self) -> int:
        """``N``."""
        return self.factors[0].shape[0]


def dense(features: Features, who: str) -> Array:
    """The only factor, ``[N, D]``."""
    if len(features.factors) != 1:
        raise ValueError(
            f"{who} needs plain features [N, D], not {len(features.factors)} factors: put transforms.sketch before it"
        )
    if features.factors[0].ndim != 2:
        raise ValueError(f"{who} needs one row an example, [N, D], but features are {features.factors[0].shape}")
    return features.factors[0]


def diagonal(features: Features) -> Array:
    """``k(x_i, x_i)``, ``[N]``, noise included."""
    _require_one_row(features)
    squares = [jnp.sum(factor * factor, axis=-1) for factor in features.factors]
    return functools.reduce(operator.mul, squares) + features.noise


def _require_one_row(features: Features) -> None:
    for factor in features.factors:
        if factor.ndim != 2:
            raise ValueError(
                f"features of shape {factor.shape}, but one row an example, [N, D], is needed here: several rows, as "
                "of feature_maps.fisher, are for selectors.bait"
            )


def posterior_root(phi: Array, known: Array, noise: float = 1.0) -> Array:
    """Upper triangular ``R [D, D]`` with ``RᵀR = I + σ⁻² Σ φ φᵀ`` over the rows of a mask.

    By QR factorisations of blocks of rows: a sum of squares would lose what is small beside the largest feature.
    """
    num, size = phi.shape
    count = jnp.sum(known, dtype=jnp.int32)
    block = min(size, num)
    ids = jnp.pad(jnp.flatnonzero(known, size=num, fill_value=0), (0, -num % block))

    def more(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        start, root = carry
        some = phi[jax.lax.dynamic_slice(ids, (start,), (block,))] / noise
        some = jnp.where((start + jnp.arange(block, dtype=jnp.int32) < count)[:, None], some, 0.0)
        return start + block, linalg.triangular_root(jnp.concatenate([root, some]))

    start = jnp.zeros((), jnp.int32), jnp.eye(size, dtype=phi.dtype)
    return jax.lax.while_loop(lambda carry: carry[0] < count, more, start)[1]


def column(features: Features, index: Array) -> Array:
    """``k(x_i, x_index)``, ``[N]``, noise included."""
    product = _product(features, index)
    return product.at[index].add(features.noise)


def _product(features: Features, index: Array) -> Array:
    """Inner products with one example, ``[N]``, or with several, ``[N, I]``."""
    _require_one_row(features)
    products = [jnp.matmul(factor, factor[index].T, precision="highest") for factor in features.factors]
    return functools.reduce(operator.mul, products)


def squared_distances(features: Features, diag: Array, index: Array) -> Array:
    """``k_ii + k_jj − 2 k_ij`` to one example, ``[N]``, exactly 0 for itself."""
    distances = jnp.maximum(diag + diag[index] - 2.0 * column(features, index), 0.0)
    return distances.at[index].set(0.0)


class Nearest(NamedTuple):
    """The nearest centre of every example.

    Attributes:
        distances: ``[N]``, squared; infinite while there is no centre.
        centres: ``int32[N]``, ids of examples; −1 while there is none.
    """

    distances: Array
    centres: Array


def no_centre(num_examples: int) -> Nearest:
    """Before there is a centre."""
    return Nearest(jnp.full(num_examples, jnp.inf, jnp.float32), jnp.full(num_examples, -1, jnp.int32))


def nearest_of(features: Features, diag: Array, centres: Array) -> Nearest:
    """The nearest of the examples in a mask ``bool[N]``, worked through in blocks; ``[N, block]`` is the memory."""
    num_examples = features.num_examples
    count = jnp.sum(centres, dtype=jnp.int32)
    ids = jnp.flatnonzero(centres, size=num_examples, fill_value=0).astype(jnp.int32)
    ids = jnp.pad(ids, (0, -num_examples % _BLOCK))

    def block(carry: tuple[Array, Nearest]) -> tuple[Array, Nearest]:
        start, nearest = carry
        some = jax.lax.dynamic_slice(ids, (start,), (_BLOCK,))
        distances = jnp.maximum(diag[:, None] + diag[some][None] - 2.0 * _product(features, some), 0.0)
        own = jnp.arange(num_examples, dtype=jnp.int32)[:, None] == some[None]
        distances = jnp.where(own, 0.0, distances)
        distances = jnp.where((start + jnp.arange(_BLOCK, dtype=jnp.int32) < count)[None], distances, jnp.inf)
        best = jnp.argmin(distances, axis=1)
        found = Nearest(jnp.min(distances, axis=1), some[best])
        return start + _BLOCK, closer(nearest, found)

    start = jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < count, block, (start, no_centre(num_examples)))[1]


def closer(old: Nearest, new: Nearest) -> Nearest:
    """The nearer of two; the old one where they are equally near."""
    better = new.distances < old.distances
    return jax.tree.map(lambda one, other: jnp.where(better, other, one), old, new)


def with_centre(features: Features, diag: Array, nearest: Nearest, index: Array) -> Nearest:
    """One centre more."""
    distances = squared_distances(features, diag, index)
    return closer(nearest, Nearest(distances, jnp.full(distances.shape, index, jnp.int32)))
