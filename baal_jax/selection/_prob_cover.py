"""ProbCover: the largest part of the pool within a radius of what is labelled."""

import jax.numpy as jnp

from baal_jax._util import checks
from baal_jax.selection._common import one_by_one, over_features, over_rows, points_of, squared_distances
from baal_jax.selection._k_means import clusters_of
from baal_jax.typing import Acquisition, Array, Key

_BELOW = 1e-4  # how far below the largest pure radius to stay, so that rounding decides nothing
_SLACK = 1e-5  # how far beyond the radius a point still lies on the boundary, as squares are rounded


def prob_cover(radius: float | None = None, purity: float = 0.95, num_classes: int = 10) -> Acquisition:
    r"""Greedy maximum coverage by balls around labelled examples: for small budgets and cold starts.

    .. math:: \arg\max_x\; \bigl|B_\delta(x) \setminus \textstyle\bigcup_{c \in L \cup P} B_\delta(c)\bigr|,
        \qquad B_\delta(x) = \{x' : \lVert \phi(x) - \phi(x') \rVert \le \delta\}

    What is labelled or available is to be covered. Of equals, and when all is covered, the one farthest from what is
    labelled or picked comes first (without any, the one nearest to the mean), then the lowest id.

    Without a radius it is the largest at which a share of at least ``purity`` of all balls holds one class of k-means,
    whose seeds are all that is random. Features are used as they are; the paper's are self-supervised, of length 1.
    Memory is ``64 N`` numbers at a time, not the graph of neighbours.

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
        >>> embeddings = jnp.array([[0.0], [1.0], [2.0], [3.0], [8.0], [9.0]])
        >>> picked = selection.prob_cover(radius=1.2).select(jax.random.key(0), embeddings, jnp.ones(6, bool), 3)
        >>> picked.indices.tolist(), picked.scores.tolist()
        ([2, 5, 0], [3.0, 2.0, 1.0])
    """
    radius = None if radius is None else checks.positive_float("radius", radius)
    if checks.positive_float("purity", purity) > 1.0:
        raise ValueError(f"purity={purity!r} is a share of balls: at most 1")
    num_classes = checks.positive_int("num_classes", num_classes)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        known = available | labelled
        points = points_of(features, known, "prob_cover")
        if radius is not None:
            return cover(points, jnp.float32(radius) ** 2, available, query_size, labelled)
        classes = clusters_of(key, points, known, min(num_classes, points.shape[0])).assignment
        return cover(points, pure_radius(points, known, classes, purity) ** 2, available, query_size, labelled)

    return over_features(find, reads_labelled=True)


def pure_radius(points: Array, known: Array, classes: Array, purity: float) -> Array:
    """The largest radius, but for rounding, at which a share of at least ``purity`` of all balls is pure.

    A ball is pure up to the nearest point of another class: a quantile of these distances, infinite with one class.
    """
    squares = jnp.sum(points * points, axis=1)

    def visit(nearest: Array, ids: Array, valid: Array) -> Array:
        other = valid[None] & (classes[:, None] != classes[ids][None])
        distances = jnp.where(other, squared_distances((points,), squares, ids), jnp.inf)
        return jnp.minimum(nearest, jnp.min(distances, axis=1))

    nearest = over_rows(known, visit, jnp.full(known.shape, jnp.inf, points.dtype))
    impure = (1.0 - purity) * jnp.sum(known, dtype=points.dtype) + 1e-3  # the product may be rounded down
    place = jnp.minimum(impure.astype(jnp.int32), points.shape[0] - 1)
    return jnp.sqrt(jnp.sort(jnp.where(known, nearest, jnp.inf))[place]) * (1.0 - _BELOW)


def cover(points: Array, squared: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
    """Greedy picks, and how many examples each newly covers, within the square root of ``squared``."""
    squares = jnp.sum(points * points, axis=1)

    def around(ids: Array, valid: Array) -> tuple[Array, Array]:
        """Squared distances ``[N, I]`` to some points, and whether they lie within the radius."""
        distances = squared_distances((points,), squares, ids)
        return jnp.where(valid[None], distances, jnp.inf), valid[None] & (distances <= squared * (1.0 + _SLACK))

    def count(counts: Array, ids: Array, valid: Array) -> Array:
        return counts + jnp.sum(around(ids, valid)[1], axis=1, dtype=jnp.int32)

    def centre(state: tuple[Array, Array], ids: Array, valid: Array) -> tuple[Array, Array]:
        nearest, covered = state
        distances, near = around(ids, valid)
        return jnp.minimum(nearest, jnp.min(distances, axis=1)), covered | jnp.any(near, axis=1)

    none = jnp.full(available.shape, jnp.inf, points.dtype), jnp.zeros(available.shape, bool)
    nearest, covered = over_rows(labelled, centre, none)
    uncovered = available & ~covered
    counts = over_rows(uncovered, count, jnp.zeros(available.shape, jnp.int32))

    def pick(state: tuple[Array, Array, Array], left: Array, turn: Array) -> tuple[Array, Array]:
        nearest, uncovered, counts = state
        counts = jnp.where(left & jnp.any(uncovered), counts, 0)
        most = jnp.max(counts)
        distance = jnp.where(jnp.isinf(nearest), -squares, nearest)  # points are centred: the nearest to the mean
        index = jnp.argmax(jnp.where(left & (counts == most), distance, -jnp.inf)).astype(jnp.int32)
        return index, most.astype(jnp.float32)

    def update(state: tuple[Array, Array, Array], index: Array, turn: Array) -> tuple[Array, Array, Array]:
        nearest, uncovered, counts = state
        # A block of one row goes through the same loop as any other, so that its distances are rounded alike.
        alone = jnp.zeros_like(uncovered).at[index].set(True)
        nearest, ball = over_rows(alone, centre, (nearest, jnp.zeros_like(uncovered)))
        lost = over_rows(uncovered & ball, count, jnp.zeros_like(counts))  # only what this ball newly covers
        return nearest, uncovered & ~ball, counts - lost

    return one_by_one(pick, update, (nearest, uncovered, counts), available, query_size)
