"""Pieces that metrics share: targets that fit, which of them are known, means and counts over those."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import checks, numerics


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a metric of ``(log_probs, targets)``, which looks at log-probabilities first where they are concrete."""
    return lambda metric: checks.looked_at(numerics.jit_with_nan(metric, static_argnames=static), _require_log_probs)


def _require_log_probs(log_probs: Array, *others: Any, **options: Any) -> None:
    if not checks.is_concrete(log_probs) or not np.size(log_probs):
        return
    total = np.asarray(jax.nn.logsumexp(numerics.as_float(log_probs), axis=-1))
    if (np.abs(total[~np.isnan(total)]) > 0.05).any():
        cure = "pass metrics.model_average(logits) of draws, or jax.nn.log_softmax(logits)"
        raise ValueError(f"log_probs of shape {np.shape(log_probs)} do not add up to 1 as probabilities: {cure}")


def fit_classes(log_probs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Log-probabilities in at least float32, classes (of probabilities the most probable) in int32, which are known."""
    targets = jnp.asarray(targets)
    if is_soft(log_probs, targets):
        targets = predicted_class(targets)
    targets = numerics.classes_for("log_probs", log_probs, targets).astype(jnp.int32)
    return numerics.as_float(log_probs), targets, targets >= 0


def is_soft(log_probs: Array, targets: Array) -> bool:
    """Whether targets are probabilities of the classes, one-hot ones among them."""
    return targets.shape == log_probs.shape and jnp.issubdtype(targets.dtype, jnp.floating)


def fit_outputs(name: str, outputs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Outputs and targets of one shape and type, and which targets are known; unknown ones become 0."""
    outputs = numerics.as_float(outputs)
    targets = numerics.targets_for(name, outputs, jnp.asarray(targets))
    known = ~jnp.isnan(targets)
    return outputs, jnp.where(known, targets, 0.0), known


def mean(values: Array, known: Array) -> Array:
    """Mean of the values that are known, NaN where none is."""
    values = values.astype(jnp.float32)
    return jnp.sum(jnp.where(known, values, 0.0)) / jnp.sum(known).astype(values.dtype)


def averaged(values: Array, average: str | None) -> Array:
    """All classes, or the mean over those where the metric is not NaN, if ``average`` is ``"macro"``."""
    if average not in ("macro", None):
        raise ValueError(f"average={average!r} must be 'macro', or None for a value a class")
    return values if average is None else mean(values, ~jnp.isnan(values))


def predicted_class(log_probs: Array) -> Array:
    """The most probable class, of equal ones the first; −1 where a NaN leaves none."""
    return jnp.where(jnp.any(jnp.isnan(log_probs), axis=-1), -1, jnp.argmax(log_probs, axis=-1)).astype(jnp.int32)


def count_into(cells: Array, known: Array, num_cells: int) -> Array:
    """``int32[num_cells]``: how many known examples fall into each cell; one that does not exist takes none."""
    cells = jnp.where(known & (cells >= 0), cells, num_cells).ravel()
    return jnp.zeros(num_cells, jnp.int32).at[cells].add(1, mode="drop")
