"""The loop: fit, predict, score, select, label. A round is a pure function ``state -> (state, info)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool
from baal_jax._util import checks, numerics, random
from baal_jax.metrics import MetricSet, model_average
from baal_jax.pool import PoolState
from baal_jax.prediction import evaluate, summarise
from baal_jax.typing import Acquisition, Array, Dataset, FeatureFn, Key, Posterior, Predictions, PyTree, Selection


class LoopState(NamedTuple):
    """What the next round needs, and nothing else.

    Attributes:
        key: typed key of the whole run; round ``r`` uses ``fold_in(key, r)``.
        pool: which examples are labelled.
        posterior: state of the last fit; zeros before the first.
        step: ``int32[]``, rounds of this loop so far.
        stopping: ``(memory of the criterion, stopped bool[])`` in a run that may stop, else None.
    """

    key: Key
    pool: PoolState
    posterior: Any
    step: Any = 0
    stopping: Any = None


class StepInfo(NamedTuple):
    """What one would plot.

    Attributes:
        round: ``int32[]``.
        num_labelled: ``int32[]``, labels that this round's fit has seen.
        indices: ``int32[Q]``, what was picked, best first; −1 where the pool ran out.
        scores: ``float32[Q]``, their scores.
        num_picked: ``int32[]``, how many were picked; 0 once the pool is empty.
        mean_score: ``float32[]``, mean score of the available examples that were scored, NaN aside (NaN where the
            acquisition keeps more than a score).
        num_nan: ``int32[]``, available examples whose summary holds NaN; they rank last.
        metrics: name → value on the test set given to :func:`~baal_jax.run`, else None.
        stopped: ``bool[]``, True for a round that did not happen because the run had stopped before: its numbers are
            NaN, its picks −1.
    """

    round: Array
    num_labelled: Array
    indices: Array
    scores: Array
    num_picked: Array
    mean_score: Array
    num_nan: Array
    metrics: Any = None
    stopped: Any = False


class LoopParts(NamedTuple):
    """What a loop is made of, as given to :func:`active_loop`.

    Attributes:
        posterior: what to do with labels.
        acquisition: which examples to label next.
        sizes: query size of each round; the last one holds for all after it.
        num_samples: ``S``.
        max_sample: examples scored in a round, None for all.
        last_rounds: rounds whose labels are trained on, None for all.
        features: offered to the acquisition, or None.
    """

    posterior: Posterior
    acquisition: Acquisition
    sizes: tuple[int, ...]
    num_samples: int
    max_sample: int | None
    last_rounds: int | None
    features: FeatureFn | None


class ActiveLoop(NamedTuple):
    """A loop as pure functions.

    Attributes:
        init: ``(key, dataset, num_initial=0, pool=None, *, acquisition=None, embeddings=None) -> LoopState``: labels
            ``num_initial`` examples, at random or by an acquisition that needs no fit (the cold start:
            ``selection.typiclust()`` and others, from ``embeddings [N, D]``), or continues from a
            :class:`~baal_jax.PoolState`.
        step: ``(state, dataset, target_inputs=None) -> (state, info)``: one round, jitted.
        evaluate: ``(state, dataset) -> {name: value}``: the last fit on labelled data, jitted. Before the first step
            there is no fit to evaluate.
        average: ``(state, inputs [M, …]) -> log-probabilities [M, …, C]``: the model average of the last fit, jitted.
        vmap_method: how :func:`~baal_jax.run` behaves under ``vmap``.
        parts: what the loop is made of.
    """

    init: Callable[..., LoopState]
    step: Callable[..., tuple[LoopState, StepInfo]]
    evaluate: Callable[[LoopState, Dataset], dict[str, Array]]
    average: Callable[[LoopState, PyTree], Array]
    vmap_method: str
    parts: LoopParts


def active_loop(
    posterior: Posterior,
    acquisition: Acquisition,
    *,
    query_size: int | Sequence[int],
    num_samples: int = 20,
    batch_size: int | None = 256,
    max_sample: int | None = None,
    last_rounds: int | None = None,
    features: FeatureFn | None = None,
    metrics: MetricSet | None = None,
    vmap_method: Literal["auto", "sequential", "vectorized"] = "auto",
) -> ActiveLoop:
    """An active-learning loop from its parts.

    Args:
        posterior: what to do with labels.
        acquisition: which examples to label next.
        query_size: ``Q``, labels a round; or one number for each round, the last of which holds for all after it, as
            in a schedule that grows: ``(5, 10, 20, 40)``. ``Q`` is the largest then, and smaller rounds are padded.
            Every different size is compiled, and computed in every round where ``vmap`` is vectorised.
        num_samples: ``S``, draws for scoring and for evaluation.
        batch_size: examples in work at a time when predicting, None for all. Changes no number.
        max_sample: score only this many available examples, drawn at random each round; None for the whole pool.
        last_rounds: train only on the labels of the latest rounds; None for all.
        features: ``(state, inputs) -> [B, D]``, for acquisitions that read features.
        metrics: what ``evaluate`` computes; by default chosen by the type of the targets.
        vmap_method: what ``vmap`` over keys makes of a round. "sequential" runs the seeds one after the other inside
            the one program, which on a CPU is as fast for dense networks and several times faster for convolutions, and
            bit-identical to a single run; "vectorized" batches them, for accelerators, and is what reverse-mode
            ``grad`` through :func:`~baal_jax.run` needs. "auto" chooses by the default backend.

    Returns:
        An :class:`ActiveLoop`.

    Raises:
        ValueError: a number is not positive, or ``vmap_method`` is unknown.

    Example:
        >>> import baal_jax as baal, flax.linen as nn, optax
        >>> from baal_jax import heuristics, posteriors, selection
        >>> net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
        >>> trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=10)
        >>> posterior = posteriors.mc_dropout(baal.from_linen(net), trainer)
        >>> loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=2, num_samples=5)
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, 0, 1, 0, 1]))
        >>> state = loop.init(jax.random.key(0), train, num_initial=2)
        >>> state, info = loop.step(state, train)
        >>> int(info.num_labelled), int(baal.pool.num_labelled(state.pool))
        (2, 4)
    """
    sizes = _schedule(query_size)
    num_samples = checks.positive_int("num_samples", num_samples)
    for name, value in (("batch_size", batch_size), ("max_sample", max_sample), ("last_rounds", last_rounds)):
        if value is not None:
            checks.positive_int(name, value)
    if acquisition.summarise is None:
        max_sample = None  # nothing is scored
    if acquisition.reads_labelled and max_sample is not None:
        raise ValueError(
            f"max_sample={max_sample} would hide the labelled examples that this acquisition reads: leave it out"
        )

    def init(
        key: Key,
        dataset: Dataset,
        num_initial: int = 0,
        pool: PoolState | None = None,
        *,
        acquisition: Acquisition | None = None,
        embeddings: PyTree = None,
    ) -> LoopState:
        if acquisition is None and embeddings is not None:
            raise ValueError("embeddings are given but no acquisition that reads them: pass selection.typiclust()")
        if acquisition is not None and not num_initial:
            raise ValueError(f"num_initial={num_initial} leaves the acquisition nothing to pick: give a number")
        cold_start = None if acquisition is None else partial(_cold_start, acquisition, embeddings)
        return _init(key, dataset, num_initial, pool, posterior, sizes[0], cold_start)

    parts = LoopParts(posterior, acquisition, sizes, num_samples, max_sample, last_rounds, features)

    def step(state: LoopState, dataset: Dataset, target_inputs: PyTree = None) -> tuple[LoopState, StepInfo]:
        dataset = _with_stored_targets(dataset, state.pool)
        keys = round_keys(state.key, state.pool.round)
        fitted = posterior.fit(keys.fit, dataset, pool.labelled(state.pool, last_rounds), state.posterior)
        ids, available = candidates(keys.subset, state.pool, max_sample)
        summary = None
        if acquisition.summarise is not None:
            summary = summarise(
                keys.draws,
                posterior,
                fitted,
                jax.tree.map(lambda leaf: _rows(leaf, ids), dataset.inputs),
                acquisition.summarise,
                num_samples=num_samples,
                batch_size=batch_size,
                features=features,
                target_inputs=target_inputs,
            )
        picked, info = pick(parts, keys.select, state, summary, ids, available)
        return after(state, fitted, picked), info

    def evaluate_last(state: LoopState, dataset: Dataset) -> dict[str, Array]:
        key = round_keys(state.key, state.pool.round - 1).evaluate
        return evaluate(
            key, posterior, state.posterior, dataset, metrics=metrics, num_samples=num_samples, batch_size=batch_size
        )

    def average(state: LoopState, inputs: PyTree) -> Array:
        key = round_keys(state.key, state.pool.round - 1).evaluate
        return summarise(
            key,
            posterior,
            state.posterior,
            inputs,
            lambda predictions: model_average(predictions.logits),
            num_samples=num_samples,
            batch_size=batch_size,
        )

    return ActiveLoop(init, jax.jit(step), jax.jit(evaluate_last), jax.jit(average), _resolve(vmap_method), parts)


def _init(
    key: Key,
    dataset: Dataset,
    num_initial: int,
    given: PoolState | None,
    posterior: Posterior,
    query_size: int,
    cold_start: Callable[[Key, PoolState, int], PoolState] | None,
) -> LoopState:
    checks.typed_key("key", key)
    num_examples = checks.leading_axis("dataset", dataset)
    num_initial = checks.positive_int("num_initial", num_initial, least=0)
    state = pool.init(num_examples) if given is None else given
    if state.labelled_at.shape != (num_examples,):
        raise ValueError(f"pool holds {state.labelled_at.shape[0]} examples, but the data set {num_examples}")
    if num_initial and state.targets is not None:
        raise ValueError(
            f"num_initial={num_initial} would label examples whose targets are still to come: use pool.label_randomly, "
            "ask for their labels, store them with pool.annotate, and leave num_initial out"
        )
    known = checks.is_concrete(state.labelled_at)
    left = np.count_nonzero(np.asarray(state.labelled_at) < 0) if known else num_examples
    if num_initial > left:
        raise ValueError(f"num_initial={num_initial} exceeds the {left} unlabelled examples: label fewer")
    if query_size > left - num_initial:
        raise ValueError(f"query_size={query_size} exceeds the {left - num_initial} unlabelled examples: ask for fewer")
    key_run, key_initial = jax.random.split(key)
    if num_initial:
        state = (cold_start or pool.label_randomly)(key_initial, state, num_initial)
    labelled = jax.ShapeDtypeStruct((num_examples,), jnp.bool)
    fitted = jax.eval_shape(posterior.fit, key_run, _with_stored_targets(dataset, state), labelled)
    return LoopState(key_run, state, zeros(fitted), jnp.zeros((), jnp.int32))


def _cold_start(acquisition: Acquisition, embeddings: PyTree, key: Key, state: PoolState, num: int) -> PoolState:
    """Labels ``num`` examples that an acquisition picks from embeddings, before there is a fit."""
    available = pool.available(state)
    summary = None
    if acquisition.summarise is not None:
        if embeddings is None:
            raise ValueError("embeddings is None: an acquisition that reads features needs embeddings=[N, D] here")
        if checks.leading_axis("embeddings", embeddings) != available.shape[0]:
            raise ValueError(
                f"embeddings of {checks.leading_axis('embeddings', embeddings)} examples for {available.shape[0]}: "
                "one row for every example of the data set is needed"
            )
        summary = acquisition.summarise(Predictions(None, jax.tree.map(jnp.asarray, embeddings)))
    picked = acquisition.select(key, summary, available, num, pool.labelled(state))
    return pool.label(state, picked.indices)


def zeros(shapes: PyTree) -> PyTree:
    """The state of a fit that has not happened yet."""
    return jax.tree.map(_zero, shapes)


def _zero(leaf: jax.ShapeDtypeStruct) -> Array:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.zeros(leaf.shape, leaf.dtype)
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=random.implementation(leaf))


class RoundKeys(NamedTuple):
    """A key for each part of a round."""

    fit: Key
    draws: Key
    select: Key
    subset: Key
    evaluate: Key


def round_keys(key: Key, number: Array) -> RoundKeys:
    """The keys of a round, the same whatever came before it."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, number), len(RoundKeys._fields)))


