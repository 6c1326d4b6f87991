"""The loop: rounds of active learning. A round is put together in :func:`query`, and several are :func:`run`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool as pools
from baal_jax._util import checks, numerics, sources
from baal_jax.metrics import MetricSet, model_average
from baal_jax.pool import PoolState
from baal_jax.prediction import evaluate, predict, summarise
from baal_jax.stopping import Criterion, Outcome
from baal_jax.typing import (
    Acquisition,
    Array,
    Dataset,
    FeatureFn,
    Key,
    LoopState,
    Posterior,
    PyTree,
    Round,
    Selection,
    StepInfo,
)


class ActiveLoop(NamedTuple):
    """A loop as pure functions.

    Attributes:
        init: ``(key, dataset, num_initial=0, pool=None, *, acquisition=None, embeddings=None) -> LoopState``: labels
            ``num_initial`` examples, at random or by an acquisition that needs no fit (the cold start:
            ``selection.typiclust()`` and others, from ``embeddings [N, D]``), or continues from a
            :class:`~baal_jax.PoolState`.
        step: ``(state, dataset, target_inputs=None) -> (state, info)``: one round. On arrays it is one compiled
            program. ``dataset.inputs`` may be a source (``__len__`` and ``__getitem__``; arrays in a
            :class:`~baal_jax.data.View`): the labelled examples and one batch are on the device then, and the picks the
            same, unless a fit reads what is not labelled (semi-supervised training).
        evaluate: ``(state, dataset) -> {name: value}``: the last fit on labelled data in arrays, jitted. Before the
            first step there is no fit to evaluate.
        predict: ``(state, inputs [M, …]) -> outputs [S, M, …, C]``: the draws of the last fit, jitted.
        round: the parts of a step, for rounds of your own; :func:`query` and ``run`` read them here, ``step`` does not.
        sizes: query size of each round; the last one holds for all after it.
        batch_size: examples in work at a time when predicting, None for all.
    """

    init: Callable[..., LoopState]
    step: Callable[..., tuple[LoopState, StepInfo]]
    evaluate: Callable[[LoopState, Dataset], dict[str, Array]]
    predict: Callable[[LoopState, PyTree], PyTree]
    round: Round
    sizes: tuple[int, ...]
    batch_size: int | None


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
) -> ActiveLoop:
    """An active-learning loop from its parts.

    Args:
        posterior: what to do with labels.
        acquisition: which examples to label next.
        query_size: ``Q``, labels a round; or a schedule such as ``(5, 10, 20, 40)``, a number a round, whose last one
            holds for all later rounds. ``Q`` is the largest then, and smaller rounds are padded. Every different size
            is compiled, and computed in every round of a run under ``vmap``.
        num_samples: ``S``, draws for scoring and for evaluation.
        batch_size: examples in work at a time when predicting, None for all. Changes no number.
        max_sample: score only this many available examples, drawn at random each round; None for the whole pool.
        last_rounds: train only on the labels of the latest rounds; None for all.
        features: ``(state, inputs) -> [B, D]``, for acquisitions that read features.
        metrics: what ``evaluate`` computes; by default chosen by the type of the targets.

    Returns:
        An :class:`ActiveLoop`.

    Raises:
        ValueError: a number is not positive, or ``max_sample`` hides what the acquisition reads.

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
        checks.optional_int(name, value)
    if acquisition.summarise is None:
        max_sample = None  # nothing is scored
    if acquisition.reads_labelled and max_sample is not None:
        raise ValueError(
            f"max_sample={max_sample} would hide the labelled examples that this acquisition reads: leave it out"
        )
    predicting: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size}

    def fit(key: Key, dataset: Dataset, state: LoopState) -> Any:
        dataset = _with_stored_targets(dataset, state.pool)
        return posterior.fit(key, dataset, pools.labelled(state.pool, last_rounds), state.posterior)

    def summarise_inputs(key: Key, fitted: Any, inputs: PyTree, target_inputs: PyTree = None) -> PyTree:
        if acquisition.summarise is None:
            return None
        read = {"features": features, "target_inputs": target_inputs}
        return summarise(key, posterior, fitted, inputs, acquisition.summarise, **predicting, **read)

    candidates, select = partial(_candidates, max_sample), partial(_select, acquisition, sizes)
    parts = Round(fit, candidates, summarise_inputs, select, _advance)

    def compose(parts: Round, state: LoopState, dataset: Dataset, target_inputs: PyTree = None) -> Any:
        fitted, selection, info = query(loop._replace(round=parts), state, dataset, target_inputs)
        return parts.advance(state, fitted, selection), info

    as_one_program = jax.jit(partial(compose, parts))

    def step(state: LoopState, dataset: Dataset, target_inputs: PyTree = None) -> tuple[LoopState, StepInfo]:
        on_host = sources.is_source(dataset.inputs)
        return (partial(compose, loop.round) if on_host else as_one_program)(state, dataset, target_inputs)

    def evaluate_last(state: LoopState, dataset: Dataset) -> dict[str, Array]:
        return evaluate(_key_after(state), posterior, state.posterior, dataset, metrics=metrics, **predicting)

    def predict_last(state: LoopState, inputs: PyTree) -> PyTree:
        return predict(_key_after(state), posterior, state.posterior, inputs, **predicting)

    init = partial(_init, posterior, sizes[0])
    jitted = Round(*map(jax.jit, parts))
    loop = ActiveLoop(init, step, jax.jit(evaluate_last), jax.jit(predict_last), jitted, sizes, batch_size)
    return loop


