"""Losses ``[B]``, one number an example, which the trainer averages; any optax loss of that form works as well.

Each is averaged over the positions, or labels, that count. Shapes that do not fit each other raise ``ValueError``.
"""

import jax
import jax.numpy as jnp

from baal_jax._util import numerics
from baal_jax.typing import Array


def cross_entropy(logits: Array, targets: Array, *, label_smoothing: float = 0.0) -> Array:
    r"""Cross-entropy of integer classes, in nats.

    .. math:: -\sum_c q_c \log p_c, \qquad q_c = (1 - \alpha)\,[c = y] + \alpha / C

    Args:
        logits: ``[B, …, C]``.
        targets: ``int[B, …]`` classes, or a column of them ``[B, …, 1]``; a negative one is unknown (or padding) and
            does not count, and one of ``C`` or more is an error that makes the loss NaN.
        label_smoothing: ``α``.

    Raises:
        ValueError: the shapes do not fit, or targets are not integers.

    Example:
        >>> print(losses.cross_entropy(jnp.zeros((2, 4)), jnp.array([3, -1])))
        [1.3862944 0.       ]
    """
    if logits.shape[-1] < 2:
        cure = "whose loss is always 0: let the model return heuristics.binary_logits(logits)"
        raise ValueError(f"logits has shape {logits.shape} with a single class, {cure}")
    targets = numerics.classes_for("logits", logits, targets)
    import optax  # heavy, and not needed to import the package

    known = targets >= 0
    logits = numerics.as_float(logits)
    labels = optax.smooth_labels(jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    losses = jnp.where(known, optax.safe_softmax_cross_entropy(logits, labels), 0.0)
    losses = jnp.where(targets < logits.shape[-1], losses, jnp.nan)
    return _mean_over_positions(losses, known)


def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    r"""Cross-entropy of ``C`` labels that are each there or not, in nats, averaged over the labels.

    .. math:: -\tfrac1C \sum_c y_c \log \sigma(z_c) + (1 - y_c) \log(1 - \sigma(z_c))

    Args:
        logits: ``[B, …, C]``, one for each label.
        targets: ``[B, …, C]`` of 0 and 1, or ``[B, …]`` for a single label; a negative one or NaN does not count.

    Example:
        >>> print(losses.binary_cross_entropy(jnp.zeros((1, 3)), jnp.array([[0, 1, -1]])))
        [0.6931472]
    """
    logits = numerics.as_float(logits)
    targets = numerics.targets_for("the outputs", logits, jnp.asarray(targets))
    known = targets >= 0  # false for NaN
    targets = jnp.where(known, targets, 0.0)
    losses = -targets * jax.nn.log_sigmoid(logits) - (1.0 - targets) * jax.nn.log_sigmoid(-logits)
    return _mean_over_positions(jnp.where(known, losses, 0.0), known)


def squared_error(outputs: Array, targets: Array) -> Array:
    r"""Half the squared error, as in a Gaussian likelihood of unit variance, averaged over output dimensions.

    .. math:: \tfrac{1}{2C} \sum_c (f_c - y_c)^2

    Args:
        outputs: ``[B, …, C]``.
        targets: ``[B, …, C]``, or ``[B, …]`` for a single output dimension; NaN is unknown and does not count.

    Example:
        >>> print(losses.squared_error(jnp.array([[1.0], [3.0]]), jnp.zeros(2)))
        [0.5 4.5]
    """
    outputs = numerics.as_float(outputs)
    targets = numerics.targets_for("the outputs", outputs, jnp.asarray(targets))
    known = ~jnp.isnan(targets)
    return _mean_over_positions(jnp.where(known, 0.5 * (outputs - jnp.where(known, targets, 0.0)) ** 2, 0.0), known)


def gaussian_nll(outputs: Array, targets: Array) -> Array:
    r"""Negative log-likelihood of a Gaussian whose mean and log-variance the network predicts, in nats.

    .. math:: \tfrac1C \sum_c \tfrac12 \Bigl( \log 2\pi + \log\sigma_c^2 + (y_c - \mu_c)^2 / \sigma_c^2 \Bigr)

    Args:
        outputs: ``[B, …, 2C]``: ``C`` means and then ``C`` log-variances.
        targets: ``[B, …, C]``, or ``[B, …]`` for a single output dimension; NaN is unknown and does not count.

    References:
        Nix and Weigend, `Estimating the mean and variance of the target probability distribution
        <https://doi.org/10.1109/ICNN.1994.374138>`_, 1994.

    Example:
        >>> print(losses.gaussian_nll(jnp.zeros((1, 2)), jnp.zeros(1)))
        [0.9189385]
    """
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 2:
        targets = targets[..., None]
    if outputs.shape != (*targets.shape[:-1], 2 * targets.shape[-1]):
        need = f"a mean and a log-variance for each of the targets {targets.shape} are needed in the last axis"
        raise ValueError(f"outputs have shape {outputs.shape}, but {need}")
    mean, log_variance = jnp.split(numerics.as_float(outputs), 2, axis=-1)
    targets = numerics.as_float(targets)
    known = ~jnp.isnan(targets)
    errors = jnp.where(known, targets, 0.0) - jnp.where(known, mean, 0.0)
    losses = 0.5 * (jnp.log(2 * jnp.pi) + log_variance + errors**2 * jnp.exp(-log_variance))
    return _mean_over_positions(jnp.where(known, losses, 0.0), known)


def _mean_over_positions(losses: Array, known: Array) -> Array:
    axes = tuple(range(1, losses.ndim))
    return jnp.sum(losses, axis=axes) / jnp.maximum(jnp.sum(known, axis=axes), 1).astype(losses.dtype)
