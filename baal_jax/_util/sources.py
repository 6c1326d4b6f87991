"""Pools on the host: memory maps, all with ``__len__`` and ``__getitem__`` but arrays, and these in a View."""

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, meshes, numerics

_BLOCK = 2**21  # bytes that are read ahead, or are one program's inputs and outputs
_FEW = 1024  # rows of a memory map, each of which may bring sixteen pages with it


class Source(Protocol):
    """A collection on the host: a memory-mapped array, a TFDS data source, a torch data set, a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def is_source(inputs: Any) -> bool:
    """Whether ``inputs`` are read example by example; arrays, and dictionaries and tuples of them, are not."""
    if isinstance(inputs, list | np.memmap):  # ``numpy.asarray`` of a memory map is an array
        return True
    if isinstance(inputs, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct):
        return False
    return jax.tree_util.all_leaves([inputs]) and hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")


def length(inputs: Any) -> int:
    """Examples of a source, or of a pytree of arrays."""
    return len(inputs) if is_source(inputs) else checks.leading_axis("inputs", inputs)


def refuse_traced(state: Any) -> None:
    """A source is read on the host, where a traced state has no values."""
    if not checks.is_concrete(state):
        raise ValueError("dataset.inputs is a source on the host and cannot be read inside jit, vmap or grad: load it")


def load(source: Source, ids: Any) -> Any:
    """Inputs ``[b, …]`` of the examples ``ids``, a slice or integers, in NumPy."""
    ids = ids if isinstance(ids, slice) else np.asarray(ids)
    if isinstance(source, View) and source.inputs_of is None:
        return load(source.source, source.places(ids))
    if isinstance(source, np.ndarray | jax.Array) or not is_source(source):
        return jax.tree.map(lambda leaf: _rows(leaf, ids), source)
    ids = range(len(source))[ids] if isinstance(ids, slice) else [int(i) for i in ids]
    items = _items(source, [*ids])
    if missing := [i for i, item in zip(ids, items, strict=True) if item is None]:
        raise ValueError(f"source[{missing[0]}] is None: filter before, so that every example is one")
    stack = lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])  # noqa: E731
    return jax.tree.map(stack, *items, is_leaf=lambda node: isinstance(node, list))  # of numbers


def _rows(leaf: Any, ids: Any) -> np.ndarray:
    """Rows of an array; those of a memory map are copied, and its pages given back."""
    if not isinstance(leaf, np.memmap):
        return np.asarray(leaf[ids])
    base: Any = leaf
    while isinstance(base, np.ndarray):
        base = base.base
    rows = []
    for some in [ids] if isinstance(ids, slice) else np.split(ids, range(_FEW, len(ids), _FEW)):
        rows.append(np.array(leaf[some]))
        # What was written to a copy ("c") is in its pages alone. Windows has no such advice.
        if isinstance(base, mmap.mmap) and leaf.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _items(source: Source, ids: list[int]) -> list[Any]:
    """Examples one by one, or as one batch where the source reads batches."""
    if isinstance(source, np.ndarray | jax.Array):
        return list(_rows(source, np.asarray(ids)))
    whole_batches = getattr(source, "__getitems__", None)
    return list(whole_batches(ids)) if whole_batches else [source[i] for i in ids]


def shapes_of(source: Source) -> Any:
    """What the whole source would be on the device, as shapes, which its first item tells."""
    rows = lambda leaf: jax.ShapeDtypeStruct((length(source), *leaf.shape[1:]), jnp.asarray(leaf).dtype)  # noqa: E731
    return jax.tree.map(rows, load(source, np.arange(1)))


def stream(
    run: Callable[[Any], Any], source: Any, batch_size: int, axis: int = 0, start: int = 0, title: str = ""
) -> Iterator[Any]:
    """Yields ``run(inputs [B, …])`` of every batch, in NumPy and without padding; ``axis`` is that of the examples."""
    batch_size, total = checks.positive_int("batch_size", batch_size), _require_some(source)

    def read(ids: slice) -> Any:
        room = -(-(ids.stop - ids.start) // batch_size) * batch_size
        return jax.tree.map(lambda leaf: pad(leaf, room), load(source, ids))

    def blocks() -> Iterator[tuple[Any, int]]:
        """Some batches and how many examples; the next ones are read meanwhile, twice as many up to a size."""
        with ThreadPoolExecutor(1) as thread:
            rows, ids = batch_size, slice(start, min(start + batch_size, total))
            ahead = thread.submit(read, ids)
            while ids.start < total:
                block, now = ahead.result(), ids
                size = sum(leaf.nbytes for leaf in jax.tree.leaves(block)) / (now.stop - now.start)
                rows = min(2 * rows, max(1, int(_BLOCK / max(size * batch_size, 1))) * batch_size)
                ids = slice(now.stop, min(now.stop + rows, total))
                if ids.start < total:
                    ahead = thread.submit(read, ids)
                yield block, now.stop - now.start

    def outputs() -> Iterator[Any]:
        # Two batches are in flight, so that the device never waits.
        dispatched: deque[tuple[Any, int]] = deque()
        with _bar(source, total - start, title) as bar:
            for block, count in blocks():
                for first in range(0, count, batch_size):
                    inputs = jax.tree.map(lambda leaf, at=first: leaf[at : at + batch_size], block)
                    dispatched.append((run(inputs), min(count - first, batch_size)))
                    if len(dispatched) == 2:
                        yield _read_back(*dispatched.popleft(), axis)
                if bar is not None:
                    bar.update(count)
        yield _read_back(*dispatched.popleft(), axis)

    return outputs()


def _require_some(source: Any) -> int:
    if (total := length(source)) == 0:
        raise ValueError("source is empty: there is nothing to predict")
    return total


def _bar(source: Any, total: int, title: str) -> Any:
    """A bar if it has a title or its source asks for one, where tqdm is installed."""
    asked = getattr(source, "progress", False)
    with suppress(ImportError):
        if asked or title:
            from tqdm import tqdm

            return tqdm(total=total, desc=title or "read", unit=" examples", delay=0 if asked else 2)
    return nullcontext()


def _read_back(outputs: Any, length: int, axis: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[(slice(None),) * axis + (slice(length),)], outputs)


def mapped(run: Callable[[Any], Any], source: Source, batch_size: int | None) -> Any:
    """``run`` on a whole source, ``[N, …]`` on the host; None, and the first example read alone, if it asks nothing."""
    shapes, blocks = _computed(run, source, batch_size)
    if not jax.tree.leaves(shapes):
        return None
    everything = jax.tree.map(lambda leaf: np.empty((length(source), *leaf.shape[1:]), leaf.dtype), shapes)
    for ids, block in blocks:
        jax.tree.map(lambda whole, part, ids=ids: whole.__setitem__(ids, part), everything, block)
    return everything


def best(run: Callable[[Any], Any], source: Source, batch_size: int | None, available: np.ndarray, num: int) -> tuple:
    """``(ids int[num], rows, broken)``: of what ``run`` gives, those with the largest numbers in the first leaf.

    Ids ascend, −1 where fewer are available, and ``broken`` counts available rows with NaN.
    """
    values, ids, rows, broken = np.zeros(0, np.float32), np.zeros(0, int), None, 0
    for places, block in _computed(run, source, batch_size)[1]:
        leaves, there = jax.tree.leaves(block), available[places]
        nan = [np.isnan(leaf.reshape(len(leaf), -1)).any(axis=1) for leaf in leaves]
        broken += np.count_nonzero(there & np.any(nan, axis=0))
        values = np.concatenate([values, numerics.rank_values(jnp.asarray(leaves[0]), jnp.asarray(there))])
        ids = np.concatenate([ids, np.arange(places.start, places.stop)])
        order = np.sort(np.argsort(-values, kind="stable")[:num])
        before = jax.tree.map(lambda leaf: leaf[:0], block) if rows is None else rows
        rows = jax.tree.map(lambda *parts, order=order: np.concatenate(parts)[order], before, block)
        values, ids = values[order], ids[order]
    return np.where(np.isneginf(values), -1, ids), rows, broken


def _computed(run: Callable[[Any], Any], source: Source, batch_size: int | None) -> tuple[Any, Iterator]:
    """Shapes of one row of the outputs, and ``(ids, outputs)`` of blocks of many batches, to which ``run`` is one."""
    total = _require_some(source)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), shapes_of(source))
    shapes = jax.eval_shape(run, first)
    batch_size = total if batch_size is None else min(batch_size, total)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((first, shapes)))
    count = -(-total // (max(1, _BLOCK // (size * batch_size)) * batch_size))
    rows = -(-total // (count * batch_size)) * batch_size
    ids = (slice(start, min(start + rows, total)) for start in range(0, total, rows))
    return shapes, zip(ids, stream(run, source, rows), strict=True)


def in_batches(function: Callable[[Any], Any], inputs: Any, batch_size: int) -> Any:
    """``function`` of arrays ``[N, …]``, at most ``batch_size`` examples at a time, inside ``jit``."""
    # A device has a block of the rows, if there are several. Of each block, batch ``j`` of ``J`` holds the examples
    # ``j, j + J, j + 2J, …``, so that every device works on examples of its own in every batch.
    total = jax.tree.leaves(inputs)[0].shape[0]
    num_batches = -(-total // batch_size)
    if num_batches <= 1:
        return function(inputs)
    blocks = jax.tree.map(lambda leaf: meshes.in_blocks(jnp.asarray(leaf)), inputs)
    num_blocks, length = jax.tree.leaves(blocks)[0].shape[:2]
    rows = -(-length // num_batches)  # even batches: at most num_batches - 1 rows of padding

    def cut(leaf: Any) -> Any:
        missing = rows * num_batches - length
        leaf = jnp.concatenate([leaf, jnp.repeat(leaf[:, -1:], missing, axis=1)], axis=1) if missing else leaf
        return leaf.reshape(num_blocks, rows, num_batches, *leaf.shape[2:])

    def one(j: Any) -> Any:
        batch = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, j, 2, False), cuts)
        return function(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch))

    def joined(leaf: Any) -> Any:
        leaf = jnp.moveaxis(leaf.reshape(num_batches, num_blocks, rows, *leaf.shape[2:]), 0, 2)
        return leaf.reshape(num_blocks, -1, *leaf.shape[3:])[:, :length].reshape(total, *leaf.shape[3:])

    cuts = jax.tree.map(cut, blocks)
    return jax.tree.map(joined, jax.lax.map(one, jnp.arange(num_batches)))


def pad(leaf: Any, length: int) -> Any:
    """Repeats the last example up to ``length``, so that padding is as harmless as data."""
    missing = length - leaf.shape[0]
    numpy = np if isinstance(leaf, np.ndarray) else jnp
    return numpy.concatenate([leaf, numpy.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf


class View:
    """Part of a source: some of its examples, and of every item what the network reads.

    Args:
        source: anything with ``__len__`` and ``__getitem__``.
        inputs_of: what of an item is the input, for example ``lambda item: item["image"]``; None for the whole item.
        ids: the examples, in this order; None for all. −1 is padding and reads the first.
        progress: whether a bar is shown whenever all of it is read, where tqdm is installed.

    Example:
        >>> photos = [{"image": np.full(2, 0.5), "name": "a.png"}, {"image": np.ones(2), "name": "b.png"}]
        >>> data.View(photos, lambda item: item["image"])[1].tolist()
        [1.0, 1.0]
    """

    def __init__(
        self, source: Source, inputs_of: Callable[[Any], Any] | None = None, ids: Any = None, *, progress: bool = False
    ):
        self.source, self.inputs_of = source, inputs_of
        self.ids = None if ids is None else np.maximum(np.asarray(ids), 0)
        self.progress = progress or getattr(source, "progress", False)

    def __len__(self) -> int:
        return len(self.source) if self.ids is None else len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Any) -> list[Any]:
        """Several of them, as one batch where the source reads batches."""
        items = _items(self.source, [int(i) for i in self.places(np.asarray(indices))])
        return items if self.inputs_of is None else [self.inputs_of(item) for item in items]

    def places(self, indices: Any) -> Any:
        """Where examples, a slice or integers, are in the source."""
        return indices if self.ids is None else self.ids[indices]
