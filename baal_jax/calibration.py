r"""Calibration after training: scalings of logits, fitted to examples that the network was not trained on.

A scaling is a pair of pure functions. ``fit`` finds the parameters with the smallest negative log-likelihood of the
Bayesian model average, ``apply`` changes the logits of any draw with them:

.. math:: \min_\theta\; -\frac{1}{\sum_n w_n} \sum_n w_n \log \frac1S \sum_s
          \operatorname{softmax}\bigl(g_\theta(z_{sn})\bigr)_{y_n} + \text{penalty}(\theta)

A scaling acts on each draw before the average, so a heuristic reads calibrated draws. With one prediction ``[N, …, C]``
it is the textbook method and the problem is convex (temperature: in ``1/T``). With draws ``[S, N, …, C]`` it is not
convex: the temperature is searched over its whole range, the other two descend from the best temperature. To calibrate
the average itself, fit and apply to ``metrics.model_average(logits)``.

:func:`calibrated` makes a posterior of any posterior, so that :func:`~baal_jax.active_loop` calibrates in every round,
before it scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import _checks, _numerics
from baal_jax.prediction import predict
from baal_jax.typing import Array, Dataset, Key, Posterior, PyTree

_BOUNDS = (1e-3, 1e3)
_GRID, _HALVINGS = 33, 24
_FLAT = 1e-6  # nats: losses this close are equal
_MOST_STEPS, _PATIENCE, _LEAST_GRADIENT = 500, 8, 1e-6
_SPLIT, _DRAWS = 0x63616C69, 0x62726174  # far from the small numbers that a fit folds in or splits by


class Scaling(NamedTuple):
    """A calibration method as two pure functions.

    Attributes:
        fit: ``(logits [S, N, …, C] or [N, …, C], targets int[N, …], weights=None) -> params``, compiled. Which of the
            two shapes is meant follows from ``targets``. Negative targets are unknown and do not count, nor do
            positions without a positive weight (``[N, …]`` or its leading axes), nor targets to which every draw gives
            the logit −inf, which no scaling can change. With nothing that counts, the parameters are those of the
            identity; with NaN or +inf among the logits that count, or a target of ``C`` or more, they are NaN. They are
            constants to ``grad``.
        apply: ``(params, logits […, C]) -> logits […, C]``, in at least float32. A logit of −inf stays −inf.
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


def temperature(*, penalty: float = 0.0, bounds: tuple[float, float] = _BOUNDS) -> Scaling:
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
        >>> print(jax.nn.softmax(scaling.apply(params, logits[0])).round(3))
        [0.75 0.25]
    """
    penalty = _checks.finite_float("penalty", penalty, 0.0)
    if len(bounds) != 2 or not 0.0 < bounds[0] < bounds[1] < float("inf"):
        raise ValueError(f"bounds={bounds} must be two positive numbers, the smaller one first")
    return _temperature(penalty, (float(bounds[0]), float(bounds[1])))


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
        >>> print(jax.nn.softmax(scaling.apply(params, jnp.zeros(2))).round(2))
        [0.75 0.25]
    """
    return _vector(_checks.finite_float("penalty", penalty, 0.0))


def dirichlet(*, off_diagonal: float = 0.1, intercept: float | None = None) -> Scaling:
    r"""Dirichlet calibration: a linear map of log-probabilities, with off-diagonal and intercept regularisation (ODIR).

    .. math:: g(z) = W \log\operatorname{softmax}(z) + b, \qquad
              \text{penalty} = \frac{\lambda}{C (C - 1)} \sum_{i \ne j} W_{ij}^2 + \frac{\mu}{C} \sum_c b_c^2

    The diagonal is free. As in :func:`vector`, examples without an error let the parameters grow until the loss hardly
    falls any more. A class of logit −inf adds nothing to the other classes.

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
        >>> print(jax.nn.softmax(scaling.apply(params, logits[0])).round(2))
        [0.6 0.3 0.1]
    """
    off_diagonal = _checks.finite_float("off_diagonal", off_diagonal, 0.0)
    return _dirichlet(
        off_diagonal, off_diagonal if intercept is None else _checks.finite_float("intercept", intercept, 0.0)
    )


