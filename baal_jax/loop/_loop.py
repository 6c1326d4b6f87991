"""A loop from its parts, and a round of it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from baal_jax import pool as pools
from baal_jax._util import checks, meshes, numerics, random, sources
from baal_jax.loop._picks import near, room_for, rows_of, sample, select_within
from baal_jax.metrics import MetricSet
from baal_jax.prediction import Drawn, distinct, draw, evaluate, predict, summarise
from baal_jax.training import tasks
from baal_jax.typing import (
    Acquisition,
    Dataset,
    Key,
    LoopState,
    Posterior,
    PyTree,
    Round,
    Selection,
    StepInfo,
    Targeted,
    short,
)

_MOST = 2**24  # bytes of a source's summary that are arrays on a device, if there is another way


class ActiveLoop(NamedTuple):
    """A loop as pure functions.

    Attributes:
        init: ``(key, dataset, num_initial=0, pool=None, *, acquisition=None, embeddings=None, balanced=False) ->
            LoopState``: labels ``num_initial`` examples, at random, as many of each class (``balanced``) or by an
            acquisition that needs no fit (a cold start from ``embeddings [N, D]``: ``selection.typiclust()`` and
            others). A :class:`~baal_jax.PoolState` brings labels, and what is excluded, costs or has a quota.
        step: ``(state, dataset, target_inputs=None) -> (state, info)``: one round, on arrays one compiled program. With
            a source as inputs (``__len__`` and ``__getitem__``; arrays in a :class:`~baal_jax.data.View`) the labelled
            examples and one batch are on the device, and picks are the same unless training is semi-supervised.
        evaluate: ``(state, dataset, metrics=None) -> {name: value}``: the last fit (after a step) on labelled arrays.
        predict: ``(state, inputs [M, …]) -> outputs [S, M, …, C]``: the draws of the last fit, jitted.
        round: the parts of a step, for rounds of your own; :func:`query` and ``run`` read them here, ``step`` does not.
        sizes: query size of each round; the last one holds for all after it.
        batch_size: examples in work at a time when predicting, None for all.
        posterior: what it was made of.
        metrics: what ``evaluate`` computes, None for those of the posterior's task.
        num_samples: draws for scoring and for evaluation.
        last_rounds: of whose labels a fit is, None for all.
        candidates: what looks for them on the host, None for none.
    """

    init: Callable[..., LoopState]
    step: Callable[..., tuple[LoopState, StepInfo]]
    evaluate: Callable[..., dict[str, Array]]
    predict: Callable[[LoopState, PyTree], PyTree]
    round: Round
    sizes: tuple[int, ...]
    batch_size: int | None
    posterior: Posterior
    metrics: MetricSet | None
    num_samples: int
    last_rounds: int | None
    candidates: Callable[[np.ndarray], Any] | None = None

    __repr__ = short


def active_loop(
    posterior: Posterior,
    acquisition: Acquisition,
    *,
    query_size: int | Sequence[int],
    num_samples: int = 20,
    batch_size: int | None = 256,
    max_sample: int | None = None,
    last_rounds: int | None = None,
    features: Callable[[Any, PyTree], Array] | None = None,
    metrics: MetricSet | None = None,
    candidates: Callable[[np.ndarray], Any] | None = None,
) -> ActiveLoop:
    """An active-learning loop from its parts.

    Args:
        posterior: what to do with labels.
        acquisition: which examples to label next.
        query_size: ``Q``, labels a round; or a schedule such as ``(5, 10, 20, 40)``, whose last number holds for all
            later rounds, and smaller rounds are padded. Each size is compiled, and under ``vmap`` computed every round.
        num_samples: ``S``, draws for scoring and for evaluation.
        batch_size: examples in work at a time when predicting, None for all. Changes no number.
        max_sample: score only this many available examples, drawn at random each round; None for the whole pool.
        last_rounds: train only on the labels of the latest rounds; None for all.
        features: ``(state, inputs) -> [B, D]``, for acquisitions that read features.
        metrics: what ``evaluate`` computes; by default those of the posterior's task (:mod:`baal_jax.training.tasks`).
        candidates: ``labelled ids int[L] -> ids``, what is scored if available: ``selection.nearest(k, embeddings)``.
            They are looked for on the host, so that rounds are not compiled as one. None for the whole pool.

    Returns:
        An :class:`ActiveLoop`.

    Raises:
        TypeError: ``posterior`` or ``acquisition`` is something else.
        ValueError: a number is not positive, ``max_sample`` hides what the acquisition reads, is less than a query or
            beside ``candidates``, or the acquisition does not read outputs of the posterior's task.

    Example:
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
    _require_parts(posterior, acquisition)
    sizes = _schedule(query_size)
    num_samples = checks.positive_int("num_samples", num_samples)
    for name, value in (("batch_size", batch_size), ("max_sample", max_sample), ("last_rounds", last_rounds)):
        checks.optional_int(name, value)
    if acquisition.summarise is None:
        max_sample = candidates = None  # nothing is scored
    if acquisition.reads_labelled and max_sample is not None:
        raise ValueError(f"max_sample={max_sample} would hide the labelled examples that are read here: leave it out")
    if max_sample is not None and candidates is not None:
        raise ValueError(f"max_sample={max_sample} and candidates both say what is scored: leave one of them out")
    if max_sample is not None and max_sample < max(sizes):
        raise ValueError(f"max_sample={max_sample} is less than query_size={max(sizes)}: score at least as many")
    predicting: dict[str, Any] = {"num_samples": num_samples, "batch_size": batch_size}
    of_targets = features if acquisition.reads_targets else None
    draws_of = lambda *given: draw(posterior, distinct(posterior, num_samples), batch_size, of_targets, *given)  # noqa: E731

    def fit(key: Key, dataset: Dataset, state: LoopState) -> Any:
        dataset = _with_stored_targets(dataset, state.pool)
        return posterior.fit(key, dataset, pools.labelled(state.pool, last_rounds), state.posterior)

    def summarise_inputs(key: Key, fitted: Any, inputs: PyTree, target_inputs: PyTree = None) -> PyTree:
        if acquisition.summarise is None:
            return None
        drawn = fitted if isinstance(fitted, Drawn) else draws_of(key, fitted, target_inputs)
        read: dict[str, Any] = {"num_samples": None, "batch_size": batch_size, "features": features}
        summary = summarise(key, posterior, drawn, inputs, acquisition.summarise, **read)
        if not acquisition.reads_targets or drawn is fitted:  # a batch of a source
            return summary
        return Targeted(summary, acquisition.of_targets(drawn.target_logits, drawn.target_features))

    # No partial and no function of the module: what jax compiles of these it keeps as long as they live.
    sampled = lambda *given: sample(max_sample, *given)  # noqa: E731
    select = lambda *given: select_within(acquisition, sizes, *given)  # noqa: E731
    parts = Round(fit, sampled, summarise_inputs, select, _advance)

    def compose(parts: Round, state: LoopState, dataset: Dataset, target_inputs: PyTree = None) -> Any:
        fitted, selection, info = query(loop._replace(round=parts), state, dataset, target_inputs)
        return parts.advance(state, fitted, selection), info

    as_one_program = numerics.jit(lambda *given: compose(parts, *given))

    @meshes.auto
    def step(state: LoopState, dataset: Dataset, target_inputs: PyTree = None) -> tuple[LoopState, StepInfo]:
        on_host = candidates is not None or sources.is_source(dataset.inputs)
        in_parts = on_host or checks.debugs_nans()  # a fit of NaN is seen there
        return (partial(compose, loop.round) if in_parts else as_one_program)(state, dataset, target_inputs)

    @meshes.auto
    def evaluate_last(state: LoopState, dataset: Dataset, chosen: MetricSet | None = None) -> dict[str, Array]:
        chosen = tasks.metrics_of("dataset", posterior, state.posterior, dataset, metrics if chosen is None else chosen)
        return (evaluate_in_parts if checks.debugs_nans() else evaluate_as)(chosen, state, dataset)

    def evaluate_in_parts(chosen: MetricSet, state: LoopState, dataset: Dataset) -> dict[str, Array]:
        return evaluate(_key_after(state), posterior, state.posterior, dataset, metrics=chosen, **predicting)

    evaluate_as = jax.jit(evaluate_in_parts, static_argnums=0)

    def predict_last(state: LoopState, inputs: PyTree) -> PyTree:
        return predict(_key_after(state), posterior, state.posterior, inputs, **predicting)

    on_purpose = {name: numerics.jit_with_nan(getattr(parts, name)) for name in ("select", "advance")}
    jitted = Round(*map(numerics.jit, parts))._replace(**on_purpose)
    if candidates is not None:
        jitted = jitted._replace(candidates=lambda *given: near(candidates, sizes, acquisition.reads_labelled, *given))
    vars(jitted.summarise).update(keep=acquisition.keep)
    if (in_blocks := getattr(acquisition.select, "in_blocks", None)) is not None:
        on_host = acquisition._replace(select=in_blocks)
        vars(jitted.select).update(in_blocks=lambda *given: select_within(on_host, sizes, *given))
    if acquisition.summarise is not None:
        vars(jitted.summarise).update(draw=jax.jit(draws_of))
    if acquisition.reads_targets:
        vars(jitted.summarise).update(of_targets=acquisition.of_targets)
    init = meshes.auto(partial(_init, posterior, sizes[0]))
    given = sizes, batch_size, posterior, metrics, num_samples, last_rounds, candidates
    loop = ActiveLoop(init, step, evaluate_last, numerics.jit(predict_last), jitted, *given)
    return loop


