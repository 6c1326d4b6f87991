"""Acquisitions over features: BADGE, BAIT, CoreSet, LCMD and others, each a feature map, transforms and a selector."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax._util import checks
from baal_jax.selection._common import over_features
from baal_jax.selection.sets import feature_maps, selectors
from baal_jax.selection.sets._kernel import Blocks, Features, Selector, Transform
from baal_jax.selection.sets.feature_maps import FeatureMap
from baal_jax.typing import Acquisition, Array, Key, PyTree


def grid(
    features: FeatureMap = feature_maps.embedding,
    transforms: Sequence[Transform] = (),
    selector: Selector | None = None,
    *,
    reads_labelled: bool = True,
) -> Acquisition:
    r"""A set acquisition from its three parts: features of predictions, transforms of them, and a selector of a set.

    With ``selectors.itl()``, ``vtl()``, ``epig()`` or ``bait(toward_targets=True)`` what matters are ``target_inputs``
    of ``step``, ``run`` or ``study.run``, whose features are made and transformed alike. One that is not finite is 0.

    Args:
        features: ``Predictions -> [B, D]``, or factors whose inner products multiply; ``feature_maps`` or your own.
        transforms: from :mod:`~baal_jax.selection.sets.transforms`, applied in this order.
        selector: from :mod:`~baal_jax.selection.sets.selectors`; by default ``selectors.lcmd()``.
        reads_labelled: whether a part reads what is labelled; if none does, False allows ``max_sample`` in the loop.

    Returns:
        An :class:`~baal_jax.Acquisition` with the scores of the selector. Features that are not finite are picked last.

    References:
        Holzmüller et al., `A framework and benchmark for deep batch active learning for regression
        <https://arxiv.org/abs/2203.09410>`_, 2022.

    Example:
        >>> steps = [transforms.scale(), transforms.posterior(noise=0.1)]
        >>> acquisition = selection.grid(feature_maps.embedding, steps, selectors.max_det(noise=0.1))
        >>> features = jnp.array([[2.0, 0.0], [2.1, 0.0], [0.0, 1.0]])
        >>> acquisition.select(jax.random.key(0), features, jnp.ones(3, bool), 2).indices.tolist()
        [1, 2]
    """
    selector = selectors.lcmd() if selector is None else selector

    def find(
        key: Key, features: PyTree, available: Array, query_size: int, labelled: Array, num_targets: int = 0
    ) -> tuple[Array, Array]:
        key_select, *keys = jax.random.split(key, 1 + len(transforms))
        factors: Any = features
        if not isinstance(features, Blocks):
            leaves = tuple(_rows(leaf) for leaf in jax.tree.leaves(features))
            factors = Features(leaves, jnp.zeros((), jnp.float32), num_targets)
        for key_transform, transform in zip(keys, transforms, strict=True):
            factors = transform(key_transform, factors, labelled, available | labelled)
            factors = factors if isinstance(factors, Blocks) else factors._replace(num_targets=num_targets)
        return selector(key_select, factors, available, query_size, labelled)

    in_blocks = None if transforms else getattr(selector, "in_blocks", None)
    acquisition = over_features(find, features, reads_labelled=reads_labelled, in_blocks=in_blocks)
    return acquisition._replace(reads_targets=getattr(selector, "reads_targets", False))


def _rows(leaf: Array) -> Array:
    if leaf.ndim > 3:
        raise ValueError(f"features of shape {leaf.shape}, but [N, D] is needed: flatten what comes after the examples")
    return leaf[:, None] if leaf.ndim == 1 else leaf


def max_diag(features: FeatureMap = feature_maps.embedding, transforms: Sequence[Transform] = ()) -> Acquisition:
    """The largest ``k(x, x)``, blind to redundancy (Holzmüller et al. 2022): ``selectors.max_diag`` in a ``grid``."""
    return grid(features, transforms, selectors.max_diag(), reads_labelled=bool(transforms))


def max_det(
    features: FeatureMap = feature_maps.embedding,
    transforms: Sequence[Transform] = (),
    noise: float = 0.1,
    *,
    use_labelled: bool = True,
) -> Acquisition:
    """Greedy determinants (Holzmüller et al. 2022): ``selectors.max_det`` in a ``grid``, given the labels."""
    return grid(features, transforms, selectors.max_det(noise, use_labelled=use_labelled))


def k_center(
    features: FeatureMap = feature_maps.embedding, transforms: Sequence[Transform] = (), *, use_labelled: bool = True
) -> Acquisition:
    """CoreSet (Sener and Savarese 2018): :func:`~baal_jax.selection.sets.selectors.k_center` over features.

    For that of the paper, over the last hidden layer, the loop needs ``features=baal_jax.features.last_hidden(model)``.

    Args:
        features: a feature map.
        transforms: transforms of the features.
        use_labelled: whether labelled examples are centres.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are distances.

    Example:
        >>> line = jnp.array([[0.0], [1.0], [5.0], [9.0]])
        >>> labelled = jnp.array([True, False, False, False])
        >>> selection.k_center().select(jax.random.key(0), line, ~labelled, 2, labelled).indices.tolist()
        [3, 2]
    """
    selector = selectors.k_center(use_labelled=use_labelled)
    return grid(features, transforms, selector, reads_labelled=use_labelled or bool(transforms))


def k_means_pp(
    features: FeatureMap = feature_maps.embedding, transforms: Sequence[Transform] = (), *, use_labelled: bool = True
) -> Acquisition:
    """Sampling by squared distance (Arthur and Vassilvitskii 2007): ``selectors.k_means_pp`` in a ``grid``."""
    selector = selectors.k_means_pp(use_labelled=use_labelled)
    return grid(features, transforms, selector, reads_labelled=use_labelled or bool(transforms))


def lcmd(
    features: FeatureMap = feature_maps.embedding, transforms: Sequence[Transform] = (), *, use_labelled: bool = True
) -> Acquisition:
    """Largest cluster, maximum distance: :func:`~baal_jax.selection.sets.selectors.lcmd` over features.

    The best of the benchmark of Holzmüller et al. (2022), with ``features=baal_jax.features.gradient(model)``.

    Args:
        features: a feature map.
        transforms: transforms of the features.
        use_labelled: whether labelled examples are centres.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are distances.

    Example:
        >>> line = jnp.array([[0.0], [1.0], [5.0], [9.0]])
        >>> labelled = jnp.array([True, False, False, False])
        >>> selection.lcmd().select(jax.random.key(0), line, ~labelled, 2, labelled).indices.tolist()
        [3, 2]
    """
    selector = selectors.lcmd(use_labelled=use_labelled)
    return grid(features, transforms, selector, reads_labelled=use_labelled or bool(transforms))


def frank_wolfe(
    features: FeatureMap = feature_maps.embedding, transforms: Sequence[Transform] = (), *, use_labelled: bool = False
) -> Acquisition:
    """Sparse approximation of the sum of features (Pinsler et al. 2019): ``selectors.frank_wolfe`` in a ``grid``."""
    selector = selectors.frank_wolfe(use_labelled=use_labelled)
    return grid(features, transforms, selector, reads_labelled=use_labelled or bool(transforms))


def bait(
    features: FeatureMap = feature_maps.fisher,
    transforms: Sequence[Transform] = (),
    noise: float = 1.0,
    *,
    use_labelled: bool = True,
    oversampling: float = 2.0,
) -> Acquisition:
    """BAIT (Ash et al. 2021): the labels that shrink the posterior where the pool needs it.

    The loop needs ``features=baal_jax.features.last_hidden(model)``. The likelihood of one output is Gaussian.

    Args:
        features: a feature map.
        transforms: transforms of the features.
        noise: ``σ``, as in :func:`~baal_jax.selection.sets.selectors.bait`.
        use_labelled: whether to condition on what is labelled.
        oversampling: how many times the query is picked before backward steps; 1 is forward alone.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are decreases of the mean variance's trace.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]]))
        >>> predictions = baal.Predictions(logits, jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> options = {"query_size": 2, "labelled": jnp.zeros(3, bool)}
        >>> baal.select(jax.random.key(0), selection.bait(), predictions, **options).indices.tolist()
        [1, 2]
    """
    return grid(features, transforms, selectors.bait(noise, use_labelled=use_labelled, oversampling=oversampling))


def badge(transforms: Sequence[Transform] = (), *, features: FeatureMap = feature_maps.badge) -> Acquisition:
    """BADGE (Ash et al. 2020): k-means++ over the gradient of the predicted class's loss in the last layer.

    The gradient, the outer product of ``p − e_ŷ`` and the last hidden layer, is never written as ``N × C·D`` numbers.
    The first pick has the largest. The loop needs ``features=baal_jax.features.last_hidden(model)``.

    Args:
        transforms: transforms of the two factors, such as ``transforms.sketch()``.
        features: ``feature_maps.badge_multi_label`` for labels that are each there or not.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are distances between gradients.

    References:
        Ash et al., `Deep batch active learning by diverse, uncertain gradient lower bounds
        <https://arxiv.org/abs/1906.03671>`_, 2020.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]]))
        >>> predictions = baal.Predictions(logits, jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> baal.select(jax.random.key(0), selection.badge(), predictions, query_size=1).indices.tolist()
        [1]
    """
    selector = selectors.k_means_pp(use_labelled=False, largest_first=True)
    tasks: dict[FeatureMap, tuple[str, ...]] = {feature_maps.badge: ("classification",)}
    tasks[feature_maps.badge_multi_label] = ("multi_label",)
    return grid(features, transforms, selector, reads_labelled=bool(transforms))._replace(tasks=tasks.get(features))


def batch_bald_gaussian(
    features: FeatureMap = feature_maps.probability_draws, noise: float = 0.1, *, use_labelled: bool = False
) -> Acquisition:
    r"""BatchBALD of Gaussian predictions: greedy picks by mutual information, which no number of draws bounds.

    .. math:: I(y_P; f) = \tfrac12 \log\det\bigl(I + \sigma^{-2} K_{PP}\bigr)

    With the covariance of Monte-Carlo draws as kernel this is for regression with one output what BatchBALD is for
    classification; for features of a network it is the Bayesian linear model on them. Covariances of several outputs
    are added up, as if one label were of their sum: a stand-in. Papers: those of :func:`batch_bald` and :func:`grid`.

    Args:
        features: ``feature_maps.draws`` for regression, ``feature_maps.probability_draws`` (the default) for
            classification, with the Brier-like Gaussian as a stand-in, or ``feature_maps.embedding``.
        noise: ``σ``, standard deviation of observation noise.
        use_labelled: condition on what is labelled; posterior draws know of it already.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are the gains in nats, which do not increase, up to rounding.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]], [[0.8, 0.2], [0.1, 0.9], [0.6, 0.4]]]))
        >>> baal.select(jax.random.key(0), selection.batch_bald_gaussian(), logits, query_size=2).indices.tolist()
        [1, 0]
    """
    noise = checks.positive_float("noise", noise)
    determinant = selectors.max_det(noise, use_labelled=use_labelled)

    def select(key: Key, given: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        indices, variances = determinant(key, given, available, query_size, labelled)
        return indices, 0.5 * jnp.log(jnp.maximum(variances / noise**2, 1.0))

    return grid(features, (), select, reads_labelled=use_labelled)
