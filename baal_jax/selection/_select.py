"""An acquisition of predictions that are there already, of whatever library."""

import jax
import jax.numpy as jnp

from baal_jax._util import checks
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, Selection


def select(
    key: Key,
    acquisition: Acquisition,
    predictions: PyTree,
    available: Array | None = None,
    *,
    query_size: int,
    labelled: Array | None = None,
) -> Selection:
    """What an acquisition picks from outputs of any model, without a posterior or a loop.

    Args:
        key: a typed key, of what is random in the acquisition.
        acquisition: of :mod:`baal_jax.selection`.
        predictions: logits (or regression outputs) ``[S, N, …, C]`` of all examples, or
            :class:`~baal_jax.Predictions`, with features ``[N, D]`` beside them or in their place.
        available: ``bool[N]``, what can be picked; None for all.
        query_size: ``Q``, at most ``N``.
        labelled: ``bool[N]``, for acquisitions that read the labelled rows too.

    Returns:
        A :class:`~baal_jax.Selection`: distinct ids in order of picking, −1 where fewer than ``Q`` are available.

    Raises:
        TypeError: ``acquisition`` is none, such as a heuristic.
        ValueError: what the acquisition reads is missing, or shapes do not fit.

    Example:
        >>> import baal_jax as baal
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]]]))
        >>> margin = baal.selection.top_k(baal.heuristics.margin)
        >>> baal.select(jax.random.key(0), margin, logits, query_size=2).indices.tolist()
        [1, 2]
    """
    if not isinstance(acquisition, Acquisition):
        kind = getattr(acquisition, "__name__", type(acquisition).__name__)
        raise TypeError(f"acquisition is {kind}, none of baal_jax.selection: pass selection.top_k(heuristic)")
    given = predictions if isinstance(predictions, Predictions) else Predictions(predictions)
    given = Predictions(*jax.tree.map(jnp.asarray, tuple(given)))
    for leaf in jax.tree.leaves(given.logits):
        checks.draws("predictions", leaf)
    masks = [None if mask is None else jnp.asarray(mask) for mask in (available, labelled)]
    if any(mask is not None and (mask.dtype != bool or mask.ndim != 1) for mask in masks):
        raise ValueError("available and labelled must be masks, bool[N]: make one with baal_jax.pool.available(pool)")
    counts = [leaf.shape[1] for leaf in jax.tree.leaves(given.logits)]
    counts += [leaf.shape[0] for leaf in jax.tree.leaves((given.features, masks))]
    if len(set(counts)) != 1:
        raise ValueError(f"predictions, available and labelled are of {counts} examples: pass one number of them")
    if acquisition.reads_labelled and labelled is None:
        raise ValueError("labelled is None, but this acquisition reads labelled rows: pass labelled=bool[N]")
    summary = None if acquisition.summarise is None else acquisition.summarise(given)
    available = jnp.ones(counts[0], bool) if masks[0] is None else masks[0]
    return acquisition.select(key, summary, available, query_size, masks[1])