def _require_parts(posterior: Any, acquisition: Any) -> None:
    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior is a {type(posterior).__name__}: make one by posteriors.mc_dropout(model, trainer)")
    if not isinstance(acquisition, Acquisition):
        raise TypeError(f"acquisition is a {type(acquisition).__name__}: make one by selection.top_k(heuristics.bald)")
    task = posterior.task
    if task is not None and acquisition.tasks is not None and task.name not in acquisition.tasks:
        read, cure = " or ".join(acquisition.tasks), f"score with {task.heuristic}"
        raise ValueError(f"acquisition reads outputs of {read}, but the loss learns {task.name}: {cure}")


def query(
    loop: ActiveLoop, state: LoopState, dataset: Dataset, target_inputs: PyTree = None, *, capacity: int | None = None
) -> tuple[Any, Selection, StepInfo]:
    """A round up to its picks, which nobody has labelled yet: fit, candidates, summarise, select.

    Args:
        loop: from :func:`active_loop`.
        state: of the loop.
        dataset: the pool; its inputs are arrays, or a source on the host.
        target_inputs: inputs whose predictions matter, for acquisitions that read them.
        capacity: room for labelled examples of a source, for which a fit is compiled; by default a power of two.

    Returns:
        ``(fitted, selection, info)``; ``loop.round.advance(state, fitted, selection)`` is the next round's state.

    Example:
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, 0, 1, 0, 1]))
        >>> loop = baal.active_loop(posteriors.logistic_regression(2), selection.top_k(heuristics.margin), query_size=2)
        >>> fitted, picked, info = baal.loop.query(loop, loop.init(jax.random.key(0), train, num_initial=2), train)
        >>> picked.indices.shape
        (2,)
    """
    parts, keys = loop.round, round_keys(state.key, state.pool.round)
    if not sources.is_source(dataset.inputs):
        fitted = parts.fit(keys.fit, dataset, state)
        selection, info = _choose(parts, keys, state, fitted, dataset.inputs, target_inputs)
    else:
        sources.refuse_traced((state, target_inputs))
        fitted = parts.fit(keys.fit, *_labelled_part(dataset, state, capacity))
        ids, available = parts.candidates(keys.subset, state)
        source = dataset.inputs if ids is None else sources.View(dataset.inputs, ids=np.asarray(ids))
        # Once for all batches, where the part is the loop's own.
        draw_once = getattr(parts.summarise, "draw", lambda key, fitted, target_inputs: fitted)
        drawn = draw_once(keys.draws, fitted, target_inputs)
        summarise_batch = partial(parts.summarise, keys.draws, drawn, target_inputs=target_inputs)
        read = summarise_batch, source, loop.batch_size
        if (keep := getattr(parts.summarise, "keep", None)) is None:
            summary, select = sources.mapped(*read), getattr(parts.select, "in_blocks", None)
            if (of_targets := getattr(parts.summarise, "of_targets", None)) is not None:
                summary = Targeted(summary, of_targets(drawn.target_logits, drawn.target_features))
            if select is None or sum(leaf.nbytes for leaf in jax.tree.leaves(summary)) <= _MOST:
                summary, select = jax.tree.map(jnp.asarray, summary), parts.select
            with jax.debug_nans(False):
                selection, info = select(keys.select, state, summary, ids, available)
        else:
            places, summary, broken = sources.best(*read, np.asarray(available), keep)
            kept = jnp.asarray(places if ids is None else np.where(places < 0, -1, np.asarray(ids)[places]), jnp.int32)
            selection, info = parts.select(keys.select, state, summary, kept, kept >= 0)
            info = info._replace(num_nan=jnp.asarray(broken, jnp.int32))
    return fitted, selection, info._replace(num_failed_fits=_failed_fits(fitted, info.num_labelled))


