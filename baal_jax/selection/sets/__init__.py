"""Selections of sets over features: feature maps × transforms × selectors, and the named points of that grid."""

from baal_jax.selection.sets import feature_maps, selectors, transforms
from baal_jax.selection.sets._grid import (
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

__all__ = [
    "badge",
    "bait",
    "batch_bald_gaussian",
    "core_set",
    "feature_maps",
    "frank_wolfe",
    "grid",
    "k_center",
    "k_means_pp",
    "lcmd",
    "max_det",
    "max_diag",
    "selectors",
    "transforms",
]
