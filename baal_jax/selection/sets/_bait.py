"""BAIT: labels that shrink the posterior where the whole pool needs it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from baal_jax._util import checks, linalg
from baal_jax.selection._common import best_of
from baal_jax.selection.sets._kernel import Features, Selector, dense, posterior_root, target_rows
from baal_jax.typing import Array, Key

_CHANGE = 10.0  # factor by which the spreads may change before rounding errors count


class _Posterior(NamedTuple):
    """What the picks so far have left of the uncertainty.

    With the posterior covariance ``P`` of the weights, one label more with rows ``V`` changes the trace of ``F P`` by
    ``tr((I + V P Vᵀ)⁻¹ V P F P Vᵀ)`` (Woodbury), one label less with ``I − V P Vᵀ``: two blocks ``[r, r]`` an example.
    """

    covariance: Array  # P [D, D]
    variances: Array  # V P Vᵀ [N, r, r]
    spreads: Array  # V P F P Vᵀ [N, r, r]
    level: Array  # [], mean size of the spreads when all this was last computed anew


_Step = Callable[[_Posterior, Any, Array], tuple[_Posterior, Any]]  # (posterior, carry, turn) -> both anew


def bait(
    noise: float = 1.0, *, use_labelled: bool = True, oversampling: float = 2.0, toward_targets: bool = False
) -> Selector:
    r"""Greedy minimisation of the mean posterior variance over the pool: V-optimal design, or Fisher information ratio.

    .. math:: \arg\min_P\; \operatorname{tr}\Bigl( F\, \bigl(I + \sigma^{-2} \sum_{i \in L \cup P} V_i^\top V_i
              \bigr)^{-1} \Bigr), \qquad F = \sum_{i} V_i^\top V_i \text{ over pool and labelled}

    Forward, the pick is the one that shrinks the trace most; with ``oversampling`` above 1 that many times more are
    picked, and then those are dropped whose loss costs least. Each pick costs two products with the features.

    Args:
        noise: ``σ``; for :func:`~baal_jax.selection.sets.feature_maps.fisher` ``1/σ²`` weighs labels against the prior.
        use_labelled: whether ``L`` is what is labelled, or empty.
        oversampling: how many times the query is picked before the backward steps; 1 is forward alone.
        toward_targets: whether ``F`` is of the target inputs alone, in a :func:`~baal_jax.selection.grid`.

    Returns:
        A selector of features ``[N, D]``, or ``[N, r, D]`` with several rows an example. Scores: how the trace falls.

    Raises:
        ValueError: ``noise`` is not positive, or ``oversampling`` is below 1.

    References:
        Ash et al., `Gone fishing: neural active learning with Fisher embeddings <https://arxiv.org/abs/2106.09675>`_,
        2021; Holzmüller et al. 2022, of :func:`~baal_jax.selection.grid`.

    Example:
        >>> line = transforms.Features((jnp.array([[0.0], [1.0], [5.0], [9.0]]),), jnp.float32(0))
        >>> every = jnp.ones(4, bool)
        >>> selectors.bait()(jax.random.key(0), line, every, 2, ~every)[0].tolist()
        [3, 2]
    """
    noise = checks.positive_float("noise", noise)
    oversampling = checks.finite_float("oversampling", oversampling, 1.0)

    def select(key: Key, features: Features, available: Array, query_size: int, labelled: Array) -> tuple[Array, Array]:
        if len(features.factors) == 1 and features.factors[0].ndim == 3:
            rows = features.factors[0]
        else:
            rows = dense(features, "selectors.bait")[:, None]
        matter = target_rows(features, "selectors.bait") if toward_targets else available | labelled
        counted = jnp.where(matter[:, None, None], rows, 0.0).reshape(-1, rows.shape[-1])
        fisher = linalg.product(counted.T, counted)
        rows = rows / noise  # observations of unit noise from here on
        known = jnp.repeat(labelled & use_labelled, rows.shape[1])
        root = posterior_root(rows.reshape(-1, rows.shape[-1]), known)
        first = min(max(query_size, round(oversampling * query_size)), rows.shape[0])
        indices, scores = _forward(root, fisher, rows, available, first)
        if first == query_size:
            return indices, scores
        # What looked best while little was known may be of little use beside the later picks.
        order = jnp.argsort(~_backward(root, fisher, rows, indices, query_size), stable=True)[:query_size]
        return indices[order], scores[order]

    vars(select).update(reads_targets=toward_targets)
    return select


def _forward(root: Array, fisher: Array, rows: Array, available: Array, query_size: int) -> tuple[Array, Array]:
    def pick(state: _Posterior, carry: tuple, turn: Array) -> tuple[_Posterior, tuple]:
        left, indices, scores = carry
        gains = _traces(_plus_one(state.variances), state.spreads)
        index = best_of(gains, left)
        carry = left.at[index].set(False), indices.at[turn].set(index), scores.at[turn].set(gains[index])
        return _conditioned(state, fisher, rows, rows[index], 1.0), carry

    carry = available, jnp.full(query_size, -1, jnp.int32), jnp.full(query_size, jnp.nan, rows.dtype)
    total = jnp.minimum(jnp.sum(available, dtype=jnp.int32), query_size)
    return _in_turns(pick, lambda carry: _rows_of(rows, carry[1]), root, fisher, rows, carry, total)[1:]


def _backward(root: Array, fisher: Array, rows: Array, indices: Array, query_size: int) -> Array:
    """Which of the picks stay, ``bool[P]``, when the ``query_size`` most valuable are kept."""
    picked = _rows_of(rows, indices)

    def drop(state: _Posterior, kept: Array, turn: Array) -> tuple[_Posterior, Array]:
        index = best_of(-_traces(_plus_one(-state.variances), state.spreads), kept)
        return _conditioned(state, fisher, picked, picked[index], -1.0), kept.at[index].set(False)

    held = lambda kept: jnp.where(kept[:, None, None], picked, 0.0)  # noqa: E731
    surplus = jnp.maximum(jnp.sum(indices >= 0, dtype=jnp.int32) - query_size, 0)
    return _in_turns(drop, held, root, fisher, picked, indices >= 0, surplus)


def _rows_of(rows: Array, indices: Array) -> Array:
    """The rows of some examples, 0 where an index is −1."""
    return jnp.where((indices >= 0)[:, None, None], rows[jnp.maximum(indices, 0)], 0.0)


def _in_turns(step: _Step, held: Callable, root: Array, fisher: Array, rows: Array, carry: Any, total: Array) -> Any:
    """Take ``total`` steps and give the last ``carry``."""
    # Updates carry rounding errors along: where the numbers have become much smaller than those that the errors come
    # from, all is computed anew, from ``root`` (of the precision given what is labelled) and the rows ``held(carry)``.

    # Two loops, a cheap one inside of an exact one: under vmap both sides of a branch would be paid for in every turn.
    def steady(carry: tuple[Array, _Posterior, Any]) -> Array:
        turn, state, _ = carry
        change = _level(state.spreads) / state.level
        return (turn < total) & ~((change < 1 / _CHANGE) | (change > _CHANGE))

    def one(carry: tuple[Array, _Posterior, Any]) -> tuple[Array, _Posterior, Any]:
        turn, state, rest = carry
        state, rest = step(state, rest, turn)
        return turn + 1, state, rest

    def several(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        turn, rest = carry
        known = jnp.concatenate([root, held(rest).reshape(-1, rows.shape[-1])])
        state = _posterior(linalg.triangular_root(known), fisher, rows)
        turn, _, rest = jax.lax.while_loop(steady, one, (turn, state, rest))
        return turn, rest

    start = jnp.zeros((), jnp.int32), carry
    return jax.lax.while_loop(lambda carry: carry[0] < total, several, start)[1]


def _posterior(root: Array, fisher: Array, rows: Array) -> _Posterior:
    # P = R⁻¹ R⁻ᵀ, so that V P Vᵀ is a sum of squares of V R⁻¹: never negative, whatever the rounding.
    inverse = linalg.solve_triangular(root, jnp.eye(root.shape[0], dtype=root.dtype))
    white = jnp.matmul(rows, inverse, precision="highest")
    variances = jnp.einsum("nrd,nqd->nrq", white, white, precision="highest")
    inner = jnp.matmul(inverse.T, jnp.matmul(fisher, inverse, precision="highest"), precision="highest")
    spreads = jnp.einsum("nrd,nqd->nrq", jnp.matmul(white, inner, precision="highest"), white, precision="highest")
    return _Posterior(jnp.matmul(inverse, inverse.T, precision="highest"), variances, spreads, _level(spreads))


def _level(spreads: Array) -> Array:
    return jnp.mean(jnp.trace(spreads, axis1=-2, axis2=-1))


def _conditioned(state: _Posterior, fisher: Array, rows: Array, label: Array, sign: float) -> _Posterior:
    """The posterior with the information of one example ``label [r, D]`` more (or less, with a ``sign`` of −1)."""
    # With ``W = P Vᵀ`` and ``S = I ± V W``, the covariance becomes ``P′ = P ∓ W S⁻¹ Wᵀ``. Put into ``U P′ Uᵀ`` and
    # ``U P′ F P′ Uᵀ`` for the rows ``U`` of every example, this leaves products with ``U W`` and ``U P F W`` alone.
    wide = jnp.matmul(state.covariance, label.T, precision="highest")  # [D, r]
    matrix = _plus_one(sign * linalg.product(label, wide))
    inverse = 1.0 / matrix if matrix.shape[-1] == 1 else linalg.inverse(matrix)
    spread = jnp.matmul(fisher, wide, precision="highest")
    both = jnp.concatenate([wide, jnp.matmul(state.covariance, spread, precision="highest")], axis=1)
    num, rank, size = rows.shape
    # The only pass over the features: one product for both, [N r, D] with [D, 2 r].
    products = jnp.matmul(rows.reshape(-1, size), both, precision="highest").reshape(num, rank, -1)
    near, far = jnp.split(products, 2, axis=-1)  # U W and U P F W, [N, r, r]
    gain = jnp.einsum("nrq,qp->nrp", near, inverse, precision="highest")
    shrunk = jnp.einsum("nrp,nsp->nrs", gain, near, precision="highest")
    cross = jnp.einsum("nrp,nsp->nrs", gain, far, precision="highest")
    inner = jnp.matmul(wide.T, spread, precision="highest")
    square = jnp.einsum("nrp,pq,nsq->nrs", gain, inner, gain, precision="highest")
    update = jnp.matmul(wide, jnp.matmul(inverse, wide.T, precision="highest"), precision="highest")
    spreads = state.spreads - sign * (cross + jnp.swapaxes(cross, -1, -2)) + square
    return _Posterior(state.covariance - sign * update, state.variances - sign * shrunk, spreads, state.level)


def _traces(outer: Array, inner: Array) -> Array:
    """``tr(outer⁻¹ inner)`` of symmetric matrices ``[N, r, r]``."""
    if outer.shape[-1] == 1:
        return (inner / outer)[:, 0, 0]
    return jnp.trace(linalg.eliminate(outer, inner).solution, axis1=-2, axis2=-1)


def _plus_one(matrices: Array) -> Array:
    """``I + matrices``."""
    return matrices + jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)
