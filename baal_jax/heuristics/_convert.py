"""Into the one form that every heuristic reads: logits ``[S, N, …, C]``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from baal_jax._util import numerics
from baal_jax.typing import Array


@jax.jit
def binary_logits(logit: Array) -> Array:
    r"""Two-class logits of a sigmoid model, so that every classification heuristic applies.

    .. math:: (\log(1 - \sigma(z)), \log \sigma(z))

    Args:
        logit: ``[…, 1]``, one logit for each independent label.

    Returns:
        ``[…, 2]`` log-probabilities of "no" and "yes". A multi-label output ``[S, N, L]`` goes in as
        ``logits[..., None]`` and its labels then are a middle axis, for ``reduce_spatial``.

    Raises:
        ValueError: the last axis is not 1.

    Example:
        >>> from baal_jax import heuristics
        >>> print(heuristics.entropy(heuristics.binary_logits(jnp.zeros((8, 2, 1)))))
        [0.6931472 0.6931472]
    """
    if logit.ndim == 0 or logit.shape[-1] != 1:
        raise ValueError(f"logit has shape {logit.shape}, but a last axis of 1 is needed: pass logit[..., None]")
    logit = numerics.as_float(logit)
    return jnp.concatenate([jax.nn.log_sigmoid(-logit), jax.nn.log_sigmoid(logit)], axis=-1)


@jax.jit
def from_baal_layout(predictions: Array) -> Array:
    """Baal's ``[N, C, …, S]`` as ``[S, N, …, C]``. Values stay as they are: pass logits, or log-probabilities.

    Args:
        predictions: ``[N, C, …, S]``.

    Returns:
        ``[S, N, …, C]``.

    Raises:
        ValueError: fewer than three axes.

    Example:
        >>> from baal_jax import heuristics
        >>> heuristics.from_baal_layout(jnp.zeros((5, 10, 32, 32, 20))).shape
        (20, 5, 32, 32, 10)
    """
    if predictions.ndim < 3:
        raise ValueError(f"predictions has shape {predictions.shape}, but Baal's [N, C, …, S] has at least three axes")
    return jnp.moveaxis(jnp.moveaxis(predictions, -1, 0), 2, -1)
