"""Feature maps: from :class:`~baal_jax.Predictions` to features, the first part of :func:`~baal_jax.selection.grid`.

A feature map gives ``[B, D]``, or a tuple of such arrays whose inner products multiply, as of outer products.

Predictions without what a map reads are refused with a ``ValueError``: features, or logits of three axes, of several
draws where these are centred and of several classes where these are told apart.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.selection._common import read_features
from baal_jax.selection.sets._kernel import sketched
from baal_jax.typing import Array, Predictions, PyTree

FeatureMap = Callable[[Predictions], PyTree]


def embedding(predictions: Predictions) -> PyTree:
    """What the ``features`` function of the loop returned: embeddings, a last hidden layer, a (sketched) gradient.

    Args:
        predictions: with ``features [B, …]``, or a tuple of such arrays.

    Returns:
        ``[B, D]``, or the tuple of them.

    Example:
        >>> feature_maps.embedding(baal.Predictions(None, jnp.ones((3, 4)))).shape
        (3, 4)
    """
    return read_features(predictions)


def draws(predictions: Predictions) -> Array:
    r"""Outputs centred over draws, for regression; their kernel is the Monte-Carlo covariance of the posterior.

    .. math:: k(x, x') = \tfrac1{S-1} \sum_s \sum_c (f_{sc}(x) - \bar f_c(x)) (f_{sc}(x') - \bar f_c(x'))

    Args:
        predictions: with ``logits [S, B, C]``, all of them means: of means and log-variances, pass ``logits[..., :C]``.

    Returns:
        ``[B, S·C]``.

    Example:
        >>> feature_maps.draws(baal.Predictions(jnp.ones((5, 3, 2)))).shape
        (3, 10)
    """
    return _centred_draws(_three_axes(predictions))


def probability_draws(predictions: Predictions) -> Array:
    """Class probabilities centred over draws, for classification, as in :func:`draws`.

    Args:
        predictions: with ``logits [S, B, C]``.

    Returns:
        ``[B, S·C]``.

    Example:
        >>> feature_maps.probability_draws(baal.Predictions(jnp.ones((5, 3, 2)))).shape
        (3, 10)
    """
    checks.classes("logits", predictions.logits)
    return _centred_draws(jnp.exp(numerics.log_probs(_three_axes(predictions))))


def badge(predictions: Predictions) -> tuple[Array, Array]:
    r"""The gradient of the loss of the predicted class in the last layer, as two factors, for BADGE.

    .. math:: \nabla_W \ell = h\, (\bar p - e_{\hat y})^\top, \qquad
              \langle g_i, g_j \rangle = \langle \bar p_i - e_{\hat y_i}, \bar p_j - e_{\hat y_j} \rangle
              \langle h_i, h_j \rangle

    Args:
        predictions: with ``logits [S, B, C]``, averaged over draws, and ``features [B, D]``, the last hidden layer.

    Returns:
        ``([B, C], [B, D])``.

    Example:
        >>> [part.shape for part in feature_maps.badge(baal.Predictions(jnp.ones((5, 3, 2)), jnp.ones((3, 4))))]
        [(3, 2), (3, 4)]
    """
    checks.classes("logits", predictions.logits)
    mean = _mean_probabilities(predictions)
    predicted = jax.nn.one_hot(jnp.argmax(mean, axis=-1), mean.shape[-1], dtype=mean.dtype)
    return mean - predicted, _one_array(read_features(predictions))


def badge_multi_label(predictions: Predictions) -> tuple[Array, Array]:
    r"""The gradient of the loss of the predicted labels in the last layer, as two factors, for BADGE.

    .. math:: \nabla_W \ell = h\, (\bar p - \hat y)^\top, \qquad \hat y_c = [\bar p_c > \tfrac12]

    Args:
        predictions: with ``logits [S, B, C]``, one for each label, and ``features [B, D]``, the last hidden layer.

    Returns:
        ``([B, C], [B, D])``.

    Example:
        >>> predictions = baal.Predictions(jnp.ones((5, 3, 2)), jnp.ones((3, 4)))
        >>> [part.shape for part in feature_maps.badge_multi_label(predictions)]
        [(3, 2), (3, 4)]
    """
    mean = jnp.mean(jax.nn.sigmoid(_three_axes(predictions)), axis=0)
    return mean - (mean > 0.5).astype(mean.dtype), _one_array(read_features(predictions))


def fisher(predictions: Predictions, sketch_size: int | None = 512, num_classes: int | None = 10) -> Array:
    r"""Square roots of the Fisher information that one label holds about the last layer, for BAIT.

    .. math:: F(x) = \sum_c \bar p_c\, \bigl((e_c - \bar p) \otimes h\bigr) \bigl((e_c - \bar p) \otimes h\bigr)^\top

    With a single output the likelihood is Gaussian, and ``F(x) = h hᵀ``. Of many classes the most probable ones make up
    nearly all of the sum, whose other terms are left out (Huseljic et al. 2024: https://arxiv.org/abs/2404.08981).

    Args:
        predictions: as of :func:`badge`.
        sketch_size: project the ``C·D`` numbers of a row to this many, at random but alike in every round, if they are
            more; None keeps them. ``N·C·sketch_size`` numbers are kept, and some three times that while picking.
        num_classes: how many of the most probable classes are in the sum, at most; None for all.

    Returns:
        ``[B, C, K]``, one row a class, most probable first where some are left out; ``[B, D]`` for a single output.

    Example:
        >>> feature_maps.fisher(baal.Predictions(jnp.ones((5, 3, 2)), jnp.ones((3, 4)))).shape
        (3, 2, 8)
    """
    sketch_size = checks.optional_int("sketch_size", sketch_size)
    mean = _mean_probabilities(predictions)
    hidden = _one_array(read_features(predictions))
    if mean.shape[-1] == 1:
        return hidden
    kept, ones = mean, jnp.eye(mean.shape[-1], dtype=mean.dtype)[None]
    if num_classes is not None and num_classes < mean.shape[-1]:
        kept, classes = jax.lax.top_k(mean, checks.positive_int("num_classes", num_classes))
        ones = jax.nn.one_hot(classes, mean.shape[-1], dtype=mean.dtype)
    weighted = jnp.sqrt(kept)[..., None] * (ones - mean[:, None])  # [B, C, C], row c is of e_c − p
    if sketch_size is None or sketch_size >= mean.shape[-1] * hidden.shape[-1]:
        return (weighted[..., None] * hidden[:, None, None].astype(mean.dtype)).reshape(*kept.shape, -1)
    return sketched((weighted, hidden[:, None]), sketch_size, jax.random.key(0))


def _centred_draws(outputs: Array) -> Array:
    num_draws, num_examples = outputs.shape[:2]
    if num_draws < 2:
        raise ValueError("one draw has no covariance: ask for num_samples of at least 2")
    centred = outputs - jnp.mean(outputs, axis=0, keepdims=True)
    return jnp.moveaxis(centred, 0, 1).reshape(num_examples, -1) / jnp.sqrt(num_draws - 1.0)


def _mean_probabilities(predictions: Predictions) -> Array:
    return numerics.mean_over_log_probs(jnp.exp, _three_axes(predictions))


def _three_axes(predictions: Predictions) -> Array:
    checks.draws("logits", predictions.logits)
    if predictions.logits.ndim != 3:
        raise ValueError(f"logits have shape {predictions.logits.shape}, but one an example, [S, B, C], is needed")
    return numerics.as_float(predictions.logits)


def _one_array(features: PyTree) -> Array:
    if not isinstance(features, jax.Array):
        raise ValueError("features are several factors, but the last hidden layer [B, D] is needed here")
    return numerics.as_float(features)
