"""Bayesian multinomial logistic regression on fixed features: convex, with a Gaussian around its only optimum."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg

from baal_jax._util import checks, linalg, numerics
from baal_jax.posteriors import _gauss_newton
from baal_jax.posteriors._gauss_newton import product
from baal_jax.training import tasks
from baal_jax.typing import Array, Dataset, Key, Posterior, PyTree, short

_MOST_WEIGHTS = 1024  # of an exact Hessian: 4 MiB, and a Cholesky factor of some milliseconds
_ROWS = 128  # labelled rows in work at a time
_MOST_STEPS = 100
_RANGE = 2.0**16  # prior precisions lie within this factor of 1
_GAIN = 0.01  # nats, less of which are no reason to change the prior


class LogisticState(NamedTuple):
    """The likeliest weights of a logistic regression and the Gaussian around them.

    Attributes:
        weights: ``[D + 1, C]``, the mean; the last row is that of the constant. Classes add up to 0.
        factors: ``(L,)`` with ``L Lᵀ`` the precision of the ``(D + 1)(C − 1)`` contrasts of classes; of more than 1,024
            ``(eigenvalues [D + 1, C − 1], left, right)`` of the Kronecker-factored Hessian; empty in point estimates.
        prior_precision: ``τ``.
        log_evidence: log marginal likelihood of the labels, in nats, by Laplace's approximation.
    """

    weights: Array
    factors: tuple[Array, ...]
    prior_precision: Array
    log_evidence: Array

    __repr__ = short


class _Rows(NamedTuple):
    """Labelled rows, whose ids come first."""

    inputs: Array
    targets: Array
    ids: Array
    count: Array
    bias: Array


class _Newton(NamedTuple):
    weights: Array  # [P, K]
    value: Array
    step: Array
    length: Array
    size: Array  # of what is left to go
    factors: tuple[Array, ...]
    turn: Array


class _Fit(NamedTuple):
    weights: Array
    factors: tuple[Array, ...]
    precision: Array
    evidence: Array


def logistic_regression(
    num_classes: int | None = None,
    *,
    prior_precision: float | Literal["evidence"] = "evidence",
    bias: float = 1.0,
    point_estimate: bool = False,
) -> Posterior:
    r"""Bayesian multinomial logistic regression on fixed features, such as embeddings; there is no network.

    .. math:: W_* = \arg\min_W \sum_{n\ \text{labelled}} -\log \operatorname{softmax}(W^\top \tilde x_n)_{y_n}
              + \tfrac\tau2 \|W\|^2, \qquad q(W) = \mathcal N\bigl(W_*, (H + \tau I)^{-1}\bigr)

    with :math:`\tilde x = (x, b)`, a constant ``b = bias`` beside the features, whose weights are penalised like all
    others (a larger ``bias`` penalises them less), and the Hessian ``H`` of the first term at the optimum. So it is
    scikit-learn's ``LogisticRegression(C=1 / τ, fit_intercept=False)`` on features with that column. The problem is
    convex, and Newton's method with halved steps ends at its only optimum, on separable data too. Features should be
    of the order of 1, since the prior is the same for all. A fit costs by the labels, not by the pool, and starts from
    the weights of the round before. What a draw adds to all logits alike, which no probability knows of, is left out.

    With ``"evidence"`` the prior precision is the power of 2 that a climb from the one of the round before (at first 1)
    ends at, where neither half nor double has a marginal likelihood that is larger by .01 nats,

    .. math:: \log p(y) \approx \log p(y \mid W_*) - \tfrac\tau2 \|W_*\|^2 - \tfrac12 \log\det\bigl(I + H / \tau\bigr).

    Up to 1,024 weights, ``(D + 1)(C − 1)``, ``H`` is exact. Beyond, steps are found by conjugate gradients, with the
    bound :math:`\Lambda \preceq \tfrac12 I` on the curvature of every example as preconditioner, and the Gaussian is
    Kronecker-factored: :math:`H \approx X^\top X \otimes \bar\Lambda`.

    Args:
        num_classes: ``C``; None reads it off the targets, the largest one plus 1, which have to be concrete then.
        prior_precision: ``τ``, or ``"evidence"``.
        bias: value of the constant column, at least 0; 0 leaves it without effect.
        point_estimate: whether the only draw is ``W_*``: ordinary logistic regression.

    Returns:
        A :class:`~baal_jax.Posterior` of classification, whose state is a :class:`LogisticState` and whose draws are
        weights ``[D + 1, C]``. Inputs ``[N, …]`` are flattened to ``[N, D]``. Without labels, ``τ`` is 1 where it is
        not given, and draws are the prior's. Unknown targets (−1) do not count; classes beyond ``num_classes`` give NaN
        in compiled code. Not differentiable in reverse mode.

    Raises:
        ValueError: an argument is out of its range; in ``fit``, targets are no classes ``int[N]``, or ``num_classes``
            is not given and they are traced, or all unknown.

    References:
        Böhning, `Multinomial logistic regression algorithm <https://doi.org/10.1007/BF00048682>`_, 1992; MacKay, `The
        evidence framework applied to classification networks <https://doi.org/10.1162/neco.1992.4.5.720>`_, 1992.

    Example:
        >>> import baal_jax as baal
        >>> posterior = baal.posteriors.logistic_regression()
        >>> train = baal.Dataset(jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1]))
        >>> state = posterior.fit(jax.random.key(0), train, jnp.array([True, False, True, True]))
        >>> logits = baal.predict(jax.random.key(1), posterior, state, train.inputs, num_samples=5)
        >>> logits.shape, jnp.argmax(train.inputs @ state.weights[:-1] + state.weights[-1], axis=1).tolist()
        ((5, 4, 2), [0, 0, 1, 1])
    """
    given = None if num_classes is None else checks.positive_int("num_classes", num_classes, 2)
    precision = None if prior_precision == "evidence" else checks.positive_float("prior_precision", prior_precision)
    bias = checks.finite_float("bias", bias, 0.0)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled_fit(size: int, dataset: Dataset, labelled: Array, previous: LogisticState | None) -> LogisticState:
        targets = jnp.asarray(dataset.targets)
        known = labelled & (targets >= 0)
        ids = jnp.flatnonzero(known, size=known.shape[0], fill_value=0).astype(jnp.int32)
        inputs = jnp.asarray(dataset.inputs)
        kind = numerics.as_float(inputs[:1]).dtype
        rows = _Rows(inputs, targets, ids, jnp.sum(known, dtype=jnp.int32), jnp.asarray(bias, kind))
        contrasts = jnp.asarray(_contrasts(size), kind)
        start, first = jnp.zeros((inputs[0].size + 1, size - 1), kind), jnp.ones((), kind)
        if previous is not None:
            start, before = product(previous.weights, contrasts), previous.prior_precision
            first = jnp.where((before > 0) & (rows.count > 0), before, first)
        first = first if precision is None else jnp.asarray(precision, kind)
        fitted = _climb(rows, contrasts, start, first, precision is None)
        weights = product(fitted.weights, contrasts.T)
        weights = jnp.where(jnp.any(known & (targets >= size)), jnp.nan, weights)
        return LogisticState(weights, () if point_estimate else fitted.factors, fitted.precision, fitted.evidence)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: LogisticState | None = None) -> LogisticState:
        inputs, targets = dataset
        if not hasattr(inputs, "ndim") or inputs.ndim < 2:
            raise ValueError(f"inputs are {jax.tree.map(jnp.shape, inputs)}: pass one array of features [N, D]")
        if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != inputs.shape[:1]:
            raise ValueError(f"targets are {targets.dtype}{targets.shape}: pass integer classes [{len(inputs)}]")
        size = previous.weights.shape[-1] if given is None and previous is not None else given
        if size is None and checks.is_concrete(targets) and not isinstance(targets, jax.ShapeDtypeStruct):
            size = int(np.max(np.asarray(targets))) + 1
            size = None if size < 1 else max(size, 2)
        if size is None:
            raise ValueError("num_classes=None, but the targets are traced or all unknown: pass num_classes=")
        return compiled_fit(size, dataset, labelled, previous)

    def sample(key: Key, state: LogisticState, num_samples: int) -> Array:
        if point_estimate:
            return jnp.broadcast_to(state.weights, (num_samples, *state.weights.shape))
        count, size = state.weights.shape
        shape, kind = (count, size - 1), state.weights.dtype
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, kind))(jax.random.split(key, num_samples))
        if len(state.factors) == 1:
            flat = noise.reshape(num_samples, -1).T
            noise = linalg.solve_triangular(state.factors[0], flat, lower=True, trans="T").T.reshape(noise.shape)
        else:
            values, *basis = state.factors
            spread = jax.lax.rsqrt(values + state.prior_precision)
            noise = jax.vmap(lambda noise: _gauss_newton.multiply(tuple(basis), spread, noise))(noise)
        return state.weights[None] + product(noise, jnp.asarray(_contrasts(size), kind).T)

    def apply(state: LogisticState, draw: Array, inputs: PyTree) -> Array:
        del state
        flat = numerics.as_float(inputs).reshape(inputs.shape[0], -1).astype(draw.dtype)
        return product(flat, draw[:-1]) + jnp.asarray(bias, draw.dtype) * draw[-1:]

    posterior = tasks.guarded(fit, sample, apply, tasks.classification)
    return posterior._replace(num_draws=1) if point_estimate else posterior


def _contrasts(size: int) -> np.ndarray:
    """Orthonormal columns ``[C, C − 1]`` that add up to 0 (Helmert): softmax does not see what else there is."""
    columns = np.triu(np.ones((size, size - 1))) - np.diag(np.arange(1.0, size), -1)[:, : size - 1]
    return columns / np.linalg.norm(columns, axis=0)


def _climb(rows: _Rows, contrasts: Array, start: Array, first: Array, climbs: bool) -> _Fit:
    """The optimum at the precision ``first``, or at the best one that doubling and halving lead to."""
    (count, size), kind, spectrum = start.shape, start.dtype, None
    shapes = [(start.size, start.size)]
    if start.size > _MOST_WEIGHTS:
        spectrum = linalg.eigh(_sum(rows, contrasts, lambda x, _: product(x.T, x)))
        shapes = [(count, size), (count, count), (size, size)]

    def more(carry: tuple[_Fit, Array, Array]) -> Array:
        best, move, turn = carry
        beyond = (best.precision * move > _RANGE) | (best.precision * move * _RANGE < 1.0)
        return (turn == 0) | ((move > 0) & ~beyond & (rows.count > 0) & climbs)

    def trial(carry: tuple[_Fit, Array, Array]) -> tuple[_Fit, Array, Array]:
        best, move, turn = carry
        fitted = _optimum(rows, contrasts, best.weights, best.precision * move, spectrum)
        better = fitted.evidence > best.evidence + _GAIN
        best = jax.tree.map(lambda new, old: jnp.where(better | (turn == 0), new, old), fitted, best)
        # Up first; down where that is no better at once.
        turned = jnp.where(turn == 0, 2.0, jnp.where(better, move, jnp.where(turn == 1, 0.5, 0.0)))
        return best, turned.astype(kind), turn + 1

    begin = _Fit(start, tuple(jnp.zeros(shape, kind) for shape in shapes), first, jnp.full_like(first, -jnp.inf))
    return jax.lax.while_loop(more, trial, (begin, jnp.ones_like(first), jnp.zeros((), jnp.int32)))[0]


def _optimum(rows: _Rows, contrasts: Array, start: Array, precision: Array, spectrum: Any) -> _Fit:
    """Newton's method, with steps that are halved until they lead down."""
    epsilon, unknown = jnp.finfo(start.dtype).eps, jnp.full_like(precision, jnp.inf)
    look = functools.partial(_exact, rows, contrasts, precision)
    if spectrum is not None:
        look = functools.partial(_matrix_free, rows, contrasts, precision, spectrum)

    def more(now: _Newton) -> Array:
        # What is left after a step grows with its square, and the last one is taken unseen.
        least = epsilon**0.5 / 4 * jnp.max(jnp.abs(now.weights))
        return (now.turn < _MOST_STEPS) & (now.size * now.length > least)

    def walk(now: _Newton) -> _Newton:
        trial = now.weights + now.length * now.step
        value, step, factors = look(trial)
        noise = 4 * epsilon * (1.0 + value)
        size = jnp.max(jnp.abs(step))
        down = (value <= now.value + noise) & jnp.isfinite(size)
        # Where nothing but rounding is left, steps become no smaller.
        size = jnp.where((value >= now.value - noise) & (size > now.size / 2), 0.0, size)
        there = _Newton(trial, value, step, jnp.ones_like(value), size, factors, now.turn)
        here = now._replace(length=now.length / 2)
        return jax.tree.map(lambda new, old: jnp.where(down, new, old), there, here)._replace(turn=now.turn + 1)

    shape = (start.size, start.size)
    factors = (jnp.zeros(shape, start.dtype),) if spectrum is None else ()
    begin = _Newton(start, unknown, jnp.zeros_like(start), jnp.ones_like(precision), unknown, factors, jnp.int32(0))
    last = jax.lax.while_loop(more, walk, begin)
    last = last._replace(weights=last.weights + last.length * last.step)
    if spectrum is None:
        half = jnp.sum(jnp.log(jnp.diagonal(last.factors[0]))) - start.size / 2 * jnp.log(precision)
        return _Fit(last.weights, last.factors, precision, -last.value - half)
    pairs = _sum(rows, contrasts, lambda x, y: _pairs(x, y, last.weights, contrasts))
    values, right = linalg.eigh(product(product(contrasts.T, _laplacian(pairs)), contrasts))
    mean = jnp.maximum(values, 0.0) / jnp.maximum(rows.count, 1).astype(values.dtype)
    eigenvalues = jnp.maximum(spectrum[0], 0.0)[:, None] * mean[None]
    evidence = -last.value - jnp.sum(jnp.log1p(eigenvalues / precision)) / 2
    return _Fit(last.weights, (eigenvalues, spectrum[1], right), precision, evidence)


