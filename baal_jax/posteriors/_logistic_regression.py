"""Bayesian multinomial logistic regression on fixed features: convex, with a Gaussian around its only optimum."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, linalg, meshes, numerics
from baal_jax.posteriors import _gauss_newton
from baal_jax.training import tasks
from baal_jax.typing import Array, Dataset, Key, Posterior, PyTree, short

product = _gauss_newton.product
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


_Total = Callable[[Callable[[Array, Array], Any]], Any]  # sums a function of labelled rows
_Look = tuple[Array, Array, tuple[Array, ...]]  # value, Newton step and factors


class _Newton(NamedTuple):
    weights: Array  # [P, K] of contrasts, as everywhere inside
    value: Array
    step: Array
    length: Array
    size: Array  # of what is left to go
    factors: tuple[Array, ...]
    turn: Array


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

    with a constant, penalised like all else, beside the features in :math:`\tilde x` and the Hessian ``H`` of the first
    term. It is scikit-learn's ``LogisticRegression(C=1 / τ, fit_intercept=False)`` on that design (of two classes, for
    which that has one vector of weights, ``C=2 / τ``), found by Newton's method at a cost by the labels. Features
    should be of the order of 1. What a draw adds to all logits is left out.

    With ``"evidence"``, :math:`\tau` is the power of 2 that a climb from the one of the round before (at first 1) ends
    at, where neither twice nor half of it has a marginal likelihood that is .01 nats larger,

    .. math:: \log p(y) \approx \log p(y \mid W_*) - \tfrac\tau2 \|W_*\|^2 - \tfrac12 \log\det\bigl(I + H / \tau\bigr).

    Beyond 1,024 weights, ``(D + 1)(C − 1)``, steps come from conjugate gradients, with Böhning's bound on ``H`` as
    preconditioner, and the Gaussian is Kronecker-factored, :math:`H \approx X^\top X \otimes \bar\Lambda`.

    Args:
        num_classes: ``C``; None reads it off the targets, the largest one plus 1, which have to be concrete then.
        prior_precision: ``τ``, or ``"evidence"``.
        bias: value of the constant; the larger, the less its weights are penalised.
        point_estimate: whether the only draw is ``W_*``: ordinary logistic regression.

    Returns:
        A :class:`~baal_jax.Posterior` of classification, whose state is a :class:`LogisticState` and whose draws are
        weights ``[D + 1, C]``. Inputs ``[N, …]`` are flattened. Without labels draws are the prior's. Unknown targets
        (−1) do not count; classes beyond ``num_classes`` give NaN in compiled code. Not differentiable in reverse mode.

    Raises:
        ValueError: an argument is out of its range; in ``fit``, targets are no classes ``int[N]``, or ``num_classes``
            is not given and they are traced, or all unknown.

    References:
        Böhning, `Multinomial logistic regression algorithm <https://doi.org/10.1007/BF00048682>`_, 1992; MacKay, `The
        evidence framework applied to classification networks <https://doi.org/10.1162/neco.1992.4.5.720>`_, 1992.

    Example:
        >>> posterior = baal.posteriors.logistic_regression(num_classes=10)
    """
    given = None if num_classes is None else checks.positive_int("num_classes", num_classes, 2)
    precision = None if prior_precision == "evidence" else checks.positive_float("prior_precision", prior_precision)
    bias = checks.finite_float("bias", bias, 0.0)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled_fit(size: int, dataset: Dataset, labelled: Array, previous: LogisticState | None) -> LogisticState:
        inputs, targets = map(jnp.asarray, dataset)
        known, kind = labelled & (targets >= 0), numerics.as_float(inputs[:1]).dtype
        (ids, num_known), contrasts = numerics.true_rows(known), jnp.asarray(_contrasts(size), kind)
        total = functools.partial(_sum, Dataset(inputs, targets), ids, num_known, bias, contrasts)
        start, first = jnp.zeros((inputs[0].size + 1, size - 1), kind), jnp.asarray(precision or 1.0, kind)
        if previous is not None:
            start, before = product(previous.weights, contrasts), previous.prior_precision
            first = jnp.where((before > 0) & (num_known > 0) & (precision is None), before, first)
        state = _climb(total, contrasts, start, first, (num_known > 0) & (precision is None))
        weights = jnp.where(jnp.any(known & (targets >= size)), jnp.nan, product(state.weights, contrasts.T))
        return state._replace(weights=weights, factors=() if point_estimate else state.factors)

    def fit(key: Key, dataset: Dataset, labelled: Array, previous: LogisticState | None = None) -> LogisticState:
        inputs, targets = dataset
        if not hasattr(inputs, "ndim") or inputs.ndim < 2:
            raise ValueError(f"inputs are {jax.tree.map(jnp.shape, inputs)}: pass one array of features [N, D]")
        if not jnp.issubdtype(targets.dtype, jnp.integer) or targets.shape != inputs.shape[:1]:
            raise ValueError(f"targets are {targets.dtype}{targets.shape}: pass integer classes [{len(inputs)}]")
        size = previous.weights.shape[-1] if given is None and previous is not None else given
        if size is None and checks.is_concrete(targets) and not isinstance(targets, jax.ShapeDtypeStruct):
            size = int(np.max(meshes.on_host(targets))) + 1
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
            noise = _gauss_newton.deviations(state.factors, state.prior_precision, noise)
        return state.weights[None] + product(noise, jnp.asarray(_contrasts(size), kind).T)

    def apply(_: LogisticState, draw: Array, inputs: PyTree) -> Array:
        flat = numerics.as_float(inputs).reshape(inputs.shape[0], -1).astype(draw.dtype)
        return product(flat, draw[:-1]) + jnp.asarray(bias, draw.dtype) * draw[-1:]

    posterior = tasks.guarded(fit, sample, apply, tasks.classification)
    return posterior._replace(num_draws=1) if point_estimate else posterior


