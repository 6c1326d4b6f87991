"""Which examples to label next? Builders of :class:`~baal_jax.Acquisition`: a map and a reduce.

Every selection gives distinct, available ids in order of picking, and −1 where fewer than ``query_size`` are left.
Scores that are NaN come last. ``sets`` holds the three parts that acquisitions over features are put together of.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from baal_jax import heuristics
from baal_jax._util import checks
from baal_jax.selection import sets
from baal_jax.selection._balanced_margin import balanced_margin
from baal_jax.selection._batch_bald import batch_bald
from baal_jax.selection._candidates import nearest, survivors
from baal_jax.selection._cluster_margin import cluster, cluster_margin
from baal_jax.selection._coverage import max_herding, prob_cover, uncertainty_herding
from baal_jax.selection._k_means import drop_query, k_means
from baal_jax.selection._oracle import oracle
from baal_jax.selection._rank import power, precomputed, random, softmax, softrank, top_k, top_k_epig
from baal_jax.selection._typiclust import typiclust
from baal_jax.selection.sets import feature_maps
from baal_jax.selection.sets._acquisitions import (
    badge,
    bait,
    batch_bald_gaussian,
    frank_wolfe,
    grid,
    k_center,
    k_means_pp,
    lcmd,
    max_det,
    max_diag,
)
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, Selection, Targeted

_RANKINGS = ("top_k", "power", "softmax", "softrank")  # of any heuristic

_OF_SCORES = (balanced_margin, batch_bald, cluster_margin, power, random, softmax, softrank, top_k, top_k_epig)
_OF_FEATURES = (drop_query, k_means, max_herding, prob_cover, typiclust, uncertainty_herding)
_OF_SETS = (badge, bait, batch_bald_gaussian, frank_wolfe, grid, k_center, k_means_pp, lcmd, max_det, max_diag)

REGISTRY: dict[str, Callable[..., Acquisition]] = {
    builder.__name__: builder
    for builder in sorted((*_OF_SCORES, *_OF_FEATURES, *_OF_SETS), key=lambda builder: builder.__name__)
}
"""Name → builder; each can be called without arguments."""

__all__ = ["REGISTRY", "badge", "bait", "balanced_margin", "batch_bald", "batch_bald_gaussian", "by_name", "cluster",
           "cluster_margin", "drop_query", "frank_wolfe", "grid", "k_center", "k_means", "k_means_pp", "lcmd",
           "max_det", "max_diag", "max_herding", "nearest", "oracle", "power", "precomputed", "prob_cover", "random",
           "select", "sets", "softmax", "softrank", "survivors", "top_k", "top_k_epig", "typiclust",
           "uncertainty_herding"]  # fmt: skip


def by_name(name: str, *, coldness: float | Literal["auto"] | None = None, multi_label: bool = False) -> Acquisition:
    """The acquisition of a name, with its default settings.

    Args:
        name: of a selection (``"random"``, ``"batch_bald"``, ``"badge"``, …); of a heuristic, the top of whose scores
            is labelled then (``"bald"``, ``"margin"``, …); or a ranking and a heuristic joined by an underscore
            (``"top_k_bald"``, ``"power_bald"``, ``"softrank_entropy"``, …).
        coldness: of a stochastic ranking; None for its default, ``"auto"`` but for ``softrank``.
        multi_label: of outputs that are several labels, each there or not: heuristics are summed over them.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Raises:
        ValueError: there is no such name.

    Example:
        >>> selection.by_name("power_bald").summarise is None
        False
    """
    whole = [key for key in REGISTRY if key not in ("grid", *_RANKINGS)]
    if name == "badge" and multi_label:
        return REGISTRY[name](features=feature_maps.badge_multi_label)
    if name in whole:
        return REGISTRY[name]()
    how = next((how for how in _RANKINGS if name.startswith(f"{how}_")), "")
    score_fn = heuristics.REGISTRY.get(name.removeprefix(f"{how}_"))
    if score_fn is None:
        known = ", ".join([*whole, *heuristics.REGISTRY])
        cure = f"use one of {known}, or a heuristic behind top_k_, power_, softmax_ or softrank_"
        raise ValueError(f"name={name!r} is no strategy: {cure}")
    score_fn = heuristics.multi_label(score_fn) if multi_label else score_fn
    options = {} if coldness is None else {"coldness": coldness}
    return top_k(score_fn) if how in ("", "top_k") else REGISTRY[how](score_fn, **options)


def select(
    key: Key,
    acquisition: Acquisition,
    predictions: PyTree,
    available: Array | None = None,
    *,
    query_size: int,
    labelled: Array | None = None,
) -> Selection:
    """What an acquisition picks from outputs of any model, without a posterior or a loop.

    Args:
        key: a typed key, of what is random in the acquisition.
        acquisition: of :mod:`baal_jax.selection`.
        predictions: logits (or regression outputs) ``[S, N, …, C]`` of all examples, or
            :class:`~baal_jax.Predictions`, with features ``[N, D]`` beside them or in their place; None for what reads
            none, such as :func:`random`, where ``available`` tells ``N``.
        available: ``bool[N]``, what can be picked; None for all.
        query_size: ``Q``, at most ``N``.
        labelled: ``bool[N]``, for acquisitions that read the labelled rows too.

    Returns:
        A :class:`~baal_jax.Selection`: distinct ids in order of picking, −1 where fewer than ``Q`` are available.

    Raises:
        TypeError: ``acquisition`` is none, such as a heuristic.
        ValueError: what the acquisition reads is missing, or shapes do not fit.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]]]))
        >>> margin = baal.selection.top_k(baal.heuristics.margin)
        >>> baal.select(jax.random.key(0), margin, logits, query_size=2).indices.tolist()
        [1, 2]
    """
    if not isinstance(acquisition, Acquisition):
        kind = getattr(acquisition, "__name__", type(acquisition).__name__)
        raise TypeError(f"acquisition is {kind}, none of baal_jax.selection: pass selection.top_k(heuristic)")
    given = predictions if isinstance(predictions, Predictions) else Predictions(predictions)
    given = Predictions(*jax.tree.map(jnp.asarray, tuple(given)))
    for leaf in jax.tree.leaves(given.logits):
        checks.draws("predictions", leaf)
    masks = [None if mask is None else jnp.asarray(mask) for mask in (available, labelled)]
    if any(mask is not None and (mask.dtype != bool or mask.ndim != 1) for mask in masks):
        raise ValueError("available and labelled must be masks, bool[N]: make one with baal_jax.pool.available(pool)")
    counts = [leaf.shape[1] for leaf in jax.tree.leaves(given.logits)]
    counts += [leaf.shape[0] for leaf in jax.tree.leaves((given.features, masks))]
    if len(set(counts)) != 1:
        raise ValueError(f"predictions, available and labelled are of {counts} examples: pass one number of them")
    if acquisition.reads_labelled and labelled is None:
        raise ValueError("labelled is None, but this acquisition reads labelled rows: pass labelled=bool[N]")
    summary = None if acquisition.summarise is None else acquisition.summarise(given)
    if acquisition.reads_targets:
        summary = Targeted(summary, acquisition.of_targets(given.target_logits, given.target_features))
    available = jnp.ones(counts[0], bool) if masks[0] is None else masks[0]
    return acquisition.select(key, summary, available, query_size, masks[1])