def _resolve(vmap_method: str) -> str:
    methods = ("auto", "sequential", "vectorized")
    if vmap_method not in methods:
        raise ValueError(f"vmap_method={vmap_method!r} is unknown: choose one of {', '.join(methods)}")
    if vmap_method != "auto":
        return vmap_method
    return "sequential" if jax.default_backend() == "cpu" else "vectorized"


def _with_stored_targets(dataset: Dataset, state: PoolState) -> Dataset:
    return dataset if state.targets is None else dataset._replace(targets=state.targets)


def candidates(key: Key, state: PoolState, max_sample: int | None) -> tuple[Array | None, Array]:
    """Ids of what is to be scored (None for the whole data set) and which of them can be picked."""
    available = pool.available(state)
    if max_sample is None or max_sample >= available.shape[0]:
        return None, available
    values = numerics.rank_values(jax.random.uniform(key, available.shape), available)
    ids = numerics.top_indices(values, max_sample)
    return ids, ids >= 0


def _rows(leaf: Any, ids: Array | None) -> Any:
    return leaf if ids is None else jnp.asarray(leaf)[jnp.maximum(ids, 0)]


def pick(
    parts: LoopParts, key: Key, state: LoopState, summary: PyTree, ids: Array | None, available: Array
) -> tuple[Selection, StepInfo]:
    """What an acquisition picks from the summaries of the candidates ``ids``, and what there is to say of the round."""
    labelled = _rows(pool.labelled(state.pool), ids)
    picked = _select(parts.acquisition, key, summary, available, parts.sizes, state.step, labelled)
    if ids is not None:
        picked = picked._replace(indices=numerics.take_or(ids, picked.indices, -1))
    return picked, _describe(state.pool, picked, summary, available)


