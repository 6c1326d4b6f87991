"""Clustering and neighbours inside compiled code: fixed shapes, masks for rows that do not count, memory in blocks.

Points are float32 ``[N, D]``; distances come from inner products, so that points are best :func:`centred` first. Sums
over members are matrix products, which add in one order, where scattered additions on an accelerator would not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax.typing import Array, Key

_BLOCK = 64  # centres in work at a time
_SLACK = 1e-5  # relative rounding of a sum of squares: two points that help nobody but each other tie as seeds
_ROWS, _COLUMNS = 128, 512  # a block of pairs, when neighbours are searched


class Clusters(NamedTuple):
    """What :func:`k_means` found.

    Attributes:
        centres: ``[K, D]``; those beyond the active ones mean nothing.
        assignment: ``int32[N]``, the nearest centre; −1 for rows that do not count.
    """

    centres: Array
    assignment: Array


def rows(features: Array, who: str) -> Array:
    """Refuses anything but one row an example."""
    if not isinstance(features, jax.Array) or features.ndim != 2:
        raise ValueError(
            f"{who} needs one row an example, [N, D], but features are {jax.tree.map(jnp.shape, features)}"
        )
    return features


def centred(points: Array, mask: Array) -> Array:
    """Minus the mean of the rows that count, which removes what float32 would lose in distances; 0 in other rows."""
    count = jnp.maximum(jnp.sum(mask, dtype=points.dtype), 1.0)
    for _ in range(2):  # the mean of numbers with a large offset is itself rounded
        points = jnp.where(mask[:, None], points, 0.0)
        points = points - jnp.sum(points / count, axis=0, keepdims=True)
    return jnp.where(mask[:, None], points, 0.0)


def squared_distances(points: Array, ids: Array) -> Array:
    """``[N, I]``: from all points to some of them, exactly 0 to itself."""
    some = points[ids]
    squares = jnp.sum(points * points, axis=1)[:, None] + jnp.sum(some * some, axis=1)[None]
    found = jnp.maximum(squares - 2.0 * jnp.matmul(points, some.T, precision="highest"), 0.0)
    own = jnp.arange(points.shape[0], dtype=jnp.int32)[:, None] == ids[None]
    return jnp.where(own, 0.0, found)


def rank_within(groups: Array, *keys: Array) -> Array:
    """``int32[N]``: the place of every row in its group, ordered by the first key, then the next, then the id."""
    order = jnp.lexsort((*reversed(keys), groups))
    ordered = groups[order]
    place = jnp.arange(groups.shape[0], dtype=jnp.int32)
    first = jnp.searchsorted(ordered, ordered, side="left").astype(jnp.int32)
    return jnp.zeros_like(place).at[order].set(place - first)


def sizes_of(assignment: Array, num_clusters: int, counted: Array | None = None) -> Array:
    """``int32[K]``: how many rows of each cluster count; rows at −1 never do."""
    counted = assignment >= 0 if counted is None else counted & (assignment >= 0)
    return jax.ops.segment_sum(counted.astype(jnp.int32), jnp.maximum(assignment, 0), num_clusters)


# k-means


def k_means(
    key: Key,
    points: Array,
    mask: Array,
    num_clusters: int,
    num_iterations: int = 100,
    active: Array | int | None = None,
) -> Clusters:
    """Lloyd's algorithm from the seeds of :func:`k_means_pp`.

    Args:
        key: typed key.
        points: ``[N, D]``.
        mask: ``bool[N]``, rows that count.
        num_clusters: ``K``, the shape of the result.
        num_iterations: Lloyd iterations at most; it stops before when no assignment changes.
        active: how many of the ``K`` centres are used, possibly traced. Time is in proportion to it.

    Returns:
        :class:`Clusters`. A cluster that loses its last member keeps its centre.
    """
    active = jnp.clip(jnp.asarray(num_clusters if active is None else active, jnp.int32), 1, num_clusters)
    seeds = k_means_pp(key, points, mask, num_clusters, active)
    return lloyd(points, mask, points[seeds], num_iterations, active)


def k_means_pp(key: Key, points: Array, mask: Array, num_clusters: int, active: Array) -> Array:
    """Greedy k-means++ seeding: of ``2 + ⌊ln K⌋`` draws in proportion to squared distances, the one that helps most.

    Of those that help as much it is the first.

    Draw ``i`` of seed ``t`` inverts the cumulative distribution, in order of ids, at
    ``jax.random.uniform(key, (K, 2 + ⌊ln K⌋))[t, i]``; the first seed is draw 0 of the uniform distribution.

    Returns:
        ``int32[K]`` ids, of which the first ``active`` count.
    """
    uniforms = jax.random.uniform(key, (num_clusters, 2 + int(math.log(num_clusters))))

    def seed(turn: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, seeds = carry
        ids = _draw(uniforms[turn], jnp.where(turn == 0, 1.0, nearest), mask)
        closer = jnp.minimum(nearest[:, None], squared_distances(points, ids))
        potential = jnp.sum(jnp.where(mask[:, None], closer, 0.0), axis=0)
        best = jnp.where(turn == 0, 0, jnp.argmax(potential <= jnp.min(potential) * (1.0 + _SLACK)))
        return closer[:, best], seeds.at[turn].set(ids[best])

    start = jnp.full(mask.shape, jnp.inf, points.dtype), jnp.zeros(num_clusters, jnp.int32)
    return jax.lax.fori_loop(0, active, seed, start)[1]


def _draw(uniforms: Array, weights: Array, mask: Array) -> Array:
    """Ids whose intervals of the cumulative weights hold ``uniforms``; uniform without any weight."""
    weights = jnp.where(mask, weights, 0.0)
    weights = jnp.where(jnp.any(weights > 0), weights, mask.astype(weights.dtype))
    cumulative = jnp.cumsum(weights)
    ids = jnp.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    ids = jnp.minimum(ids, weights.shape[0] - 1)
    return jnp.where(weights[ids] > 0, ids, jnp.argmax(weights)).astype(jnp.int32)  # rounding, at an edge


def lloyd(
    points: Array, mask: Array, centres: Array, num_iterations: int = 100, active: Array | None = None
) -> Clusters:
    """Alternates between the nearest centre of every point and the mean of every cluster."""
    num_clusters = centres.shape[0]
    width = min(_BLOCK, num_clusters)
    active = jnp.asarray(num_clusters if active is None else active, jnp.int32)
    blocks = (active + width - 1) // width
    centres = jnp.pad(centres, ((0, -num_clusters % width), (0, 0)))

    def ids_of(block: Array) -> Array:
        return block * width + jnp.arange(width, dtype=jnp.int32)

    def assign(centres: Array) -> Array:
        def body(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            some, ids = jax.lax.dynamic_slice_in_dim(centres, block * width, width), ids_of(block)
            # The square of the point is the same for all centres.
            value = jnp.sum(some * some, axis=1)[None] - 2.0 * jnp.matmul(points, some.T, precision="highest")
            value = jnp.where((ids < active)[None], value, jnp.inf)
            found, least = ids[jnp.argmin(value, axis=1)], jnp.min(value, axis=1)
            better = least < carry[0]
            return jnp.where(better, least, carry[0]), jnp.where(better, found, carry[1])

        start = jnp.full(mask.shape, jnp.inf, points.dtype), jnp.zeros(mask.shape, jnp.int32)
        return jnp.where(mask, jax.lax.fori_loop(0, blocks, body, start)[1], -1)

    def means(centres: Array, assignment: Array) -> Array:
        def body(block: Array, centres: Array) -> Array:
            members = (assignment[None] == ids_of(block)[:, None]).astype(points.dtype)
            count = jnp.sum(members, axis=1, keepdims=True)
            mean = jnp.matmul(members, points, precision="highest") / jnp.maximum(count, 1.0)
            old = jax.lax.dynamic_slice_in_dim(centres, block * width, width)
            return jax.lax.dynamic_update_slice_in_dim(centres, jnp.where(count > 0, mean, old), block * width, 0)

        return jax.lax.fori_loop(0, blocks, body, centres)

    def step(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        centres, assignment, turn, _ = carry
        centres = means(centres, assignment)
        found = assign(centres)
        return centres, found, turn + 1, jnp.any(found != assignment)

    start = centres, assign(centres), jnp.zeros((), jnp.int32), jnp.ones((), bool)
    centres, assignment, _, _ = jax.lax.while_loop(lambda carry: carry[3] & (carry[2] < num_iterations), step, start)
    return Clusters(centres[:num_clusters], assignment)


def k_means_without_key(points: Array, mask: Array, num_clusters: int, num_iterations: int = 100) -> Clusters:
    """k-means without randomness, which follows a permutation of the points.

    From the seeds of :func:`variance_split`, which heed density, and from those of :func:`farthest_first`, which find
    what lies apart: of the two results the one with the smaller sum of squares.
    """

    def inertia(found: Clusters) -> Array:
        return jnp.sum(jnp.where(mask[:, None], (points - found.centres[jnp.maximum(found.assignment, 0)]) ** 2, 0.0))

    one, other = (
        lloyd(points, mask, seeds(points, mask, num_clusters), num_iterations)
        for seeds in (variance_split, farthest_first)
    )
    better = inertia(one) <= inertia(other) * (1.0 + _SLACK)
    return jax.tree.map(lambda *pair: jnp.where(better, *pair), one, other)


def farthest_first(points: Array, mask: Array, num_clusters: int) -> Array:
    """Seeds ``[K, D]``: the point farthest from the origin, then each time that farthest from all before."""

    def seed(turn: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, centres = carry
        index = jnp.argmax(jnp.where(mask, nearest, -jnp.inf))
        closer = jnp.sum((points - points[index][None]) ** 2, axis=1)
        return jnp.where(turn == 0, closer, jnp.minimum(nearest, closer)), centres.at[turn].set(points[index])

    start = jnp.sum(points * points, axis=1), jnp.zeros((num_clusters, points.shape[1]), points.dtype)
    return jax.lax.fori_loop(0, num_clusters, seed, start)[1]


def variance_split(points: Array, mask: Array, num_clusters: int) -> Array:
    """Seeds ``[K, D]``: means of a hierarchy of halves.

    Again and again the cluster with the largest sum of squares is cut at its mean, across the feature that varies most
    (Su and Dy, `In search of deterministic methods for initializing k-means and Gaussian mixture clustering
    <https://doi.org/10.3233/IDA-2007-11402>`_, 2007).
    """

    def statistics(member: Array) -> tuple[Array, Array]:
        count = jnp.maximum(jnp.sum(member, dtype=points.dtype), 1.0)
        mean = jnp.sum(jnp.where(member[:, None], points, 0.0), axis=0) / count
        return mean, jnp.sum(jnp.where(member[:, None], (points - mean[None]) ** 2, 0.0), axis=0)

    def cut(turn: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        assignment, centres, spread = carry
        largest = jnp.argmax(spread)
        mean, squares = statistics(assignment == largest)
        feature = jnp.argmax(squares)
        above = points[:, feature] > mean[feature]
        assignment = jnp.where((assignment == largest) & above, turn, assignment)
        for cluster in (largest, turn):
            mean, squares = statistics(assignment == cluster)
            centres, spread = centres.at[cluster].set(mean), spread.at[cluster].set(jnp.sum(squares))
        return assignment, centres, spread

    mean, squares = statistics(mask)
    centres = jnp.zeros((num_clusters, points.shape[1]), points.dtype).at[0].set(mean)
    spread = jnp.zeros(num_clusters, points.dtype).at[0].set(jnp.sum(squares))
    start = jnp.where(mask, 0, -1), centres, spread
    return jax.lax.fori_loop(1, num_clusters, cut, start)[1]


# Neighbours


def nearest_neighbours(
    points: Array, mask: Array, num_neighbours: int, groups: Array | None = None
) -> tuple[Array, Array]:
    """The nearest other points of every point, within its group.

    Rows are sorted by group, and a block of them meets only the blocks that its groups reach into: time is in
    proportion to the sum of squared group sizes, memory to ``N · num_neighbours``.

    Args:
        points: ``[N, D]``.
        mask: ``bool[N]``, rows that count.
        num_neighbours: ``k``.
        groups: ``int32[N]``, not negative where the mask is true; by default all points are one group.

    Returns:
        ``(ids int32[N, k], distances [N, k])``, nearest first; −1 and infinity where there are fewer. Distances are
        those of differences, accurate between near points too.
    """
    num = points.shape[0]
    groups = jnp.zeros(num, jnp.int32) if groups is None else groups
    groups = jnp.where(mask, groups, jnp.iinfo(jnp.int32).max)
    order = jnp.argsort(groups, stable=True)
    groups = groups[order]
    counts = jnp.sum(mask, dtype=jnp.int32)
    first = jnp.searchsorted(groups, groups, side="left").astype(jnp.int32)
    last = jnp.minimum(jnp.searchsorted(groups, groups, side="right").astype(jnp.int32), counts)

    height, width = min(_ROWS, num), min(_COLUMNS, num)
    columns = jnp.pad(points[order], ((0, -num % width), (0, 0)))
    squares = jnp.sum(columns * columns, axis=1)

    def block(start: Array) -> tuple[Array, Array]:
        places = jnp.minimum(start + jnp.arange(height, dtype=jnp.int32), num - 1)
        mine, low, high = columns[places], first[places], last[places]

        def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            begin, distances, ids = carry
            others = jax.lax.dynamic_slice_in_dim(columns, begin, width)
            there = jnp.broadcast_to((begin + jnp.arange(width, dtype=jnp.int32))[None], (height, width))
            found = squares[places][:, None] + jax.lax.dynamic_slice_in_dim(squares, begin, width)[None]
            found = found - 2.0 * jnp.matmul(mine, others.T, precision="highest")
            possible = (there >= low[:, None]) & (there < high[:, None]) & (there != places[:, None])
            found = jnp.where(possible, found, jnp.inf)
            distances, ids = (jnp.concatenate(pair, axis=1) for pair in ((distances, found), (ids, there)))
            negative, best = jax.lax.top_k(-distances, num_neighbours)
            return begin + width, -negative, jnp.take_along_axis(ids, best, axis=1)

        empty = jnp.full((height, num_neighbours), jnp.inf, points.dtype)
        carry = low[0] // width * width, empty, jnp.zeros(empty.shape, jnp.int32)
        _, distances, ids = jax.lax.while_loop(lambda carry: carry[0] < high[-1], body, carry)
        exact = jnp.sqrt(jnp.sum((mine[:, None] - columns[ids]) ** 2, axis=-1))
        exact = jnp.where(jnp.isinf(distances), jnp.inf, exact)
        nearest = jnp.argsort(exact, axis=1, stable=True)
        return jnp.where(jnp.isinf(exact), -1, order[ids])[jnp.arange(height)[:, None], nearest], jnp.sort(
            exact, axis=1
        )

    starts = jnp.arange(0, num, height, dtype=jnp.int32)
    ids, distances = jax.tree.map(lambda leaf: leaf.reshape(-1, num_neighbours)[:num], jax.lax.map(block, starts))
    back = jnp.argsort(order)
    return ids.astype(jnp.int32)[back], distances[back]


# Hierarchies


def average_linkage(points: Array, mask: Array, num_clusters: int) -> Array:
    r"""Agglomerative clustering: the two clusters with the smallest mean distance are merged, until ``K`` are left.

    .. math:: d(a \cup b, c) = \frac{|a|\, d(a, c) + |b|\, d(b, c)}{|a| + |b|}

    Every row keeps a lower bound of its smallest distance, which a merge elsewhere cannot undercut; a row is searched
    again only when its bound is the smallest of all and no longer holds. Memory is ``N²`` numbers, time is close to it.

    Args:
        points: ``[N, D]``.
        mask: ``bool[N]``, rows that count.
        num_clusters: ``K``.

    Returns:
        ``int32[N]``, clusters numbered in order of their lowest rows; −1 for rows that do not count.
    """
    num = points.shape[0]
    ids = jnp.arange(num, dtype=jnp.int32)
    pairs = mask[:, None] & mask[None] & (ids[:, None] != ids[None])
    distances = jnp.where(pairs, jnp.sqrt(squared_distances(points, ids)), jnp.inf)

    def write(matrix: Array, place: Array, values: Array) -> Array:
        matrix = jax.lax.dynamic_update_slice(matrix, values[None], (place, jnp.zeros_like(place)))
        return jax.lax.dynamic_update_slice(matrix, values[:, None], (jnp.zeros_like(place), place))

    def body(state: _Linkage) -> _Linkage:
        # What the last turn changed is written before anything is read: so it happens in place, without a copy.
        matrix = write(write(state.distances, state.gone, state.removed), state.kept, state.row)
        one = jnp.argmin(state.bounds).astype(jnp.int32)
        other = state.nearest[one]
        holds = matrix[one, other] == state.bounds[one]
        # Where the bound does not hold, nothing is merged: the row is put back as it is and searched again.
        kept, gone = jnp.where(holds, jnp.minimum(one, other), one), jnp.where(holds, jnp.maximum(one, other), one)
        first, second, sizes = matrix[kept], matrix[gone], state.sizes
        total = sizes[kept] + sizes[gone]
        merged = (sizes[kept] * first + sizes[gone] * second) / total
        merged = jnp.maximum(merged, jnp.minimum(first, second))  # a mean is not below both, whatever the rounding
        merged = jnp.where((ids == kept) | (ids == gone), jnp.inf, merged)
        row = jnp.where(holds, merged, first)
        return _Linkage(
            matrix,
            kept,
            row,
            gone,
            jnp.where(holds, jnp.full_like(row, jnp.inf), row),
            state.bounds.at[gone].set(jnp.inf).at[kept].set(jnp.min(row)),
            state.nearest.at[kept].set(jnp.argmin(row).astype(jnp.int32)),
            sizes.at[kept].set(jnp.where(holds, total, sizes[kept])),
            jnp.where(state.labels == gone, kept, state.labels),
            state.left - holds.astype(jnp.int32),
        )

    def more(state: _Linkage) -> Array:
        return (state.left > num_clusters) & jnp.any(jnp.isfinite(state.bounds))

    start = _Linkage(
        distances,
        ids[0],
        distances[0],
        ids[0],
        distances[0],
        jnp.min(distances, axis=1),
        jnp.argmin(distances, axis=1).astype(jnp.int32),
        jnp.ones(num, points.dtype),
        jnp.where(mask, ids, -1),
        jnp.sum(mask, dtype=jnp.int32),
    )
    labels = jax.lax.while_loop(more, body, start).labels
    number = jnp.cumsum((labels == ids).astype(jnp.int32)) - 1
    return jnp.where(mask, number[jnp.maximum(labels, 0)], -1)


class _Linkage(NamedTuple):
    distances: Array  # [N, N], without what the last turn changed:
    kept: Array  # a cluster
    row: Array  # and its distances now,
    gone: Array  # the cluster that it took in
    removed: Array  # and what is left of its distances
    bounds: Array
    nearest: Array
    sizes: Array
    labels: Array
    left: Array
