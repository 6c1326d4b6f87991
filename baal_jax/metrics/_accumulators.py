"""Metrics of batches that never sit in memory together: pure functions from a state to the next."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from baal_jax._util import checks, numerics
from baal_jax.metrics import _sums
from baal_jax.metrics._common import MetricSet, Terms, mean
from baal_jax.typing import Array, Predictions, PyTree


class Accumulator(NamedTuple):
    """Metrics over a stream of batches. All four are pure, and go through ``jit``, ``scan`` and ``vmap``.

    Attributes:
        init: ``(predictions, targets) -> state``, before the first batch. Of the arguments, a batch like those to come,
            only shapes and types are read: ``jax.ShapeDtypeStruct`` will do.
        update: ``(state, predictions [S, B, …, C], targets [B, …]) -> state``, one more batch, of any size.
        merge: ``(state, state) -> state``, what two streams have seen, in their order.
        compute: ``state -> {name: value}``.
    """

    init: Callable[[Predictions, Array], PyTree]
    update: Callable[[PyTree, Predictions, Array], PyTree]
    merge: Callable[[PyTree, PyTree], PyTree]
    compute: Callable[[PyTree], dict[str, Array]]


def accumulate(metric_set: MetricSet, *, capacity: int | None = None) -> Accumulator:
    """The metrics of a set, by the same names, over batches one after the other.

    Every example counts the same, in however many batches it came, with or without padding (negative classes, NaN),
    merged in whatever way: counts are integers, binned confidences are exact sums, other sums carry their rounding
    error along. They hold up to ``2**31`` examples or positions of a map.

    Metrics that rank all examples (``"auroc"``, ``"average_precision"``, ``"adaptive_ece"``), and all of a set that you
    wrote yourself, need the examples together. They are exact as well, from a buffer of ``capacity`` summaries and
    targets: ``C + 1`` numbers an example. Where more known examples arrive than it holds, they are NaN (integers: −1),
    never a result of a part. Examples without any known target take no room. Every state that is merged has a buffer of
    this size, so it must hold the whole stream.

    Args:
        metric_set: what to compute, such as :func:`classification` or :func:`regression`.
        capacity: the largest number of examples in the stream, for metrics that need a buffer; others ignore it.

    Returns:
        An :class:`Accumulator`.

    Raises:
        ValueError: the set needs a ``capacity``, it is not positive, or (in ``update``) a batch has other shapes than
            that of ``init``.

    Example:
        >>> import baal_jax as baal
        >>> from baal_jax import metrics
        >>> accumulator = metrics.accumulate(metrics.classification())
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]]))   # one draw
        >>> targets = jnp.array([0, 0, 1])
        >>> state = accumulator.init(baal.Predictions(logits), targets)
        >>> for batch in (slice(0, 2), slice(2, 3)):                              # the last one is smaller
        ...     state = accumulator.update(state, baal.Predictions(logits[:, batch]), targets[batch])
        >>> round(float(accumulator.compute(state)["accuracy"]), 3)
        0.667
    """
    if capacity is not None:
        capacity = checks.positive_int("capacity", capacity)
    needing = [name for name, metric in _named(metric_set) if metric.sums_of is None]
    if needing and capacity is None:
        raise ValueError(
            f"capacity=None, but {', '.join(needing)} needs all examples together: pass the largest number of examples"
        )
    return _accumulate(metric_set, capacity if needing else None)


class Metric(NamedTuple):
    """One value of a summary, and how to have it from batches.

    Attributes:
        compute: ``(summary, targets) -> value``, or name → value.
        sums_of: ``(summary, targets) -> sums``, as in :mod:`~baal_jax.metrics._sums`; None if there is no such thing.
        finish: ``sums -> value``.
    """

    compute: Callable[[PyTree, Array], PyTree]
    sums_of: Callable[[PyTree, Array], PyTree] | None = None
    finish: Callable[[PyTree], PyTree] | None = None


@dataclasses.dataclass(frozen=True, eq=False)  # not a tuple: jax keeps weak references to what it compiles
class Streamable:
    """The ``compute`` of a :class:`MetricSet` that knows the parts it is made of.

    Attributes:
        named: pairs of a name and a :class:`Metric`.
    """

    named: tuple[tuple[str, Metric], ...]

    def __call__(self, summary: PyTree, targets: Array) -> dict[str, Array]:
        """All values by name."""
        values = _values(self, summary, targets)
        return {name: value for (name, _), value in zip(self.named, values, strict=True)}


def mean_metric(
    terms: Callable[[PyTree, Array], Terms], finish: Callable[[Array], Array] = lambda value: value
) -> Metric:
    """A function of the mean of one value an example."""

    def count(summary: PyTree, targets: Array) -> tuple[_sums.DoubleSum, Array]:
        values, counts = terms(summary, targets)
        return _sums.double_sum(jnp.where(counts, values, 0.0)), jnp.sum(counts, dtype=jnp.int32)

    def finish_sums(sums: tuple[_sums.DoubleSum, Array]) -> Array:
        return finish(_sums.double_value(sums[0]) / sums[1].astype(jnp.float32))

    return Metric(lambda summary, targets: finish(mean(terms(summary, targets))), count, finish_sums)


@functools.partial(jax.jit, static_argnums=0)
def _values(streamable: Streamable, summary: PyTree, targets: Array) -> list[Array]:
    return [metric.compute(summary, targets) for _, metric in streamable.named]


class _Buffer(NamedTuple):
    summary: PyTree  # [capacity, …]
    targets: Array  # [capacity, …], unknown where there is nothing yet
    num_examples: Array  # int32[], how many wanted to be in, which may be more than there is room for


class _State(NamedTuple):
    sums: tuple[PyTree, ...]
    buffer: _Buffer | None


def _named(metric_set: MetricSet) -> tuple[tuple[str, Metric], ...]:
    compute = metric_set.compute
    return compute.named if isinstance(compute, Streamable) else (("this set", Metric(compute)),)


@functools.lru_cache(maxsize=64)  # one object for one configuration, but no set of a user is kept for ever
def _accumulate(metric_set: MetricSet, capacity: int | None) -> Accumulator:
    named = _named(metric_set)
    counts = [metric.sums_of for _, metric in named if metric.sums_of is not None]

    def count(predictions: Predictions, targets: Array) -> tuple[tuple[PyTree, ...], PyTree, Array]:
        summary, targets = metric_set.summarise(predictions), _signed(targets)
        return tuple(one(summary, targets) for one in counts), summary, targets

    def init(predictions: Predictions, targets: Array) -> _State:
        sums, summary, kept = jax.eval_shape(count, predictions, targets)
        empty = jax.tree.map(lambda leaf: _filled(leaf.shape, 0, leaf.dtype), sums)
        return _State(empty, None if capacity is None else _empty(capacity, summary, kept))

    def update(state: _State, predictions: Predictions, targets: Array) -> _State:
        sums, summary, targets = count(predictions, targets)
        _same_shapes(state, sums, summary, targets)
        buffer = state.buffer and _append(state.buffer, summary, targets, _known_rows(targets))
        return _State(_sums.add(state.sums, sums), buffer)

    def merge(one: _State, other: _State) -> _State:
        buffer = one.buffer
        if buffer is not None and other.buffer is not None:
            filled = jnp.arange(buffer.targets.shape[0]) < other.buffer.num_examples
            total = buffer.num_examples + other.buffer.num_examples
            buffer = _append(buffer, other.buffer.summary, other.buffer.targets, filled)._replace(num_examples=total)
        return _State(_sums.add(one.sums, other.sums), buffer)

    def compute(state: _State) -> dict[str, Array]:
        sums, found = iter(state.sums), {}
        for name, metric in named:
            if metric.finish is not None:
                found[name] = metric.finish(next(sums))
            elif state.buffer is not None:
                values = metric.compute(state.buffer.summary, state.buffer.targets)
                found |= _unless_too_many(state.buffer, values if isinstance(values, dict) else {name: values})
        return found

    return Accumulator(init, jax.jit(update), jax.jit(merge), jax.jit(compute))


def _signed(targets: Array) -> Array:
    """Integer classes in a type that has −1."""
    targets = jnp.asarray(targets)
    return targets.astype(jnp.int32) if jnp.issubdtype(targets.dtype, jnp.integer) else targets


def _unknown(targets: Array) -> Array:
    return targets < 0 if jnp.issubdtype(targets.dtype, jnp.integer) else jnp.isnan(targets)


def _known_rows(targets: Array) -> Array:
    return jnp.any(~_unknown(targets), axis=tuple(range(1, targets.ndim)))


def _empty(capacity: int, summary: PyTree, targets: Array) -> _Buffer:
    nothing = -1 if jnp.issubdtype(targets.dtype, jnp.integer) else jnp.nan
    return _Buffer(
        jax.tree.map(lambda leaf: _filled((capacity, *leaf.shape[1:]), 0, leaf.dtype), summary),
        _filled((capacity, *targets.shape[1:]), nothing, targets.dtype),
        _filled((), 0, jnp.int32),
    )


def _filled(shape: tuple[int, ...], value: float, dtype: DTypeLike) -> Array:
    return jnp.asarray(np.full(shape, value, dtype))  # jnp.full would compile a program for every shape


def _append(buffer: _Buffer, summary: PyTree, targets: Array, rows: Array) -> _Buffer:
    """Puts the given rows behind those that are there; what finds no room is counted all the same."""
    capacity, rows = buffer.targets.shape[0], numerics.replicate(rows)
    places = buffer.num_examples + jnp.cumsum(rows, dtype=jnp.int32) - 1
    places = jnp.where(rows, places, capacity)

    def write(there: Array, new: Array) -> Array:
        return there.at[places].set(numerics.replicate(new), mode="drop")

    return _Buffer(
        jax.tree.map(write, buffer.summary, summary),
        write(buffer.targets, targets),
        buffer.num_examples + jnp.sum(rows, dtype=jnp.int32),
    )


def _unless_too_many(buffer: _Buffer, values: dict[str, Array]) -> dict[str, Array]:
    fits = buffer.num_examples <= buffer.targets.shape[0]

    def checked(value: Array) -> Array:
        value = jnp.asarray(value)
        otherwise = jnp.nan if jnp.issubdtype(value.dtype, jnp.inexact) else -1
        return jnp.where(fits, value, jnp.asarray(otherwise).astype(value.dtype))

    return jax.tree.map(checked, values)


def _same_shapes(state: _State, sums: PyTree, summary: PyTree, targets: Array) -> None:
    buffer = None if state.buffer is None else (state.buffer.summary, state.buffer.targets)
    batch = None if state.buffer is None else (summary, targets)
    there = _shapes(state.sums, 0), _shapes(buffer, 1)
    here = _shapes(sums, 0), _shapes(batch, 1)
    if there != here:
        raise ValueError(
            f"targets of shape {targets.shape} and their predictions do not go with this state: "
            "call init with a batch of the same classes and trailing axes"
        )


def _shapes(tree: PyTree, start: int) -> list[tuple[int, ...]]:
    return [np.shape(leaf)[start:] for leaf in jax.tree.leaves(tree)]
