"""What selections share: their words, the rows that count, rankings, the loop over picks, draws and distances."""

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import heuristics
from baal_jax._util import checks, meshes, numerics
from baal_jax.typing import Acquisition, Array, Key, Predictions, PyTree, ScoreFn, SelectFn, Selection, Targeted

_BLOCK = 64  # columns of a kernel, or of a matrix of distances, in work at a time

# (key, features, available bool[N], query_size, labelled bool[N]) -> (indices [Q], scores [Q]). Where the last rows are
# of target inputs, their number is one argument more.
Find = Callable[..., tuple[Array, Array]]


def over_features(
    find: Find,
    summarise: Callable[[Predictions], PyTree] | None = None,
    *,
    reads_labelled: bool = False,
    tasks: tuple[str, ...] | None = None,
    in_blocks: Callable[[PyTree], tuple[Any, Any]] | None = None,
) -> Acquisition:
    """An acquisition from a search over finite features."""
    # ``in_blocks`` makes features of a summary that stays in NumPy, and says what is broken: ``select.in_blocks``.
    # Rows with NaN, or with values whose squares are infinite, are hidden from ``find`` (their features are 0, they are
    # neither available nor labelled) and picked last, in order of their ids. Where ``find`` gives −1, because nothing
    # is left, its score does not matter. By default the summary is the features themselves.

    def search(
        prepare: Any, key: Key, summary: Any, available: Array, query_size: int, labelled: Array | None = None
    ) -> Selection:
        available = jnp.asarray(available)
        # Target inputs are rows behind those of the examples, neither available nor labelled.
        num_targets = ()
        if isinstance(summary, Targeted):
            num_targets = (checks.leading_axis("target_inputs", summary.targets),)
            summary = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *summary)
        num_examples = checks.leading_axis("features", summary) - sum(num_targets)
        if available.shape != (num_examples,):
            raise ValueError(f"features of {num_examples} examples for {available.shape[0]}: one row each is needed")
        query_size = size_of(query_size, num_examples)
        labelled = jnp.zeros(available.shape, bool) if labelled is None else jnp.asarray(labelled)
        if labelled.shape != available.shape:
            raise ValueError(f"labelled has shape {labelled.shape}, but available {available.shape}: make them equal")
        available = available.astype(bool)
        labelled = labelled.astype(bool) & ~available
        features, broken = prepare(summary)
        available, labelled = (jnp.pad(mask, (0, sum(num_targets))) for mask in (available, labelled))
        indices, scores = find(key, features, available & ~broken, query_size, labelled & ~broken, *num_targets)
        # What is broken fills the −1 slots, which stand at the end.
        late, count = numerics.true_rows(available & broken)
        missing = indices < 0
        places = jnp.cumsum(missing, dtype=jnp.int32) - 1
        indices = jnp.where(missing, jnp.where(places < count, late(places), -1), indices.astype(jnp.int32))
        return Selection(indices, jnp.where(missing, jnp.nan, scores).astype(jnp.float32))

    select = compiled(partial(search, _finite))
    if in_blocks is not None:
        vars(select).update(in_blocks=partial(search, in_blocks))
    return Acquisition(summarise or read_features, select, reads_labelled, tasks)


def _finite(summary: PyTree) -> tuple[PyTree, Array]:
    """Features in range, 0 in rows that are broken, and which those are."""
    features = jax.tree.map(_in_range, summary)
    lengths = [jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(features)]
    broken = jnp.any(~jnp.isfinite(jnp.stack(lengths)), axis=0)
    return jax.tree.map(lambda leaf: jnp.where(_beside(broken, leaf), 0.0, leaf), features), broken


def compiled(select: SelectFn) -> SelectFn:
    """Compiles a selection, which looks at its key first."""
    jitted = numerics.jit_with_nan(select, static_argnames="query_size")
    return checks.looked_at(jitted, lambda key, *others, **options: checks.typed_key("key", key))


def read_features(predictions: Predictions) -> PyTree:
    """The features ``[B, D]``; longer axes are flattened."""
    if predictions.features is None:
        ways = "features=baal_jax.features.last_hidden(model) to active_loop, embeddings to loop.init"
        ways += ", features=lambda state, inputs: inputs where inputs are embeddings"
        raise ValueError(f"features is None: pass {ways}, or Predictions(logits, features) to select")
    rows = checks.leading_axis("features", predictions.features)
    if isinstance(predictions.logits, jax.Array) and predictions.logits.shape[1] != rows:
        raise ValueError(f"features of {rows} examples for logits of {predictions.logits.shape[1]}: give one row each")
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], -1), predictions.features)


