"""How good are predictions? Pure functions of the Bayesian model average, every example weighted alike.

``log_probs`` is always the model average in probability space, ``log (1/S) Σ_s softmax(logits_s)``, as
:func:`model_average` returns it. Examples with a negative class (in regression: a NaN target) are unknown or padding
and do not count; with nothing that counts, a metric is NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax import _checks, _numerics
from baal_jax.typing import Array, Predictions, PyTree


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

    Example:
        >>> from baal_jax import metrics
        >>> print(jnp.exp(metrics.model_average(jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]])))))
        [[0.7 0.3]]
    """
    _checks.classes("logits", logits)
    return _numerics.log_mean_exp(_numerics.log_probs(logits))


@functools.partial(jax.jit, static_argnames="k")
def accuracy(log_probs: Array, targets: Array, *, k: int = 1) -> Array:
    """Share of examples whose target is among the ``k`` most probable classes (of equal ones, the first).

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        k: how many classes count.

    Returns:
        ``float32[]`` between 0 and 1.

    Raises:
        ValueError: ``k`` is not between 1 and ``C``, or the shapes differ.

    Example:
        >>> from baal_jax import metrics
        >>> print(metrics.accuracy(jnp.log(jnp.array([[0.7, 0.3], [0.6, 0.4]])), jnp.array([0, 1])))
        0.5
    """
    targets = _fit_classes(log_probs, targets)
    if _checks.positive_int("k", k) > log_probs.shape[-1]:
        raise ValueError(f"k={k} exceeds the {log_probs.shape[-1]} classes: choose a smaller k")
    best = jax.lax.top_k(log_probs, k)[1]
    return _mean(jnp.any(best == targets[..., None], axis=-1), targets >= 0)


