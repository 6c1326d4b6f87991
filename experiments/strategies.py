"""Strategies by the names they have on a command line."""

from __future__ import annotations

from collections.abc import Callable

import baal_jax as baal
from baal_jax import heuristics, selection


def acquisition(name: str, coldness: float) -> baal.Acquisition:
    """A strategy by its name on the command line."""
    if name == "batch_bald":
        return selection.batch_bald(num_configurations=1_000)  # plenty for fifty draws, and ten times faster
    try:
        return selection.by_name(name, coldness=coldness)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def heuristic(name: str) -> Callable | None:
    """The heuristic behind a strategy; None for random labelling."""
    what = name.removeprefix("top_k_")
    return heuristics.REGISTRY.get(what) or heuristics.REGISTRY.get(what.partition("_")[2])
