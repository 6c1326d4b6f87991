"""The loop: its parts, a round, which is put together in :func:`query`, and several of them, :func:`run`."""

from baal_jax.loop._loop import ActiveLoop, RoundKeys, active_loop, one_of, query, round_keys, shapes_of_dataset
from baal_jax.loop._runs import ready, run

__all__ = ["ActiveLoop", "RoundKeys", "active_loop", "one_of", "query", "ready", "round_keys", "run",
           "shapes_of_dataset"]  # fmt: skip