def _choose(
    parts: Round, keys: "RoundKeys", state: LoopState, fitted: Any, inputs: PyTree, target_inputs: PyTree
) -> tuple[Selection, StepInfo]:
    """What comes after a fit, of arrays."""
    ids, available = parts.candidates(keys.subset, state)
    scored = jax.tree.map(lambda leaf: rows_of(leaf, ids), inputs)
    summary = parts.summarise(keys.draws, fitted, scored, target_inputs)
    return parts.select(keys.select, state, summary, ids, available)


def one_of(loops: Sequence[ActiveLoop], which: Array) -> ActiveLoop:
    """The ``which``-th of loops that differ in their acquisition alone, on arrays, as a program with one fit in it."""
    fit = loops[0].round.fit

    def summarise_nothing(_: Key, fitted: Any, inputs: PyTree, target_inputs: PyTree = None) -> tuple:
        return fitted, inputs, target_inputs

    def choose(_: Key, state: LoopState, read: tuple, *__: Any) -> tuple[Selection, StepInfo]:
        keys = round_keys(state.key, state.pool.round)
        return jax.lax.switch(which, [partial(_choose, loop.round) for loop in loops], keys, state, *read)

    parts = Round(fit, lambda _, state: (None, pools.available(state.pool)), summarise_nothing, choose, _advance)
    return loops[0]._replace(round=parts, step=lambda *given: loops[0].step(*given))  # which owns its programs


