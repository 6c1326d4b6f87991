"""The optimum of a calibration: the negative log-likelihood to minimise, and the searches that find its minimum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax._util import linalg, numerics

BOUNDS = (1e-6, 1e6)
_GRID, _HALVINGS = 33, 24
_PRIOR = 32.0  # 1 / (2 σ²), σ = 1/8: of log T, and of what a weight or an offset adds to a logit, in nats
_FLAT = 1e-6  # nats: losses this close are equal
_HOPELESS = 1e8  # nats below the largest logit: what a mask is, and no temperature in BOUNDS makes likely
_MOST_STEPS, _PATIENCE, _LEAST_GRADIENT = 2000, 40, 1e-6


class AffineParams(NamedTuple):
    """Parameters of :func:`vector` and :func:`dirichlet`.

    Attributes:
        weight: ``float32[C]``, ``w``, or ``float32[C, C]``, ``W``, whose rows are the classes that come out.
        offset: ``float32[C]``, ``b``.
    """

    weight: Array
    offset: Array


class Problem(NamedTuple):
    """What a scaling is fitted to: logits ``[S, M, C]``, targets ``int32[M]``, weights ``[M]`` that sum to one or 0."""

    logits: Array
    targets: Array
    weights: Array
    prior: Array  # weight of a Gaussian in the mean over the examples that count

    def loss(self, scaled: Array) -> Array:
        chosen = jnp.take_along_axis(numerics.log_probs(scaled), self.targets[None, :, None], axis=-1, mode="fill")
        return -jnp.sum(jnp.where(self.weights > 0, self.weights * numerics.log_mean_exp(chosen[..., 0]), 0.0))

    def mean(self, values: Array) -> Array:
        """Weighted mean of ``[S, M, C]`` over draws and examples."""
        return jnp.einsum("m,smc->c", self.weights, values, precision="highest") / values.shape[0]


def make_problem(logits: Array, targets: Array, weights: Array | None) -> Problem:
    """Flat examples, of which those that no scaling can change weigh nothing."""
    logits = logits if logits.ndim == targets.ndim + 2 else logits[None]
    given = jnp.ones(targets.shape, logits.dtype) if weights is None else weights.astype(logits.dtype)
    given = jnp.broadcast_to(given.reshape(given.shape + (1,) * (targets.ndim - given.ndim)), targets.shape).ravel()
    positions = math.prod(targets.shape[1:])  # of a map, far from independent: together they count as one example
    logits, targets = logits.reshape(logits.shape[0], -1, logits.shape[-1]), targets.ravel().astype(jnp.int32)
    counts = (targets >= 0) & (given > 0)
    _, impossible = split_impossible(logits)
    # A target of C or more counts, and makes the loss NaN.
    hopeless = jnp.take_along_axis(impossible, targets[None, :, None], axis=-1, mode="fill", fill_value=False)
    counts &= ~jnp.all(hopeless[..., 0], axis=0)
    given = jnp.where(counts, given, 0.0)
    total = jnp.sum(given)
    total = jnp.where(total > 0, total, 1.0)
    logits, targets = jnp.where(counts[None, :, None], logits, 0.0), jnp.where(counts, targets, 0)
    return Problem(logits, targets, given / total, _PRIOR * positions / total)


def fit_temperature(problem: Problem, penalty: float | Array | None, bounds: tuple[float, float]) -> Array:
    """``log T`` of the smallest objective: the best point of a grid, and bisection of the slope beside it."""
    # A penalty that is None is that of a Gaussian, and then the change is shrunk. A grid, as with several draws the
    # loss has local minima; bisection, as the sign of a slope is still right where rounding hides what the loss gains.
    log_p, impossible = split_impossible(numerics.log_probs(problem.logits))
    price = problem.prior if penalty is None else penalty
    # −inf · (1/T) has no slope in T.
    loss = lambda log_t: problem.loss(jnp.where(impossible, -jnp.inf, log_p * jnp.exp(-log_t)))  # noqa: E731
    objective = lambda log_t: loss(log_t) + price * log_t**2  # noqa: E731
    low, high = np.log(bounds).tolist()
    grid = jnp.linspace(low, high, _GRID, dtype=log_p.dtype)
    values = jax.lax.map(objective, grid)
    # Of points that are as good as the best, the one nearest to the identity.
    best = jnp.argmin(jnp.where(values <= jnp.min(values) + _FLAT, jnp.abs(grid), jnp.inf))
    here, slope = grid[best], jax.grad(objective)
    uphill = slope(here) > 0
    left = jnp.where(uphill, grid[jnp.maximum(best - 1, 0)], here)
    right = jnp.where(uphill, here, grid[jnp.minimum(best + 1, _GRID - 1)])
    flat = numerics.bisect(lambda log_t: slope(log_t) > 0, (left, right), _HALVINGS)
    candidates = jnp.stack([jnp.clip(jnp.zeros_like(here), low, high), flat, here])
    # Rounding decides between equals, so a change has to be worth it.
    worth = jnp.array([0.0, 0.1 * _FLAT, 0.2 * _FLAT], log_p.dtype)
    log_t = candidates[jnp.argmin(jax.lax.map(objective, candidates) + worth)]
    return log_t if penalty is not None else jnp.clip(log_t * kept(problem, loss(0.0), loss(log_t)), low, high)


def kept(problem: Problem, before: Array, after: Array) -> Array:
    """Which part of a change to keep whose loss was ``before`` and is ``after``: ``max(0, 1 − 1 / (2 gain))``."""
    # The gain is that of all examples, less half a nat: what noise gives one free number (Wilks; James, Stein).
    gain = (before - after) * _PRIOR / problem.prior
    return jnp.where(gain > 0.5, 1.0 - 0.5 / jnp.where(gain > 0.5, gain, 1.0), 0.0)


def gains(problem: Problem, scaled: Callable[[Array], Array]) -> Array:
    return problem.loss(scaled(problem.logits)) < problem.loss(problem.logits)


def fit_affine(problem: Problem, is_matrix: bool, diagonal: Any, off_diagonal: Any, offset: Any) -> AffineParams:
    """Weight (``[C, C]`` or its diagonal ``[C]``) and offset ``[C]`` of the smallest objective."""
    # Penalties that are None are those of a Gaussian, and then the change is shrunk. Classes that were not seen stay as
    # they are. The search starts at a temperature (with several draws, where there are local minima, at the identity as
    # well), in coordinates in which the curvature there is about one, whatever the scale and correlation of the logits.
    features, impossible = split_impossible(problem.logits)
    num_classes, dtype = features.shape[-1], features.dtype
    eye = jnp.eye(num_classes, dtype=dtype)
    num_pairs = num_classes * (num_classes - 1)
    seen = jnp.zeros(num_classes, bool).at[problem.targets].max(problem.weights > 0, mode="drop")
    # In proportion to the square of the features, so that it is the change of a logit that has a standard deviation.
    own_prior = problem.prior * jnp.maximum(problem.mean(features**2), 1.0)
    own_price = own_prior if diagonal is None else jnp.full(num_classes, diagonal / num_classes, dtype)
    off_prior = own_prior * (num_classes - 1)  # they share what the class itself has
    off_price = off_prior if off_diagonal is None else jnp.full(num_classes, off_diagonal / num_pairs, dtype)
    offset_price = problem.prior if offset is None else offset / num_classes
    scale_all = jnp.exp(-fit_temperature(problem, problem.prior if diagonal is None else 0.0, BOUNDS))
    # A temperature of some classes alone would move them against the others.
    middle = jnp.where(jnp.all(seen), scale_all, 1.0) if diagonal is None else 1.0
    scaled = lambda params: jnp.where(impossible, -jnp.inf, affine(params, features))  # noqa: E731

    def objective(params: AffineParams) -> Array:
        weight, shift = params
        own = jnp.diagonal(weight) if weight.ndim == 2 else weight
        value = problem.loss(scaled(params))
        value += jnp.sum(jnp.where(seen, own_price * (own - middle) ** 2, 0.0)) + offset_price * jnp.sum(shift**2)
        return value + jnp.sum(off_price[None] * (weight * (1.0 - eye)) ** 2) if is_matrix else value

    def of_seen(weight: Array, shift: Array) -> AffineParams:
        weight = jnp.where(seen[:, None], weight, eye) if is_matrix else jnp.where(seen, weight, 1.0)
        return AffineParams(weight, jnp.where(seen, shift, 0.0))

    start_at = lambda scale: of_seen(scale * eye if is_matrix else scale, jnp.zeros((), dtype))  # noqa: E731

    def descend_from(scale: Array) -> tuple[Array, AffineParams]:
        start = start_at(scale)
        # The second derivative of the loss in the logit of a class is p (1 − p); moving a weight moves the logits by
        # the feature, so its curvature is that times the variance. A unit is one over the root of a curvature.
        p = jnp.exp(numerics.log_probs(scaled(start)))
        curvature = jnp.maximum(problem.mean(p * (1.0 - p)), 1e-4)
        # Weights turn about the centre of the features, or they would be at odds with the offsets; the offset that
        # takes the centre back has a price, the curvature of its penalty.
        price = 2.0 * offset_price
        unit = jax.lax.rsqrt(curvature * variance + 2.0 * own_price + price * centre**2)
        # All weights together have a coordinate of their own, the temperature: one by one they would get there slowly.
        # It moves each class by its centre, of which only the differences matter.
        apart = centre - jnp.mean(centre)
        unit_all = jax.lax.rsqrt(jnp.sum(curvature * variance + 2.0 * own_price) + price * jnp.sum(apart**2))
        # Rows of the matrix see the features through their principal axes, which are uncorrelated.
        drift = jnp.matmul(centre / deviation, basis, precision="highest")
        spread = curvature[:, None] * spectrum[None] + price * drift[None] ** 2

        def build(x: Array) -> AffineParams:
            change, together = x[0] * unit, x[1, 0] * unit_all
            shift = x[2] * jax.lax.rsqrt(curvature + price) - together * apart
            if not is_matrix:
                return of_seen(start.weight + together + change, shift - change * centre)
            stiff = jnp.matmul(2.0 * off_price / variance, basis**2, precision="highest")
            unit_off = jax.lax.rsqrt(spread + stiff[None])
            off = jnp.matmul(x[3:] * unit_off, basis.T, precision="highest") / deviation[None]
            change = off * (1.0 - eye) + change[:, None] * eye
            shift -= jnp.matmul(change, centre, precision="highest")
            return of_seen(start.weight + together * eye + change, shift)

        zeros = jnp.zeros((3 + num_classes if is_matrix else 3, num_classes), dtype)
        params = build(_descend(lambda x: objective(build(x)), zeros))
        return objective(params), params

    centre = problem.mean(features)
    around = features - centre[None, None]
    variance = problem.mean(around**2)
    # Each class has a floor of its own, of what rounding could be mistaken for: one may stand at −1e6 in all examples.
    variance = variance + 1e-8 * (centre**2 + variance) + 1e-12
    deviation = jnp.sqrt(variance)
    spectrum, basis = jnp.ones_like(variance), eye
    if is_matrix:
        around = around / deviation[None, None]
        correlation = jnp.einsum("m,smi,smj->ij", problem.weights, around, around, precision="highest")
        spectrum, basis = linalg.eigh(correlation / features.shape[0])
        spectrum = jnp.maximum(spectrum, 0.0) + 1e-5
    scales = jnp.stack([jnp.ones((), dtype), scale_all])
    if features.shape[0] == 1:  # convex: one start will do
        values = jax.lax.map(lambda scale: objective(start_at(scale)), scales)
        params = descend_from(scales[jnp.argmin(values)])[1]
    else:
        values, each = jax.lax.map(descend_from, scales)
        params = jax.tree.map(lambda leaf: leaf[jnp.argmin(values)], each)
    if diagonal is not None:
        return params
    none = start_at(jnp.ones((), dtype))
    part = kept(problem, problem.loss(scaled(none)), problem.loss(scaled(params)))
    return jax.tree.map(lambda old, new: old + part * (new - old), none, params)


def affine(params: AffineParams, features: Array) -> Array:
    """``W x + b`` on the last axis; a weight ``[C]`` is a diagonal."""
    weight, offset = (leaf.astype(features.dtype) for leaf in params)
    shape = (1,) * (features.ndim - 1) + offset.shape
    if weight.ndim == 1:
        return features * weight.reshape(shape) + offset.reshape(shape)
    return jnp.matmul(features, weight.T, precision="highest") + offset.reshape(shape)


def split_impossible(logits: Array) -> tuple[Array, Array]:
    """Logits, with 0 for those that no scaling makes likely, and which these are."""
    impossible = jnp.isneginf(logits) | (logits < jnp.max(logits, axis=-1, keepdims=True) - _HOPELESS)
    return jnp.where(impossible, 0.0, logits), impossible


def _descend(objective: Callable[[Array], Array], start: Array) -> Array:
    """L-BFGS until the gradient is small or the objective falls no more; returns the best point seen."""
    # Near the optimum float32 rounds the objective up and down from step to step, so a descent ends only after many
    # steps in a row without progress, and the last point need not be the best one.
    import optax  # heavy, and not needed to import the package

    solver = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple) -> tuple:
        x, state, best, best_x, stalled, steps, _ = carry
        value, gradient = value_and_grad(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=objective)
        x: Any = optax.apply_updates(x, updates)
        new = optax.tree.get(state, "value")
        stalled = jnp.where(new < best - 1e-7 * (1.0 + jnp.abs(best)), 0, stalled + 1)
        best, best_x = jnp.where(new < best, new, best), jnp.where(new < best, x, best_x)
        return x, state, best, best_x, stalled, steps + 1, jnp.max(jnp.abs(optax.tree.get(state, "grad")))

    def unfinished(carry: tuple) -> Array:
        *_, stalled, steps, steepest = carry
        return (steps < _MOST_STEPS) & (stalled < _PATIENCE) & (steepest > _LEAST_GRADIENT)

    with jax.numpy_dtype_promotion("standard"):  # optax mixes Python floats and integer counts
        value, gradient = jax.value_and_grad(objective)(start)
        nought = jnp.zeros((), jnp.int32)
        first = start, solver.init(start), value, start, nought, nought, jnp.max(jnp.abs(gradient))
        return jax.lax.while_loop(unfinished, step, first)[3]
