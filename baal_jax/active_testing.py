r"""How good is a model, with few test labels? Which test examples to label next, and what they say about all of them.

Test examples are drawn without replacement, in proportion to the loss that a surrogate expects of the model, and the
estimate makes up for that (LURE):

.. math:: \hat R = \frac1M \sum_{m=1}^M v_m \ell_m, \qquad
          v_m = 1 + \frac{N - M}{N - m} \Bigl(\frac1{(N - m + 1)\, q_m} - 1\Bigr)

with ``q_m`` the probability that the ``m``-th was drawn of those that were left. It is unbiased whatever the surrogate,
and the better the surrogate knows where the model is wrong, the fewer labels it takes; with all it is the mean loss.

.. code-block:: python

    error = active_testing.expected_error(log_probs, surrogate)      # of any two models, on the whole test set
    plan = active_testing.plan(jax.random.key(0), error)
    answers = label(plan.indices[:50])                               # in this order, as many as you like
    wrong = log_probs[plan.indices[:50]].argmax(-1) != answers
    active_testing.risk(plan, wrong, error)                          # value, low, high: accuracy is one minus these

A surrogate is another model of the same labels, or several averaged; the model itself tells little of its own mistakes.
:func:`estimates` makes the same of every round of a loop or study.

References:
    Kossen, Farquhar, Gal and Rainforth, `Active testing: sample-efficient model evaluation
    <https://arxiv.org/abs/2103.05331>`_, 2021; Farquhar, Gal and Rainforth, `On statistical bias in active learning
    <https://arxiv.org/abs/2101.11665>`_, 2021.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import metrics
from baal_jax._util import checks, numerics
from baal_jax.metrics import MetricSet
from baal_jax.typing import Array, Key

_FLOOR = 1e-3  # of the mean weight, so that every example can be drawn
_DOUBT = 2.0  # labels that the variance which the surrogate expects counts for, beside that of the sample


class Expected(NamedTuple):
    """What a surrogate expects of the loss of every test example.

    Attributes:
        mean: ``[N]``.
        square: ``[N]``, of the square of the loss.
    """

    mean: Array
    square: Array


class Plan(NamedTuple):
    """The order in which to label test examples.

    Attributes:
        indices: ``int32[N]``, all of them; label the first ones, however many.
        probabilities: ``[N]``, with which each was drawn of those that were left then.
    """

    indices: Array
    probabilities: Array


class Estimate(NamedTuple):
    """The mean loss of a whole test set, as some labels tell.

    Attributes:
        value: the estimate, unbiased.
        low: lower end of its interval, at least 0.
        high: upper end of its interval.
        num_labelled: labels that it is of.
    """

    value: float
    low: float
    high: float
    num_labelled: int


def expected_error(log_probs: Any, surrogate: Any) -> Expected:
    """Of the error rate: how likely another class than the predicted one is.

    Args:
        log_probs: ``[N, C]`` of the model (or logits).
        surrogate: ``[N, C]`` of the surrogate, likewise.

    Example:
        >>> given = jnp.log(jnp.array([[0.9, 0.1], [0.6, 0.4]])), jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7]]))
        >>> [f"{wrong:.1f}" for wrong in active_testing.expected_error(*given).mean]
        ['0.2', '0.7']
    """
    model, other = _both(log_probs, surrogate)
    right = jnp.take_along_axis(other, jnp.argmax(model, axis=1, keepdims=True), axis=1)[:, 0]
    wrong = -jnp.expm1(right)
    return Expected(wrong, wrong)


def expected_nll(log_probs: Any, surrogate: Any) -> Expected:
    r"""Of the negative log-likelihood in nats: the cross-entropy :math:`-\sum_c \pi_c \log p_c`.

    Args:
        log_probs: ``[N, C]`` of the model (or logits).
        surrogate: ``[N, C]`` of the surrogate, likewise.

    Example:
        >>> given = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.8, 0.2]]))
        >>> [f"{nats:.3f}" for nats in active_testing.expected_nll(*given).mean]
        ['0.693']
    """
    model, other = _both(log_probs, surrogate)
    weights = jnp.exp(other)
    moments = [jnp.sum(jnp.where(weights > 0, weights * (-model) ** power, 0.0), axis=1) for power in (1, 2)]
    return Expected(*moments)


def _both(log_probs: Any, surrogate: Any) -> tuple[Array, Array]:
    given = [jnp.asarray(value) for value in (log_probs, surrogate)]
    if given[0].ndim != 2 or given[0].shape != given[1].shape:
        raise ValueError(f"log_probs and surrogate have shapes {[value.shape for value in given]}: give both as [N, C]")
    return numerics.log_probs(given[0]), numerics.log_probs(given[1])


def plan(key: Key, expected: Expected) -> Plan:
    """Draws test examples without replacement, in proportion to the loss that is expected of each.

    Args:
        key: a typed key.
        expected: of :func:`expected_error`, :func:`expected_nll`, or your own; an expectation may not be negative. One
            of less than a thousandth of the mean counts as that.

    Returns:
        A :class:`Plan` of all examples.

    Raises:
        ValueError: an expectation is negative or not finite.

    Example:
        >>> expected = active_testing.Expected(jnp.array([0.1, 0.9, 0.5]), jnp.array([0.1, 0.9, 0.5]))
        >>> sorted(active_testing.plan(jax.random.key(0), expected).indices.tolist())
        [0, 1, 2]
    """
    checks.typed_key("key", key)
    weights = np.asarray(expected.mean, np.float64)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("expected.mean must be finite numbers of at least 0, one for each test example")
    weights = _weights(np, weights)
    # Gumbel-top-k: in order of these are draws in proportion to the weights.
    perturbed = np.log(weights) + np.asarray(jax.random.gumbel(key, weights.shape, jnp.float32), np.float64)
    order = np.argsort(-perturbed, kind="stable")
    left = np.cumsum(weights[order][::-1])[::-1]
    return Plan(jnp.asarray(order, jnp.int32), jnp.asarray(weights[order] / left, jnp.float32))


def risk(plan: Plan, losses: Any, expected: Expected, *, confidence: float = 0.95) -> Estimate:
    r"""Estimates the mean loss over all test examples from those of the first ones of a plan.

    The interval is Student's, of the variance of :math:`v_m \ell_m`, into which the variance that the surrogate
    expects goes as two labels more: a few labels may all have the same loss.

    Args:
        plan: from :func:`plan`.
        losses: ``[M]`` of ``plan.indices[:M]``, such as errors of 0 and 1 or negative log-likelihoods; at least two.
        expected: of this loss; not necessarily what the plan was made of.
        confidence: of the interval.

    Returns:
        An :class:`Estimate`.

    Raises:
        ValueError: there are fewer than two losses, more than examples, or one is not finite.

    Example:
        >>> given = jnp.log(jnp.array([[0.9, 0.1], [0.6, 0.4]])), jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7]]))
        >>> expected = active_testing.expected_error(*given)
        >>> plan = active_testing.plan(jax.random.key(0), expected)
        >>> active_testing.risk(plan, [0.0, 1.0], expected).value
        0.5
    """
    losses, total = np.asarray(losses, np.float64), len(plan.indices)
    count = len(losses) if losses.ndim == 1 else 0
    if not 2 <= count <= total or not np.isfinite(losses).all():
        raise ValueError(f"losses {losses.shape} must be finite, of the first of {total} examples, two at least: [M]")
    order, chances = np.asarray(plan.indices), np.asarray(plan.probabilities, np.float64)
    ordered: Any = Expected(*(np.asarray(part, np.float64)[order] for part in expected))  # pyright: ignore
    value, width = map(float, _estimate(np, losses, chances, ordered, _quantile(count, confidence)))
    return Estimate(value, max(value - width, 0.0), value + width, count)


def estimates(num_labels: int, *, confidence: float = 0.95, seed: int = 0) -> MetricSet:
    """What a loop reports of each round if only so many labels of the test set were bought: ``metrics`` of a loop.

    Beside the metrics of all labels (:func:`baal_jax.metrics.classification`) there are ``"tested_accuracy"`` and the
    ends of its interval, ``"tested_accuracy_low"`` and ``"tested_accuracy_high"``, each kept between 0 and 1. A round
    draws test labels for its own fit, of targets that are all known; the surrogate is the model average itself, so they
    save less than those of :func:`risk` may.

    Args:
        num_labels: test labels of a round, at least two and at most all.
        confidence: of the interval.
        seed: of the draws.

    Example:
        >>> metric_set = active_testing.estimates(2)
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]))
        >>> print(metric_set.compute(log_probs, jnp.array([0, 1, 0]))["tested_accuracy"])
        1.0
    """
    count, of_all = checks.positive_int("num_labels", num_labels, 2), metrics.classification()
    quantile = _quantile(count, confidence)

    def compute(log_probs: Array, targets: Array) -> dict[str, Array]:
        if log_probs.ndim != 2 or len(log_probs) < count:
            raise ValueError(f"num_labels={count}, but the test set is {log_probs.shape}: [N, C] of as many are needed")
        expected = expected_error(log_probs, log_probs)
        weights = _weights(jnp, expected.mean)
        own = jax.lax.bitcast_convert_type(jnp.sum(log_probs).astype(jnp.float32), jnp.uint32)  # draws of each fit
        noise = jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), own), weights.shape, weights.dtype)
        order = jnp.argsort(-(jnp.log(weights) + noise))
        chances = weights[order] / jnp.cumsum(weights[order][::-1])[::-1]
        wrong = jnp.argmax(log_probs, axis=1)[order[:count]] != targets[order[:count]]
        ordered = Expected(*(part[order] for part in expected))
        value, width = _estimate(jnp, wrong.astype(weights.dtype), chances, ordered, quantile)
        ends = {"": value, "_low": value + width, "_high": value - width}
        tested = {f"tested_accuracy{end}": jnp.clip(1 - error, 0.0, 1.0) for end, error in ends.items()}
        return of_all.compute(log_probs, targets) | tested

    return MetricSet(of_all.summarise, compute)


def _weights(xp: Any, expected: Any) -> Any:
    return xp.where(xp.any(expected > 0), xp.maximum(expected, _FLOOR * xp.mean(expected)), xp.ones_like(expected))


def _quantile(count: int, confidence: float) -> float:
    from scipy import stats  # which takes longer to load than all else here

    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


def _estimate(xp: Any, losses: Any, chances: Any, ordered: Expected, quantile: float) -> tuple[Any, Any]:
    """LURE of the losses of the first of a plan, and half the width of its interval; in NumPy or JAX (``xp``)."""
    count, total = len(losses), len(chances)
    drawn = xp.arange(1, count + 1, dtype=losses.dtype)
    left = xp.maximum(total - drawn, 1)  # of none the factor before it is 0
    weights = 1 + (total - count) / left * (1 / ((total - drawn + 1) * chances[:count]) - 1)
    each = weights * losses
    first = chances * xp.append(xp.ones(1, chances.dtype), xp.cumprod(1 - chances[:-1]))  # of being drawn first
    believed = xp.sum(ordered.square / first) / total**2 - xp.mean(ordered.mean) ** 2
    variance = ((count - 1) * xp.var(each, ddof=1) + _DOUBT * xp.maximum(believed, 0.0)) / (count - 1 + _DOUBT)
    return xp.mean(each), quantile * xp.sqrt(variance / count * (1 - count / total))