def query(
    loop: ActiveLoop, state: LoopState, dataset: Dataset, target_inputs: PyTree = None, *, capacity: int | None = None
) -> tuple[Any, Selection, StepInfo]:
    """A round up to its picks, which nobody has labelled yet: fit, candidates, summarise, select.

    ``loop.step``, :func:`~baal_jax.run`, studies and projects with annotators call it: a round is written nowhere else.

    Args:
        loop: from :func:`active_loop`.
        state: of the loop.
        dataset: the pool; its inputs are arrays, or a source on the host.
        target_inputs: inputs whose predictions matter, for acquisitions that read them.
        capacity: room for labelled examples of a source; a fit is compiled anew for another one. By default the power
            of two that holds what is labelled, at least 32 and at most ``N``.

    Returns:
        ``(fitted, selection, info)``; ``loop.round.advance(state, fitted, selection)`` is the next round's state.
    """
    parts = loop.round
    keys = round_keys(state.key, state.pool.round)
    if not sources.is_source(dataset.inputs):
        fitted = parts.fit(keys.fit, dataset, state)
        ids, available = parts.candidates(keys.subset, state)
        scored = jax.tree.map(lambda leaf: _rows(leaf, ids), dataset.inputs)
        summary = parts.summarise(keys.draws, fitted, scored, target_inputs)
    else:
        sources.refuse_traced((state, target_inputs))
        fitted = parts.fit(keys.fit, *_labelled_part(dataset, state, capacity))
        ids, available = parts.candidates(keys.subset, state)
        source = dataset.inputs if ids is None else sources.View(dataset.inputs, ids=np.asarray(ids))
        summarise_batch = partial(parts.summarise, keys.draws, fitted, target_inputs=target_inputs)
        summary = sources.mapped(summarise_batch, source, loop.batch_size)
    selection, info = parts.select(keys.select, state, summary, ids, available)
    return fitted, selection, info


def _labelled_part(dataset: Dataset, state: LoopState, capacity: int | None) -> tuple[Dataset, LoopState]:
    """The labelled examples of a source, and the state of a pool of these alone, of a size that rarely changes."""
    # Ascending, as a fit on the whole pool counts them.
    labelled = np.flatnonzero(np.asarray(pools.labelled(state.pool)))
    room = _room(len(labelled), len(dataset.inputs)) if capacity is None else capacity
    known = _with_stored_targets(dataset, state.pool).targets
    rows = labelled if len(labelled) else np.zeros(1, int)
    part = Dataset(sources.load(dataset.inputs, rows), np.asarray(known)[rows])
    part = jax.tree.map(lambda leaf: sources.pad(leaf, room), part)
    since = np.full(room, -1, np.int32)
    since[: len(labelled)] = np.asarray(state.pool.labelled_at)[labelled]
    return part, state._replace(pool=state.pool._replace(labelled_at=jnp.asarray(since), targets=None))


