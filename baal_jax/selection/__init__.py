"""Which examples to label next? Builders of :class:`~baal_jax.Acquisition`: a map and a reduce.

Every selection gives distinct, available ids in order of picking, and −1 where fewer than ``query_size`` are left.
Scores that are NaN come last.
"""

from collections.abc import Callable

from baal_jax.selection import sets
from baal_jax.selection._batch_bald import batch_bald
from baal_jax.selection._cluster_margin import cluster, cluster_margin
from baal_jax.selection._k_means import k_means
from baal_jax.selection._names import by_name
from baal_jax.selection._prob_cover import prob_cover
from baal_jax.selection._rank import epig, precomputed, random, top_k
from baal_jax.selection._stochastic import power, softmax, softrank
from baal_jax.selection._typiclust import typiclust
from baal_jax.selection.sets import (
    badge,
    bait,
    batch_bald_gaussian,
    core_set,
    frank_wolfe,
    grid,
    k_center,
    k_means_pp,
    lcmd,
    max_det,
    max_diag,
)
from baal_jax.typing import Acquisition

REGISTRY: dict[str, Callable[..., Acquisition]] = {
    "badge": badge,
    "bait": bait,
    "batch_bald": batch_bald,
    "batch_bald_gaussian": batch_bald_gaussian,
    "cluster_margin": cluster_margin,
    "core_set": core_set,
    "epig": epig,
    "frank_wolfe": frank_wolfe,
    "grid": grid,
    "k_center": k_center,
    "k_means": k_means,
    "k_means_pp": k_means_pp,
    "lcmd": lcmd,
    "max_det": max_det,
    "max_diag": max_diag,
    "power": power,
    "prob_cover": prob_cover,
    "random": random,
    "softmax": softmax,
    "softrank": softrank,
    "top_k": top_k,
    "typiclust": typiclust,
}
"""Name → builder; each can be called without arguments."""

__all__ = [
    "REGISTRY",
    "badge",
    "bait",
    "batch_bald",
    "batch_bald_gaussian",
    "by_name",
    "cluster",
    "cluster_margin",
    "core_set",
    "epig",
    "frank_wolfe",
    "grid",
    "k_center",
    "k_means",
    "k_means_pp",
    "lcmd",
    "max_det",
    "max_diag",
    "power",
    "precomputed",
    "prob_cover",
    "random",
    "sets",
    "softmax",
    "softrank",
    "top_k",
    "typiclust",
]
