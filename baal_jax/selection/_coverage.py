"""Coverage of the pool: MaxHerding, uncertainty herding, and ProbCover, which is MaxHerding by balls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import heuristics
from baal_jax._util import checks
from baal_jax.selection._common import (
    best_few,
    over_features,
    over_rows,
    points_of,
    read_features,
    squared_distances,
    unit_rows,
)
from baal_jax.selection._k_means import clusters_of
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, ScoreFn

_BLOCK = 64  # candidates that are looked at together
_BELOW = 1e-4  # how far below the largest pure radius to stay, so that rounding decides nothing
_SLACK = 1e-5  # how far beyond the radius a point still lies on the boundary, as squares are rounded
_EQUAL = 1e-5  # relative rounding of a sum: as with two that have nobody but each other
_CLOSEST = 1e-6  # of the largest square, a squared distance below which two are the same

Similarity = Callable[[Array], Array]  # of squared distances: 1 at 0, never negative


def max_herding(kernel: Similarity | None = None, *, normalise: bool = True) -> Acquisition:
    r"""The examples that make the pool most similar to its nearest label, one after the other: for small budgets.

    .. math:: \arg\max_x \sum_{n} \bigl[k(x_n, x) - m_n\bigr]_+, \qquad m_n = \max_{l \in L \cup P} k(x_n, x_l)

    The sum is over what is labelled or available. It is greedy for a submodular function, so that at least 63 % of the
    best possible coverage is reached. A gain that was computed earlier bounds the one of now, so only candidates whose
    bounds are largest are looked at again, 64 at a time: picks are those of the full search, memory is ``64 N``
    numbers, time ``N²`` for the first pick and a fraction of it for each other. :func:`survivors` makes pools small.

    Args:
        kernel: squared distances ``->`` similarities between 0 and 1; by default ``lambda d2: jnp.exp(-d2)``, an RBF of
            width 1. Of a top hat it is :func:`prob_cover`.
        normalise: whether features are divided by their length first, which is what the width 1 is for.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are the gains.

    References:
        Bae, Noh and Sutherland, `Generalized coverage for more robust low-budget active learning
        <https://arxiv.org/abs/2407.12212>`_, 2024.

    Example:
        >>> embeddings = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
        >>> picked = selection.max_herding().select(jax.random.key(0), embeddings, jnp.ones(4, bool), 2)
        >>> picked.indices.tolist()
        [2, 3]
    """
    similarity = _checked(kernel) or _rbf(1.0)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        known = available | labelled
        points = points_of(unit_rows(features) if normalise else features, known, "max_herding")
        return herd(points, known.astype(points.dtype), similarity, available, query_size, labelled)[:2]

    return over_features(find, reads_labelled=True)


def uncertainty_herding(
    score_fn: ScoreFn | None = None, kernel: Similarity | None = None, *, normalise: bool = True
) -> Acquisition:
    r"""Coverage of what is uncertain: :func:`max_herding` weighted by margins, the narrower the more labels there are.

    .. math:: \arg\max_x \sum_{n} u_n \bigl[k(x_n, x) - m_n\bigr]_+, \qquad u_n = 1 - (p_{(1)} - p_{(2)})

    What is labelled has no weight; while nothing is, or there are no predictions (a cold start), all have weight 1. By
    default the kernel is an RBF as wide as the two closest labels are apart, 1 with fewer than two. The paper scales
    logits to be calibrated before: :func:`baal_jax.calibration.calibrated` makes such a posterior.

    Args:
        score_fn: ``logits -> u [N]``, below 0 as 0; by default as above.
        kernel: as of :func:`max_herding`, fixed.
        normalise: as of :func:`max_herding`.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are the gains.

    References:
        Bae, Oliveira and Sutherland, `Uncertainty herding: one active learning method for all label budgets
        <https://arxiv.org/abs/2412.20644>`_, 2025.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]]))
        >>> predictions = baal.Predictions(logits, jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> acquisition, options = selection.uncertainty_herding(), {"query_size": 2, "labelled": jnp.zeros(3, bool)}
        >>> baal.select(jax.random.key(0), acquisition, predictions, **options).indices.tolist()
        [1, 0]
    """
    fixed, weigh = _checked(kernel), _one_minus_margin if score_fn is None else score_fn
    checks.function("score_fn", weigh, "heuristics.entropy")

    def summarise(predictions: Predictions) -> PyTree:
        features = read_features(predictions)
        rows = checks.leading_axis("features", features)
        return jnp.ones(rows, jnp.float32) if predictions.logits is None else weigh(predictions.logits), features

    def find(key: Key, given: PyTree, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        (weights, features), known = given, available | labelled
        points = points_of(unit_rows(features) if normalise else features, known, "uncertainty_herding")
        weights = jnp.where(
            jnp.any(labelled), jnp.where(available, jnp.maximum(weights, 0.0), 0.0), known.astype(points.dtype)
        )
        similarity = fixed or _rbf(closest(points, labelled))
        return herd(points, weights.astype(points.dtype), similarity, available, query_size, labelled)[:2]

    return over_features(find, summarise, reads_labelled=True, tasks=heuristics.tasks_of(score_fn or heuristics.margin))


def prob_cover(radius: float | None = None, purity: float = 0.95, num_classes: int = 10) -> Acquisition:
    r"""Greedy maximum coverage by balls around labelled examples, :func:`max_herding` of a top hat: for cold starts.

    .. math:: \arg\max_x\; \bigl|B_\delta(x) \setminus \textstyle\bigcup_{c \in L \cup P} B_\delta(c)\bigr|,
        \qquad B_\delta(x) = \{x' : \lVert \phi(x) - \phi(x') \rVert \le \delta\}

    What is labelled or available is to be covered; of equals the lowest id comes first.

    Without a radius it is the largest at which a share of at least ``purity`` of all balls holds one class of k-means,
    whose seeds are all that is random. Features are used as they are; the paper's are self-supervised, of length 1.

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
        ([1, 4, 2], [3.0, 2.0, 1.0])
    """
    radius = None if radius is None else checks.positive_float("radius", radius)
    if checks.positive_float("purity", purity) > 1.0:
        raise ValueError(f"purity={purity!r} is a share of balls: at most 1")
    num_classes = checks.positive_int("num_classes", num_classes)

    def find(key: Key, features: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        known = available | labelled
        points, reach = points_of(features, known, "prob_cover"), radius
        if reach is None:
            classes = clusters_of(key, points, known, min(num_classes, points.shape[0])).assignment
            reach = pure_radius(points, known, classes, purity)
        ball = lambda squared: (squared <= reach**2 * (1.0 + _SLACK)).astype(squared.dtype)  # noqa: E731
        return herd(points, known.astype(points.dtype), ball, available, query_size, labelled)[:2]

    return over_features(find, reads_labelled=True)


def pure_radius(points: Array, known: Array, classes: Array, purity: float) -> Array:
    """The largest radius, but for rounding, at which a share of at least ``purity`` of all balls is pure."""
    # A ball is pure up to the nearest point of another class: a quantile of these distances, infinite with one class.
    squares = jnp.sum(points * points, axis=1)

    def visit(nearest: Array, ids: Array, valid: Array) -> Array:
        other = valid[None] & (classes[:, None] != classes[ids][None])
        distances = jnp.where(other, squared_distances((points,), squares, ids), jnp.inf)
        return jnp.minimum(nearest, jnp.min(distances, axis=1))

    nearest = over_rows(known, visit, jnp.full(known.shape, jnp.inf, points.dtype))
    impure = (1.0 - purity) * jnp.sum(known, dtype=points.dtype) + 1e-3  # the product may be rounded down
    place = jnp.minimum(impure.astype(jnp.int32), points.shape[0] - 1)
    return jnp.sqrt(jnp.sort(jnp.where(known, nearest, jnp.inf))[place]) * (1.0 - _BELOW)


def herd(
    points: Array, weights: Array, similarity: Similarity, available: Array, query_size: int, labelled: Array
) -> tuple[Array, Array, Array]:
    """Greedy picks, their gains, and how many candidates were looked at for each."""
    squares = jnp.sum(points * points, axis=1)

    def similar(ids: Array, valid: Array) -> Array:
        return jnp.where(valid[None], similarity(squared_distances((points,), squares, ids)), 0.0)

    def closer(nearest: Array, ids: Array, valid: Array) -> Array:
        return jnp.maximum(nearest, jnp.max(similar(ids, valid), axis=1))

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple]:
        nearest, bounds, left = carry

        def first(bounds: Array, looked: Array) -> tuple[Array, Array]:
            """The largest gain, and the lowest id of those that are as large, whatever the rounding."""
            gains = jnp.where(left & looked, bounds, -jnp.inf)
            best = jnp.max(gains)
            return best, jnp.argmax(gains >= best * (1.0 - _EQUAL)).astype(jnp.int32)

        def unsure(carry: tuple[Array, Array]) -> Array:
            """Whether a bound exceeds the best gain, or is as large and of a lower id."""
            (bounds, looked), (best, index) = carry, first(*carry)
            as_large = (bounds >= best * (1.0 - _EQUAL)) & (jnp.arange(len(bounds), dtype=jnp.int32) < index)
            return jnp.any(left & ~looked & ((bounds > best) | as_large))

        def look(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            bounds, looked = carry
            ids = best_few(bounds, left & ~looked, min(_BLOCK, len(bounds)))
            there, places = ids >= 0, jnp.where(ids >= 0, ids, len(bounds))
            new = jnp.maximum(similar(jnp.maximum(ids, 0), there) - nearest[:, None], 0.0)
            gains = jnp.sum(weights[:, None] * new, axis=0)
            return bounds.at[places].set(gains, mode="drop"), looked.at[places].set(True, mode="drop")

        bounds, looked = jax.lax.while_loop(unsure, look, (bounds, jnp.zeros_like(left)))
        some, index = jnp.any(left), first(bounds, looked)[1]
        picked = jnp.where(some, index, -1), jnp.where(some, bounds[index], jnp.nan), jnp.sum(looked, dtype=jnp.int32)
        nearest = jnp.where(some, closer(nearest, index[None], jnp.ones(1, bool)), nearest)
        return (nearest, bounds, left.at[index].set(False)), picked

    nearest = over_rows(labelled, closer, jnp.zeros_like(weights))
    bounds = jnp.full_like(weights, jnp.inf)
    return jax.lax.scan(step, (nearest, bounds, available), None, length=query_size)[1]


def closest(points: Array, labelled: Array) -> Array:
    """The smallest distance between two labelled points, 1 without."""
    squares = jnp.sum(points * points, axis=1)

    def visit(least: Array, ids: Array, valid: Array) -> Array:
        distances = squared_distances((points,), squares, ids)
        counts = labelled[:, None] & valid[None] & (distances > _CLOSEST * jnp.max(squares))
        return jnp.minimum(least, jnp.min(jnp.where(counts, distances, jnp.inf)))

    least = over_rows(labelled, visit, jnp.asarray(jnp.inf, points.dtype))
    return jnp.where(jnp.isinf(least), 1.0, jnp.sqrt(least))


def _rbf(width: Array | float) -> Similarity:
    return lambda squared: jnp.exp(-squared / width**2)


def _checked(kernel: Similarity | None) -> Similarity | None:
    if kernel is not None:
        checks.function("kernel", kernel, "lambda squared: jnp.exp(-squared)")
        tried = np.asarray(kernel(jnp.array([[0.0, 1.0, 100.0]], jnp.float32)))
        if tried.shape != (1, 3) or not (np.isfinite(tried) & (tried >= 0)).all():
            raise ValueError(f"kernel gives {tried.tolist()} for squares 0, 1, 100: give similarities in [0, 1]")
    return kernel


def _one_minus_margin(logits: Array) -> Array:
    return 1.0 + heuristics.margin(logits)