@jax.jit
def _failed_fits(fitted: Any, num_labelled: Array) -> Array:
    """How many networks of a fit are not finite, or are where they began, though there are labels."""
    trained = getattr(fitted, "members", fitted)
    if not hasattr(trained, "variables"):
        return jnp.zeros((), jnp.int32)
    steps = getattr(trained, "steps", None)
    failed = jnp.zeros((), bool) if steps is None else jnp.asarray(steps) == 0
    for leaf in jax.tree.leaves(trained.variables):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            failed |= ~jnp.all(jnp.isfinite(leaf), axis=tuple(range(failed.ndim, leaf.ndim)))
    return jnp.where(num_labelled > 0, jnp.sum(failed, dtype=jnp.int32), 0)


def _labelled_part(dataset: Dataset, state: LoopState, capacity: int | None) -> tuple[Dataset, LoopState]:
    """The labelled examples of a source, and the state of a pool of these alone, of a size that rarely changes."""
    # Ascending, as a fit on the whole pool counts them.
    labelled = np.flatnonzero(np.asarray(pools.labelled(state.pool)))
    room = room_for(len(labelled), len(dataset.inputs)) if capacity is None else capacity
    known = _with_stored_targets(dataset, state.pool).targets
    rows = labelled if len(labelled) else np.zeros(1, int)
    part = Dataset(sources.load(dataset.inputs, rows), np.asarray(known)[rows])
    part = jax.tree.map(lambda leaf: sources.pad(leaf, room), part)
    since = np.full(room, -1, np.int32)
    since[: len(labelled)] = np.asarray(state.pool.labelled_at)[labelled]
    return part, state._replace(pool=pools.PoolState(jnp.asarray(since), state.pool.round))


class RoundKeys(NamedTuple):
    """A key for each part of a round."""

    fit: Key
    draws: Key
    select: Key
    subset: Key
    evaluate: Key


def round_keys(key: Key, number: Array) -> RoundKeys:
    """The keys of a round, the same whatever came before it."""
    return RoundKeys(*random.split(key, len(RoundKeys._fields), number))


def _key_after(state: LoopState) -> Key:
    """Of the evaluation of the round that is over, since a state begins the next one."""
    return round_keys(state.key, state.pool.round - 1).evaluate


