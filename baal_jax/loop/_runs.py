"""Several rounds of a loop, as one compiled program or over a source on the host."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool as pools
from baal_jax._util import checks, meshes, numerics, sources
from baal_jax.loop._loop import ActiveLoop, query, shapes_of_dataset
from baal_jax.metrics import model_average
from baal_jax.stopping import Criterion, Outcome
from baal_jax.training import tasks
from baal_jax.typing import Dataset, Key, LoopState, PyTree, StepInfo

_Turn = tuple[LoopState, StepInfo]


@meshes.auto
def run(
    loop: ActiveLoop,
    key: Key | None,
    dataset: Dataset,
    test: Dataset | None,
    *,
    num_initial: int = 0,
    num_rounds: int,
    state: LoopState | None = None,
    target_inputs: PyTree = None,
    stop: Criterion | None = None,
    stop_inputs: PyTree = None,
) -> tuple[LoopState, StepInfo]:
    """Several rounds, the same as calling ``loop.step`` that often: one compiled ``lax.scan``.

    ``jax.vmap`` over keys runs all seeds at once, as accelerators like it, ``jax.lax.map`` one after the other, as CPUs
    do: as fast for dense networks and several times faster for convolutions. ``jax.grad`` goes through where the
    trainer has ``num_steps``; Adam needs ``eps_root`` above 0 then. A pool that runs out stops being labelled: later
    rounds pick nothing. The labels of the last round are in the pool but not in a fit; ask for one round more to see
    what they bring. Under ``jax_debug_nans`` rounds are a Python loop, so that a fit or a prediction of NaN is an error
    where it happens, and the NaN that :class:`~baal_jax.StepInfo` defines is none, but in a ``jit`` of your own.

    Args:
        loop: from :func:`active_loop`.
        key: a typed key; None when ``state`` is given.
        dataset: the pool with all its targets. Where its inputs are a source on the host, rounds are a Python loop.
        test: where to evaluate every round's fit; ``infos.metrics`` holds the values. None evaluates nothing.
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
        ValueError: a number is not positive, ``key`` and ``state`` are both or neither there, or of another criterion.

    Example:
        >>> train = baal.Dataset(jnp.eye(6), jnp.array([0, 1, 0, 1, 0, 1]))
        >>> loop = baal.active_loop(posteriors.logistic_regression(2), selection.top_k(heuristics.margin), query_size=1)
        >>> state, infos = baal.run(loop, jax.random.key(0), train, train, num_initial=2, num_rounds=3)
        >>> infos.num_labelled.tolist(), infos.metrics["accuracy"].shape
        ([2, 3, 4], (3,))
    """
    if not isinstance(loop, ActiveLoop):
        raise TypeError(f"loop is a {type(loop).__name__}: make one with baal_jax.active_loop(posterior, acquisition)")
    num_rounds = checks.positive_int("num_rounds", num_rounds)
    if (key is None) == (state is None):
        raise ValueError("give a key to start a run, or a state to continue one, not both")
    if state is not None and num_initial:
        raise ValueError(f"num_initial={num_initial} labels nothing in a run that continues: leave it out")
    loop, state = ready(loop, key, dataset, test, num_initial, state)
    others = test, target_inputs, stop_inputs
    blank: Any = None
    if stop is not None:
        shapes = shapes_of_dataset(dataset)[0]
        outcome = jax.eval_shape(lambda *given: _one_round(loop, *given), state, (shapes, *others))[1]
        state, blank = _remember(stop, outcome, state), outcome.info
    # A first state may hold Python numbers, a carry may not.
    state = state._replace(step=jnp.asarray(state.step, jnp.int32))
    capacity = None
    if sources.is_source(dataset.inputs):
        sources.refuse_traced(state)
        # The last query is not trained on, so this is all that the device will ever hold.
        after = range(int(state.step), int(state.step) + num_rounds - 1)
        asked = sum(loop.sizes[min(r, len(loop.sizes) - 1)] for r in after)
        capacity = max(min(int(pools.num_labelled(state.pool)) + asked, len(dataset.inputs)), 1)
    elif loop.candidates is None and (not checks.debugs_nans() or (stop is not None and not checks.is_concrete(state))):
        program = numerics.jit_for(loop.step, _scan, loop, num_rounds, stop, jit=numerics.jit_with_nan)
        return program(state, dataset, *others)
    infos = []
    for _ in range(num_rounds):
        over = stop is not None and bool(state.stopping[1])
        turn = partial(_no_round, blank) if over else partial(_watched_round, loop, stop, capacity)
        state, info = turn(state, dataset, *others)
        infos.append(info)
    return state, _stacked(*infos)


@numerics.jit_with_nan
def _stacked(*infos: StepInfo) -> StepInfo:
    # Not jnp.stack: vmap would transpose what it gives outside of here, where NaN is an error.
    return jax.tree.map(lambda *leaves: jnp.concatenate([leaf[None] for leaf in leaves]), *infos)


def ready(
    loop: ActiveLoop,
    key: Key | None,
    dataset: Dataset,
    test: Dataset | None,
    num_initial: int = 0,
    state: LoopState | None = None,
) -> tuple[ActiveLoop, LoopState]:
    """State and loop of a run, whose data are looked at: all that it may pick must have a target to look up."""
    seen = dataset
    if state is None:
        state = loop.init(key, dataset, num_initial)
        if not sources.is_source(dataset.inputs):  # init has looked at them
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dataset.inputs)
            seen = dataset._replace(inputs=shapes)
    if state.pool.targets is None and checks.is_concrete(state.pool.labelled_at, dataset.targets):
        complete = pools.available(state.pool) | pools.labelled(state.pool)
        outputs = partial(tasks.output_shape, loop.posterior, state.posterior, seen)
        tasks.admit("dataset", seen, loop.posterior.task, outputs, complete=complete)
    if test is None:
        return loop, state
    metrics = tasks.metrics_of("test", loop.posterior, state.posterior, test, loop.metrics)
    if sources.is_source(test.inputs) and not isinstance(test.inputs, np.ndarray):
        raise ValueError("test.inputs is a source on the host, but every round is evaluated on it: load it whole")
    return loop._replace(metrics=metrics), state


def _scan(loop: ActiveLoop, num_rounds: int, stop: Criterion | None, state: LoopState, *data: Any) -> _Turn:
    # A partial would be kept by the caches of jax, as long as the module.
    turn = lambda *given: _watched_round(loop, stop, None, *given)  # noqa: E731

    def one(state: LoopState, _: None) -> _Turn:
        if stop is None:
            return turn(state, *data)
        blank = jax.eval_shape(turn, state, *data)[1]
        return jax.lax.cond(state.stopping[1], lambda *given: _no_round(blank, *given), turn, state, *data)

    return jax.lax.scan(one, state, None, length=num_rounds)


def _one_round(loop: ActiveLoop, state: LoopState, data: Any, capacity: Any = None) -> tuple[LoopState, Outcome]:
    """A step, evaluated, with what a criterion may look at."""
    dataset, test, target_inputs, stop_inputs = data
    fitted, selection, info = query(loop, state, dataset, target_inputs, capacity=capacity)
    state = loop.round.advance(state, fitted, selection)
    metrics = None if test is None else loop.evaluate(state, test, loop.metrics)
    info = info._replace(stopped=jnp.zeros((), bool), metrics=metrics)
    log_probs = None if stop_inputs is None else model_average(loop.predict(state, stop_inputs))
    return state, Outcome(state.pool, info, log_probs)


def _watched_round(loop: ActiveLoop, stop: Criterion | None, capacity: Any, state: LoopState, *data: Any) -> _Turn:
    state, outcome = _one_round(loop, state, data, capacity)
    if stop is None:
        return state, outcome.info
    memory, stopped = stop.update(state.stopping[0], outcome)
    return state._replace(stopping=(memory, jnp.asarray(stopped, bool))), outcome.info


def _no_round(shapes: StepInfo, state: LoopState, *_: Any) -> _Turn:
    """A round after the run has stopped: the state as it is, numbers NaN and picks −1."""
    blank = lambda leaf: np.full(leaf.shape, np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else -1, leaf.dtype)  # noqa: E731
    return state, jax.tree.map(blank, shapes)._replace(
        round=state.pool.round,
        num_labelled=pools.num_labelled(state.pool),
        **dict.fromkeys(("num_picked", "num_nan", "num_failed_fits"), jnp.zeros((), jnp.int32)),
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