def _exact(rows: _Rows, contrasts: Array, precision: Array, weights: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    """Value, Newton step and the Cholesky factor of the Hessian."""

    def of(x: Array, y: Array) -> tuple[Array, Array, Array]:
        value, slope, p = _likelihood(x, y, weights, contrasts)
        each = (x[:, :, None] * p[:, None, :]).reshape(x.shape[0], -1)
        return value, slope, product(each.T, each)

    value, slope, pairs = _sum(rows, contrasts, of)
    pairs = jnp.moveaxis(pairs.reshape(2 * (weights.shape[0], contrasts.shape[0])), 2, 1)  # [P, P, C, C]
    hessian = product(product(contrasts.T, _laplacian(pairs)), contrasts)
    hessian = jnp.moveaxis(hessian, 2, 1).reshape(weights.size, weights.size)
    # Rounding leaves eigenvalues uncertain by this much, more than the prior where features are large.
    diagonal = precision + weights.size / 8 * jnp.finfo(weights.dtype).eps * jnp.diagonal(hessian)
    factor = linalg.cholesky(hessian + jnp.diag(diagonal))
    slope = (slope + precision * weights).reshape(-1, 1)
    half = linalg.solve_triangular(factor, slope, lower=True)
    step = -linalg.solve_triangular(factor, half, lower=True, trans="T").reshape(weights.shape)
    return value + precision / 2 * jnp.sum(weights**2), step, (factor,)


def _matrix_free(
    rows: _Rows, contrasts: Array, precision: Array, spectrum: tuple[Array, Array], weights: Array
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Value and Newton step, by conjugate gradients."""
    values, vectors = spectrum

    def product_with(change: Array) -> Array:
        def of(x: Array, y: Array) -> Array:
            p = _likelihood(x, y, weights, contrasts)[2]
            moved = product(product(x, change), contrasts.T)
            return product(x.T, product(p * (moved - jnp.sum(p * moved, axis=1, keepdims=True)), contrasts))

        return _sum(rows, contrasts, of) + precision * change

    def bounded(change: Array) -> Array:
        return product(vectors, product(vectors.T, change) / (jnp.maximum(values, 0.0) / 2 + precision)[:, None])

    value, slope = _sum(rows, contrasts, lambda x, y: _likelihood(x, y, weights, contrasts)[:2])
    step = cg(product_with, -slope - precision * weights, tol=1e-2, maxiter=100, M=bounded)[0]
    return value + precision / 2 * jnp.sum(weights**2), step, ()


def _likelihood(x: Array, y: Array, weights: Array, contrasts: Array) -> tuple[Array, Array, Array]:
    """Minus the log-likelihood, its slope ``[P, K]``, and probabilities ``[B, C]``."""
    log_p = jax.nn.log_softmax(product(product(x, weights), contrasts.T))
    p = jnp.exp(log_p)
    others = p * (1.0 - y)  # and not p − 1 for the label, of which little would be left
    slope = product(x.T, product(others - y * jnp.sum(others, axis=1, keepdims=True), contrasts))
    return -jnp.sum(y * log_p), slope, p


def _pairs(x: Array, y: Array, weights: Array, contrasts: Array) -> Array:
    p = _likelihood(x, y, weights, contrasts)[2] * jnp.sum(y, axis=1, keepdims=True)
    return product(p.T, p)


def _laplacian(pairs: Array) -> Array:
    """``diag(p) − p pᵀ [C, C]`` from ``p pᵀ``, whose rows add up to 0 exactly."""
    own = jnp.broadcast_to(jnp.eye(pairs.shape[-1], dtype=bool), pairs.shape)
    off = jnp.where(own, 0.0, pairs)
    return jnp.where(own, jnp.sum(off, axis=-1, keepdims=True), -off)


def _sum(rows: _Rows, contrasts: Array, function: Callable[[Array, Array], Any]) -> Any:
    """Sums ``function(x [B, P], y [B, C])`` over the labelled rows, as many batches as they fill; others are 0."""
    most, size = rows.ids.shape[0], min(_ROWS, rows.ids.shape[0])

    def batch(start: Array) -> Any:
        places = start + jnp.arange(size, dtype=jnp.int32)
        ids = rows.ids[jnp.minimum(places, most - 1)]
        valid = (places < rows.count)[:, None]
        x = rows.inputs[ids].reshape(size, -1).astype(contrasts.dtype)
        x = jnp.concatenate([x, jnp.full((size, 1), rows.bias, x.dtype)], axis=1)
        y = jax.nn.one_hot(rows.targets[ids], contrasts.shape[0], dtype=x.dtype)
        return function(jnp.where(valid, x, 0.0), jnp.where(valid, y, 0.0))

    def more(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        start, total = carry
        return start + size, jax.tree.map(jnp.add, total, batch(start))

    end, start = numerics.largest(rows.count), jnp.zeros((), jnp.int32)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(batch, start))
    return jax.lax.while_loop(lambda carry: carry[0] < end, more, (start, total))[1]
