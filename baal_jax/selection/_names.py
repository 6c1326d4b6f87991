"""Acquisitions by the names they have on a command line and in a table."""

from __future__ import annotations

from baal_jax import heuristics, selection
from baal_jax.typing import Acquisition

_STOCHASTIC = ("power", "softmax", "softrank")


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
        >>> from baal_jax import selection
        >>> selection.by_name("power_bald").summarise is None
        False
    """
    if name in heuristics.REGISTRY:
        return selection.top_k(heuristics.REGISTRY[name])
    how, _, what = ("top_k", "", name[len("top_k_") :]) if name.startswith("top_k_") else name.partition("_")
    if what in heuristics.REGISTRY:
        if how == "top_k":
            return selection.top_k(heuristics.REGISTRY[what])
        if how in _STOCHASTIC:
            return selection.REGISTRY[how](heuristics.REGISTRY[what], coldness)
    sets = [key for key in selection.REGISTRY if key not in ("top_k", "grid", *_STOCHASTIC)]
    if name in sets:
        return selection.REGISTRY[name]()
    raise ValueError(
        f"name={name!r} is no strategy: use one of {', '.join([*sets, *heuristics.REGISTRY])}, or a heuristic behind "
        "top_k_, power_, softmax_ or softrank_"
    )
