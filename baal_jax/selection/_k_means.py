"""The examples nearest to the centres of k-means: a cold start; and k-means itself, inside compiled code.

Shapes are fixed, masks mark the rows that count, and memory is taken in blocks. Points are float32 ``[N, D]``, best
centred first. Sums over members are matrix products: scattered additions have no order on an accelerator.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection._common import (
    inverse_cdf,
    one_each,
    over_features,
    points_of,
    read_features,
    squared_distances,
    unit_rows,
)
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree

_BLOCK = 64  # centres in work at a time
_SLACK = 1e-5  # relative rounding of a sum of squares
_NEVER = 1e6  # by which a threshold on a number of draws would have to be lowered


def k_means(num_clusters: int | None = None, num_iterations: int = 100) -> Acquisition:
    r"""The examples nearest to the centres of k-means over what is available, largest cluster first.

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
        Nguyen and Smeulders, `Active learning using pre-clustering <https://doi.org/10.1145/1015330.1015349>`_, 2004.

    Example:
        >>> embeddings = jnp.array([[0.0], [0.1], [0.3], [9.0], [9.2]])
        >>> picked = selection.k_means().select(jax.random.key(0), embeddings, jnp.ones(5, bool), 2)
        >>> picked.indices.tolist()
        [1, 3]
    """
    num_clusters = checks.optional_int("num_clusters", num_clusters)
    num_iterations = checks.positive_int("num_iterations", num_iterations)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        points = points_of(features, available, "k_means")
        count = min(query_size if num_clusters is None else num_clusters, points.shape[0])
        return nearest_to_centres(key, points, available, query_size, count, num_iterations)

    return over_features(find)


def drop_query(candidates_per_pick: int = 25, num_iterations: int = 100) -> Acquisition:
    r"""Those that draws disagree about, of different clusters: for embeddings of pretrained networks.

    With :math:`\hat y` of the mean prediction, :math:`d_n = \sum_s [\hat y_n \ne \hat y_n^s]` of ``S`` draws disagree.
    Candidates have ``d > S // 2``, a threshold that falls, at most to 0, until they are ``candidates_per_pick · Q``.
    Their features, divided by their length, are clustered by k-means into ``Q`` clusters, and the nearest to each
    centre is picked. With fewer candidates than picks, and before there are predictions, all are candidates.

    The paper has three draws of dropout (``num_samples=3``, a rate of .75) in a head on fixed features, and takes
    :math:`\hat y` from a pass without.

    Args:
        candidates_per_pick: 25 in the paper.
        num_iterations: Lloyd iterations at most, after k-means++ seeding.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are minus the distance to the centre.

    References:
        Gupte et al., `Revisiting active learning in the era of vision foundation models
        <https://arxiv.org/abs/2401.14555>`_, 2024.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]]))
        >>> predictions = baal.Predictions(logits, jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> baal.select(jax.random.key(0), selection.drop_query(), predictions, query_size=1).indices.tolist()
        [1]
    """
    candidates_per_pick = checks.positive_int("candidates_per_pick", candidates_per_pick)
    num_iterations = checks.positive_int("num_iterations", num_iterations)

    def summarise(predictions: Predictions) -> PyTree:
        features = read_features(predictions)
        if predictions.logits is None:
            return jnp.full(checks.leading_axis("features", features), _NEVER), features
        log_p = numerics.log_probs(predictions.logits)
        mean = jnp.argmax(numerics.log_mean_probs(predictions.logits), axis=-1)
        differ = jnp.sum(jnp.argmax(log_p, axis=-1) != mean[None], axis=0)
        lowered = jnp.maximum(log_p.shape[0] // 2 + 1 - differ, 0).astype(jnp.float32)  # how far for this one
        broken = jnp.any(jnp.isnan(log_p), axis=(0, -1))
        return jnp.where(broken, jnp.nan, jnp.where(differ > 0, lowered, _NEVER)), features

    def find(key: Key, given: PyTree, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        lowered, features = one_each(given[0]), given[1]
        disagreed = available & (lowered < _NEVER)
        count = jnp.sum(disagreed, dtype=jnp.int32)
        place = jnp.minimum(candidates_per_pick * query_size, count) - 1
        enough = jnp.sort(jnp.where(disagreed, lowered, _NEVER))[jnp.maximum(place, 0)]
        mask = jnp.where(count < query_size, available, disagreed & (lowered <= enough))
        points = points_of(unit_rows(features), mask, "drop_query")
        return nearest_to_centres(key, points, mask, query_size, min(query_size, points.shape[0]), num_iterations)

    return over_features(find, summarise, tasks=("classification",))


def nearest_to_centres(
    key: Key, points: Array, mask: Array, query_size: int, count: int, num_iterations: int
) -> tuple[Array, Array]:
    """Of ``count`` clusters of the rows of a mask, largest first, the rows nearest to their centres, then the next."""
    centres, assignment = clusters_of(key, points, mask, count, num_iterations)
    mine = jnp.maximum(assignment, 0)
    distances = jnp.sqrt(jnp.sum((points - centres[mine]) ** 2, axis=1))
    size = sizes_of(assignment, count)[mine]
    # Two alone are as near to their mean as each other, whatever the rounding.
    turn = numerics.rank_within(assignment, jnp.where(size == 2, 0.0, distances))
    order = jnp.lexsort((-size, turn, ~mask))[:query_size]
    indices = jnp.where(mask[order], order, -1)
    return indices, -distances[indices]


class Clusters(NamedTuple):
    """What :func:`clusters_of` gives."""

    centres: Array  # [K, D]; those beyond the active ones mean nothing
    assignment: Array  # int32[N], the nearest centre; −1 for rows that do not count


def clusters_of(
    key: Key, points: Array, mask: Array, num_clusters: int, num_iterations: int = 100, active: Array | None = None
) -> Clusters:
    """k-means: Lloyd's algorithm from the seeds of :func:`k_means_pp`."""
    # Of ``K = num_clusters`` centres ``active`` are used, a number that may be traced; time is in proportion to it.
    active = jnp.clip(jnp.asarray(num_clusters if active is None else active, jnp.int32), 1, num_clusters)
    seeds = k_means_pp(key, points, mask, num_clusters, active)
    return lloyd(points, mask, points[seeds], num_iterations, active)


def k_means_pp(key: Key, points: Array, mask: Array, num_clusters: int, active: Array) -> Array:
    """Greedy k-means++ seeding, ``int32[K]`` ids, of which the first ``active`` count."""
    # Of ``2 + ⌊ln K⌋`` draws in proportion to squared distances it takes the one that helps most, and of those that
    # help as much the first. Draw ``i`` of seed ``t`` inverts the cumulative distribution at
    # ``jax.random.uniform(key, (K, 2 + ⌊ln K⌋))[t, i]``; the first seed is draw 0 of the uniform distribution.
    uniforms = jax.random.uniform(key, (num_clusters, 2 + int(math.log(num_clusters))), jnp.float32)
    squares = jnp.sum(points * points, axis=1)

    def seed(turn: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        nearest, seeds = carry
        ids = inverse_cdf(uniforms[turn], jnp.where(turn == 0, 1.0, nearest), mask)
        closer = jnp.minimum(nearest[:, None], squared_distances((points,), squares, ids))
        # The potential is the sum of squares that Lloyd would start from: a single draw often lands in a cluster that
        # has a seed already, and the draw with the smallest potential of several hardly ever does.
        potential = jnp.sum(jnp.where(mask[:, None], closer, 0.0), axis=0)
        # Draws that help nobody but themselves and each other have equal potentials, whatever the rounding.
        best = jnp.where(turn == 0, 0, jnp.argmax(potential <= jnp.min(potential) * (1.0 + _SLACK)))
        return closer[:, best], seeds.at[turn].set(ids[best])

    start = jnp.full(mask.shape, jnp.inf, points.dtype), jnp.zeros(num_clusters, jnp.int32)
    return jax.lax.fori_loop(0, active, seed, start)[1]


def lloyd(points: Array, mask: Array, centres: Array, num_iterations: int, active: Array | None = None) -> Clusters:
    """Alternate between the nearest centre of every point and the mean of every cluster."""
    num_clusters = centres.shape[0]
    width = min(_BLOCK, num_clusters)
    active = jnp.asarray(num_clusters if active is None else active, jnp.int32)
    # Centres come in blocks, so that no [N, K] is held and that time follows the active ones, whose number is traced.
    blocks = (active + width - 1) // width
    centres = jnp.pad(centres, ((0, -num_clusters % width), (0, 0)))
    ids_of = lambda block: block * width + jnp.arange(width, dtype=jnp.int32)  # noqa: E731

    def assign(centres: Array) -> Array:
        def body(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            some, ids = jax.lax.dynamic_slice_in_dim(centres, block * width, width), ids_of(block)
            # |x − c|² without |x|², which is the same for all centres.
            value = jnp.sum(some * some, axis=1)[None] - 2.0 * jnp.matmul(points, some.T, precision="highest")
            value = jnp.where((ids < active)[None], value, jnp.inf)
            nearest, least = ids[jnp.argmin(value, axis=1)], jnp.min(value, axis=1)
            better = least < carry[0]  # of equally near centres the first, as if all were compared at once
            return jnp.where(better, least, carry[0]), jnp.where(better, nearest, carry[1])

        start = jnp.full(mask.shape, jnp.inf, points.dtype), jnp.zeros(mask.shape, jnp.int32)
        return jnp.where(mask, jax.lax.fori_loop(0, blocks, body, start)[1], -1)

    def means(centres: Array, assignment: Array) -> Array:
        def body(block: Array, centres: Array) -> Array:
            members = (assignment[None] == ids_of(block)[:, None]).astype(points.dtype)
            count = jnp.sum(members, axis=1, keepdims=True)
            mean = jnp.matmul(members, points, precision="highest") / jnp.maximum(count, 1.0)
            old = jax.lax.dynamic_slice_in_dim(centres, block * width, width)
            # An empty cluster stays where it is: a mean of nothing would be the origin, and might attract points.
            return jax.lax.dynamic_update_slice_in_dim(centres, jnp.where(count > 0, mean, old), block * width, 0)

        return jax.lax.fori_loop(0, blocks, body, centres)

    def step(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        centres, before, turn, _ = carry
        centres = means(centres, before)
        assignment = assign(centres)
        # Equal assignments have equal means, so that nothing would change from here on.
        return centres, assignment, turn + 1, jnp.any(assignment != before)

    start = centres, assign(centres), jnp.zeros((), jnp.int32), jnp.ones((), bool)
    centres, assignment, _, _ = jax.lax.while_loop(lambda carry: carry[3] & (carry[2] < num_iterations), step, start)
    return Clusters(centres[:num_clusters], assignment)


def sizes_of(assignment: Array, num_clusters: int, counted: Array | None = None) -> Array:
    """``int32[K]``: how many rows of each cluster count; rows at −1 never do."""
    counted = assignment >= 0 if counted is None else counted & (assignment >= 0)
    return jax.ops.segment_sum(counted.astype(jnp.int32), jnp.maximum(assignment, 0), num_clusters)
