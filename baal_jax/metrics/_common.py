"""What every metric begins and ends with: fitting targets to predictions, and a mean over the examples that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.typing import Array, Predictions, PyTree

Terms = tuple[Array, Array]  # a value an example, and which of them count


class MetricSet(NamedTuple):
    """Metrics as a map over batches and a reduce over examples, like an acquisition.

    Attributes:
        summarise: ``Predictions -> summary``, a pytree with leading axis ``B``.
        compute: ``(summary [N, …], targets [N, …]) -> {name: value}``.
    """

    summarise: Callable[[Predictions], PyTree]
    compute: Callable[[PyTree, Array], dict[str, Array]]


def model_average(logits: Array) -> Array:
    r"""Bayesian model average in probability space.

    .. math:: \log \bar p = \log \tfrac1S \sum_s \operatorname{softmax}(z_s)

    Args:
        logits: ``[S, N, …, C]``.

    Returns:
        ``[N, …, C]`` log-probabilities.

    Raises:
        ValueError: ``logits`` has fewer than three axes or one class.

    Example:
        >>> from baal_jax import metrics
        >>> print(jnp.exp(metrics.model_average(jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]])))))
        [[0.7 0.3]]
    """
    checks.classes("logits", logits)
    return numerics.log_mean_exp(numerics.log_probs(logits))


def fit_classes(log_probs: Array, targets: Array) -> tuple[Array, Array]:
    """Log-probabilities in at least float32 and classes in int32, once their shapes are known to fit."""
    if not jnp.issubdtype(targets.dtype, jnp.integer) or log_probs.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets {targets.dtype}{targets.shape} do not fit log_probs of shape {log_probs.shape}: "
            "pass integer classes with the shape of log_probs without the last axis"
        )
    return numerics.as_float(log_probs), targets.astype(jnp.int32)


def fit_outputs(name: str, outputs: Array, targets: Array) -> tuple[Array, Array, Array]:
    """Outputs and targets of one shape and type, and which targets are known; unknown ones become 0.

    A single output dimension may be missing from the targets.
    """
    outputs, targets = numerics.as_float(outputs), jnp.asarray(targets)
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
        outputs = outputs[..., 0]
    if outputs.shape != targets.shape:
        raise ValueError(f"targets have shape {targets.shape}, but {name} {outputs.shape}: make them equal")
    targets = targets.astype(outputs.dtype)
    known = ~jnp.isnan(targets)
    return outputs, jnp.where(known, targets, 0.0), known


def mean(terms: Terms) -> Array:
    """Mean of the values that count, NaN where none does."""
    values, counts = terms
    values = values.astype(jnp.float32)
    return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.sum(counts).astype(values.dtype)


def mean_of_defined(values: Array) -> Array:
    """Mean of what is not NaN: over the classes that a metric is defined for."""
    return mean((values, ~jnp.isnan(values)))


def predicted_class(log_probs: Array) -> Array:
    """The most probable class, of equal ones the first; −1 where a NaN leaves none."""
    return jnp.where(jnp.any(jnp.isnan(log_probs), axis=-1), -1, jnp.argmax(log_probs, axis=-1)).astype(jnp.int32)


def averaged(values: Array, average: str | None) -> Array:
    """All classes, or their mean where ``average`` is ``"macro"``."""
    if average not in ("macro", None):
        raise ValueError(f"average={average!r} must be 'macro', or None for a value a class")
    return values if average is None else mean_of_defined(values)


def count_into(cells: Array, counts: Array, num_cells: int) -> Array:
    """``int32[num_cells]``: how many of ``cells`` that count fall into each."""
    cells = numerics.replicate(jnp.where(counts & (cells >= 0), cells, num_cells)).ravel()
    return jnp.zeros(num_cells, jnp.int32).at[cells].add(1, mode="drop")


def equal_width_bins(values: Array, num_bins: int) -> Array:
    """The bin of each value in [0, 1]; 1 falls into the last one, NaN into the first."""
    bins = (jnp.where(jnp.isnan(values), 0.0, values) * num_bins).astype(jnp.int32)
    return jnp.clip(bins, 0, num_bins - 1)


def static_average(average: str | None) -> None:
    """Refuses what is no average over classes."""
    if average not in ("macro", "micro", "weighted", None):
        raise ValueError(f"average={average!r} must be 'macro', 'micro', 'weighted', or None for a value a class")


def gather(*arrays: Array) -> tuple[Array, ...]:
    """Brings together what must be ranked or counted, where an Explicit mesh has it apart."""
    return jax.tree.map(numerics.replicate, arrays)
