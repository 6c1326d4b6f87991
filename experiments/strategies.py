"""Strategies by the names they have on a command line."""

from __future__ import annotations

from collections.abc import Callable

import baal_jax as baal
from baal_jax import heuristics, selection


def acquisition(name: str, coldness: float) -> baal.Acquisition:
    """A strategy by its name on the command line."""
    if name == "random":
        return selection.random()
    if name in heuristics.REGISTRY:
        return selection.top_k(heuristics.REGISTRY[name])
    how, _, what = name.partition("_")
    if how in ("power", "softmax", "softrank") and what in heuristics.REGISTRY:
        return selection.REGISTRY[how](heuristics.REGISTRY[what], coldness)
    known = ", ".join(heuristics.REGISTRY)
    raise SystemExit(
        f"strategy {name!r} is unknown: use random, one of {known}, or power_, softmax_, softrank_ with one"
    )


def heuristic(name: str) -> Callable | None:
    """The heuristic behind a strategy; None for random labelling."""
    return heuristics.REGISTRY.get(name) or heuristics.REGISTRY.get(name.partition("_")[2])