@jax.jit
def nll(log_probs: Array, targets: Array) -> Array:
    r"""Negative log-likelihood of the model average, in nats.

    .. math:: -\tfrac1N \sum_n \log \bar p_{n y_n}

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.

    Returns:
        ``float32[]``.

    Raises:
        ValueError: the shapes differ.
    """
    targets = _fit_classes(log_probs, targets)
    chosen = jnp.take_along_axis(log_probs, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return -_mean(chosen, targets >= 0)


@jax.jit
def brier(log_probs: Array, targets: Array) -> Array:
    r"""Brier score, the squared distance to the one-hot target.

    .. math:: \tfrac1N \sum_n \sum_c (\bar p_{nc} - [c = y_n])^2

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.

    Returns:
        ``float32[]`` between 0 and 2.

    Raises:
        ValueError: the shapes differ.

    References:
        Brier, `Verification of forecasts expressed in terms of probability
        <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_, 1950.
    """
    targets = _fit_classes(log_probs, targets)
    probs = jnp.exp(log_probs)
    one_hot = jax.nn.one_hot(targets, probs.shape[-1], dtype=probs.dtype)
    return _mean(jnp.sum((probs - one_hot) ** 2, axis=-1), targets >= 0)


@functools.partial(jax.jit, static_argnames="num_bins")
def ece(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    r"""Expected calibration error over bins of equal width.

    .. math:: \sum_b \tfrac{n_b}{N} \, |\mathrm{acc}_b - \mathrm{conf}_b|

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence; a confidence of exactly 1 falls in the last one.

    Returns:
        ``float32[]`` between 0 and 1.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.

    References:
        Guo et al., `On calibration of modern neural networks <https://arxiv.org/abs/1706.04599>`_, 2017.
    """
    targets = _fit_classes(log_probs, targets)
    return _binned_gap(log_probs, targets, targets >= 0, _checks.positive_int("num_bins", num_bins))


class Reliability(NamedTuple):
    """A reliability diagram, by bins of equal width of the confidence.

    Attributes:
        num_examples: ``float32[num_bins]``, examples in each bin.
        confidence: ``float32[num_bins]``, their mean confidence; NaN in an empty bin.
        accuracy: ``float32[num_bins]``, the share of them that is right; NaN in an empty bin.
    """

    num_examples: Array
    confidence: Array
    accuracy: Array


@functools.partial(jax.jit, static_argnames="num_bins")
def reliability(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Reliability:
    """What :func:`ece` sums up: how often predictions are right, against how sure they were.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence; a confidence of exactly 1 falls in the last one.

    Returns:
        A :class:`Reliability`.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.

    Example:
        >>> from baal_jax import metrics
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]))
        >>> bins = metrics.reliability(log_probs, jnp.array([0, 1, 1]), num_bins=2)
        >>> bins.num_examples.tolist(), round(float(bins.confidence[1]), 3), round(float(bins.accuracy[1]), 3)
        ([0.0, 3.0], 0.767, 0.667)
    """
    targets = _fit_classes(log_probs, targets)
    count, confidence, correct = _bins(log_probs, targets, targets >= 0, _checks.positive_int("num_bins", num_bins))
    return Reliability(count, confidence / count, correct / count)


@functools.partial(jax.jit, static_argnames="num_bins")
def ece_per_class(log_probs: Array, targets: Array, *, num_bins: int = 15) -> Array:
    """:func:`ece` among the examples of each true class.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.
        num_bins: number of bins of the confidence.

    Returns:
        ``float32[C]``; NaN for a class without examples.

    Raises:
        ValueError: the shapes differ, or ``num_bins`` is not positive.
    """
    targets = _fit_classes(log_probs, targets)
    num_bins = _checks.positive_int("num_bins", num_bins)
    classes = jnp.arange(log_probs.shape[-1])
    return jax.vmap(lambda c: _binned_gap(log_probs, targets, targets == c, num_bins))(classes)


@jax.jit
def confusion_matrix(log_probs: Array, targets: Array) -> Array:
    """Counts of (true class, predicted class).

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.

    Returns:
        ``int32[C, C]``; rows are true classes.

    Raises:
        ValueError: the shapes differ.
    """
    targets = _fit_classes(log_probs, targets)
    classes = log_probs.shape[-1]
    cells = jnp.where(targets >= 0, targets * classes + jnp.argmax(log_probs, axis=-1), classes * classes)
    return jnp.bincount(cells.ravel(), length=classes * classes + 1)[:-1].reshape(classes, classes).astype(jnp.int32)


@jax.jit
def average_precision(log_probs: Array, targets: Array) -> Array:
    r"""Area under the precision-recall curve of each class against the rest, as a step function.

    .. math:: \mathrm{AP} = \sum_t (R_t - R_{t-1}) P_t

    Examples with equal scores enter the sum together, so their order does not matter.

    Args:
        log_probs: ``[N, …, C]``.
        targets: ``int[N, …]``.

    Returns:
        ``float32[C]``, 1 for a perfect ranking; NaN for a class without examples.

    Raises:
        ValueError: the shapes differ.
    """
    targets = _fit_classes(log_probs, targets)
    scores, truth = log_probs.reshape(-1, log_probs.shape[-1]), targets.ravel()

    def one_class(score: Array, positive: Array, known: Array) -> Array:
        order = jnp.argsort(jnp.where(known, -score, jnp.inf))
        score, positive, known = score[order], positive[order], known[order]
        hits, seen = jnp.cumsum(positive), jnp.cumsum(known)
        # The last of a run of equal scores speaks for the run.
        last = jnp.append(score[1:] != score[:-1], True) | jnp.append(known[1:] != known[:-1], True)
        ends = jnp.where(last & known, hits, 0)
        before = jnp.concatenate([jnp.zeros(1, ends.dtype), jax.lax.cummax(ends)[:-1]])
        gained = jnp.where(last & known, hits - before, 0)
        precision = hits / jnp.maximum(seen, 1)
        return jnp.sum(gained.astype(precision.dtype) * precision) / hits[-1].astype(precision.dtype)

    classes = jnp.arange(log_probs.shape[-1])
    return jax.vmap(lambda c: one_class(scores[:, c], truth == c, truth >= 0))(classes)


def classification(*, top_k: tuple[int, ...] = (), num_bins: int = 15) -> MetricSet:
    """Accuracy, NLL, Brier score and ECE of the model average.

    Args:
        top_k: further accuracies, ``(5,)`` adds ``"top_5_accuracy"``.
        num_bins: bins of the ECE.

    Returns:
        A :class:`MetricSet`.
    """
    ks, num_bins = tuple(_checks.positive_int("top_k", k) for k in top_k), _checks.positive_int("num_bins", num_bins)
    return _classification(ks, num_bins)


def regression(*, noise_variance: float = 0.0) -> MetricSet:
    r"""RMSE, mean absolute error and Gaussian NLL of the mean and variance over the draws.

    .. math:: \mathrm{NLL} = \tfrac12 \log 2\pi\sigma_n^2 + \frac{(y_n - \bar f_n)^2}{2 \sigma_n^2},
              \qquad \sigma_n^2 = \mathrm{Var}_s f_{sn} + \sigma^2

    Args:
        noise_variance: ``σ²``, the variance of the observation noise.

    Returns:
        A :class:`MetricSet`.
    """
    return _regression(_checks.finite_float("noise_variance", noise_variance, 0.0))


def default_metrics(targets: Array) -> MetricSet:
    """Classification for integer targets, regression for others."""
    return classification() if jnp.issubdtype(targets.dtype, jnp.integer) else regression()


@functools.cache  # one object for one configuration, so that evaluate compiles once
def _classification(top_k: tuple[int, ...], num_bins: int) -> MetricSet:
    def summarise(predictions: Predictions) -> Array:
        return model_average(predictions.logits)

    def compute(log_probs: Array, targets: Array) -> dict[str, Array]:
        return {
            "accuracy": accuracy(log_probs, targets),
            **{f"top_{k}_accuracy": accuracy(log_probs, targets, k=k) for k in top_k},
            "nll": nll(log_probs, targets),
            "brier": brier(log_probs, targets),
            "ece": ece(log_probs, targets, num_bins=num_bins),
        }

    return MetricSet(summarise, compute)


@functools.cache
def _regression(noise_variance: float) -> MetricSet:
    def summarise(predictions: Predictions) -> tuple[Array, Array]:
        _checks.draws("outputs", predictions.logits)
        outputs = _numerics.as_float(predictions.logits)
        return jnp.mean(outputs, axis=0), jnp.var(outputs, axis=0)

    def compute(summary: tuple[Array, Array], targets: Array) -> dict[str, Array]:
        mean, variance = summary
        if mean.ndim == targets.ndim + 1 and mean.shape[-1] == 1:
            mean, variance = mean[..., 0], variance[..., 0]
        if mean.shape != targets.shape:
            raise ValueError(f"targets have shape {targets.shape}, but the outputs {mean.shape}: make them equal")
        targets = targets.astype(mean.dtype)
        known = ~jnp.isnan(targets)
        errors = jnp.where(known, mean - targets, 0.0)
        variance = jnp.maximum(variance + noise_variance, 1e-12)
        gaussian = 0.5 * (jnp.log(2 * jnp.pi * variance) + errors**2 / variance)
        return {
            "rmse": jnp.sqrt(_mean(errors**2, known)),
            "mae": _mean(jnp.abs(errors), known),
            "nll": _mean(gaussian, known),
        }

    return MetricSet(summarise, compute)


def _bins(log_probs: Array, targets: Array, counts: Array, num_bins: int) -> tuple[Array, Array, Array]:
    """Number of examples, sum of confidences and number of hits in each bin of the confidence."""
    confidence = jnp.exp(jnp.max(log_probs, axis=-1)).ravel()
    correct = (jnp.argmax(log_probs, axis=-1) == targets).ravel().astype(confidence.dtype)
    weights = counts.ravel().astype(confidence.dtype)
    bins = jnp.clip((confidence * num_bins).astype(jnp.int32), 0, num_bins - 1)
    zeros = jnp.zeros(num_bins, confidence.dtype)
    return zeros.at[bins].add(weights), zeros.at[bins].add(weights * confidence), zeros.at[bins].add(weights * correct)


def _binned_gap(log_probs: Array, targets: Array, counts: Array, num_bins: int) -> Array:
    weights, confidence, correct = _bins(log_probs, targets, counts, num_bins)
    total = jnp.sum(weights)
    return jnp.where(total > 0, jnp.sum(jnp.abs(correct - confidence)) / jnp.maximum(total, 1.0), jnp.nan)


def _mean(values: Array, counts: Array) -> Array:
    values = values.astype(jnp.float32)
    return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.sum(counts).astype(values.dtype)


def _fit_classes(log_probs: Array, targets: Array) -> Array:
    if not jnp.issubdtype(targets.dtype, jnp.integer) or log_probs.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets {targets.dtype}{targets.shape} do not fit log_probs of shape {log_probs.shape}: "
            "pass integer classes with the shape of log_probs without the last axis"
        )
    return targets.astype(jnp.int32)
