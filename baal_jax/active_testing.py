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

References:
    Kossen, Farquhar, Gal and Rainforth, `Active testing: sample-efficient model evaluation
    <https://arxiv.org/abs/2103.05331>`_, 2021; Farquhar, Gal and Rainforth, `On statistical bias in active learning
    <https://arxiv.org/abs/2101.11665>`_, 2021.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, numerics
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
    """
    checks.typed_key("key", key)
    weights = np.asarray(expected.mean, np.float64)
    if weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("expected.mean must be finite numbers of at least 0, one for each test example")
    weights = np.maximum(weights, _FLOOR * weights.mean()) if weights.any() else np.ones_like(weights)
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
    drawn, chances = np.arange(1, count + 1), np.asarray(plan.probabilities, np.float64)
    left = np.maximum(total - drawn, 1)  # of none the factor before it is 0
    weights = 1 + (total - count) / left * (1 / ((total - drawn + 1) * chances[:count]) - 1)
    each, value = weights * losses, float(np.mean(weights * losses))
    mean, square = (np.asarray(part, np.float64)[np.asarray(plan.indices)] for part in expected)
    first = chances * np.concatenate([[1.0], np.cumprod(1 - chances[:-1])])  # of being drawn first
    believed = np.sum(square / first) / total**2 - mean.mean() ** 2
    variance = ((count - 1) * each.var(ddof=1) + _DOUBT * max(believed, 0.0)) / (count - 1 + _DOUBT)
    from scipy import stats  # which takes longer to load than all else here

    width = stats.t.ppf((1 + confidence) / 2, count - 1) * np.sqrt(variance / count * (1 - count / total))
    return Estimate(value, max(value - width, 0.0), value + width, count)