REGISTRY: dict[str, Callable[..., Scaling]] = {"dirichlet": dirichlet, "temperature": temperature, "vector": vector}
"""Name → builder of a :class:`Scaling`, all of whose arguments have defaults."""


class CalibratedState(NamedTuple):
    """State of :func:`calibrated`.

    Attributes:
        base: state of the posterior, as its own ``fit`` returned it.
        params: parameters of the scaling.
    """

    base: Any
    params: PyTree

    @property
    def variables(self) -> Any:
        """The network of the base state, for what reads a single one (``features``)."""
        return self.base.variables


def calibrated(
    posterior: Posterior,
    scaling: Scaling,
    *,
    held_out: float | None = None,
    max_held_out: int = 256,
    validation: Dataset | None = None,
    refit: bool = False,
    num_samples: int = 20,
    batch_size: int | None = 256,
) -> Posterior:
    """A posterior whose draws are calibrated in every fit.

    A share of the labelled examples, drawn at random in each fit, is held out, the posterior is fitted to the others,
    and the scaling to the predictions of its draws on what was held out. ``floor(share · labelled)`` examples are held
    out, never more than half of them; of too few none, and the scaling is then the identity.

    The posterior is used as it is and gets the key of the fit itself: with ``validation`` or ``refit``, ``state.base``
    is bit for bit what ``posterior.fit`` returns for the same arguments.

    Args:
        posterior: any posterior of classes with one array of outputs.
        scaling: from :func:`temperature`, :func:`vector`, :func:`dirichlet`, or your own.
        held_out: the share, more than 0 and at most 0.5; 0.2 by default.
        max_held_out: the most examples that are held out. The compiled program predicts this many in every fit.
        validation: labelled examples beside the pool to fit the scaling to; nothing is held out then. They are part of
            the compiled program.
        refit: fit the posterior again to all labelled examples after the scaling is known. No label is lost to
            training, a fit costs twice as much, and the scaling belongs to a network that saw fewer labels.
        num_samples: ``S``, draws that the scaling is fitted to.
        batch_size: held-out examples in work at a time, None for all.

    Returns:
        A :class:`~baal_jax.Posterior` with state :class:`CalibratedState`; draws are those of ``posterior``.

    Raises:
        ValueError: a number is out of its range, ``validation`` stands beside ``held_out`` or ``refit``, the targets
            are not classes, or the outputs are not one array.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> from baal_jax import calibration, heuristics, posteriors, selection
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> base = posteriors.deep_ensemble(baal.from_linen(nn.Dense(2)), trainer, num_members=2)
        >>> posterior = calibration.calibrated(base, calibration.temperature(penalty=0.1), num_samples=2)
        >>> loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=1, num_samples=2)
        >>> train = baal.Dataset(jnp.eye(8), jnp.arange(8) % 2)
        >>> state, info = loop.step(loop.init(jax.random.key(0), train, num_initial=5), train)
        >>> bool(state.posterior.params.temperature > 0)
        True
    """
    max_held_out = _checks.positive_int("max_held_out", max_held_out)
    num_samples = _checks.positive_int("num_samples", num_samples)
    batch_size = None if batch_size is None else _checks.positive_int("batch_size", batch_size)
    if validation is not None:
        if held_out is not None or refit:
            raise ValueError(
                f"held_out={held_out} and refit={refit} beside validation: leave them out, all labels are trained on"
            )
        _checks.leading_axis("validation", validation)
        _require_classes(validation)
    share = 0.2 if held_out is None else _checks.finite_float("held_out", held_out, 0.0)
    if not 0.0 < share <= 0.5:
        raise ValueError(f"held_out={held_out} must be more than 0 and at most 0.5: it is a share of the labels")

    def scale(key: Key, state: Any, examples: Dataset, weights: Array | None) -> PyTree:
        outputs = predict(key, posterior, state, examples.inputs, num_samples=num_samples, batch_size=batch_size)
        if not isinstance(outputs, jax.Array):
            raise ValueError(f"outputs are a {type(outputs).__name__}, but a scaling needs one array: return one output")
        return scaling.fit(outputs, jnp.asarray(examples.targets), weights)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: CalibratedState | None = None) -> CalibratedState:
        before = None if previous is None else previous.base
        # fold_in leaves the key itself to the posterior.
        key_split, key_draws = jax.random.fold_in(key, _SPLIT), jax.random.fold_in(key, _DRAWS)
        if validation is not None:
            base = posterior.fit(key, dataset, labelled, before)
            return CalibratedState(base, scale(key_draws, base, validation, None))
        _require_classes(dataset)
        labelled = jnp.asarray(labelled)
        rows, weights = _hold_out(key_split, labelled, share, max_held_out)
        # A row without weight holds nothing out, whichever example it repeats.
        kept = labelled.at[jnp.where(weights, rows, labelled.shape[0])].set(False, mode="drop")
        base = posterior.fit(key, dataset, kept, before)
        examples = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], dataset)
        params = scale(key_draws, base, examples, weights)
        return CalibratedState(posterior.fit(key, dataset, labelled, before) if refit else base, params)

    def sample(key: Key, state: CalibratedState, num_samples: int) -> PyTree:
        return posterior.sample(key, state.base, num_samples)

    def apply(state: CalibratedState, draw: PyTree, inputs: PyTree) -> Array:
        return scaling.apply(state.params, posterior.apply(state.base, draw, inputs))

    return Posterior(jax.jit(fit), sample, apply)