def _room(count: int, total: int) -> int:
    """A power of two: a growing labelled part is compiled a few times, not in every round."""
    return min(1 << max(count - 1, 31).bit_length(), total)


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


def _key_after(state: LoopState) -> Key:
    """Of the evaluation of the round that is over, since a state begins the next one."""
    return round_keys(state.key, state.pool.round - 1).evaluate


def _init(
    posterior: Posterior,
    query_size: int,
    key: Key,
    dataset: Dataset,
    num_initial: int = 0,
    pool: PoolState | None = None,
    *,
    acquisition: Acquisition | None = None,
    embeddings: PyTree = None,
) -> LoopState:
    checks.typed_key("key", key)
    num_initial = checks.positive_int("num_initial", num_initial, least=0)
    if acquisition is None and embeddings is not None:
        raise ValueError("embeddings are given but no acquisition that reads them: pass selection.typiclust()")
    if acquisition is not None and not num_initial:
        raise ValueError(f"num_initial={num_initial} leaves the acquisition nothing to pick: give a number")
    shapes, num_examples = _shapes(dataset)
    state = pools.init(num_examples) if pool is None else pool
    if state.labelled_at.shape != (num_examples,):
        raise ValueError(f"pool holds {state.labelled_at.shape[0]} examples, but the data set {num_examples}")
    if num_initial and state.targets is not None:
        raise ValueError(
            f"num_initial={num_initial} would label examples whose targets are still to come: use pool.label_randomly, "
            "ask for their labels, store them with pool.annotate, and leave num_initial out"
        )
    known = np.asarray(state.labelled_at) if checks.is_concrete(state.labelled_at) else np.full(num_examples, -1)
    left = np.count_nonzero(known == -1)
    if num_initial > left:
        raise ValueError(f"num_initial={num_initial} exceeds the {left} unlabelled examples: label fewer")
    if query_size > left - num_initial:
        raise ValueError(f"query_size={query_size} exceeds the {left - num_initial} unlabelled examples: ask for fewer")
    key_rounds, key_first = jax.random.split(key)
    if num_initial:
        state = pools.label(state, pools.first_query(key_first, state, num_initial, acquisition, embeddings).indices)
    shapes = _with_stored_targets(shapes, state)
    if sources.is_source(dataset.inputs):
        room = _room(num_initial + int(np.sum(known >= 0)), num_examples)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((room, *leaf.shape[1:]), leaf.dtype), shapes)
    labelled = jax.ShapeDtypeStruct(jax.tree.leaves(shapes)[0].shape[:1], jnp.bool)
    fitted = jax.eval_shape(posterior.fit, key_rounds, shapes, labelled)
    before = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), fitted)  # there is no fit yet
    return LoopState(key_rounds, state, before, jnp.zeros((), jnp.int32))


def _shapes(dataset: Dataset) -> tuple[Dataset, int]:
    """What a data set holds, as far as shapes are concerned, and how many examples."""
    if not sources.is_source(dataset.inputs):
        return dataset, checks.leading_axis("dataset", dataset)
    num_examples = len(dataset.inputs)
    targets = None if dataset.targets is None else np.asarray(dataset.targets)
    if targets is not None and len(targets) != num_examples:
        raise ValueError(
            f"dataset has {num_examples} inputs, but {len(targets)} targets: give one for each (a list is a source; "
            "several inputs of an example go in a tuple)"
        )
    shapes = jax.tree.map(partial(jax.eval_shape, jnp.asarray), targets)
    return Dataset(sources.shapes_of(dataset.inputs), shapes), num_examples


def _with_stored_targets(dataset: Dataset, state: PoolState) -> Dataset:
    return dataset if state.targets is None else dataset._replace(targets=state.targets)


def _candidates(max_sample: int | None, key: Key, state: LoopState) -> tuple[Array | None, Array]:
    available = pools.available(state.pool)
    if max_sample is None or max_sample >= available.shape[0]:
        return None, available
    values = numerics.rank_values(jax.random.uniform(key, available.shape), available)
    ids = numerics.top_indices(values, max_sample)
    return ids, ids >= 0