def over_scores(score_fn: ScoreFn, values: Callable[[Key, Array, Array, int], Array] | None = None) -> Acquisition:
    """An acquisition that keeps one score an example and picks the largest, or those with the largest ``values``."""
    # Ranking keys (of ``numerics.rank_values``), made by ``(key, scores, available, query_size) -> float32[N]``.
    checks.function("score_fn", score_fn, "heuristics.bald")

    def select(key: Key, summary: Array, available: Array, query_size: int, labelled: Array | None = None) -> Selection:
        scores = one_each(numerics.as_float(summary), available)
        return top(
            scores, available, query_size, None if values is None else values(key, scores, available, query_size)
        )

    summarise, ranking = lambda predictions: score_fn(predictions.logits), compiled(select)
    vars(ranking).update(ranks=True)  # by a number that costs may divide
    return Acquisition(summarise, ranking, tasks=heuristics.tasks_of(score_fn))


def top(scores: Array, available: Array, query_size: int, values: Array | None = None) -> Selection:
    """The largest scores of what is available, or those with the largest ranking keys ``values``."""
    values = numerics.rank_values(scores, available) if values is None else values
    indices = numerics.top_indices(values, size_of(query_size, available.shape[0]))
    return Selection(indices, numerics.take_or(scores.astype(jnp.float32), indices, jnp.nan))


def size_of(query_size: int, num_examples: int) -> int:
    """``query_size``, where the examples are as many."""
    query_size = checks.positive_int("query_size", query_size)
    if query_size > num_examples:
        raise ValueError(f"query_size={query_size} exceeds the {num_examples} examples: ask for fewer")
    return query_size


def one_each(scores: Array, available: Array | None = None) -> Array:
    """``scores``, where they are ``[N]``, and as many as the examples."""
    if scores.ndim != 1:
        raise ValueError(f"scores of shape {scores.shape} cannot be ranked: heuristics.reduce_spatial makes them [N]")
    if available is not None and scores.shape != available.shape:
        raise ValueError(f"{scores.shape[0]} scores for {available.shape[0]} examples: pass one for each")
    return scores


def points_of(features: PyTree, mask: Array, who: str) -> Array:
    """Plain features ``[N, D]``, :func:`centred`, and 0 in rows that do not count."""
    if not isinstance(features, jax.Array) or features.ndim != 2:
        raise ValueError(f"{who} needs one row an example, [N, D], not {jax.tree.map(jnp.shape, features)}")
    return jnp.where(mask[:, None], centred(features, mask), 0.0)


def unit_rows(features: Array) -> Array:
    """Features divided by their length; 0 stays 0."""
    lengths = jnp.sqrt(jnp.sum(features**2, axis=tuple(range(1, features.ndim)), keepdims=True))
    return features / jnp.where(lengths > 0, lengths, 1.0)


def one_by_one(pick: Callable, update: Callable, state: Any, available: Array, query_size: int) -> tuple[Array, Array]:
    """Pick examples, each with the knowledge of those before: ``(indices int32[Q], scores [Q])``, then −1 and NaN."""
    # ``pick(state, left bool[N], turn) -> (index, score)`` counts while something is left, and
    # ``update(state, index, turn) -> state`` hands on what the next one knows.

    def step(carry: tuple[Any, Array], turn: Array) -> tuple[tuple[Any, Array], tuple[Array, Array]]:
        state, left = carry
        some = jnp.any(left)
        index, score = pick(state, left, turn)
        left = left.at[index].set(False)
        picked = jnp.where(some, index, -1).astype(jnp.int32), jnp.where(some, score, jnp.nan)
        return (update(state, index, turn), left), picked

    if not isinstance(jax.tree.leaves(state)[0], np.ndarray):
        return jax.lax.scan(step, (state, available), jnp.arange(query_size, dtype=jnp.int32))[1]
    carry, picks = (state, available), []
    for turn in range(query_size):  # features stay in NumPy
        carry, picked = step(carry, jnp.int32(turn))
        picks.append(picked)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *picks)


def best_of(values: Array, left: Array) -> Array:
    """Where the largest value is among what is left; of equal ones the lowest id, NaN last."""
    return jnp.argmax(numerics.rank_values(values, left)).astype(jnp.int32)


def best_few(values: Array, left: Array, count: int) -> Array:
    """``int32[count]``, the largest values of what is left, best first, then −1; ties and NaN as in :func:`best_of`."""
    return numerics.top_indices(numerics.rank_values(values, left), count)


