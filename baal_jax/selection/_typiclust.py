"""TypiClust, the most typical example of every cluster: for cold starts."""

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection._common import over_features, points_of
from baal_jax.selection._k_means import clusters_of, sizes_of
from baal_jax.typing import Acquisition, Array, Key

_SMALLEST = 5  # members of a cluster worth a label, in the paper
_ROWS, _COLUMNS = 128, 512  # a block of pairs, when neighbours are searched


def typiclust(
    num_clusters: int | None = None, num_neighbours: int = 20, max_clusters: int = 500, num_iterations: int = 100
) -> Acquisition:
    r"""The most typical examples of the clusters with the fewest labels: for small budgets and cold starts.

    .. math:: \mathrm{typicality}(x)^{-1} = \tfrac1K \sum_{x' \in \mathrm{NN}_K(x)} \lVert \phi(x) - \phi(x') \rVert

    What is labelled or available is clustered by k-means into as many clusters as there will be labels, and each pick
    is the most typical available example of the cluster with the fewest labels and picks; of these clusters the
    largest. Neighbours are ``K`` members of the same cluster, or all. Clusters of fewer than 5 wait for all others.
    Features are used as they are; the paper's are self-supervised and have length 1.

    Args:
        num_clusters: a fixed number of clusters instead of the number of labels after this query.
        num_neighbours: ``K``.
        max_clusters: never more clusters than this. Time grows with the clusters that are used, not with this bound.
        num_iterations: Lloyd iterations at most, after k-means++ seeding.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are typicalities: 0 alone in a cluster, infinite among equals.

    Raises:
        ValueError: a number is not positive.

    References:
        Hacohen, Dekel and Weinshall, `Active learning on a budget: opposite strategies suit high and low budgets
        <https://arxiv.org/abs/2202.02794>`_, 2022.

    Example:
        >>> embeddings = jnp.array([[0.0], [0.2], [0.4], [0.7], [1.0], [9.0], [9.1], [9.2], [9.3], [9.4], [9.5]])
        >>> labelled = jnp.arange(11) == 6
        >>> picked = selection.typiclust().select(jax.random.key(0), embeddings, ~labelled, 1, labelled)
        >>> picked.indices.tolist()
        [2]
    """
    num_clusters = checks.optional_int("num_clusters", num_clusters)
    num_neighbours = checks.positive_int("num_neighbours", num_neighbours)
    max_clusters = checks.positive_int("max_clusters", max_clusters)
    num_iterations = checks.positive_int("num_iterations", num_iterations)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        known = available | labelled
        points = points_of(features, known, "typiclust")
        bound = min(max_clusters if num_clusters is None else num_clusters, points.shape[0])
        active = None if num_clusters is not None else jnp.sum(labelled, dtype=jnp.int32) + query_size
        assignment = clusters_of(key, points, known, bound, num_iterations, active).assignment
        typicality = typicalities(points, known, assignment, num_neighbours)
        indices = most_typical(assignment, typicality, available, labelled, bound)[:query_size]
        return indices, typicality[indices]

    return over_features(find, reads_labelled=True)


def typicalities(points: Array, known: Array, assignment: Array, num_neighbours: int) -> Array:
    """One over the mean distance to the nearest members of the own cluster; 0 without any."""
    num_neighbours = min(num_neighbours, max(points.shape[0] - 1, 1))
    distances = neighbour_distances(points, known, assignment, num_neighbours)
    there = jnp.isfinite(distances)
    count = jnp.sum(there, axis=1, dtype=distances.dtype)
    return jnp.where(count > 0, count / jnp.sum(jnp.where(there, distances, 0.0), axis=1), 0.0)


def most_typical(assignment: Array, typicality: Array, available: Array, labelled: Array, num_clusters: int) -> Array:
    """``int32[N]``: ids in order of picking, then −1."""
    # The ``r``-th most typical example of a cluster is picked when ``r`` others of it have been, so the cluster with
    # the fewest labels and picks comes next when examples are in order of the labels in their cluster plus ``r``.
    mine = jnp.maximum(assignment, 0)
    turn = numerics.rank_within(jnp.where(available, mine, num_clusters), -typicality)
    size = sizes_of(assignment, num_clusters)[mine]
    labels = sizes_of(assignment, num_clusters, labelled)[mine]
    order = jnp.lexsort((-size, labels + turn, size < _SMALLEST, ~available))
    return jnp.where(available[order], order, -1)


def neighbour_distances(points: Array, mask: Array, groups: Array, num_neighbours: int) -> Array:
    """Distances ``[N, k]`` from every point to its nearest others in its group, nearest first, then infinity."""
    # Rows are sorted by group (not negative where the mask is true), and a block of them meets only the blocks that its
    # groups reach into: time is in proportion to the sum of squared group sizes, memory to ``N · k``.
    num = points.shape[0]
    groups = jnp.where(mask, groups, jnp.iinfo(jnp.int32).max)
    order = jnp.argsort(groups, stable=True)
    groups = groups[order]
    counts = jnp.sum(mask, dtype=jnp.int32)
    # In sorted order the neighbours of a row stand at first, …, last − 1; those of a block between its two ends.
    first = jnp.searchsorted(groups, groups, side="left").astype(jnp.int32)
    last = jnp.minimum(jnp.searchsorted(groups, groups, side="right").astype(jnp.int32), counts)
    height, width = min(_ROWS, num), min(_COLUMNS, num)
    columns = jnp.pad(points[order], ((0, -num % width), (0, 0)))
    squares = jnp.sum(columns * columns, axis=1)

    def block(start: Array) -> Array:
        places = jnp.minimum(start + jnp.arange(height, dtype=jnp.int32), num - 1)
        mine, low, high = columns[places], first[places], last[places]

        def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            begin, least, ids = carry
            others = jax.lax.dynamic_slice_in_dim(columns, begin, width)
            there = jnp.broadcast_to((begin + jnp.arange(width, dtype=jnp.int32))[None], (height, width))
            far = squares[places][:, None] + jax.lax.dynamic_slice_in_dim(squares, begin, width)[None]
            far = far - 2.0 * jnp.matmul(mine, others.T, precision="highest")
            possible = (there >= low[:, None]) & (there < high[:, None]) & (there != places[:, None])
            far = jnp.where(possible, far, jnp.inf)
            least, ids = (jnp.concatenate(pair, axis=1) for pair in ((least, far), (ids, there)))
            negative, best = jax.lax.top_k(-least, num_neighbours)
            return begin + width, -negative, jnp.take_along_axis(ids, best, axis=1)

        empty = jnp.full((height, num_neighbours), jnp.inf, points.dtype)
        carry = low[0] // width * width, empty, jnp.zeros(empty.shape, jnp.int32)
        _, least, ids = jax.lax.while_loop(lambda carry: carry[0] < high[-1], body, carry)
        # Inner products find the neighbours; how far near ones are is left to differences, which do not cancel.
        exact = jnp.sqrt(jnp.sum((mine[:, None] - columns[ids]) ** 2, axis=-1))
        return jnp.sort(jnp.where(jnp.isinf(least), jnp.inf, exact), axis=1)

    blocks = jax.lax.map(block, jnp.arange(0, num, height, dtype=jnp.int32))
    return blocks.reshape(-1, num_neighbours)[:num][jnp.argsort(order)]
