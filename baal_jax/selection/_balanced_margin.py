"""Margins of one class after the other, the one with the fewest labels first: for unbalanced classes."""

import jax
import jax.numpy as jnp

from baal_jax._util import numerics
from baal_jax.selection._common import best_of, one_by_one, over_features
from baal_jax.typing import Acquisition, Array, Key, Predictions


def balanced_margin() -> Acquisition:
    r"""For the class with the fewest labels, the example nearest to the boundary between it and the others.

    .. math:: \arg\min_x \bigl|\bar p_c(x) - \max_{c' \ne c} \bar p_{c'}(x)\bigr|, \qquad c = \arg\min_{c'} n_{c'}

    of the mean prediction. ``n`` counts what is labelled, by the predicted class, and every pick for the class that it
    was made for. It is the rotation over classes of DIRECT, whose threshold on sorted margins is here at 0.

    Returns:
        An :class:`~baal_jax.Acquisition`; scores are minus these margins.

    References:
        Nuggehalli, Zhang, Jain and Nowak, `DIRECT: deep active learning under imbalance and label noise
        <https://arxiv.org/abs/2312.09196>`_, 2025.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]]))
        >>> labelled = jnp.array([True, False, False, False])
        >>> rare = selection.balanced_margin()
        >>> baal.select(jax.random.key(0), rare, logits, ~labelled, query_size=2, labelled=labelled).indices.tolist()
        [2, 3]
    """

    def summarise(predictions: Predictions) -> Array:
        p = jnp.exp(numerics.log_mean_probs(predictions.logits))
        best = jax.lax.top_k(p, 2)[0]
        return p - jnp.where(p == best[:, :1], best[:, 1:], best[:, :1])

    def find(key: Key, margins: Array, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        own = jax.nn.one_hot(jnp.argmax(margins, axis=1), margins.shape[1], dtype=jnp.int32)
        counts = jnp.sum(jnp.where(labelled[:, None], own, 0), axis=0)

        def pick(counts: Array, left: Array, turn: Array) -> tuple[Array, Array]:
            scores = -jnp.abs(margins[:, jnp.argmin(counts)])
            index = best_of(scores, left)
            return index, scores[index]

        update = lambda counts, index, turn: counts.at[jnp.argmin(counts)].add(1)  # noqa: E731
        return one_by_one(pick, update, counts, available, query_size)

    return over_features(find, summarise, reads_labelled=True, tasks=("classification",))
