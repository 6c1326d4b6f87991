"""Several rounds as one program, until they are over or a criterion says stop."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from baal_jax import pool
from baal_jax._util import checks
from baal_jax.loop import ActiveLoop, LoopState, StepInfo
from baal_jax.stopping import Criterion, Round
from baal_jax.typing import Array, Dataset, Key, PyTree


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
    """Several rounds as one ``lax.scan``, the same as calling ``loop.step`` that often; jitted.

    ``vmap`` over keys runs all seeds in one program. A pool that runs out stops being labelled: later rounds pick
    nothing. The labels of the last round are in the pool but not in a fit; ask for one round more to see what they
    bring.

    Args:
        loop: from :func:`active_loop`.
        key: a typed key; None when ``state`` is given.
        dataset: the pool with all its targets.
        test: where to evaluate every round's fit; ``infos.metrics`` holds the result.
        num_initial: examples to label at random first.
        num_rounds: ``R``.
        state: continue from here; the result is bit-identical to a run that was never interrupted.
        target_inputs: inputs whose predictions matter, for acquisitions that read them.
        stop: from :mod:`baal_jax.stopping`, asked at the end of every round. Rounds after it has said yes change
            nothing and say so in ``infos.stopped``; under ``vmap`` every seed stops in its own round. They cost nothing
            where seeds run one after the other, and a round where they are vectorised.
        stop_inputs: inputs whose predictions the criterion reads.

    Returns:
        ``(state, infos)``: the last state, and every :class:`StepInfo` stacked along a leading axis ``R``.

    Raises:
        ValueError: a number is not positive, both or neither of ``key`` and ``state`` are given, or ``state`` comes
            from a run with another criterion.
    """
    num_rounds = checks.positive_int("num_rounds", num_rounds)
    if (key is None) == (state is None):
        raise ValueError("give a key to start a run, or a state to continue one, not both")
    if state is None:
        state = loop.init(key, dataset, num_initial)
    elif num_initial:
        raise ValueError(f"num_initial={num_initial} labels nothing in a run that continues: leave it out")

    if stop is not None:
        state = _remember(loop, stop, state, dataset, test, target_inputs, stop_inputs)
    return _rounds(loop, num_rounds, stop, state, dataset, test, target_inputs, stop_inputs)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _rounds(
    loop: ActiveLoop,
    num_rounds: int,
    stop: Criterion | None,
    state: LoopState,
    dataset: Dataset,
    test: Dataset | None,
    target_inputs: PyTree,
    stop_inputs: PyTree,
) -> tuple[LoopState, StepInfo]:
    def one_round(
        state: LoopState, dataset: Dataset, test: Dataset | None, target_inputs: PyTree, stop_inputs: PyTree
    ) -> tuple[LoopState, StepInfo]:
        if stop is None:
            state, found = _one_round(loop, state, dataset, test, target_inputs, None)
            return state, found.info
        return jax.lax.cond(
            state.stopping[1],
            partial(_no_round, loop),
            partial(_watched_round, loop, stop),
            state,
            dataset,
            test,
            target_inputs,
            stop_inputs,
        )

    if loop.vmap_method == "sequential":
        one_round = jax.custom_batching.sequential_vmap(one_round)
    # A first state may hold Python numbers, a carry may not.
    state = state._replace(step=jnp.asarray(state.step, jnp.int32))
    return jax.lax.scan(
        lambda carry, _: one_round(carry, dataset, test, target_inputs, stop_inputs), state, None, length=num_rounds
    )


def _one_round(
    loop: ActiveLoop,
    state: LoopState,
    dataset: Dataset,
    test: Dataset | None,
    target_inputs: PyTree,
    stop_inputs: PyTree,
) -> tuple[LoopState, Round]:
    state, info = loop.step(state, dataset, target_inputs)
    info = info._replace(stopped=jnp.zeros((), bool))
    if test is not None:
        info = info._replace(metrics=loop.evaluate(state, test))
    log_probs = None if stop_inputs is None else loop.average(state, stop_inputs)
    return state, Round(state.pool, info, log_probs)


def _watched_round(loop: ActiveLoop, stop: Criterion, state: LoopState, *data: Any) -> tuple[LoopState, StepInfo]:
    state, found = _one_round(loop, state, *data)
    memory, stopped = stop.update(state.stopping[0], found)
    return state._replace(stopping=(memory, jnp.asarray(stopped, bool))), found.info


def _no_round(loop: ActiveLoop, state: LoopState, *data: Any) -> tuple[LoopState, StepInfo]:
    """A round that does not happen: the state as it is, and an info without numbers."""
    shapes = jax.eval_shape(lambda *arguments: _one_round(loop, *arguments)[1].info, state, *data)
    return state, nothing_happened(shapes, state)


def nothing_happened(like: StepInfo, state: LoopState) -> StepInfo:
    """What there is to say of a round after the run has stopped.

    Args:
        like: of another round; its shapes are read.
        state: of the loop.

    Returns:
        Numbers are NaN and picks −1.
    """
    return jax.tree.map(_blank, like)._replace(
        round=state.pool.round,
        num_labelled=pool.num_labelled(state.pool),
        num_picked=jnp.zeros((), jnp.int32),
        num_nan=jnp.zeros((), jnp.int32),
        stopped=jnp.ones((), bool),
    )


def _blank(leaf: Any) -> Array:
    return jnp.full(leaf.shape, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else -1, leaf.dtype)


def _remember(loop: ActiveLoop, stop: Criterion, state: LoopState, *data: Any) -> LoopState:
    """The state with what the criterion remembers before its first round; as it is if that is there already."""
    found = jax.eval_shape(lambda *arguments: _one_round(loop, *arguments)[1], state, *data)
    fresh = (stop.init(found), jnp.zeros((), bool))
    if state.stopping is None:
        return state._replace(stopping=fresh)
    if jax.tree.map(jnp.shape, state.stopping) != jax.tree.map(jnp.shape, fresh):
        raise ValueError("state remembers another stopping criterion than stop: continue with the one it was made with")
    return state
