"""Which examples to label next? Builders of :class:`~baal_jax.Acquisition`: a map and a reduce.

Every selection gives distinct, available ids in order of picking, and −1 where fewer than ``query_size`` are left.
Scores that are NaN come last.
"""

from collections.abc import Callable

from baal_jax.selection._batch_bald import batch_bald
from baal_jax.selection._rank import precomputed, random, top_k
from baal_jax.selection._stochastic import power, softmax, softrank
from baal_jax.typing import Acquisition

REGISTRY: dict[str, Callable[..., Acquisition]] = {
    "batch_bald": batch_bald,
    "power": power,
    "random": random,
    "softmax": softmax,
    "softrank": softrank,
    "top_k": top_k,
}
"""Name → builder; each can be called without arguments."""

__all__ = ["REGISTRY", "batch_bald", "power", "precomputed", "random", "softmax", "softrank", "top_k"]
