"""Scalings by name: what their parameters are, and what they do to logits. The search is in ``_optimum.py``."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import checks, meshes, numerics
from baal_jax.calibration import _optimum as optimum
from baal_jax.calibration._optimum import AffineParams


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

    fit: Callable[..., Any]
    apply: Callable[[Any, Array], Array]


class TemperatureParams(NamedTuple):
    """Parameters of :func:`temperature`: ``T``, ``float32[]``."""

    temperature: Array


def temperature(*, penalty: float | None = None, bounds: tuple[float, float] = optimum.BOUNDS) -> Scaling:
    r"""Temperature scaling: one number for all classes.

    .. math:: g(z) = z / T, \qquad \text{penalty} = \lambda\, (\log T)^2

    It moves classes without examples with the others. The ranking of the classes in a draw stays what it was; that of
    an average over several draws can change. Where every example is classified right, a lower temperature is always
    better: without a penalty the fit stops where the loss is within about 1e-6 nats of its infimum, or at the bound.

    Args:
        penalty: ``λ``, by default ``32 / n`` for ``n`` examples (the sum of their weights; a map of classes is one): a
            Gaussian prior of ``log T`` with a standard deviation of 1/8; and then ``log T`` is shrunk by ``max(0, 1 − 1
            / (2 G))``, where ``G`` nats is the gain of all examples, because noise alone gains half a nat.
        bounds: smallest and largest ``T``.

    Returns:
        A :class:`Scaling` with :class:`TemperatureParams`.

    References:
        Guo et al., `On calibration of modern neural networks <https://arxiv.org/abs/1706.04599>`_, 2017.

    Example:
        >>> scaling = calibration.temperature(penalty=0.0)
        >>> logits = jnp.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]])  # 95 % confident, and right in 75 %
        >>> params = scaling.fit(logits, jnp.array([0, 0, 0, 1]))
        >>> [f"{p:.3f}" for p in jax.nn.softmax(scaling.apply(params, logits[0]))]
        ['0.750', '0.250']
    """
    penalty = None if penalty is None else checks.finite_float("penalty", penalty, 0.0)
    try:
        low, high = (checks.finite_float("bounds", bound, 0.0) for bound in bounds)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0.0 < low < high:
        raise ValueError(f"bounds={bounds!r} must be two positive numbers, the smaller one first")
    return _temperature(penalty, (low, high))


def vector(*, penalty: float | None = None) -> Scaling:
    r"""Vector scaling, by Guo et al. (2017) as :func:`temperature`: a scale and an offset for each class.

    .. math:: g(z)_c = w_c z_c + b_c, \qquad
              \text{penalty} = \lambda\, \Bigl(\tfrac1C \sum_c (w_c - 1)^2 + \tfrac1C \sum_c b_c^2\Bigr)

    A class that no example has keeps its logits. Where classes can be told apart without error, the optimum without a
    penalty is at infinity: the fit stops on the way, where the loss hardly falls any more.

    By default the penalty is a Gaussian prior around the ``T`` of :func:`temperature` (1 unless every class has an
    example), whose standard deviation changes a logit by 1/8 in root mean square; the change is shrunk as there:

    .. math:: \text{penalty} = \frac{32}n \sum_c \bigl(\max(\overline{z_c^2}, 1)\, (w_c - 1/T)^2 + b_c^2\bigr)

    Args:
        penalty: ``λ``, None for the prior.

    Returns:
        A :class:`Scaling` with :class:`AffineParams`.

    Example:
        >>> scaling = calibration.vector(penalty=1e-3)
        >>> params = scaling.fit(jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1]))      # the offset learns the frequencies
        >>> [f"{p:.2f}" for p in jax.nn.softmax(scaling.apply(params, jnp.zeros(2)))]
        ['0.75', '0.25']
    """
    penalty = None if penalty is None else checks.finite_float("penalty", penalty, 0.0)
    return _affine(False, diagonal=penalty, off_diagonal=None, offset=penalty)


def dirichlet(*, off_diagonal: float | None = None, intercept: float | None = None) -> Scaling:
    r"""Dirichlet calibration: a linear map of log-probabilities, with off-diagonal and intercept regularisation (ODIR).

    .. math:: g(z) = W \log\operatorname{softmax}(z) + b, \qquad
              \text{penalty} = \frac{\lambda}{C (C - 1)} \sum_{i \ne j} W_{ij}^2 + \frac{\mu}{C} \sum_c b_c^2

    The diagonal is free with this penalty, and parameters grow as in :func:`vector`. A class that no example has keeps
    its log-probabilities. One of logit −inf, or 1e8 below the largest, adds nothing to the other classes.

    By default the penalty is the prior of :func:`vector` on log-probabilities, with the other classes together as free
    to change a logit as its own: to that penalty of ``W_cc`` and ``b`` comes

    .. math:: \frac{32}n (C - 1) \sum_{i \ne j} \max(\overline{\log\operatorname{softmax}(z)_j^2}, 1)\, W_{ij}^2

    Args:
        off_diagonal: ``λ``, zero for a free matrix, None for the prior of all weights.
        intercept: ``μ``; None for ``λ``, or for the prior.

    Returns:
        A :class:`Scaling` with :class:`AffineParams`.

    References:
        Kull et al., `Beyond temperature scaling: obtaining well-calibrated multi-class probabilities with Dirichlet
        calibration <https://arxiv.org/abs/1910.12656>`_, 2019.

    Example:
        >>> scaling = calibration.dirichlet(off_diagonal=1e-4)
        >>> logits = jnp.repeat(jnp.log(jnp.array([[0.8, 0.1, 0.1]])), 10, axis=0)
        >>> params = scaling.fit(logits, jnp.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2]))
        >>> [f"{p:.2f}" for p in jax.nn.softmax(scaling.apply(params, logits[0]))]
        ['0.60', '0.30', '0.10']
    """
    off_diagonal = None if off_diagonal is None else checks.finite_float("off_diagonal", off_diagonal, 0.0)
    offset = off_diagonal if intercept is None else checks.finite_float("intercept", intercept, 0.0)
    return _affine(True, diagonal=None if off_diagonal is None else 0.0, off_diagonal=off_diagonal, offset=offset)


@functools.cache  # one object for one configuration, so that a fit compiles once
def _temperature(penalty: float | None, bounds: tuple[float, float]) -> Scaling:
    def solve(problem: optimum.Problem) -> TemperatureParams:
        log_t = optimum.fit_temperature(problem, penalty, bounds)
        return TemperatureParams(jnp.exp(jnp.where(jnp.any(problem.weights > 0), log_t, 0.0)))

    def apply(params: TemperatureParams, logits: Array) -> Array:
        logits = _classes_of(logits)
        return logits / params.temperature.astype(logits.dtype)

    return Scaling(_compiled_fit(solve), numerics.jit(apply))


@functools.cache
def _affine(is_matrix: bool, diagonal: float | None, off_diagonal: float | None, offset: float | None) -> Scaling:
    """A diagonal on logits, or a matrix on log-probabilities."""
    features = numerics.log_probs if is_matrix else numerics.as_float

    def solve(problem: optimum.Problem) -> AffineParams:
        problem = problem._replace(logits=features(problem.logits))
        return optimum.fit_affine(problem, is_matrix, diagonal, off_diagonal, offset)

    def apply(params: AffineParams, logits: Array) -> Array:
        values = features(_classes_of(logits, params.offset.shape[-1]))
        finite, impossible = optimum.split_impossible(values)
        return jnp.where(impossible, values, optimum.affine(params, finite))

    return Scaling(_compiled_fit(solve), numerics.jit(apply))


def _compiled_fit(solve: Callable[[optimum.Problem], Any]) -> Callable[..., Any]:
    @numerics.jit
    def compiled(logits: Array, targets: Array, weights: Array | None) -> Any:
        problem = optimum.make_problem(*jax.lax.stop_gradient((numerics.as_float(logits), targets, weights)))
        # Where nothing counts the loss is 0 everywhere, and the searches do not leave the identity.
        sound = jnp.isfinite(problem.loss(problem.logits))
        return jax.tree.map(lambda leaf: jnp.where(sound, leaf, jnp.nan), solve(problem))

    return lambda logits, targets, weights=None: compiled(*_require_fitting(logits, targets, weights))


def _require_fitting(logits: Any, targets: Any, weights: Any) -> tuple[Array, Array, Array | None]:
    """Refuses what does not fit together."""
    if isinstance(logits, list | tuple | dict) or logits is None:
        raise ValueError(f"logits is a {type(logits).__name__}, but one array [S, N, …, C] or [N, …, C] is needed")
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.ndim < 1:
        raise ValueError(f"targets {targets.dtype}{targets.shape} must be integer classes [N, …]: convert them")
    draws = logits.ndim - targets.ndim - 1
    if draws not in (0, 1) or logits.shape[draws:-1] != targets.shape or 0 in (logits.shape[-1], *logits.shape[:draws]):
        need = f"targets of shape {targets.shape}: pass [S, N, …, C] or [N, …, C] beside [N, …]"
        raise ValueError(f"logits of shape {logits.shape} do not fit {need}")
    checks.classes("logits", logits if draws else logits[None])
    if checks.is_concrete(targets) and targets.size and (largest := meshes.on_host(targets).max()) >= logits.shape[-1]:
        raise ValueError(f"targets holds class {largest}, but logits has {logits.shape[-1]}: −1 stands for unknown")
    if weights is None:
        return logits, targets, None
    weights = jnp.asarray(weights)
    if weights.ndim < 1 or weights.shape != targets.shape[: weights.ndim]:
        need = f"targets of shape {targets.shape}: pass [N, …] or leading axes"
        raise ValueError(f"weights of shape {weights.shape} do not fit {need}")
    if checks.is_concrete(weights) and not (np.isfinite(floats := np.asarray(weights, float)) & (floats >= 0)).all():
        raise ValueError("weights holds a negative number, NaN or infinity: zero leaves a position out")
    return logits, targets, weights


def _classes_of(logits: Array, num_classes: int | None = None) -> Array:
    shape = getattr(logits, "shape", ())
    if not shape or shape[-1] != (num_classes or shape[-1]):
        need = f"a scaling of {num_classes or 'several'} classes: pass […, C] logits of the classes of the fit"
        raise ValueError(f"logits of shape {shape} do not fit {need}")
    return numerics.as_float(logits)