def _contrasts(size: int) -> np.ndarray:
    """Orthonormal columns ``[C, C − 1]`` that add up to 0 (Helmert): softmax does not see what else there is."""
    columns = np.triu(np.ones((size, size - 1))) - np.diag(np.arange(1.0, size), -1)[:, : size - 1]
    return columns / np.linalg.norm(columns, axis=0)


def _climb(total: _Total, contrasts: Array, start: Array, first: Array, climbs: Array) -> LogisticState:
    """The optimum at the precision ``first``, or at the best one that doubling and halving lead to."""
    (width, size), kind, spectrum = start.shape, start.dtype, None
    shapes = [(start.size, start.size)]
    if start.size > _MOST_WEIGHTS:
        spectrum = linalg.eigh(total(lambda x, _: product(x.T, x)))
        shapes = [(width, size), (width, width), (size, size)]

    def more(carry: tuple[LogisticState, Array, Array]) -> Array:
        best, move, turn = carry
        there = best.prior_precision * move
        return (turn == 0) | (climbs & (there >= 1 / _RANGE) & (there <= _RANGE))

    def trial(carry: tuple[LogisticState, Array, Array]) -> tuple[LogisticState, Array, Array]:
        best, move, turn = carry
        fitted = _optimum(total, contrasts, best.weights, best.prior_precision * move, spectrum)
        better = fitted.log_evidence > best.log_evidence + _GAIN
        best = jax.tree.map(lambda new, old: jnp.where(better | (turn == 0), new, old), fitted, best)
        # Up first; down where that is no better at once.
        move = jnp.where(turn == 0, 2.0, jnp.where(better, move, jnp.where(turn == 1, 0.5, 0.0)))
        return best, move.astype(kind), turn + 1

    factors = tuple(jnp.zeros(shape, kind) for shape in shapes)
    begin = LogisticState(start, factors, first, jnp.full_like(first, -jnp.inf))
    return jax.lax.while_loop(more, trial, (begin, jnp.ones_like(first), jnp.zeros((), jnp.int32)))[0]


def _optimum(total: _Total, contrasts: Array, start: Array, precision: Array, spectrum: Any) -> LogisticState:
    """Newton's method, with steps that are halved until they lead down."""
    epsilon, unknown = jnp.finfo(start.dtype).eps, jnp.full_like(precision, jnp.inf)
    look = _exact if spectrum is None else functools.partial(_matrix_free, spectrum)

    def more(now: _Newton) -> Array:
        # What is left after a step grows with its square, and the last one is taken unseen.
        return (now.turn < _MOST_STEPS) & (now.size * now.length > epsilon**0.5 / 4 * jnp.max(jnp.abs(now.weights)))

    def walk(now: _Newton) -> _Newton:
        trial = now.weights + now.length * now.step
        value, step, factors = look(total, contrasts, precision, trial)
        noise, size = 4 * epsilon * (1.0 + value), jnp.max(jnp.abs(step))
        down = (value <= now.value + noise) & jnp.isfinite(size)
        # Where nothing but rounding is left, steps become no smaller.
        size = jnp.where((value >= now.value - noise) & (size > now.size / 2), 0.0, size)
        there = _Newton(trial, value, step, jnp.ones_like(value), size, factors, now.turn)
        here = now._replace(length=now.length / 2)
        return jax.tree.map(lambda new, old: jnp.where(down, new, old), there, here)._replace(turn=now.turn + 1)

    factors = (jnp.zeros((start.size, start.size), start.dtype),) if spectrum is None else ()
    begin = _Newton(start, unknown, jnp.zeros_like(start), jnp.ones_like(precision), unknown, factors, jnp.int32(0))
    last = jax.lax.while_loop(more, walk, begin)
    weights, factors = last.weights + last.length * last.step, last.factors
    if spectrum is None:
        half = jnp.sum(jnp.log(jnp.diagonal(factors[0]))) - start.size / 2 * jnp.log(precision)
        return LogisticState(weights, factors, precision, -last.value - half)

    def pairs(x: Array, y: Array) -> tuple[Array, Array]:
        p = _likelihood(x, y, weights, contrasts)[2] * jnp.sum(y, axis=1, keepdims=True)
        return product(p.T, p), jnp.sum(y)

    mean, count = total(pairs)
    values, right = linalg.eigh(product(product(contrasts.T, _laplacian(mean)), contrasts))
    values = jnp.maximum(spectrum[0], 0.0)[:, None] * (jnp.maximum(values, 0.0) / jnp.maximum(count, 1.0))[None]
    half = jnp.sum(jnp.log1p(values / precision)) / 2
    return LogisticState(weights, (values, spectrum[1], right), precision, -last.value - half)


