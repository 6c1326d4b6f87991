"""When to stop labelling: criteria that a compiled run, or a loop in Python, asks at the end of every round.

A criterion is two pure functions. ``run(…, stop=criterion)`` asks it in every round; what it remembers travels in the
:class:`~baal_jax.LoopState`, so a run that continues decides as one that was never interrupted. By hand::

    memory = criterion.init(round)
    memory, stop = criterion.update(memory, stopping.Outcome(state.pool, info))

Numbers out of their range are refused with a ``ValueError``, and so is a run without the metric or the inputs it needs.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.pool import PoolState, num_labelled, total_cost
from baal_jax.typing import Array, PyTree


class Outcome(NamedTuple):
    """What a criterion may look at when a round is over.

    Attributes:
        pool: with the labels of this round.
        info: the round's :class:`~baal_jax.StepInfo`; its ``metrics`` are there in runs with a test set.
        log_probs: ``[M, …, C]``, the model average on the stop inputs given to the run, else None.
    """

    pool: PoolState
    info: Any
    log_probs: Any = None


class Criterion(NamedTuple):
    """A rule with a memory.

    Attributes:
        init: ``Outcome -> memory``; reads shapes alone.
        update: ``(memory, Outcome) -> (memory, stop bool[])``.
    """

    init: Callable[[Outcome], PyTree]
    update: Callable[[PyTree, Outcome], tuple[PyTree, Array]]


@functools.cache  # one object for one configuration, so that a run compiles once
def labelling_budget(budget: int) -> Criterion:
    """Stops once ``budget`` examples are labelled, in whatever round that was.

    Labels given before the run count too, unlike in Baal, whose count also misses what its data set does not show.

    Args:
        budget: how many labels can be afforded.

    Example:
        >>> rule = stopping.labelling_budget(2)
        >>> bool(rule.update((), stopping.Outcome(pool.label(pool.init(5), [0, 3]), None))[1])
        True
    """
    budget = checks.positive_int("budget", budget)
    return Criterion(lambda _: (), lambda memory, outcome: (memory, num_labelled(outcome.pool) >= budget))


@functools.cache
def cost_budget(budget: float) -> Criterion:
    """Stops once the labels of a pool with ``costs`` have cost ``budget``, so the last query may exceed it.

    Args:
        budget: in the unit of ``pool.init(…, costs=…)``.

    Example:
        >>> rule, state = stopping.cost_budget(2.5), pool.init(3, costs=[1.0, 2.0, 4.0])
        >>> bool(rule.update((), stopping.Outcome(pool.label(state, [0, 1]), None))[1])
        True
    """
    budget = checks.positive_float("budget", budget)
    return Criterion(lambda _: (), lambda memory, outcome: (memory, total_cost(outcome.pool) >= budget))


@functools.cache
def low_uncertainty(threshold: float) -> Criterion:
    """Stops when the mean score of the pool (``StepInfo.mean_score``) is below ``threshold``, strictly.

    Args:
        threshold: in the units of the heuristic. NaN, the mean of acquisitions without a score, never stops.

    Example:
        >>> loop = baal.active_loop(posteriors.logistic_regression(2), selection.top_k(), query_size=1)
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, 0, 1, 0, 1]))
        >>> options = {"num_initial": 2, "num_rounds": 3, "stop": stopping.low_uncertainty(1.0)}
        >>> baal.run(loop, jax.random.key(0), train, train, **options)[1].stopped.tolist()
        [False, True, True]
    """
    threshold = float(threshold)
    return Criterion(lambda _: (), lambda memory, outcome: (memory, outcome.info.mean_score < threshold))


class _Recent(NamedTuple):
    values: Array  # newest last
    rounds: Array


@functools.cache
def plateau(metric: str, patience: int = 10, atol: float = 1e-4, rtol: float = 1e-5) -> Criterion:
    r"""Stops where the latest value of a metric and the ``patience`` before it are all close, as in Baal.

    .. math:: |m_i - m_t| \le a + r\,|m_t| \quad \text{for } t - p \le i \le t

    It is a plateau, not the lack of improvement. Exactly ``patience`` values are enough when all of them agree.

    Args:
        metric: a name in ``StepInfo.metrics``, whose value is a number.
        patience: ``p``. Fewer values than that never stop, nor do NaN.
        atol: ``a``.
        rtol: ``r``.

    Example:
        >>> loop = baal.active_loop(posteriors.logistic_regression(2), selection.random(), query_size=1)
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, 0, 1, 0, 1]))
        >>> options = {"num_initial": 2, "num_rounds": 3, "stop": stopping.plateau("accuracy", patience=2, atol=1.0)}
        >>> baal.run(loop, jax.random.key(0), train, train, **options)[1].stopped.tolist()
        [False, False, True]
    """
    patience = checks.positive_int("patience", patience)

    def init(outcome: Outcome) -> _Recent:
        return _Recent(jnp.full(patience + 1, jnp.inf, _metric(outcome, metric).dtype), jnp.zeros((), jnp.int32))

    def update(memory: _Recent, outcome: Outcome) -> tuple[_Recent, Array]:
        latest = _metric(outcome, metric)
        recent = jnp.append(memory.values[1:], latest)
        count = jnp.minimum(memory.rounds + 1, patience + 1)
        close = jnp.abs(recent - latest) <= atol + rtol * jnp.abs(latest)
        close |= jnp.arange(patience + 1, 0, -1, jnp.int32) > count
        return _Recent(recent, count), (count >= patience) & jnp.all(close)

    return Criterion(init, numerics.jit_with_nan(update))  # a metric may be NaN


class _Agreement(NamedTuple):
    predicted: Array
    kappas: Array  # newest last
    rounds: Array


@functools.cache
def stabilising_predictions(threshold: float = 0.99, window: int = 3) -> Criterion:
    r"""Stops when the predictions of successive fits agree, on inputs that need no labels.

    .. math:: \tfrac1w \sum_{i=0}^{w-1} \kappa(\hat y_{t-i}, \hat y_{t-i-1}) \ge \tau, \qquad
              \kappa = \frac{p_o - p_e}{1 - p_e}

    ``p_o`` is the share of the stop inputs on which both fits predict the same class, ``p_e`` the one expected of two
    independent predictors with their class frequencies. Fits that predict one and the same class have ``κ = 1``.

    Args:
        threshold: ``τ``.
        window: ``w``.

    Returns:
        A :class:`Criterion`, for runs with ``stop_inputs``: about 2,000 unlabelled ones in the paper.

    References:
        Bloodgood and Vijay-Shanker, `A method for stopping active learning based on stabilizing predictions and the
        need for user-adjustable stopping <https://arxiv.org/abs/1409.5165>`_, 2009.

    Example:
        >>> rule = stopping.stabilising_predictions(window=1)
        >>> outcome = stopping.Outcome(None, None, jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]])))
        >>> memory, _ = rule.update(rule.init(outcome), outcome)
        >>> bool(rule.update(memory, outcome)[1])
        True
    """
    window = checks.positive_int("window", window)
    threshold = float(threshold)

    def init(outcome: Outcome) -> _Agreement:
        if outcome.log_probs is None:
            raise ValueError("stabilising_predictions needs stop_inputs: give the run some unlabelled inputs")
        predicted = jnp.zeros(outcome.log_probs.shape[:-1], jnp.int32)
        return _Agreement(predicted, jnp.zeros(window, jnp.float32), jnp.zeros((), jnp.int32))

    def update(memory: _Agreement, outcome: Outcome) -> tuple[_Agreement, Array]:
        predicted = jnp.argmax(outcome.log_probs, axis=-1).astype(jnp.int32)
        kappa = _kappa(memory.predicted, predicted, outcome.log_probs.shape[-1])
        kappas = jnp.append(memory.kappas[1:], jnp.where(memory.rounds > 0, kappa, 0.0).astype(jnp.float32))
        count = jnp.minimum(memory.rounds + 1, window + 1)
        return _Agreement(predicted, kappas, count), (count > window) & (jnp.mean(kappas) >= threshold)

    return Criterion(init, update)


def any_of(*criteria: Criterion) -> Criterion:
    """Stops when one of several criteria does; all of them are asked in every round.

    Args:
        criteria: two or more.

    Example:
        >>> stop = stopping.any_of(stopping.labelling_budget(500), stopping.plateau("accuracy", patience=5))
    """
    return _combined(criteria, jnp.any)


def all_of(*criteria: Criterion) -> Criterion:
    """Stops when all of several criteria would, in the same round.

    Args:
        criteria: two or more.

    Example:
        >>> stop = stopping.all_of(stopping.labelling_budget(2), stopping.labelling_budget(3))
        >>> outcome = stopping.Outcome(pool.label(pool.init(5), [0, 3]), None)
        >>> bool(stop.update(stop.init(outcome), outcome)[1])
        False
    """
    return _combined(criteria, jnp.all)


@functools.cache
def _combined(criteria: tuple[Criterion, ...], combine: Callable[[Array], Array]) -> Criterion:
    def update(memories: tuple[PyTree, ...], outcome: Outcome) -> tuple[tuple[PyTree, ...], Array]:
        answers = [criterion.update(memory, outcome) for criterion, memory in zip(criteria, memories, strict=True)]
        return tuple(memory for memory, _ in answers), combine(jnp.stack([stop for _, stop in answers]))

    return Criterion(lambda outcome: tuple(criterion.init(outcome) for criterion in criteria), update)


def _metric(outcome: Outcome, name: str) -> Array:
    metrics = outcome.info.metrics or {}
    if name not in metrics:
        known = ", ".join(metrics) or "none, because it has no test set"
        raise ValueError(f"metric={name!r} is not among the metrics of the run: {known}")
    return metrics[name]


def _kappa(before: Array, now: Array, num_classes: int) -> Array:
    agree = jnp.sum(before == now) / now.size
    shares = [jnp.sum(jax.nn.one_hot(classes.ravel(), num_classes), axis=0) / now.size for classes in (before, now)]
    chance = jnp.sum(shares[0] * shares[1])
    return jnp.where(chance < 1, (agree - chance) / jnp.where(chance < 1, 1 - chance, 1.0), 1.0)
