"""Data sets as arrays. Nothing above imports this; whatever a loader needs is imported where it is used."""

from baal_jax.data._digits import digits

__all__ = ["digits"]
