"""When to stop labelling: pure functions of what a round reports, in Baal's semantics where those are sound."""

from __future__ import annotations

import jax.numpy as jnp

from baal_jax import _checks
from baal_jax.pool import PoolState, num_labelled
from baal_jax.typing import Array


def labelling_budget(state: PoolState, budget: int) -> Array:
    """True once ``budget`` examples are labelled, in whatever round that was.

    Args:
        state: the pool.
        budget: how many labels can be afforded.

    Returns:
        ``bool[]``.

    Raises:
        ValueError: ``budget`` is not a positive integer.

    Example:
        >>> from baal_jax import pool, stopping
        >>> bool(stopping.labelling_budget(pool.label(pool.init(5), [0, 3]), 2))
        True
    """
    return num_labelled(state) >= _checks.positive_int("budget", budget)


def low_uncertainty(mean_score: Array, threshold: float) -> Array:
    """True where the mean score of the pool (``StepInfo.mean_score``) is below ``threshold``, strictly.

    Args:
        mean_score: ``float[]``.
        threshold: in the units of the heuristic.

    Returns:
        ``bool[]``; False for NaN.
    """
    return mean_score < threshold


def plateau(history: Array, patience: int = 10, atol: float = 1e-4, rtol: float = 1e-5) -> Array:
    r"""True where the latest value of a metric and the ``patience`` before it are all close, as in Baal.

    .. math:: |m_i - m_t| \le a + r\,|m_t| \quad \text{for } t - p \le i \le t

    A history of exactly ``patience`` values is enough when all of them agree.

    Args:
        history: ``float[R]``, the metric of every round so far (its length is static).
        patience: ``p``. Fewer values than that never stop.
        atol: ``a``.
        rtol: ``r``.

    Returns:
        ``bool[]``.

    Raises:
        ValueError: ``patience`` is not a positive integer.

    Example:
        >>> from baal_jax import stopping
        >>> bool(stopping.plateau(jnp.array([0.2, 0.9, 0.9, 0.9]), patience=2))
        True
    """
    patience = _checks.positive_int("patience", patience)
    history = jnp.asarray(history)
    if history.shape[0] < patience:
        return jnp.zeros((), bool)
    recent = history[-(patience + 1) :]
    return jnp.all(jnp.abs(recent - recent[-1]) <= atol + rtol * jnp.abs(recent[-1]))
