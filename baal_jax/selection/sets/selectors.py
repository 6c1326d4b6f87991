"""Selectors: greedy choices of a set, the last part of :func:`~baal_jax.selection.grid`.

A selector is ``(key, Features, available bool[N], query_size, labelled bool[N]) -> (indices [Q], scores [Q])``. Kernels
are never formed: each pick needs one column, so a batch costs ``Q`` passes over the features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection._common import best_few, best_of, inverse_cdf, one_by_one, over_rows
from baal_jax.selection.sets import _kernel
from baal_jax.selection.sets._bait import bait
from baal_jax.selection.sets._kernel import Features, Nearest, Selector
from baal_jax.selection.sets._targets import epig, itl, vtl
from baal_jax.typing import Array, Key

__all__ = ["Selector", "bait", "epig", "frank_wolfe", "itl", "k_center", "k_means_pp", "lcmd", "max_det", "max_diag",
           "vtl"]  # fmt: skip

_EXHAUSTED = 1e-6  # share of the largest variance that is rounding error in float32


def max_diag() -> Selector:
    """The largest ``k(x, x)``: uncertainty alone, blind to redundancy.

    Returns:
        A selector; scores are ``k(x, x)``.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(4, bool)
        >>> selectors.max_diag()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        [3, 2]
    """

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        diag = _kernel.diagonal(features)
        indices = best_few(diag, available, query_size)
        return indices, diag[indices]

    return select


def max_det(noise: float = 0.0, *, use_labelled: bool = False) -> Selector:
    r"""Greedy maximisation of the determinant of the picks' covariance, by a pivoted Cholesky factorisation.

    .. math:: \arg\max_x\; k(x, x) + \sigma^2 - k(x, P)\,(K_{PP} + \sigma^2 I)^{-1} k(P, x)

    The same as repeatedly taking the most uncertain point of a Gaussian process that is conditioned on every pick. Once
    the picks span the features (variances left are below a millionth of the largest), what remains is picked at random.

    Args:
        noise: ``σ``, standard deviation of observation noise.
        use_labelled: condition on what is labelled first (needs ``noise`` above 0).

    Returns:
        A selector; scores are the conditional variances above.

    Raises:
        ValueError: ``noise`` is negative, or 0 with ``use_labelled``.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(4, bool)
        >>> selectors.max_det()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        [3, 2]
    """
    noise = checks.positive_float("noise", noise) if use_labelled else checks.finite_float("noise", noise, 0.0)

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        if use_labelled:
            features = _kernel.conditioned(features, labelled, noise, "selectors.max_det")
        features = features._replace(noise=features.noise + jnp.float32(noise) ** 2)
        variances = _kernel.diagonal(features)
        least = _EXHAUSTED * jnp.max(jnp.where(available, variances, 0.0))
        at_random = numerics.weightless_tier(key, variances.shape)

        def pick(state: tuple[Array, Array], left: Array, turn: Array) -> tuple[Array, Array]:
            variances = state[0]
            index = best_of(jnp.where(variances > least, variances, at_random), left)
            return index, jnp.maximum(numerics.rows_at(variances, index), 0.0)

        state, update = _kernel.pivoted(features, query_size, least)
        return one_by_one(pick, update, state, available, query_size)

    return select


def k_center(*, use_labelled: bool = True) -> Selector:
    r"""Farthest-first traversal, a 2-approximation of the smallest radius that covers the pool.

    .. math:: \arg\max_x \min_{c \in L \cup P} \lVert \phi(x) - \phi(c) \rVert

    Without any centre the first pick is the example with the largest ``k(x, x)``.

    Args:
        use_labelled: whether labelled examples are centres.

    Returns:
        A selector; scores are distances (of the first pick, without a centre, to the origin).

    References:
        Gonzalez, `Clustering to minimize the maximum intercluster distance
        <https://doi.org/10.1016/0304-3975(85)90224-5>`_, 1985; Sener and Savarese, `Active learning for convolutional
        neural networks: a core-set approach <https://arxiv.org/abs/1708.00489>`_, 2018.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(4, bool)
        >>> selectors.k_center()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        [3, 0]
    """
    return _from_centres(lambda nearest, available, left, uniform: best_of(nearest.distances, left), use_labelled)


def lcmd(*, use_labelled: bool = True) -> Selector:
    r"""Largest cluster, maximum distance: the farthest example of the cluster with the largest sum of squares.

    Every example belongs to its nearest centre. The cluster is that with the largest
    :math:`\sum_x \lVert \phi(x) - \phi(c) \rVert^2`, which respects the density of the pool where farthest-first does
    not. Without any centre the first pick is the example with the largest ``k(x, x)``.

    Args:
        use_labelled: whether labelled examples are centres.

    Returns:
        A selector; scores are distances, as in :func:`k_center`. The paper is that of :func:`~baal_jax.selection.grid`.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(4, bool)
        >>> selectors.lcmd()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        [3, 0]
    """

    def choose(nearest: Nearest, available: Array, left: Array, uniform: Array) -> Array:
        centres = jnp.maximum(nearest.centres, 0)
        mine = jax.ops.segment_sum(jnp.where(available, nearest.distances, 0.0), centres, centres.shape[0])[centres]
        largest = mine == jnp.max(jnp.where(available, mine, -jnp.inf))
        return best_of(jnp.where(largest, nearest.distances, -jnp.inf), left)

    return _from_centres(choose, use_labelled)


def k_means_pp(*, use_labelled: bool = True, largest_first: bool = False) -> Selector:
    r"""The seeding of k-means++: each pick with probability proportional to its squared distance to the nearest centre.

    .. math:: P(x) \propto \min_{c \in L \cup P} \lVert \phi(x) - \phi(c) \rVert^2

    Without any centre the first pick is uniform. Pick ``t`` inverts the cumulative distribution, in order of ids, at
    ``jax.random.uniform(key, (Q,))[t]``. Where all distances are 0, the rest is picked uniformly.

    Args:
        use_labelled: whether labelled examples are centres.
        largest_first: without any centre, start from the example with the largest ``k(x, x)`` instead, as BADGE does.

    Returns:
        A selector; scores are distances (infinite for a uniform first pick).

    References:
        Arthur and Vassilvitskii, `k-means++: the advantages of careful seeding
        <https://dl.acm.org/doi/10.5555/1283383.1283494>`_, 2007.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [0.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(3, bool)
        >>> 2 in selectors.k_means_pp()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        True
    """

    def choose(nearest: Nearest, available: Array, left: Array, uniform: Array) -> Array:
        return inverse_cdf(uniform, jnp.where(jnp.isinf(nearest.distances), 1.0, nearest.distances), left)

    return _from_centres(choose, use_labelled, largest_first)


def frank_wolfe(*, use_labelled: bool = False) -> Selector:
    r"""Frank–Wolfe approximation of the sum of all features by few of them: a Bayesian core set.

    With :math:`\hat\phi = \phi / \lVert \phi \rVert`, :math:`r = \sum_x \lVert \phi(x) \rVert` and the residual
    :math:`v` of the sum, the pick is :math:`\arg\max_x \langle \hat\phi(x), v \rangle`, and the approximation moves
    towards :math:`r \hat\phi(x)` by an exact line search.

    Args:
        use_labelled: whether labelled examples are in the sum, and picked first.

    Returns:
        A selector of plain features ``[N, D]``; scores are the inner products above.

    References:
        Pinsler et al., `Bayesian batch active learning as sparse subset approximation
        <https://arxiv.org/abs/1908.02144>`_, 2019.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(4, bool)
        >>> selectors.frank_wolfe()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        [1, 0]
    """

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        phi = _kernel.dense(features, "selectors.frank_wolfe")
        before = labelled if use_labelled else jnp.zeros_like(labelled)
        phi = jnp.where((available | before)[:, None], phi, 0.0)
        lengths = jnp.linalg.norm(phi, axis=1)
        unit = phi / jnp.where(lengths > 0, lengths, 1.0)[:, None]
        target, radius = jnp.sum(phi, axis=0), jnp.sum(lengths)

        def update(approximation: Array, index: Array, turn: Array | None = None) -> Array:
            towards = radius * numerics.rows_at(unit, index) - approximation
            length = jnp.sum(towards**2)
            share = jnp.sum(towards * (target - approximation)) / jnp.where(length > 0, length, 1.0)
            return approximation + share * towards

        def pick(approximation: Array, left: Array, turn: Array) -> tuple[Array, Array]:
            value = jnp.matmul(unit, target - approximation, precision="highest")
            index = best_of(value, left)
            return index, numerics.rows_at(value, index)

        start = over_rows(before, lambda state, ids, valid: update(state, ids[0]), jnp.zeros_like(target), block=1)
        return one_by_one(pick, update, start, available, query_size)

    return select


def _from_centres(choose: Callable[..., Array], use_labelled: bool, largest_first: bool = True) -> Selector:
    """A selector whose picks become centres: ``choose(nearest, available bool[N], left bool[N], uniform) -> index``."""
    choose = jax.jit(choose)  # for features in blocks

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        uniforms = jax.random.uniform(key, (query_size,), jnp.float32)
        centres = labelled if use_labelled else jnp.zeros_like(labelled)
        length = _kernel.diagonal(features)
        features = _kernel.centred(features, available | centres)
        diag = _kernel.diagonal(features)

        def pick(nearest: Nearest, left: Array, turn: Array) -> tuple[Array, Array]:
            index = choose(nearest, available, left, uniforms[turn])
            square = numerics.rows_at(nearest.distances, index)
            if largest_first:
                first, largest = (turn == 0) & ~jnp.any(centres), best_of(length, left)
                index, square = (
                    jnp.where(first, largest, index),
                    jnp.where(first, numerics.rows_at(length, largest), square),
                )
            return index, jnp.sqrt(square)

        update = lambda nearest, index, turn: _kernel.with_centre(features, diag, nearest, index)  # noqa: E731
        return one_by_one(pick, update, _kernel.nearest_of(features, diag, centres), available, query_size)

    vars(select).update(in_blocks=_kernel.in_blocks)
    return select
