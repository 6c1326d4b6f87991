"""Bayesian active learning for JAX, as pure functions.

fit → draws → predict → heuristic → select → label: each part is a function of arrays and keys, useful on its own, and
``jit``, ``vmap``, ``scan`` and, where the mathematics is smooth, ``grad`` go through all of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from baal_jax._util import __version__ as __version__

if TYPE_CHECKING:
    from baal_jax import (
        active_testing,
        annotation,
        calibration,
        checkpoint,
        data,
        features,
        heuristics,
        losses,
        metrics,
        pool,
        posteriors,
        selection,
        stopping,
        study,
        training,
    )
    from baal_jax.features import encode
    from baal_jax.loop import ActiveLoop, active_loop, run
    from baal_jax.models import from_functions, from_linen, from_nnx
    from baal_jax.pool import PoolState
    from baal_jax.prediction import evaluate, predict, predict_stream, score
    from baal_jax.selection import select
    from baal_jax.training import TrainState, tasks, trainer
    from baal_jax.typing import (
        Acquisition,
        Dataset,
        LoopState,
        Model,
        Posterior,
        Predictions,
        Round,
        Selection,
        StepInfo,
        Variables,
    )

# Where each name is from: a command line that asks for help loads no jax.
_ROOMS = ("active_testing", "annotation", "calibration", "checkpoint", "data", "features", "heuristics", "losses",
          "metrics", "pool", "posteriors", "selection", "stopping", "study", "training")  # fmt: skip
_PLACES = {
    "features": ("encode",),
    "loop": ("ActiveLoop", "active_loop", "run"),
    "models": ("from_functions", "from_linen", "from_nnx"),
    "pool": ("PoolState",),
    "prediction": ("evaluate", "predict", "predict_stream", "score"),
    "selection": ("select",),
    "training": ("TrainState", "tasks", "trainer"),
    "typing": ("Acquisition", "Dataset", "LoopState", "Model", "Posterior", "Predictions", "Round", "Selection",
               "StepInfo", "Variables"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"baal_jax.{name}")
    for room, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"baal_jax.{room}"), name)
            return value
    raise AttributeError(f"module 'baal_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Acquisition", "ActiveLoop", "Dataset", "LoopState", "Model", "PoolState", "Posterior", "Predictions", "Round",
    "Selection", "StepInfo", "TrainState", "Variables", "active_loop", "active_testing", "annotation", "calibration",
    "checkpoint", "data", "encode", "evaluate", "features", "from_functions", "from_linen", "from_nnx", "heuristics",
    "losses", "metrics", "pool", "posteriors", "predict", "predict_stream", "run", "score", "select", "selection",
    "stopping", "study", "tasks", "trainer", "training",
]  # fmt: skip