def _rows(leaf: Any, ids: Array | None) -> Any:
    return leaf if ids is None else jnp.asarray(leaf)[jnp.maximum(ids, 0)]


def _schedule(query_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(query_size) if isinstance(query_size, Sequence) else (query_size,)
    if not sizes:
        raise ValueError("query_size is an empty schedule: give at least one number")
    return tuple(checks.positive_int("query_size", size) for size in sizes)


def _select(
    acquisition: Acquisition,
    sizes: tuple[int, ...],
    key: Key,
    state: LoopState,
    summary: PyTree,
    ids: Array | None,
    available: Array,
) -> tuple[Selection, StepInfo]:
    """What the acquisition picks at this round's size, padded to the largest size."""
    labelled = _rows(pools.labelled(state.pool), ids)

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
        picked = select(different[0])
    else:
        which = jnp.array([different.index(size) for size in sizes])[jnp.minimum(state.step, len(sizes) - 1)]
        picked = jax.lax.switch(which, [partial(select, size) for size in different])
    if ids is not None:
        picked = picked._replace(indices=numerics.take_or(ids, picked.indices, -1))
    return picked, _describe(state.pool, picked, summary, available)


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
        num_labelled=pools.num_labelled(state),
        indices=picked.indices,
        scores=picked.scores,
        num_picked=jnp.sum(picked.indices >= 0, dtype=jnp.int32),
        mean_score=mean_score,
        num_nan=jnp.sum(broken & available, dtype=jnp.int32),
    )


def _advance(state: LoopState, fitted: Any, selection: Selection) -> LoopState:
    step = jnp.asarray(state.step, jnp.int32) + 1
    return state._replace(pool=pools.label(state.pool, selection.indices), posterior=fitted, step=step)


def run(
    loop: ActiveLoop,
    key: Key | None,
    dataset: Dataset,
    test: Dataset | None = None,
    *,
    num_initial: int = 0,
    num_rounds: int,
    state: LoopState | None = None,
    target_inputs: PyTree = None,
    stop: Criterion | None = None,
    stop_inputs: PyTree = None,
) -> tuple[LoopState, StepInfo]:
    """Several rounds, the same as calling ``loop.step`` that often: one compiled ``lax.scan``.

    ``jax.vmap`` over keys runs all seeds at once, as accelerators like it; ``jax.lax.map`` runs them one after the
    other in one program, as CPUs do: there it is as fast for dense networks and several times faster for convolutions.
    ``jax.grad`` goes through where the trainer has ``num_steps``; Adam needs ``eps_root`` above 0 then, since its root
    has no gradient at 0. A pool that runs out stops being labelled: later rounds pick nothing. The labels of the last
    round are in the pool but not in a fit; ask for one round more to see what they bring.

    Args:
        loop: from :func:`active_loop`.
        key: a typed key; None when ``state`` is given.
        dataset: the pool with all its targets. Where its inputs are a source on the host, rounds are a Python loop.
        test: where to evaluate every round's fit; ``infos.metrics`` holds the values.
        num_initial: examples to label at random first.
        num_rounds: ``R``.
        state: continue from here; the outcome is bit-identical to a run that was never interrupted.
        target_inputs: inputs whose predictions matter, for acquisitions that read them.
        stop: from :mod:`baal_jax.stopping`, asked at the end of every round. Rounds after it has said yes change
            nothing, say so in ``infos.stopped``, and cost nothing but under ``vmap``. Every seed stops for itself.
        stop_inputs: inputs whose predictions the criterion reads.

    Returns:
        ``(state, infos)``: the last state, and every :class:`~baal_jax.StepInfo` stacked along a leading axis ``R``.

    Raises:
        ValueError: a number is not positive, both or neither of ``key`` and ``state`` are given, or ``state`` comes
            from a run with another criterion.
    """
    num_rounds = checks.positive_int("num_rounds", num_rounds)
    if (key is None) == (state is None):
        raise ValueError("give a key to start a run, or a state to continue one, not both")
    if state is not None and num_initial:
        raise ValueError(f"num_initial={num_initial} labels nothing in a run that continues: leave it out")
    state = loop.init(key, dataset, num_initial) if state is None else state
    if test is not None and sources.is_source(test.inputs):
        raise ValueError("test.inputs is a source on the host, but every round is evaluated on it: load it whole")
    others = test, target_inputs, stop_inputs
    blank: Any = None
    if stop is not None:
        outcome = jax.eval_shape(partial(_one_round, loop), state, (_shapes(dataset)[0], *others))[1]
        state, blank = _remember(stop, outcome, state), outcome.info
    # A first state may hold Python numbers, a carry may not.
    state = state._replace(step=jnp.asarray(state.step, jnp.int32))
    if not sources.is_source(dataset.inputs):
        return _scan(loop, num_rounds, stop, state, dataset, *others)
    sources.refuse_traced(state)
    # The last query is not trained on, so this is all that the device will ever hold.
    after = range(int(state.step), int(state.step) + num_rounds - 1)
    asked = sum(loop.sizes[min(r, len(loop.sizes) - 1)] for r in after)
    capacity = min(int(pools.num_labelled(state.pool)) + asked, len(dataset.inputs))
    infos = []
    for _ in range(num_rounds):
        over = stop is not None and bool(state.stopping[1])
        turn = partial(_no_round, blank) if over else partial(_watched_round, loop, stop, max(capacity, 1))
        state, info = turn(state, dataset, *others)
        infos.append(info)
    return state, jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *infos)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _scan(
    loop: ActiveLoop, num_rounds: int, stop: Criterion | None, state: LoopState, *data: Any
) -> tuple[LoopState, StepInfo]:
    turn = partial(_watched_round, loop, stop, None)

    def one(state: LoopState, _: None) -> tuple[LoopState, StepInfo]:
        if stop is None:
            return turn(state, *data)
        blank = jax.eval_shape(turn, state, *data)[1]
        return jax.lax.cond(state.stopping[1], partial(_no_round, blank), turn, state, *data)

    return jax.lax.scan(one, state, None, length=num_rounds)