def _init(
    posterior: Posterior,
    query_size: int,
    key: Key,
    dataset: Dataset,
    num_initial: int = 0,
    pool: pools.PoolState | None = None,
    *,
    acquisition: Acquisition | None = None,
    embeddings: PyTree = None,
    balanced: bool = False,
) -> LoopState:
    checks.typed_key("key", key)
    num_initial = checks.positive_int("num_initial", num_initial, least=0)
    if acquisition is None and embeddings is not None:
        raise ValueError("embeddings are given but no acquisition that reads them: pass selection.typiclust()")
    if balanced and (acquisition is not None or not num_initial):
        raise ValueError("balanced=True is a random start: give num_initial, and no acquisition")
    if acquisition is not None and not num_initial:
        raise ValueError(f"num_initial={num_initial} leaves the acquisition nothing to pick: give a number")
    tasks.admit("dataset", dataset, posterior.task)
    shapes, num_examples = shapes_of_dataset(dataset)
    size = getattr(dataset, "size", num_examples)
    state = pools.init(size) if pool is None else pool
    if state.labelled_at.shape[0] not in (size, num_examples):
        raise ValueError(f"pool holds {state.labelled_at.shape[0]} examples, but the data set {num_examples}")
    state = pools.placed(state, size, num_examples, dataset.inputs)
    if num_initial and state.targets is not None:
        cure = "use pool.label_randomly, ask for labels, store them with pool.annotate, and leave num_initial out"
        raise ValueError(f"num_initial={num_initial} would label examples whose targets are still to come: {cure}")
    known = meshes.on_host(state.labelled_at) if checks.is_concrete(state.labelled_at) else np.full(num_examples, -1)
    left = pools.num_left(state)
    if num_initial > left:
        raise ValueError(f"num_initial={num_initial} exceeds the {left} unlabelled examples: label fewer")
    if query_size > left - num_initial:
        raise ValueError(f"query_size={query_size} exceeds the {left - num_initial} unlabelled examples: ask for fewer")
    key_rounds, key_first = jax.random.split(key)
    if num_initial:
        given = key_first, state, num_initial
        cold = None if balanced else pools.first_query(*given, acquisition, embeddings).indices
        state = pools.label(state, pools.random_query(*given, dataset.targets) if cold is None else cold)
    whole = shapes = _with_stored_targets(shapes, state)
    if sources.is_source(dataset.inputs):
        room = room_for(num_initial + int(np.sum(known >= 0)), num_examples)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((room, *leaf.shape[1:]), leaf.dtype), shapes)
        if isinstance(dataset.targets, np.ndarray) and dataset.targets.dtype.kind in "iu":
            largest = np.full(shapes.targets.shape, dataset.targets.max(), dataset.targets.dtype)
            shapes = shapes._replace(targets=largest)
    if state.targets is not None:  # people will name more classes
        shapes = shapes._replace(targets=jax.tree.map(partial(jax.eval_shape, jnp.asarray), shapes.targets))
    labelled = jax.ShapeDtypeStruct(jax.tree.leaves(shapes)[0].shape[:1], jnp.bool)
    fitted = tasks.shape_of_fit(posterior.fit, key_rounds, shapes, labelled)
    if dataset.targets is not None:
        # Now with the shape of the outputs; signs of targets are those of a simulation where labels are looked up.
        outputs = partial(tasks.output_shape, posterior, fitted, whole)
        looked_up = np.zeros(num_examples, bool) if num_initial else None
        tasks.admit("dataset", Dataset(whole.inputs, dataset.targets), posterior.task, outputs, complete=looked_up)
    before = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), fitted)  # there is no fit yet
    return LoopState(key_rounds, state, before, jnp.zeros((), jnp.int32))


def shapes_of_dataset(dataset: Dataset) -> tuple[Dataset, int]:
    """What a data set holds, as far as shapes are concerned, and how many examples."""
    if not sources.is_source(dataset.inputs):
        return dataset, checks.leading_axis("dataset", dataset)
    num_examples = len(dataset.inputs)
    shapes = jax.tree.map(partial(jax.eval_shape, jnp.asarray), dataset.targets)
    return Dataset(sources.shapes_of(dataset.inputs), shapes), num_examples


def _with_stored_targets(dataset: Dataset, state: pools.PoolState) -> Dataset:
    return dataset if state.targets is None else dataset._replace(targets=state.targets)


def _schedule(query_size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(query_size) if isinstance(query_size, Sequence) else (query_size,)
    if not sizes:
        raise ValueError("query_size is an empty schedule: give at least one number")
    return tuple(checks.positive_int("query_size", size) for size in sizes)


def _advance(state: LoopState, fitted: Any, selection: Selection) -> LoopState:
    step = jnp.asarray(state.step, jnp.int32) + 1
    return state._replace(pool=pools.label(state.pool, selection.indices), posterior=fitted, step=step)