def after(state: LoopState, fitted: Any, picked: Selection) -> LoopState:
    """The state when a round is over."""
    step = jnp.asarray(state.step, jnp.int32) + 1
    return state._replace(pool=pool.label(state.pool, picked.indices), posterior=fitted, step=step)


def _schedule(query_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(query_size) if isinstance(query_size, Sequence) else (query_size,)
    if not sizes:
        raise ValueError("query_size is an empty schedule: give at least one number")
    return tuple(checks.positive_int("query_size", size) for size in sizes)


def _select(
    acquisition: Acquisition,
    key: Key,
    summary: PyTree,
    available: Array,
    sizes: tuple[int, ...],
    step: Array,
    labelled: Array,
) -> Selection:
    """``acquisition.select`` at this round's size, padded to the largest size."""

    def select(size: int) -> Selection:
        possible = min(size, available.shape[0])
        picked = acquisition.select(key, summary, available, possible, labelled)
        missing = max(sizes) - possible
        return Selection(
            jnp.pad(picked.indices, (0, missing), constant_values=-1),
            jnp.pad(picked.scores, (0, missing), constant_values=jnp.nan),
        )

    different = sorted(set(sizes))
    if len(different) == 1:
        return select(different[0])
    which = jnp.array([different.index(size) for size in sizes])[jnp.minimum(step, len(sizes) - 1)]
    return jax.lax.switch(which, [partial(select, size) for size in different])


def _describe(state: PoolState, picked: Selection, summary: PyTree, available: Array) -> StepInfo:
    leaves = [leaf for leaf in jax.tree.leaves(summary) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    broken = jnp.zeros(available.shape, bool)
    for leaf in leaves:
        broken |= jnp.any(jnp.isnan(leaf), axis=tuple(range(1, leaf.ndim)))
    mean_score = jnp.full((), jnp.nan, jnp.float32)
    if len(leaves) == 1 and leaves[0].ndim == 1:
        mean_score = jnp.mean(leaves[0].astype(jnp.float32), where=available & ~broken)
    return StepInfo(
        round=state.round,
        num_labelled=pool.num_labelled(state),
        indices=picked.indices,
        scores=picked.scores,
        num_picked=jnp.sum(picked.indices >= 0, dtype=jnp.int32),
        mean_score=mean_score,
        num_nan=jnp.sum(broken & available, dtype=jnp.int32),
    )
