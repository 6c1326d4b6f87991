"""Scalings by name: what their parameters are, and what they do to logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, numerics
from baal_jax.calibration._search import (
    BOUNDS,
    Problem,
    affine,
    fit_affine,
    log_temperature,
    make_problem,
    require_fitting,
    split_impossible,
)
from baal_jax.typing import Array, PyTree


class Scaling(NamedTuple):
    """A calibration method as two pure functions.

    Attributes:
        fit: ``(logits [S, N, …, C] or [N, …, C], targets int[N, …], weights=None) -> params``, compiled. Which of the
            two shapes is meant follows from ``targets``. Negative targets are unknown and do not count, nor do
            positions without a positive weight (``[N, …]`` or its leading axes), nor targets to which every draw gives
            the logit −inf (or one 1e8 below the largest), which no scaling can change. With nothing that counts, the
            parameters are those of the identity; with NaN or +inf among the logits that count, or a target of ``C`` or
            more, they are NaN. They are constants to ``grad``.
        apply: ``(params, logits […, C]) -> logits […, C]``, in at least float32. A logit of −inf stays −inf, and one
            1e8 below the largest, which is a mask, as far from it as it was or nearly so.
    """

    fit: Callable[..., PyTree]
    apply: Callable[[PyTree, Array], Array]


class TemperatureParams(NamedTuple):
    """Parameters of :func:`temperature`.

    Attributes:
        temperature: ``float32[]``, ``T``.
    """

    temperature: Array


class VectorParams(NamedTuple):
    """Parameters of :func:`vector`.

    Attributes:
        scale: ``float32[C]``, ``w``.
        offset: ``float32[C]``, ``b``.
    """

    scale: Array
    offset: Array


class DirichletParams(NamedTuple):
    """Parameters of :func:`dirichlet`.

    Attributes:
        weight: ``float32[C, C]``, ``W``; rows are the classes that come out.
        intercept: ``float32[C]``, ``b``.
    """

    weight: Array
    intercept: Array


def temperature(*, penalty: float = 0.0, bounds: tuple[float, float] = BOUNDS) -> Scaling:
    r"""Temperature scaling: one number for all classes.

    .. math:: g(z) = z / T, \qquad \text{penalty} = \lambda\, (\log T)^2

    The ranking of the classes in a draw stays what it was; that of an average over several draws can change. Where
    every example is classified right, a lower temperature is always better: the fit stops lowering it where the loss
    is within about 1e-6 nats of its infimum, or at the bound. A few held-out examples are often all classified right,
    so in a loop a penalty of 0.01 to 0.1 is advisable.

    Args:
        penalty: ``λ``.
        bounds: smallest and largest ``T``.

    Returns:
        A :class:`Scaling` with :class:`TemperatureParams`.

    Raises:
        ValueError: ``penalty`` is negative, or ``bounds`` are not two positive numbers in order.

    References:
        Guo et al., `On calibration of modern neural networks <https://arxiv.org/abs/1706.04599>`_, 2017.

    Example:
        >>> from baal_jax import calibration
        >>> scaling = calibration.temperature()
        >>> logits = jnp.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])  # 95 % sure, and right in 75 %
        >>> params = scaling.fit(logits, jnp.array([0, 0, 0, 1]))
        >>> [f"{p:.3f}" for p in jax.nn.softmax(scaling.apply(params, logits[0]))]
        ['0.750', '0.250']
    """
    penalty = checks.finite_float("penalty", penalty, 0.0)
    try:
        low, high = (checks.finite_float("bounds", bound, 0.0) for bound in bounds)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0.0 < low < high:
        raise ValueError(f"bounds={bounds!r} must be two positive numbers, the smaller one first")
    return _temperature(penalty, (low, high))


def vector(*, penalty: float = 0.0) -> Scaling:
    r"""Vector scaling: a scale and an offset for each class.

    .. math:: g(z)_c = w_c z_c + b_c, \qquad
              \text{penalty} = \lambda\, \Bigl(\tfrac1C \sum_c (w_c - 1)^2 + \tfrac1C \sum_c b_c^2\Bigr)

    Where classes can be told apart without error, the optimum without a penalty is at infinity. The fit stops on the
    way, where the loss hardly falls any more, and the parameters are finite.

    Args:
        penalty: ``λ``. Few examples need one.

    Returns:
        A :class:`Scaling` with :class:`VectorParams`.

    Raises:
        ValueError: ``penalty`` is negative.

    References:
        Guo et al., `On calibration of modern neural networks <https://arxiv.org/abs/1706.04599>`_, 2017.

    Example:
        >>> from baal_jax import calibration
        >>> scaling = calibration.vector(penalty=1e-3)
        >>> params = scaling.fit(jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1]))      # the offset learns the frequencies
        >>> [f"{p:.2f}" for p in jax.nn.softmax(scaling.apply(params, jnp.zeros(2)))]
        ['0.75', '0.25']
    """
    return _vector(checks.finite_float("penalty", penalty, 0.0))


def dirichlet(*, off_diagonal: float = 0.1, intercept: float | None = None) -> Scaling:
    r"""Dirichlet calibration: a linear map of log-probabilities, with off-diagonal and intercept regularisation (ODIR).

    .. math:: g(z) = W \log\operatorname{softmax}(z) + b, \qquad
              \text{penalty} = \frac{\lambda}{C (C - 1)} \sum_{i \ne j} W_{ij}^2 + \frac{\mu}{C} \sum_c b_c^2

    The diagonal is free. As in :func:`vector`, examples without an error let the parameters grow until the loss hardly
    falls any more. A class of logit −inf, or 1e8 below the largest, adds nothing to the other classes.

    Args:
        off_diagonal: ``λ``. Few examples need a large one: ``C²`` weights are fitted. Zero leaves the matrix free.
        intercept: ``μ``; None for ``λ``.

    Returns:
        A :class:`Scaling` with :class:`DirichletParams`.

    Raises:
        ValueError: a penalty is negative.

    References:
        Kull et al., `Beyond temperature scaling: obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration <https://arxiv.org/abs/1910.12656>`_, 2019.

    Example:
        >>> from baal_jax import calibration
        >>> scaling = calibration.dirichlet(off_diagonal=1e-4)
        >>> logits = jnp.log(jnp.array([[0.8, 0.1, 0.1]]))
        >>> logits = jnp.repeat(logits, 10, axis=0)
        >>> params = scaling.fit(logits, jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2]))
        >>> [f"{p:.2f}" for p in jax.nn.softmax(scaling.apply(params, logits[0]))]
        ['0.60', '0.30', '0.10']
    """
    off_diagonal = checks.finite_float("off_diagonal", off_diagonal, 0.0)
    return _dirichlet(
        off_diagonal, off_diagonal if intercept is None else checks.finite_float("intercept", intercept, 0.0)
    )


@functools.cache  # one object for one configuration, so that a fit compiles once
def _temperature(penalty: float, bounds: tuple[float, float]) -> Scaling:
    def solve(problem: Problem) -> TemperatureParams:
        return TemperatureParams(jnp.exp(log_temperature(problem, penalty, bounds)))

    def identity(num_classes: int, dtype: Any) -> TemperatureParams:
        del num_classes
        return TemperatureParams(jnp.ones((), dtype))

    def apply(params: TemperatureParams, logits: Array) -> Array:
        logits = _classes_of(logits)
        return logits / params.temperature.astype(logits.dtype)

    return Scaling(_compiled_fit(solve, identity), jax.jit(apply))


@functools.cache
def _vector(penalty: float) -> Scaling:
    def identity(num_classes: int, dtype: Any) -> VectorParams:
        return VectorParams(jnp.ones(num_classes, dtype), jnp.zeros(num_classes, dtype))

    def apply(params: VectorParams, logits: Array) -> Array:
        logits = _classes_of(logits, params.offset.shape[-1])
        finite, impossible = split_impossible(logits)
        return jnp.where(impossible, logits, affine(*params, finite))

    def solve(problem: Problem) -> VectorParams:
        return VectorParams(*fit_affine(problem, problem.logits, penalty, None, penalty))

    return Scaling(_compiled_fit(solve, identity), jax.jit(apply))


@functools.cache
def _dirichlet(off_diagonal: float, intercept: float) -> Scaling:
    def identity(num_classes: int, dtype: Any) -> DirichletParams:
        return DirichletParams(jnp.eye(num_classes, dtype=dtype), jnp.zeros(num_classes, dtype))

    def apply(params: DirichletParams, logits: Array) -> Array:
        log_p = numerics.log_probs(_classes_of(logits, params.intercept.shape[-1]))
        finite, impossible = split_impossible(log_p)
        return jnp.where(impossible, log_p, affine(*params, finite))

    def solve(problem: Problem) -> DirichletParams:
        log_p = numerics.log_probs(problem.logits)
        return DirichletParams(*fit_affine(problem, log_p, 0.0, off_diagonal, intercept))

    return Scaling(_compiled_fit(solve, identity), jax.jit(apply))


def _compiled_fit(solve: Callable[[Problem], PyTree], identity: Callable[[int, Any], PyTree]) -> Callable[..., PyTree]:
    @jax.jit
    def compiled(logits: Array, targets: Array, weights: Array | None) -> PyTree:
        problem = make_problem(*jax.lax.stop_gradient((numerics.as_float(logits), targets, weights)))
        at_rest = identity(logits.shape[-1], problem.logits.dtype)
        sound = jnp.isfinite(problem.loss(problem.logits))
        anything = jnp.any(problem.weights > 0)

        def finish(found: Array, neutral: Array) -> Array:
            return jnp.where(anything, jnp.where(sound, found, jnp.nan), neutral)

        return jax.tree.map(finish, solve(problem), at_rest)

    def fit(logits: Array, targets: Array, weights: Array | None = None) -> PyTree:
        return compiled(*require_fitting(logits, targets, weights))

    return fit


def _classes_of(logits: Array, num_classes: int | None = None) -> Array:
    if not hasattr(logits, "ndim") or logits.ndim == 0 or logits.shape[-1] != (num_classes or logits.shape[-1]):
        raise ValueError(
            f"logits of shape {getattr(logits, 'shape', None)} do not fit a scaling of {num_classes or 'several'} "
            "classes: pass […, C] logits of the classes that it was fitted to"
        )
    return numerics.as_float(logits)
