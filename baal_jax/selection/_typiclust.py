"""TypiClust: the most typical example of every cluster that has no label yet."""

from __future__ import annotations

import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection import _clustering
from baal_jax.selection._features import over_features
from baal_jax.typing import Acquisition, Array, Key

_SMALLEST = 5  # members of a cluster worth a label, in the paper


def typiclust(
    num_clusters: int | None = None, num_neighbours: int = 20, max_clusters: int = 500, num_iterations: int = 100
) -> Acquisition:
    r"""Picks the most typical examples of the clusters with the fewest labels: for small budgets and cold starts.

    .. math::

        \mathrm{typicality}(x) = \Bigl(\tfrac1K \sum_{x' \in \mathrm{NN}_K(x)} \lVert \phi(x) - \phi(x') \rVert
        \Bigr)^{-1}

    What is labelled or available is clustered by k-means into as many clusters as there will be labels, and each pick
    is the most typical available example of the cluster with the fewest labels and picks; of these clusters the
    largest. Neighbours are members of the same cluster, ``K`` of them or all others where there are fewer. Clusters of
    fewer than 5 members wait until all others are used up.

    Features are used as they are; the paper's are self-supervised and have length 1.

    Args:
        num_clusters: a fixed number of clusters instead of the number of labels after this query.
        num_neighbours: ``K``.
        max_clusters: never more clusters than this. Time grows with the clusters that are used, not with this bound.
        num_iterations: Lloyd iterations at most, after k-means++ seeding.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are typicalities: 0 for an example alone in its cluster, infinite for
        one whose neighbours all equal it.

    Raises:
        ValueError: a number is not positive.

    References:
        Hacohen, Dekel and Weinshall, `Active learning on a budget: opposite strategies suit high and low budgets
        <https://arxiv.org/abs/2202.02794>`_, 2022.

    Example:
        >>> from baal_jax import selection
        >>> embeddings = jnp.array([[0.0], [0.2], [0.4], [0.7], [1.0], [9.0], [9.1], [9.2], [9.3], [9.4], [9.5]])
        >>> labelled = jnp.arange(11) == 6
        >>> picked = selection.typiclust().select(jax.random.key(0), embeddings, ~labelled, 1, labelled)
        >>> picked.indices.tolist()
        [2]
    """
    for name, value in (
        ("num_neighbours", num_neighbours),
        ("max_clusters", max_clusters),
        ("num_iterations", num_iterations),
        ("num_clusters", 1 if num_clusters is None else num_clusters),
    ):
        checks.positive_int(name, value)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        known = available | labelled
        points = _clustering.centred(_clustering.rows(features, "typiclust"), known)
        bound = min(max_clusters if num_clusters is None else num_clusters, points.shape[0])
        active = bound if num_clusters is not None else jnp.sum(labelled, dtype=jnp.int32) + query_size
        assignment = _clustering.k_means(key, points, known, bound, num_iterations, active).assignment
        typicality = typicalities(points, known, assignment, num_neighbours)
        indices = most_typical(assignment, typicality, available, labelled, bound)[:query_size]
        return indices, numerics.take_or(typicality, indices, jnp.nan)

    return over_features(find, reads_labelled=True)


def typicalities(points: Array, known: Array, assignment: Array, num_neighbours: int) -> Array:
    """One over the mean distance to the nearest members of the own cluster; 0 without any."""
    num_neighbours = min(num_neighbours, max(points.shape[0] - 1, 1))
    _, distances = _clustering.nearest_neighbours(points, known, num_neighbours, assignment)
    there = jnp.isfinite(distances)
    count = jnp.sum(there, axis=1, dtype=distances.dtype)
    total = jnp.sum(jnp.where(there, distances, 0.0), axis=1)
    return jnp.where(count > 0, count / total, 0.0)


def most_typical(assignment: Array, typicality: Array, available: Array, labelled: Array, num_clusters: int) -> Array:
    """``int32[N]``: ids in order of picking, then −1.

    The ``r``-th most typical example of a cluster is picked when ``r`` others of it have been, so the cluster with the
    fewest labels and picks comes next when examples are in order of the labels in their cluster plus ``r``.
    """
    mine = jnp.maximum(assignment, 0)
    turn = _clustering.rank_within(jnp.where(available, mine, num_clusters), -typicality)
    size = _clustering.sizes_of(assignment, num_clusters)[mine]
    labels = _clustering.sizes_of(assignment, num_clusters, labelled)[mine]
    order = jnp.lexsort((-size, labels + turn, size < _SMALLEST, ~available))
    return jnp.where(available[order], order, -1)