def _one_round(
    loop: ActiveLoop, state: LoopState, data: tuple[Any, ...], capacity: int | None = None
) -> tuple[LoopState, Outcome]:
    """A step, evaluated, with what a criterion may look at."""
    dataset, test, target_inputs, stop_inputs = data
    fitted, selection, info = query(loop, state, dataset, target_inputs, capacity=capacity)
    state = loop.round.advance(state, fitted, selection)
    info = info._replace(stopped=jnp.zeros((), bool), metrics=None if test is None else loop.evaluate(state, test))
    log_probs = None if stop_inputs is None else model_average(loop.predict(state, stop_inputs))
    return state, Outcome(state.pool, info, log_probs)


def _watched_round(
    loop: ActiveLoop, stop: Criterion | None, capacity: int | None, state: LoopState, *data: Any
) -> tuple[LoopState, StepInfo]:
    state, outcome = _one_round(loop, state, data, capacity)
    if stop is None:
        return state, outcome.info
    memory, stopped = stop.update(state.stopping[0], outcome)
    return state._replace(stopping=(memory, jnp.asarray(stopped, bool))), outcome.info


def _no_round(shapes: StepInfo, state: LoopState, *data: Any) -> tuple[LoopState, StepInfo]:
    """A round after the run has stopped: the state as it is, numbers NaN and picks −1."""
    del data
    blank = lambda leaf: jnp.full(leaf.shape, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else -1, leaf.dtype)  # noqa: E731
    return state, jax.tree.map(blank, shapes)._replace(
        round=state.pool.round,
        num_labelled=pools.num_labelled(state.pool),
        num_picked=jnp.zeros((), jnp.int32),
        num_nan=jnp.zeros((), jnp.int32),
        stopped=jnp.ones((), bool),
    )


def _remember(stop: Criterion, shapes: Outcome, state: LoopState) -> LoopState:
    """The state with what the criterion remembers before its first round; as it is if that is there already."""
    fresh = (stop.init(shapes), jnp.zeros((), bool))
    if state.stopping is None:
        return state._replace(stopping=fresh)
    if jax.tree.map(jnp.shape, state.stopping) != jax.tree.map(jnp.shape, fresh):
        raise ValueError("state remembers another stopping criterion than stop: continue with the one it was made with")
    return state
