"""The same rounds on a source that stays on the host: only labelled examples and one batch are on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool
from baal_jax._run import nothing_happened
from baal_jax.loop import ActiveLoop, LoopState, StepInfo, after, candidates, pick, round_keys, zeros
from baal_jax.prediction import load, stream, summarise
from baal_jax.stopping import Round
from baal_jax.study._program import Data, Program, Rounds, Traced, fingerprint
from baal_jax.typing import Dataset, PyTree


class Stream(NamedTuple):
    """How to read a pool that does not fit on the device.

    Attributes:
        batch_size: examples that are on the device at a time, beside all labelled ones.
        inputs_of: what of an item of the source is the input, for example ``lambda item: item["image"]``; the whole
            item by default.
    """

    batch_size: int = 256
    inputs_of: Callable[[Any], PyTree] | None = None


class Pieces(NamedTuple):
    """The parts of a round that are compiled."""

    fit: Any
    summarise: Any
    candidates: Any
    pick: Any
    after: Any


def abstract_pool(source: Any, targets: Any, how: Stream) -> Dataset:
    """The data set that the source would be on the device: shapes alone, taken from its first item."""
    item = load(source, [0], how.inputs_of)
    rows = lambda leaf: jax.ShapeDtypeStruct((len(source), *leaf.shape[1:]), jnp.asarray(leaf).dtype)  # noqa: E731
    known = jnp.asarray(targets[:1])
    return Dataset(jax.tree.map(rows, item), jax.ShapeDtypeStruct((len(source), *known.shape[1:]), known.dtype))


def trace_streamed(
    loop: ActiveLoop,
    rounds: Rounds,
    data: Data,
    source: Any,
    targets: np.ndarray,
    how: Stream,
    compiler_options: dict[str, Any] | None = None,
) -> Traced:
    """The pieces of a strategy, not compiled yet; a call runs one seed.

    Args:
        loop: of the strategy.
        rounds: what a seed does.
        data: what all seeds share; its training data are shapes.
        source: ``__len__`` and ``__getitem__``.
        targets: ``[N, …]``, on the host.
        how: to read the source.
        compiler_options: of XLA.

    Returns:
        :class:`Traced`.
    """
    sizes = loop.parts.sizes
    asked = sum(sizes[min(r, len(sizes) - 1)] for r in range(rounds.num_rounds - 1))  # the last query is not trained on
    capacity = max(1, min(rounds.num_initial + asked, len(source)))
    pieces = _pieces(loop, compiler_options)
    state = jax.eval_shape(partial(_first_state, loop, rounds, capacity), jnp.zeros((), jnp.int32), data)
    found = fingerprint(_texts(pieces, loop, state, data, capacity, how), jax.devices()[0])

    def call(seeds: np.ndarray) -> tuple[Any, StepInfo]:
        initial, infos = _one_seed(loop, pieces, rounds, data, source, targets, how, capacity, seeds[0])
        return initial[None], jax.tree.map(lambda leaf: leaf[None], infos)

    return Traced(lambda memory, may_shrink: Program(call, 1, found, 0), 1, found)


def _pieces(loop: ActiveLoop, compiler_options: dict[str, Any] | None) -> Pieces:
    parts = loop.parts
    jit = partial(jax.jit, compiler_options=compiler_options)
    summary_fn: Any = parts.acquisition.summarise  # None where nothing is scored, and summary is not called then

    def summary(key: Any, fitted: Any, target_inputs: PyTree, inputs: PyTree) -> PyTree:
        return summarise(
            key,
            parts.posterior,
            fitted,
            inputs,
            summary_fn,
            num_samples=parts.num_samples,
            batch_size=None,
            features=parts.features,
            target_inputs=target_inputs,
        )

    return Pieces(
        jit(parts.posterior.fit),
        jit(summary),
        jit(lambda key, state: candidates(key, state.pool, parts.max_sample)),
        jit(partial(pick, parts)),
        jit(after),
    )


def _first_state(loop: ActiveLoop, rounds: Rounds, capacity: int, seed: Any, data: Data) -> LoopState:
    """As the loop begins, with the memory of a fit on as many examples as will be on the device."""
    state = loop.init(jax.random.fold_in(data.key, seed), data.train, rounds.num_initial)
    compact = _compact(data.train, capacity)
    fitted = jax.eval_shape(loop.parts.posterior.fit, state.key, compact, jax.ShapeDtypeStruct((capacity,), bool))
    return state._replace(posterior=zeros(fitted))


def _compact(train: Dataset, capacity: int) -> Dataset:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((capacity, *leaf.shape[1:]), leaf.dtype), train)


def _texts(pieces: Pieces, loop: ActiveLoop, state: LoopState, data: Data, capacity: int, how: Stream) -> list[str]:
    mask = jax.ShapeDtypeStruct((capacity,), bool)
    keys = jax.eval_shape(round_keys, state.key, state.pool.round)
    lowered = [pieces.fit.lower(keys.fit, _compact(data.train, capacity), mask, state.posterior)]
    ids, available = jax.eval_shape(pieces.candidates, keys.subset, state)
    found = None
    if loop.parts.acquisition.summarise is not None:
        inputs = _compact(data.train, how.batch_size).inputs
        arguments = keys.draws, state.posterior, data.target_inputs, inputs
        lowered.append(pieces.summarise.lower(*arguments))
        num = available.shape[0]
        of_batch = jax.eval_shape(pieces.summarise, *arguments)
        found = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype), of_batch)
    lowered.append(pieces.pick.lower(keys.select, state, found, ids, available))
    return [piece.as_text() for piece in lowered]


def _one_seed(
    loop: ActiveLoop,
    pieces: Pieces,
    rounds: Rounds,
    data: Data,
    source: Any,
    targets: np.ndarray,
    how: Stream,
    capacity: int,
    seed: int,
) -> tuple[np.ndarray, StepInfo]:
    state = _first_state(loop, rounds, capacity, jnp.asarray(seed, jnp.int32), data)
    initial = np.flatnonzero(np.asarray(pool.labelled(state.pool))).astype(np.int32)
    memory, stopped, infos = None, False, []
    for _ in range(rounds.num_rounds):
        if stopped:
            infos.append(nothing_happened(infos[-1], state))
            continue
        state, info = _one_round(loop, pieces, data, source, targets, how, capacity, state)
        info = info._replace(stopped=jnp.zeros((), bool), metrics=loop.evaluate(state, data.test))
        infos.append(info)
        if rounds.stop is not None:
            log_probs = None if data.stop_inputs is None else loop.average(state, data.stop_inputs)
            over = Round(state.pool, info, log_probs)
            memory = rounds.stop.init(over) if memory is None else memory
            memory, stop = rounds.stop.update(memory, over)
            stopped = bool(stop)
    return initial, jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *infos)


def _one_round(
    loop: ActiveLoop,
    pieces: Pieces,
    data: Data,
    source: Any,
    targets: np.ndarray,
    how: Stream,
    capacity: int,
    state: LoopState,
) -> tuple[LoopState, StepInfo]:
    keys = round_keys(state.key, state.pool.round)
    labelled = np.flatnonzero(np.asarray(pool.labelled(state.pool, loop.parts.last_rounds)))
    rows = np.zeros(capacity, int)
    rows[: len(labelled)] = labelled  # ascending, as a fit on the whole pool would number them
    known = Dataset(load(source, rows, how.inputs_of), targets[rows])
    fitted = pieces.fit(keys.fit, known, jnp.arange(capacity) < len(labelled), state.posterior)
    ids, available = pieces.candidates(keys.subset, state)
    summary = None
    if loop.parts.acquisition.summarise is not None:
        run = partial(pieces.summarise, keys.draws, fitted, data.target_inputs)
        scored = source if ids is None else _Rows(source, np.asarray(ids))
        batches = list(stream(run, scored, how.batch_size, how.inputs_of, axis=0))
        summary = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    picked, info = pieces.pick(keys.select, state, summary, ids, available)
    return pieces.after(state, fitted, picked), info


class _Rows:
    """Some examples of a source; −1 reads the first, which nothing can pick."""

    def __init__(self, source: Any, ids: np.ndarray):
        self.source, self.ids = source, np.maximum(ids, 0)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return self.source[int(self.ids[index])]

    def __getitems__(self, indices: Any) -> Any:
        wanted = [int(i) for i in self.ids[np.asarray(indices)]]
        whole_batches = getattr(self.source, "__getitems__", None)
        return whole_batches(wanted) if whole_batches else [self.source[i] for i in wanted]
