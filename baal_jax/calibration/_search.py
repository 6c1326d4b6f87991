"""What a scaling is fitted to, and the searches for its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, linalg, numerics
from baal_jax.typing import Array

BOUNDS = (1e-6, 1e6)
_GRID, _HALVINGS = 33, 24
_FLAT = 1e-6  # nats: losses this close are equal
_HOPELESS = 1e8  # nats below the largest logit: what a mask is, and no temperature in BOUNDS makes likely
_MOST_STEPS, _PATIENCE, _LEAST_GRADIENT = 2000, 40, 1e-6


class Problem(NamedTuple):
    """What a scaling is fitted to: logits ``[S, M, C]``, targets ``int32[M]``, weights ``[M]`` that sum to one or 0."""

    logits: Array
    targets: Array
    weights: Array

    def loss(self, scaled: Array) -> Array:
        chosen = jnp.take_along_axis(numerics.log_probs(scaled), self.targets[None, :, None], axis=-1, mode="fill")
        average = numerics.log_mean_exp(chosen[..., 0])
        return -jnp.sum(jnp.where(self.weights > 0, self.weights * average, 0.0))

    def mean(self, values: Array) -> Array:
        """Weighted mean of ``[S, M, C]`` over draws and examples."""
        return jnp.einsum("m,smc->c", self.weights, values, precision="highest") / values.shape[0]


def require_fitting(logits: Any, targets: Any, weights: Any) -> tuple[Array, Array, Array | None]:
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
    if checks.is_concrete(targets) and targets.size and (largest := np.asarray(targets).max()) >= logits.shape[-1]:
        raise ValueError(f"targets holds class {largest}, but logits has {logits.shape[-1]}: −1 stands for unknown")
    if weights is None:
        return logits, targets, None
    weights = jnp.asarray(weights)
    if weights.ndim < 1 or weights.shape != targets.shape[: weights.ndim]:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit targets of shape {targets.shape}: pass [N, …], or its "
            "leading axes"
        )
    if checks.is_concrete(weights) and not (np.isfinite(floats := np.asarray(weights, float)) & (floats >= 0)).all():
        raise ValueError("weights holds a negative number, NaN or infinity: zero leaves a position out")
    return logits, targets, weights


def make_problem(logits: Array, targets: Array, weights: Array | None) -> Problem:
    logits = logits if logits.ndim == targets.ndim + 2 else logits[None]
    given = jnp.ones(targets.shape, logits.dtype) if weights is None else weights.astype(logits.dtype)
    given = jnp.broadcast_to(given.reshape(given.shape + (1,) * (targets.ndim - given.ndim)), targets.shape).ravel()
    logits, targets = logits.reshape(logits.shape[0], -1, logits.shape[-1]), targets.ravel().astype(jnp.int32)
    counts = (targets >= 0) & (given > 0)
    targets = jnp.where(counts, targets, 0)
    _, impossible = split_impossible(logits)
    # A target of C or more counts, and makes the loss NaN.
    hopeless = jnp.take_along_axis(impossible, targets[None, :, None], axis=-1, mode="fill", fill_value=False)
    counts &= ~jnp.all(hopeless[..., 0], axis=0)
    given = jnp.where(counts, given, 0.0)
    total = jnp.sum(given)
    weights = jnp.where(total > 0, given / jnp.where(total > 0, total, 1.0), 0.0)
    return Problem(jnp.where(counts[None, :, None], logits, 0.0), jnp.where(counts, targets, 0), weights)


def log_temperature(problem: Problem, penalty: float, bounds: tuple[float, float]) -> Array:
    """The best point of a grid, and bisection of the slope beside it."""
    log_p, impossible = split_impossible(numerics.log_probs(problem.logits))

    def objective(log_t: Array) -> Array:
        # −inf · (1/T) has no slope in T.
        return problem.loss(jnp.where(impossible, -jnp.inf, log_p * jnp.exp(-log_t))) + penalty * log_t**2

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


def fit_affine(
    problem: Problem, features: Array, diagonal: float, off_diagonal: float | None, offset: float
) -> tuple[Array, Array]:
    """Weights (``[C]`` without an off-diagonal penalty, else ``[C, C]``) and offsets ``[C]`` of the smallest objective.

    The search starts at a temperature (with several draws, where there are local minima, at the identity as well) and
    runs in coordinates in which the curvature there is about one, so that neither the scale of the logits nor their
    correlation matters.
    """
    features, impossible = split_impossible(features)
    num_classes, dtype = features.shape[-1], features.dtype
    eye = jnp.eye(num_classes, dtype=dtype)
    num_pairs = num_classes * (num_classes - 1)

    def scaled(weight: Array, shift: Array) -> Array:
        return jnp.where(impossible, -jnp.inf, affine(weight, shift, features))

    def objective(weight: Array, shift: Array) -> Array:
        own = jnp.diagonal(weight) if weight.ndim == 2 else weight
        value = problem.loss(scaled(weight, shift))
        value += diagonal * jnp.mean((own - 1.0) ** 2) + offset * jnp.mean(shift**2)
        if off_diagonal is not None:
            value += off_diagonal / num_pairs * jnp.sum((weight * (1.0 - eye)) ** 2)
        return value

    def start_at(scale: Array) -> Array:
        return jnp.broadcast_to(scale, num_classes) if off_diagonal is None else scale * eye

    def descend_from(scale: Array) -> tuple[Array, Array, Array]:
        weight0 = start_at(scale)
        p = jnp.exp(numerics.log_probs(scaled(weight0, jnp.zeros(num_classes, dtype))))
        curvature = jnp.maximum(problem.mean(p * (1.0 - p)), 1e-4)
        # A change of a weight moves the centre, and the offset that takes it back has a price.
        price = 2.0 * offset / num_classes
        unit = jax.lax.rsqrt(curvature * variance + 2.0 * diagonal / num_classes + price * centre**2)
        # All weights together move all classes alike, which changes nothing but for how the centres differ.
        apart = centre - jnp.mean(centre)
        unit_all = jax.lax.rsqrt(jnp.sum(curvature * variance) + 2.0 * diagonal + price * jnp.sum(apart**2))
        unit_shift = jax.lax.rsqrt(curvature + price)
        drift = jnp.matmul(centre / deviation, basis, precision="highest")
        spread = curvature[:, None] * spectrum[None] + price * drift[None] ** 2

        def build(x: Array) -> tuple[Array, Array]:
            change, together = x[0] * unit, x[1, 0] * unit_all
            shift = x[2] * unit_shift - together * apart
            if off_diagonal is None:
                return weight0 + together + change, shift - change * centre
            stiff = jnp.matmul(1.0 / variance, basis**2, precision="highest")
            unit_off = jax.lax.rsqrt(spread + 2.0 * off_diagonal / num_pairs * stiff[None])
            off = jnp.matmul(x[3:] * unit_off, basis.T, precision="highest") / deviation[None]
            change = off * (1.0 - eye) + change[:, None] * eye
            return weight0 + together * eye + change, shift - jnp.matmul(change, centre, precision="highest")

        rows = 3 if off_diagonal is None else 3 + num_classes
        found = build(_descend(lambda x: objective(*build(x)), jnp.zeros((rows, num_classes), dtype)))
        return objective(*found), *found

    centre = problem.mean(features)
    around = features - centre[None, None]
    variance = problem.mean(around**2)
    # Each class has a floor of its own, of what rounding could be mistaken for: one may stand at −1e6 in all examples.
    variance = variance + 1e-8 * (centre**2 + variance) + 1e-12
    deviation = jnp.sqrt(variance)
    spectrum, basis = jnp.ones_like(variance), eye
    if off_diagonal is not None:
        around = around / deviation[None, None]
        correlation = jnp.einsum("m,smi,smj->ij", problem.weights, around, around, precision="highest")
        spectrum, basis = linalg.eigh(correlation / features.shape[0])
        spectrum = jnp.maximum(spectrum, 0.0) + 1e-5

    scales = jnp.stack([jnp.ones((), dtype), jnp.exp(-log_temperature(problem, 0.0, BOUNDS))])
    if features.shape[0] == 1:  # convex: one start will do
        values = jax.lax.map(lambda scale: objective(start_at(scale), jnp.zeros(num_classes, dtype)), scales)
        return descend_from(scales[jnp.argmin(values)])[1:]
    values, weights, shifts = jax.lax.map(descend_from, scales)
    best = jnp.argmin(values)
    return weights[best], shifts[best]


def affine(weight: Array, offset: Array, features: Array) -> Array:
    """``W x + b`` on the last axis; a weight ``[C]`` is a diagonal."""
    weight, offset = weight.astype(features.dtype), offset.astype(features.dtype)
    shape = (1,) * (features.ndim - 1) + offset.shape
    if weight.ndim == 1:
        return features * weight.reshape(shape) + offset.reshape(shape)
    return jnp.matmul(features, weight.T, precision="highest") + offset.reshape(shape)


def split_impossible(logits: Array) -> tuple[Array, Array]:
    """Logits, with 0 for those that no scaling makes likely, and which these are."""
    impossible = jnp.isneginf(logits) | (logits < jnp.max(logits, axis=-1, keepdims=True) - _HOPELESS)
    return jnp.where(impossible, 0.0, logits), impossible


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
        x: Any = optax.apply_updates(now.x, updates)
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