def inverse_cdf(uniforms: Array, weights: Array, mask: Array) -> Array:
    """Ids whose intervals of the cumulative ``weights [N]`` hold ``uniforms``; without any weight those of the mask."""
    weights = jnp.where(mask, weights, 0.0)
    weights = jnp.where(jnp.any(weights > 0), weights, mask.astype(weights.dtype))
    cumulative = jnp.cumsum(meshes.in_blocks(weights), axis=1)
    ends = jnp.cumsum(cumulative[:, -1])
    wanted = uniforms * ends[-1]
    block = jnp.minimum(jnp.searchsorted(ends, wanted, side="right"), len(ends) - 1)
    within = jax.vmap(lambda sums, begin: jnp.searchsorted(sums, wanted - begin, side="right"))
    places = jnp.take_along_axis(within(cumulative, ends - cumulative[:, -1]), block[None], axis=0)[0]
    ids = (places + block * cumulative.shape[1]).astype(jnp.int32)
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[0], dtype=jnp.int32), 0))
    ids = jnp.minimum(ids, last)  # the product may be rounded up to the whole sum
    # Sums computed in parallel are rounded each on its own and may fall again: what has no weight is never drawn.
    return jnp.where(numerics.rows_at(weights, ids) > 0, ids, jax.lax.argmax(weights, 0, jnp.int32))


def over_rows(mask: Array, visit: Callable[[Any, Array, Array], Any], state: Any, block: int = _BLOCK) -> Any:
    """``visit(state, ids [block], valid bool[block]) -> state`` over the rows of a mask, a block at a time."""
    ids, count = numerics.true_rows(mask)

    def some(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        start, state = carry
        places = start + jnp.arange(block, dtype=jnp.int32)
        return start + block, visit(state, ids(places), places < count)

    return jax.lax.while_loop(lambda carry: carry[0] < count, some, (jnp.zeros((), jnp.int32), state))[1]


def centred(points: Array, mask: Array) -> Array:
    """Minus the mean of the rows that count, to which distances by inner products would lose digits."""
    count = jnp.maximum(jnp.sum(mask, dtype=points.dtype), 1.0)
    for _ in range(2):  # the mean of numbers with a large offset is itself rounded
        points = points - jnp.sum(jnp.where(mask[:, None], points, 0.0) / count, axis=0, keepdims=True)
    return points


def inner_products(factors: tuple[Array, ...], ids: Array) -> Array:
    """``Π_f ⟨φ^f_i, φ^f_j⟩`` of all examples with one, ``[N]``, or with several, ``[N, I]``."""
    products = [jnp.matmul(factor, numerics.rows_at(factor, ids).T, precision="highest") for factor in factors]
    return functools.reduce(operator.mul, products)


def squared_distances(factors: tuple[Array, ...], diagonal: Array, ids: Array) -> Array:
    """``k_ii + k_jj − 2 k_ij`` from all examples to one, ``[N]``, or to several, ``[N, I]``; exactly 0 to itself."""
    # The kernel is the product of its factors, ``(points,)`` for plain points, but for its ``diagonal [N]``.
    products = inner_products(factors, ids)
    distances = (
        _beside(diagonal, products) + jnp.broadcast_to(numerics.rows_at(diagonal, ids), products.shape) - 2.0 * products
    )
    own = _beside(jnp.arange(diagonal.shape[0], dtype=jnp.int32), products) == jnp.broadcast_to(ids, products.shape)
    return jnp.where(own, 0.0, jnp.maximum(distances, 0.0))


def _in_range(leaf: Array) -> Array:
    """Features in float32, in units of which most reach 2 to 4 where their squares would be lost or infinite."""
    if 0 in leaf.shape[1:]:
        raise ValueError(f"features have shape {leaf.shape}, which is none an example: pass at least one")
    leaf = jnp.asarray(leaf).astype(jnp.float32)
    largest = jnp.max(jnp.abs(jnp.where(jnp.isfinite(leaf), leaf, 0.0)), axis=tuple(range(1, leaf.ndim)))
    typical = jnp.median(jnp.median(meshes.in_blocks(largest), axis=1))
    outside = (typical > 0) & ((typical < 1e-12) | (typical > 1e12))
    exponent = jnp.where(outside, jnp.frexp(jnp.where(outside, typical, 1.0))[1] - 2, 0)
    half = exponent // 2  # in two steps, for 2**-exponent may itself be out of range
    return jnp.ldexp(jnp.ldexp(leaf, -half), half - exponent)


def _beside(rows: Array, other: Array) -> Array:
    """``rows [N]`` with as many axes as ``other [N, …]``."""
    return rows.reshape(-1, *[1] * (other.ndim - 1))
