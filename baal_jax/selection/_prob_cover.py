"""ProbCover: the largest part of the pool within a radius of what is labelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax._util import checks
from baal_jax.selection import _clustering
from baal_jax.selection._features import over_features
from baal_jax.selection.sets._greedy import one_by_one
from baal_jax.selection.sets.transforms import positive_float
from baal_jax.typing import Acquisition, Array, Key

_BLOCK = 64  # columns of the graph in work at a time
_BELOW = 1e-4  # how far below the largest pure radius to stay, so that rounding decides nothing
_SLACK = 1e-5  # how far beyond the radius a point still lies on the boundary, as squares are rounded


def prob_cover(radius: float | None = None, purity: float = 0.95, num_classes: int = 10) -> Acquisition:
    r"""Greedy maximum coverage by balls around labelled examples: for small budgets and cold starts.

    .. math:: \arg\max_x\; \bigl|B_\delta(x) \setminus \textstyle\bigcup_{c \in L \cup P} B_\delta(c)\bigr|,
        \qquad B_\delta(x) = \{x' : \lVert \phi(x) - \phi(x') \rVert \le \delta\}

    What is labelled or available is to be covered. Of examples that cover as many, the one farthest from what is
    labelled or picked comes first (without any, the one nearest to the mean), then the lowest id. When everything is
    covered, the same rule goes on alone: farthest first.

    Without a radius it is the largest at which a share of at least ``purity`` of all balls holds one class, where
    classes are those of k-means, from seeds without randomness. So nothing here is random. Features are used as they
    are; the paper's are self-supervised and have length 1.

    Memory is ``64 N`` numbers at a time: the graph of neighbours is never held, and every column of it is computed
    once when it counts and once when it is covered.

    Args:
        radius: ``δ``, in units of the features; None to estimate it each time.
        purity: the share of pure balls, for the estimate.
        num_classes: how many clusters stand for classes in the estimate.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are numbers of newly covered examples.

    Raises:
        ValueError: ``radius`` or ``num_classes`` is not positive, or ``purity`` is not above 0 and at most 1.

    References:
        Yehuda et al., `Active learning through a covering lens <https://arxiv.org/abs/2205.11320>`_, 2022.

    Example:
        >>> from baal_jax import selection
        >>> embeddings = jnp.array([[0.0], [1.0], [2.0], [3.0], [8.0], [9.0]])
        >>> picked = selection.prob_cover(radius=1.2).select(jax.random.key(0), embeddings, jnp.ones(6, bool), 3)
        >>> picked.indices.tolist(), picked.scores.tolist()
        ([2, 5, 0], [3.0, 2.0, 1.0])
    """
    if radius is not None:
        radius = positive_float("radius", radius)
    if positive_float("purity", purity) > 1.0:
        raise ValueError(f"purity={purity!r} is a share of balls: at most 1")
    num_classes = checks.positive_int("num_classes", num_classes)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        del key
        known = available | labelled
        points = _clustering.centred(_clustering.rows(features, "prob_cover"), known)
        squared = pure_radius(points, known, purity, num_classes) ** 2 if radius is None else jnp.float32(radius) ** 2
        return _cover(points, squared, available, query_size, labelled)

    return over_features(find, reads_labelled=True)


def pure_radius(points: Array, known: Array, purity: float, num_classes: int) -> Array:
    """The largest radius, but for rounding, at which a share of at least ``purity`` of all balls is pure.

    A ball is pure up to the distance of the nearest point of another cluster, so the radius is a quantile of these
    distances; infinite when there is one cluster only.
    """
    assignment = _clustering.k_means_without_key(points, known, min(num_classes, points.shape[0])).assignment

    def column(nearest: Array, ids: Array, valid: Array) -> Array:
        other = valid[None] & (assignment[:, None] != assignment[ids][None])
        found = jnp.where(other, _clustering.squared_distances(points, ids), jnp.inf)
        return jnp.minimum(nearest, jnp.min(found, axis=1))

    nearest = _over(known, column, jnp.full(known.shape, jnp.inf, points.dtype))
    impure = (1.0 - purity) * jnp.sum(known, dtype=points.dtype) + 1e-3  # the product may be rounded down
    place = jnp.minimum(impure.astype(jnp.int32), points.shape[0] - 1)
    return jnp.sqrt(jnp.sort(jnp.where(known, nearest, jnp.inf))[place]) * (1.0 - _BELOW)


def _cover(points: Array, squared: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
    def around(ids: Array, valid: Array) -> tuple[Array, Array]:
        """Squared distances ``[N, I]`` to some points, and whether they lie within the radius."""
        found = _clustering.squared_distances(points, ids)
        return jnp.where(valid[None], found, jnp.inf), valid[None] & (found <= squared * (1.0 + _SLACK))

    def count(counts: Array, ids: Array, valid: Array) -> Array:
        return counts + jnp.sum(around(ids, valid)[1], axis=1, dtype=jnp.int32)

    def centre(state: tuple[Array, Array], ids: Array, valid: Array) -> tuple[Array, Array]:
        nearest, covered = state
        found, near = around(ids, valid)
        return jnp.minimum(nearest, jnp.min(found, axis=1)), covered | jnp.any(near, axis=1)

    none = jnp.full(available.shape, jnp.inf, points.dtype), jnp.zeros(available.shape, bool)
    nearest, covered = _over(labelled, centre, none)
    uncovered = available & ~covered
    counts = _over(uncovered, count, jnp.zeros(available.shape, jnp.int32))
    centrality = -jnp.sum(points * points, axis=1)

    def pick(state: tuple[Array, Array, Array], left: Array, turn: Array) -> tuple[Array, Array]:
        del turn
        nearest, uncovered, counts = state
        counts = jnp.where(left & jnp.any(uncovered), counts, 0)
        most = jnp.max(counts)
        distance = jnp.where(jnp.isinf(nearest), centrality, nearest)
        index = jnp.argmax(jnp.where(left & (counts == most), distance, -jnp.inf)).astype(jnp.int32)
        return index, most.astype(jnp.float32)

    def update(state: tuple[Array, Array, Array], index: Array, turn: Array) -> tuple[Array, Array, Array]:
        del turn
        nearest, uncovered, counts = state
        nearest, ball = centre((nearest, jnp.zeros_like(uncovered)), *_alone(index))
        lost = _over(uncovered & ball, count, jnp.zeros_like(counts))
        return nearest, uncovered & ~ball, counts - lost

    return one_by_one(pick, update, (nearest, uncovered, counts), available, query_size)


def _over(mask: Array, visit: Callable[[Any, Array, Array], Any], state: Any) -> Any:
    """``visit(state, ids [I], valid bool[I]) -> state`` over the rows of a mask, a block at a time."""
    count = jnp.sum(mask, dtype=jnp.int32)
    ids = jnp.flatnonzero(mask, size=mask.shape[0], fill_value=0).astype(jnp.int32)
    ids = jnp.pad(ids, (0, -ids.shape[0] % _BLOCK))

    def block(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        start, state = carry
        valid = start + jnp.arange(_BLOCK, dtype=jnp.int32) < count
        return start + _BLOCK, visit(state, jax.lax.dynamic_slice_in_dim(ids, start, _BLOCK), valid)

    return jax.lax.while_loop(lambda carry: carry[0] < count, block, (jnp.zeros((), jnp.int32), state))[1]


def _alone(index: Array) -> tuple[Array, Array]:
    """A block of one row, of the same shape as any other, so that distances are rounded alike."""
    return jnp.full(_BLOCK, index, jnp.int32), jnp.arange(_BLOCK) == 0
