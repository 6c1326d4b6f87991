"""The examples nearest to the centres of k-means: a cold start."""

from __future__ import annotations

import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection import _clustering
from baal_jax.selection._features import over_features
from baal_jax.typing import Acquisition, Array, Key


def k_means(num_clusters: int | None = None, num_iterations: int = 100) -> Acquisition:
    r"""Clusters what is available by k-means and picks the example nearest to each centre, largest cluster first.

    .. math:: \arg\min_{x \in c} \lVert \phi(x) - \mu_c \rVert

    With more picks than clusters the second nearest of every cluster follow, then the third. What is labelled does not
    matter, so this is for a start without labels; later, :func:`typiclust` avoids what is labelled.

    Args:
        num_clusters: ``K``; None for as many clusters as picks.
        num_iterations: Lloyd iterations at most, after k-means++ seeding.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are minus the distance to the centre.

    Raises:
        ValueError: a number is not positive.

    References:
        Nguyen and Smeulders, `Active learning using pre-clustering <https://doi.org/10.1145/1015330.1015349>`_, 2004;
        Arthur and Vassilvitskii, `k-means++: the advantages of careful seeding
        <https://dl.acm.org/doi/10.5555/1283383.1283494>`_, 2007.

    Example:
        >>> from baal_jax import selection
        >>> embeddings = jnp.array([[0.0], [0.1], [0.3], [9.0], [9.2]])
        >>> picked = selection.k_means().select(jax.random.key(0), embeddings, jnp.ones(5, bool), 2)
        >>> picked.indices.tolist()
        [1, 3]
    """
    if num_clusters is not None:
        num_clusters = checks.positive_int("num_clusters", num_clusters)
    num_iterations = checks.positive_int("num_iterations", num_iterations)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        del labelled
        points = _clustering.centred(_clustering.rows(features, "k_means"), available)
        count = min(query_size if num_clusters is None else num_clusters, points.shape[0])
        centres, assignment = _clustering.k_means(key, points, available, count, num_iterations)
        mine = jnp.maximum(assignment, 0)
        distances = jnp.sqrt(jnp.sum((points - centres[mine]) ** 2, axis=1))
        size = _clustering.sizes_of(assignment, count)[mine]
        # Two alone are as near to their mean as each other, whatever the rounding.
        turn = _clustering.rank_within(assignment, jnp.where(size == 2, 0.0, distances))
        order = jnp.lexsort((-size, turn, ~available))[:query_size]
        indices = jnp.where(available[order], order, -1)
        return indices, -numerics.take_or(distances, indices, jnp.nan)

    return over_features(find)