def _require_classes(dataset: Dataset) -> None:
    targets = dataset.targets
    if targets is None or not jnp.issubdtype(jnp.asarray(targets).dtype, jnp.integer):
        kind = "None" if targets is None else jnp.asarray(targets).dtype
        raise ValueError(f"targets are {kind}, but a scaling is fitted to integer classes: pass int[N, …]")


def _hold_out(key: Key, labelled: Array, share: float, most: int) -> tuple[Array, Array]:
    """``(ids int32[K], bool[K])``: which examples are held out, and which of these rows do not count."""
    most = min(most, labelled.shape[0])
    number = jnp.sum(labelled, dtype=jnp.int32)
    # A little more than the share, so that 0.3 of 10 is 3 in float32, too.
    wanted = jnp.floor(number.astype(jnp.float32) * np.float32(share) + 1e-3).astype(jnp.int32)
    wanted = jnp.minimum(jnp.minimum(wanted, number // 2), most)
    values = _numerics.rank_values(jax.random.uniform(key, labelled.shape), labelled)
    ids = _numerics.top_indices(values, most)
    return jnp.maximum(ids, 0), jnp.arange(most, dtype=jnp.int32) < wanted


@functools.cache  # one object for one configuration, so that a fit compiles once
def _temperature(penalty: float, bounds: tuple[float, float]) -> Scaling:
    def solve(problem: _Problem) -> TemperatureParams:
        return TemperatureParams(jnp.exp(_log_temperature(problem, penalty, bounds)))

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
        finite, impossible = _split_impossible(logits)
        return jnp.where(impossible, -jnp.inf, _affine(*params, finite))

    def solve(problem: _Problem) -> VectorParams:
        return VectorParams(*_fit_affine(problem, problem.logits, penalty, None, penalty))

    return Scaling(_compiled_fit(solve, identity), jax.jit(apply))


@functools.cache
def _dirichlet(off_diagonal: float, intercept: float) -> Scaling:
    def identity(num_classes: int, dtype: Any) -> DirichletParams:
        return DirichletParams(jnp.eye(num_classes, dtype=dtype), jnp.zeros(num_classes, dtype))

    def apply(params: DirichletParams, logits: Array) -> Array:
        log_p = _numerics.log_probs(_classes_of(logits, params.intercept.shape[-1]))
        finite, impossible = _split_impossible(log_p)
        return jnp.where(impossible, -jnp.inf, _affine(*params, finite))

    def solve(problem: _Problem) -> DirichletParams:
        log_p = _numerics.log_probs(problem.logits)
        return DirichletParams(*_fit_affine(problem, log_p, 0.0, off_diagonal, intercept))

    return Scaling(_compiled_fit(solve, identity), jax.jit(apply))


def _affine(weight: Array, offset: Array, features: Array) -> Array:
    """``W x + b`` on the last axis; a weight ``[C]`` is a diagonal."""
    weight, offset = weight.astype(features.dtype), offset.astype(features.dtype)
    shape = (1,) * (features.ndim - 1) + offset.shape
    if weight.ndim == 1:
        return features * weight.reshape(shape) + offset.reshape(shape)
    return jnp.matmul(features, weight.T, precision="highest") + offset.reshape(shape)


def _split_impossible(logits: Array) -> tuple[Array, Array]:
    impossible = jnp.isneginf(logits)
    return jnp.where(impossible, 0.0, logits), impossible


def _classes_of(logits: Array, num_classes: int | None = None) -> Array:
    if not hasattr(logits, "ndim") or logits.ndim == 0 or logits.shape[-1] != (num_classes or logits.shape[-1]):
        raise ValueError(
            f"logits of shape {getattr(logits, 'shape', None)} do not fit a scaling of {num_classes or 'several'} "
            "classes: pass […, C] logits of the classes that it was fitted to"
        )
    return _numerics.as_float(logits)


class _Problem(NamedTuple):
    """What a scaling is fitted to: logits ``[S, M, C]``, targets ``int32[M]``, weights ``[M]`` that sum to one or 0."""

    logits: Array
    targets: Array
    weights: Array

    def loss(self, scaled: Array) -> Array:
        chosen = jnp.take_along_axis(_numerics.log_probs(scaled), self.targets[None, :, None], axis=-1, mode="fill")
        average = _numerics.log_mean_exp(chosen[..., 0])
        return -jnp.sum(jnp.where(self.weights > 0, self.weights * average, 0.0))

    def mean(self, values: Array) -> Array:
        """Weighted mean of ``[S, M, C]`` over draws and examples."""
        return jnp.einsum("m,smc->c", self.weights, values, precision="highest") / values.shape[0]


def _compiled_fit(
    solve: Callable[[_Problem], PyTree], identity: Callable[[int, Any], PyTree]
) -> Callable[..., PyTree]:
    @jax.jit
    def compiled(logits: Array, targets: Array, weights: Array | None) -> PyTree:
        problem = _problem(*jax.lax.stop_gradient((_numerics.as_float(logits), targets, weights)))
        at_rest = identity(logits.shape[-1], problem.logits.dtype)
        sound = jnp.isfinite(problem.loss(problem.logits))
        anything = jnp.any(problem.weights > 0)

        def finish(found: Array, neutral: Array) -> Array:
            return jnp.where(anything, jnp.where(sound, found, jnp.nan), neutral)

        return jax.tree.map(finish, solve(problem), at_rest)

    def fit(logits: Array, targets: Array, weights: Array | None = None) -> PyTree:
        return compiled(*_fitting(logits, targets, weights))

    return fit


def _fitting(logits: Any, targets: Any, weights: Any) -> tuple[Array, Array, Array | None]:
    """Refuses what does not fit together."""
    if isinstance(logits, list | tuple | dict) or logits is None:
        raise ValueError(f"logits is a {type(logits).__name__}, but one array [S, N, …, C] or [N, …, C] is needed")
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.ndim < 1:
        raise ValueError(f"targets {targets.dtype}{targets.shape} must be integer classes [N, …]: convert them")
    draws = logits.ndim - targets.ndim - 1
    if draws not in (0, 1) or logits.shape[draws:-1] != targets.shape or 0 in (logits.shape[-1], *logits.shape[:draws]):
        raise ValueError(
            f"logits of shape {logits.shape} do not fit targets of shape {targets.shape}: pass [S, N, …, C] or "
            "[N, …, C] beside [N, …]"
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits has shape {logits.shape} with a single class: turn sigmoid outputs into two with "
            "heuristics.binary_logits"
        )
    if _checks.is_concrete(targets) and targets.size and (largest := np.asarray(targets).max()) >= logits.shape[-1]:
        raise ValueError(f"targets holds class {largest}, but logits has {logits.shape[-1]}: −1 stands for unknown")
    if weights is None:
        return logits, targets, None
    weights = jnp.asarray(weights)
    if weights.ndim < 1 or weights.shape != targets.shape[: weights.ndim]:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit targets of shape {targets.shape}: pass [N, …], or its "
            "leading axes"
        )
    if _checks.is_concrete(weights) and not (np.isfinite(floats := np.asarray(weights, float)) & (floats >= 0)).all():
        raise ValueError("weights holds a negative number, NaN or infinity: zero leaves a position out")
    return logits, targets, weights


def _problem(logits: Array, targets: Array, weights: Array | None) -> _Problem:
    logits = logits if logits.ndim == targets.ndim + 2 else logits[None]
    given = jnp.ones(targets.shape, logits.dtype) if weights is None else weights.astype(logits.dtype)
    given = jnp.broadcast_to(given.reshape(given.shape + (1,) * (targets.ndim - given.ndim)), targets.shape).ravel()
    logits, targets = logits.reshape(logits.shape[0], -1, logits.shape[-1]), targets.ravel().astype(jnp.int32)
    counts = (targets >= 0) & (given > 0)
    targets = jnp.where(counts, targets, 0)
    chosen = jnp.take_along_axis(logits, targets[None, :, None], axis=-1, mode="fill")[..., 0]
    counts &= ~jnp.all(jnp.isneginf(chosen), axis=0)
    given = jnp.where(counts, given, 0.0)
    total = jnp.sum(given)
    weights = jnp.where(total > 0, given / jnp.where(total > 0, total, 1.0), 0.0)
    return _Problem(jnp.where(counts[None, :, None], logits, 0.0), jnp.where(counts, targets, 0), weights)


def _log_temperature(problem: _Problem, penalty: float, bounds: tuple[float, float]) -> Array:
    """The best point of a grid, and bisection of the slope beside it."""
    log_p = _numerics.log_probs(problem.logits)

    def objective(log_t: Array) -> Array:
        return problem.loss(log_p * jnp.exp(-log_t)) + penalty * log_t**2

    low, high = np.log(bounds)
    grid = jnp.linspace(low, high, _GRID, dtype=log_p.dtype)
    values = jax.lax.map(objective, grid)
    # Of points that are as good as the best, the one nearest to the identity.
    best = jnp.argmin(jnp.where(values <= jnp.min(values) + _FLAT, jnp.abs(grid), jnp.inf))
    here, slope = grid[best], jax.grad(objective)
    uphill = slope(here) > 0
    left = jnp.where(uphill, grid[jnp.maximum(best - 1, 0)], here)
    right = jnp.where(uphill, here, grid[jnp.minimum(best + 1, _GRID - 1)])

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = 0.5 * (left + right)
        uphill = slope(middle) > 0
        return jnp.where(uphill, left, middle), jnp.where(uphill, middle, right)

    left, right = jax.lax.fori_loop(0, _HALVINGS, halve, (left, right))
    found, rest = 0.5 * (left + right), jnp.clip(jnp.zeros_like(here), low, high)
    candidates = jnp.stack([rest, found, here])
    # Rounding decides between equals, so a change has to be worth it.
    worth = jnp.array([0.0, 0.1 * _FLAT, 0.2 * _FLAT], log_p.dtype)
    return candidates[jnp.argmin(jax.lax.map(objective, candidates) + worth)]


def _fit_affine(
    problem: _Problem, features: Array, diagonal: float, off_diagonal: float | None, offset: float
) -> tuple[Array, Array]:
    """Weights (``[C]`` without an off-diagonal penalty, else ``[C, C]``) and offsets ``[C]`` of the smallest objective.

    The search starts at a temperature and runs in coordinates in which the curvature there is about one, so that
    neither the scale of the logits nor their correlation matters.
    """
    features, impossible = _split_impossible(features)
    num_classes, dtype = features.shape[-1], features.dtype
    eye = jnp.eye(num_classes, dtype=dtype)
    num_pairs = num_classes * (num_classes - 1)

    def scaled(weight: Array, shift: Array) -> Array:
        return jnp.where(impossible, -jnp.inf, _affine(weight, shift, features))

    def objective(weight: Array, shift: Array) -> Array:
        own = jnp.diagonal(weight) if weight.ndim == 2 else weight
        value = problem.loss(scaled(weight, shift))
        value += diagonal * jnp.mean((own - 1.0) ** 2) + offset * jnp.mean(shift**2)
        if off_diagonal is not None:
            value += off_diagonal / num_pairs * jnp.sum((weight * (1.0 - eye)) ** 2)
        return value

    def start_at(scale: Array) -> Array:
        return jnp.broadcast_to(scale, num_classes) if off_diagonal is None else scale * eye

    shift0 = jnp.zeros(num_classes, dtype)
    scales = jnp.stack([jnp.ones((), dtype), jnp.exp(-_log_temperature(problem, 0.0, _BOUNDS))])
    scale0 = scales[jnp.argmin(jax.lax.map(lambda scale: objective(start_at(scale), shift0), scales))]
    weight0 = start_at(scale0)

    p = jnp.exp(_numerics.log_probs(scaled(weight0, shift0)))
    curvature = jnp.maximum(problem.mean(p * (1.0 - p)), 1e-4)
    centre = problem.mean(features)
    around = features - centre[None, None]
    size = jnp.mean(centre**2) + jnp.max(problem.mean(around**2))
    least = 1e-5 * size + 1e-12  # of a variance, that rounding could be mistaken for
    unit = jax.lax.rsqrt(curvature * (problem.mean(around**2) + least) + 2.0 * diagonal / num_classes)
    unit_shift = jax.lax.rsqrt(curvature + 2.0 * offset / num_classes)
    basis, unit_off = eye, jnp.ones_like(eye)
    if off_diagonal is not None:
        covariance = jnp.einsum("m,smi,smj->ij", problem.weights, around, around, precision="highest")
        values, basis = jnp.linalg.eigh(covariance / features.shape[0])
        spread = curvature[:, None] * (jnp.maximum(values, 0.0) + least)[None]
        unit_off = jax.lax.rsqrt(spread + 2.0 * off_diagonal / num_pairs)

    def build(x: Array) -> tuple[Array, Array]:
        change = x[0] * unit
        if off_diagonal is None:
            return weight0 + change, x[1] * unit_shift - change * centre
        off = jnp.matmul(x[2:] * unit_off, basis.T, precision="highest")
        change = off * (1.0 - eye) + change[:, None] * eye
        return weight0 + change, x[1] * unit_shift - jnp.matmul(change, centre, precision="highest")

    rows = 2 if off_diagonal is None else 2 + num_classes
    found = _descend(lambda x: objective(*build(x)), jnp.zeros((rows, num_classes), dtype))
    return build(found)


class _Descent(NamedTuple):
    """Where L-BFGS stands."""

    x: Array
    state: Any
    best: Array
    best_x: Array
    stalled: Array  # steps in a row without progress
    steps: Array
    steepest: Array  # largest entry of the gradient


def _descend(objective: Callable[[Array], Array], start: Array) -> Array:
    """L-BFGS until the gradient is small or the objective falls no more; returns the best point seen."""
    import optax

    solver = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(now: _Descent) -> _Descent:
        value, gradient = value_and_grad(now.x, state=now.state)
        updates, state = solver.update(gradient, now.state, now.x, value=value, grad=gradient, value_fn=objective)
        x = optax.apply_updates(now.x, updates)
        new = optax.tree.get(state, "value")
        progress = new < now.best - 1e-7 * (1.0 + jnp.abs(now.best))
        better = new < now.best
        return _Descent(
            x,
            state,
            jnp.where(better, new, now.best),
            jnp.where(better, x, now.best_x),
            jnp.where(progress, 0, now.stalled + 1),
            now.steps + 1,
            jnp.max(jnp.abs(optax.tree.get(state, "grad"))),
        )

    def unfinished(now: _Descent) -> Array:
        return (now.steps < _MOST_STEPS) & (now.stalled < _PATIENCE) & (now.steepest > _LEAST_GRADIENT)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and integer counts
        value, gradient = jax.value_and_grad(objective)(start)
        nought = jnp.zeros((), jnp.int32)
        first = _Descent(start, solver.init(start), value, start, nought, nought, jnp.max(jnp.abs(gradient)))
        return jax.lax.while_loop(unfinished, step, first).best_x
