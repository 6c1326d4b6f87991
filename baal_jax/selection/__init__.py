"""Which examples to label next? Builders of :class:`~baal_jax.Acquisition`: a map and a reduce.

Every selection gives distinct, available ids in order of picking, and −1 where fewer than ``query_size`` are left.
Scores that are NaN come last. ``sets`` holds the three parts that acquisitions over features are put together of.
"""

from collections.abc import Callable

from baal_jax import heuristics
from baal_jax.selection import sets
from baal_jax.selection._batch_bald import batch_bald
from baal_jax.selection._cluster_margin import cluster, cluster_margin
from baal_jax.selection._cold_start import prob_cover, typiclust
from baal_jax.selection._k_means import k_means
from baal_jax.selection._rank import power, precomputed, random, softmax, softrank, top_k, top_k_epig
from baal_jax.selection._select import select
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
from baal_jax.typing import Acquisition

_RANKINGS = ("top_k", "power", "softmax", "softrank")  # of any heuristic

_OF_SCORES = (batch_bald, cluster_margin, power, random, softmax, softrank, top_k, top_k_epig)
_OF_FEATURES = (k_means, prob_cover, typiclust)
_OF_SETS = (badge, bait, batch_bald_gaussian, frank_wolfe, grid, k_center, k_means_pp, lcmd, max_det, max_diag)

REGISTRY: dict[str, Callable[..., Acquisition]] = {
    builder.__name__: builder
    for builder in sorted((*_OF_SCORES, *_OF_FEATURES, *_OF_SETS), key=lambda builder: builder.__name__)
}
"""Name → builder; each can be called without arguments."""

__all__ = [
    "REGISTRY", "badge", "bait", "batch_bald", "batch_bald_gaussian", "by_name", "cluster", "cluster_margin",
    "frank_wolfe", "grid", "k_center", "k_means", "k_means_pp", "lcmd", "max_det", "max_diag", "power", "precomputed",
    "prob_cover", "random", "select", "sets", "softmax", "softrank", "top_k", "top_k_epig", "typiclust",
]  # fmt: skip


def by_name(name: str, *, coldness: float = 1.0) -> Acquisition:
    """The acquisition of a name, with its default settings.

    Args:
        name: of a selection (``"random"``, ``"batch_bald"``, ``"badge"``, …); of a heuristic, the top of whose scores
            is labelled then (``"bald"``, ``"margin"``, …); or a ranking and a heuristic joined by an underscore
            (``"top_k_bald"``, ``"power_bald"``, ``"softrank_entropy"``, …).
        coldness: of a stochastic ranking.

    Returns:
        An :class:`~baal_jax.Acquisition`.

    Raises:
        ValueError: there is no such name.

    Example:
        >>> selection.by_name("power_bald").summarise is None
        False
    """
    whole = [key for key in REGISTRY if key not in ("grid", *_RANKINGS)]
    if name in whole:
        return REGISTRY[name]()
    how = next((how for how in _RANKINGS if name.startswith(f"{how}_")), "")
    score_fn = heuristics.REGISTRY.get(name.removeprefix(f"{how}_"))
    if score_fn is None:
        known = ", ".join([*whole, *heuristics.REGISTRY])
        cure = f"use one of {known}, or a heuristic behind top_k_, power_, softmax_ or softrank_"
        raise ValueError(f"name={name!r} is no strategy: {cure}")
    return top_k(score_fn) if how in ("", "top_k") else REGISTRY[how](score_fn, coldness)
