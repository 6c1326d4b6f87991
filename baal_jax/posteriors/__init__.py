"""What to do with labels, what a draw is, what a draw predicts: builders of :class:`~baal_jax.Posterior`."""

from collections.abc import Callable

from baal_jax.posteriors._mc_dropout import mc_dropout
from baal_jax.typing import Posterior

REGISTRY: dict[str, Callable[..., Posterior]] = {"mc_dropout": mc_dropout}
"""Name → builder ``(model, trainer) -> Posterior``."""

__all__ = ["REGISTRY", "mc_dropout"]
