"""Strategies by the names they have on a command line."""

from __future__ import annotations

from collections.abc import Callable

import baal_jax as baal
from baal_jax import heuristics, selection

RANKINGS = ("top_k", "power", "softmax", "softrank")
SETS = [name for name in selection.REGISTRY if name not in RANKINGS]


def acquisition(name: str, coldness: float) -> baal.Acquisition:
    """A strategy by its name on the command line."""
    if name in heuristics.REGISTRY:
        return selection.top_k(heuristics.REGISTRY[name])
    if name == "batch_bald":
        return selection.batch_bald(num_configurations=1_000)  # plenty for fifty draws, and ten times faster
    if name in SETS:
        return selection.REGISTRY[name]()
    if name.removeprefix("top_k_") in heuristics.REGISTRY:
        return selection.top_k(heuristics.REGISTRY[name.removeprefix("top_k_")])
    how, _, what = name.partition("_")
    if how in RANKINGS[1:] and what in heuristics.REGISTRY:
        return selection.REGISTRY[how](heuristics.REGISTRY[what], coldness)
    known = ", ".join([*SETS, *heuristics.REGISTRY])
    raise SystemExit(
        f"strategy {name!r} is unknown: use {known}, or top_k_, power_, softmax_, softrank_ with a heuristic"
    )


def heuristic(name: str) -> Callable | None:
    """The heuristic behind a strategy; None for random labelling."""
    what = name.removeprefix("top_k_")
    return heuristics.REGISTRY.get(what) or heuristics.REGISTRY.get(what.partition("_")[2])
