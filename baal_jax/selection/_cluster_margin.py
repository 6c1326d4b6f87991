"""Cluster-Margin: uncertain examples, spread over the clusters they come from."""

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import heuristics
from baal_jax._util import checks, numerics
from baal_jax.selection._common import best_few, one_each, over_features, points_of, read_features
from baal_jax.selection._k_means import clusters_of, sizes_of
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, ScoreFn


def cluster_margin(
    clusters: Array | np.ndarray | None = None,
    num_clusters: int | None = None,
    candidates_per_pick: int = 10,
    *,
    score_fn: ScoreFn = heuristics.margin,
) -> Acquisition:
    r"""The examples with the smallest margins, one at a time from each of their clusters: for large queries.

    The ``candidates_per_pick · Q`` available examples with the smallest margins of the mean prediction are candidates.
    Their clusters, restricted to candidates and in order from the smallest to the largest, give one random candidate
    each, and again, without those used up, until the query is full. So small clusters are exhausted first, and large
    ones, full of similar examples, give little. Of equally large clusters that of the smaller margin comes first.

    Args:
        clusters: ``int[N]``, the cluster of every example of the data set, made once by :func:`cluster` as in the
            paper; nothing but predictions is read then. None to cluster candidates in every round, by compiled k-means.
        num_clusters: how many clusters the candidates form, without ``clusters``; None for as many as picks.
        candidates_per_pick: the paper uses 10.
        score_fn: ``logits -> scores [N]``, another uncertainty than the margin.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are those of ``score_fn``: minus the margins.

    Raises:
        ValueError: a number is not positive, ``clusters`` is not one integer an example or beside ``num_clusters``.

    References:
        Citovsky et al., `Batch active learning at scale <https://arxiv.org/abs/2107.14263>`_, 2021.

    Example:
        >>> acquisition = selection.cluster_margin(clusters=jnp.array([0, 0, 0, 1, 2, 2]), candidates_per_pick=2)
        >>> margins = jnp.array([-0.9, -0.1, -0.2, -0.3, -0.8, -0.9])
        >>> acquisition.select(jax.random.key(0), margins, jnp.ones(6, bool), 2).indices.tolist()
        [3, 4]
    """
    candidates_per_pick = checks.positive_int("candidates_per_pick", candidates_per_pick)
    num_clusters = checks.optional_int("num_clusters", num_clusters)
    checks.function("score_fn", score_fn, "heuristics.margin")
    given, num_given = (None, 0) if clusters is None else _as_ids(clusters, num_clusters)

    def summarise(predictions: Predictions) -> PyTree:
        scores = score_fn(predictions.logits)
        return scores if given is not None else (scores, read_features(predictions))

    def find(key: Key, features: PyTree, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        scores = one_each(features if given is not None else features[0])
        count = min(candidates_per_pick * query_size, scores.shape[0])
        candidates = best_few(scores, available, count)
        there, ids = candidates >= 0, jnp.maximum(candidates, 0)
        if given is not None:
            if given.shape != scores.shape:
                cure = "pass all, with max_sample=None"
                raise ValueError(f"clusters has {given.shape[0]} ids for {scores.shape[0]} examples: {cure}")
            num_groups, groups = num_given, given[ids]
        else:
            key, key_clusters = jax.random.split(key)
            points = points_of(jax.tree.map(lambda leaf: leaf[ids], features[1]), there, "cluster_margin")
            num_groups = min(num_clusters or query_size, count)
            groups = clusters_of(key_clusters, points, there, num_groups).assignment
        chosen = round_robin(jax.random.uniform(key, (count,), jnp.float32), groups, there, num_groups)[:query_size]
        indices = jnp.where(chosen >= 0, candidates[chosen], -1)
        return indices, scores[indices]

    return over_features(find, summarise, tasks=heuristics.tasks_of(score_fn))


def round_robin(order: Array, groups: Array, there: Array, num_groups: int) -> Array:
    """``int32[N]``: places in order of picking, then −1: one of each group, smallest group first, and again."""
    # Of a group the place with the smallest number in ``order`` comes first.
    place = jnp.arange(groups.shape[0], dtype=jnp.int32)
    groups = jnp.where(there, groups, 0)
    first = jax.ops.segment_min(jnp.where(there, place, place.size), groups, num_groups)[groups]
    size = sizes_of(groups, num_groups, there)[groups]
    places = jnp.lexsort((first, size, numerics.rank_within(jnp.where(there, groups, num_groups), order), ~there))
    return jnp.where(there[places], places, -1).astype(jnp.int32)


def cluster(embeddings: Array | np.ndarray, num_clusters: int) -> np.ndarray:
    """Average-linkage clusters of a whole data set, for :func:`cluster_margin`; once, on the host, by scikit-learn.

    Memory is ``4 N²`` bytes: 10 GB for 50,000 examples. The paper stops at a distance, here at a number of clusters.

    Args:
        embeddings: ``[N, …]``, one row an example.
        num_clusters: how many clusters.

    Returns:
        ``int32[N]``.

    Raises:
        ValueError: ``num_clusters`` is not between 1 and the number of examples, or a number is not finite.
        ImportError: scikit-learn is not installed.

    Example:
        >>> clusters = selection.cluster([[0.0], [9.0], [0.1], [9.1]], num_clusters=2)
        >>> bool(clusters[0] == clusters[2] != clusters[1] == clusters[3])
        True
    """
    num_clusters = checks.positive_int("num_clusters", num_clusters)
    points = np.asarray(embeddings, np.float64)
    points = points.reshape(points.shape[0], -1)
    if num_clusters > points.shape[0]:
        raise ValueError(f"num_clusters={num_clusters} exceeds the {points.shape[0]} examples: ask for fewer")
    if not np.isfinite(points).all():
        raise ValueError("embeddings hold numbers that are not finite: leave those examples out")
    if points.shape[0] == 1:
        return np.zeros(1, np.int32)
    agglomerative = checks.optional_import("sklearn.cluster", "data").AgglomerativeClustering
    return agglomerative(n_clusters=num_clusters, linkage="average").fit_predict(points).astype(np.int32)


def _as_ids(clusters: Array | np.ndarray, num_clusters: int | None) -> tuple[Array, int]:
    """Clusters numbered from 0, and how many there are."""
    ids = np.asarray(clusters)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"clusters of {ids.dtype}{list(ids.shape)} must be one integer an example, int[N]")
    if num_clusters is not None:
        raise ValueError(f"num_clusters={num_clusters} has no use beside clusters: leave one of them out")
    names, ids = np.unique(ids, return_inverse=True)
    return jnp.asarray(ids, jnp.int32), len(names)