def _exact(total: _Total, contrasts: Array, precision: Array, weights: Array) -> _Look:
    def of(x: Array, y: Array) -> tuple[Array, Array, Array]:
        value, slope, p = _likelihood(x, y, weights, contrasts)
        each = (x[:, :, None] * p[:, None, :]).reshape(x.shape[0], -1)
        return value, slope, product(each.T, each)

    value, slope, pairs = total(of)
    pairs = jnp.moveaxis(pairs.reshape(2 * (weights.shape[0], contrasts.shape[0])), 2, 1)  # [P, P, C, C]
    hessian = jnp.moveaxis(product(product(contrasts.T, _laplacian(pairs)), contrasts), 2, 1)
    hessian = hessian.reshape(weights.size, weights.size)
    # Rounding leaves eigenvalues uncertain by this much, more than the prior where features are large.
    diagonal = precision + weights.size / 8 * jnp.finfo(weights.dtype).eps * jnp.diagonal(hessian)
    factor = linalg.cholesky(hessian + jnp.diag(diagonal))
    half = linalg.solve_triangular(factor, (slope + precision * weights).reshape(-1, 1), lower=True)
    step = -linalg.solve_triangular(factor, half, lower=True, trans="T").reshape(weights.shape)
    return value + precision / 2 * jnp.sum(weights**2), step, (factor,)


def _matrix_free(spectrum: Any, total: _Total, contrasts: Array, precision: Array, weights: Array) -> _Look:
    """Value and Newton step, by conjugate gradients."""
    values, vectors = spectrum

    def hessian(change: Array) -> Array:
        def of(x: Array, y: Array) -> Array:
            p, moved = _likelihood(x, y, weights, contrasts)[2], product(product(x, change), contrasts.T)
            return product(x.T, product(p * (moved - jnp.sum(p * moved, axis=1, keepdims=True)), contrasts))

        return total(of) + precision * change

    from jax.scipy.sparse.linalg import cg  # which takes a tenth of the time that jax takes to load

    divisor = (jnp.maximum(values, 0.0) / 2 + precision)[:, None]
    bound = lambda change: product(vectors, product(vectors.T, change) / divisor)  # noqa: E731
    value, slope = total(lambda x, y: _likelihood(x, y, weights, contrasts)[:2])
    step = cg(hessian, -slope - precision * weights, tol=1e-2, maxiter=100, M=bound)[0]
    return value + precision / 2 * jnp.sum(weights**2), step, ()


def _likelihood(x: Array, y: Array, weights: Array, contrasts: Array) -> tuple[Array, Array, Array]:
    """Minus the log-likelihood, its slope ``[P, K]``, and probabilities ``[B, C]``."""
    log_p = jax.nn.log_softmax(product(product(x, weights), contrasts.T))
    p = jnp.exp(log_p)
    others = p * (1.0 - y)  # and not p − 1 for the label, of which little would be left
    slope = product(x.T, product(others - y * jnp.sum(others, axis=1, keepdims=True), contrasts))
    return -jnp.sum(y * log_p), slope, p


def _laplacian(pairs: Array) -> Array:
    """``diag(p) − p pᵀ [C, C]`` from ``p pᵀ``, whose rows add up to 0 exactly."""
    own = jnp.broadcast_to(jnp.eye(pairs.shape[-1], dtype=bool), pairs.shape)
    off = jnp.where(own, 0.0, pairs)
    return jnp.where(own, jnp.sum(off, axis=-1, keepdims=True), -off)


def _sum(data: Dataset, ids: Callable, count: Array, bias: float, contrasts: Array, function: Callable) -> Any:
    """Sums ``function(x [B, P], y [B, C])`` over the labelled rows, as many batches as they fill; others are 0."""
    size = min(_ROWS, len(data.targets))

    def batch(start: Array) -> Any:
        places = start + jnp.arange(size, dtype=jnp.int32)
        rows, valid = ids(places), (places < count)[:, None]
        x = data.inputs[rows].reshape(size, -1).astype(contrasts.dtype)
        x = jnp.concatenate([x, jnp.full((size, 1), bias, x.dtype)], axis=1)
        y = jax.nn.one_hot(data.targets[rows], contrasts.shape[0], dtype=x.dtype)
        return function(jnp.where(valid, x, 0.0), jnp.where(valid, y, 0.0))

    more = lambda carry: (carry[0] + size, jax.tree.map(jnp.add, carry[1], batch(carry[0])))  # noqa: E731
    end, start = numerics.largest(count), jnp.zeros((), jnp.int32)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(batch, start))
    return jax.lax.while_loop(lambda carry: carry[0] < end, more, (start, nothing))[1]
