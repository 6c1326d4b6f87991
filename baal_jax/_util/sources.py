"""Pools on the host: memory maps, all with ``__len__`` and ``__getitem__`` but arrays, and these in a View."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks


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
    if isinstance(source, np.ndarray) or not is_source(source):
        return jax.tree.map(lambda leaf: np.asarray(leaf[ids]), source)
    ids = list(range(len(source)))[ids] if isinstance(ids, slice) else [int(i) for i in ids]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *_items(source, ids))


def _items(source: Source, ids: list[int]) -> list[Any]:
    """Examples one by one, or as one batch where the source reads batches."""
    if isinstance(source, np.ndarray | jax.Array):
        return list(np.asarray(source[np.asarray(ids)]))
    whole_batches = getattr(source, "__getitems__", None)
    return list(whole_batches(ids)) if whole_batches else [source[i] for i in ids]


def shapes_of(source: Source) -> Any:
    """What the whole source would be on the device, as shapes, which its first item tells."""
    rows = lambda leaf: jax.ShapeDtypeStruct((length(source), *leaf.shape[1:]), jnp.asarray(leaf).dtype)  # noqa: E731
    return jax.tree.map(rows, load(source, np.arange(1)))


def stream(run: Callable[[Any], Any], source: Any, batch_size: int, axis: int = 0, start: int = 0) -> Iterator[Any]:
    """Yields ``run(inputs [B, …])`` of every batch, in NumPy and without padding; ``axis`` is that of the examples."""
    batch_size, total = checks.positive_int("batch_size", batch_size), length(source)
    if total == 0:
        raise ValueError("source is empty: there is nothing to predict")

    def outputs() -> Iterator[Any]:
        # Two batches are in flight: the host loads one while the device computes the other.
        dispatched: deque[tuple[Any, int]] = deque()
        for first in range(start, total, batch_size):
            ids = slice(first, min(first + batch_size, total))
            inputs = jax.tree.map(lambda leaf: pad(leaf, batch_size), load(source, ids))
            dispatched.append((run(inputs), ids.stop - first))
            if len(dispatched) == 2:
                yield _read_back(*dispatched.popleft(), axis)
        yield _read_back(*dispatched.popleft(), axis)

    return outputs()


def _read_back(outputs: Any, length: int, axis: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf).take(range(length), axis=axis), outputs)


def mapped(run: Callable[[Any], Any], source: Source, batch_size: int | None) -> Any:
    """``run`` on a whole source, ``[N, …]`` on the host; None, and the first example read alone, if it asks nothing."""
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), shapes_of(source))
    if not jax.tree.leaves(jax.eval_shape(run, first)):
        return None
    total = len(source)
    batches = list(stream(run, source, total if batch_size is None else min(batch_size, total)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def in_batches(function: Callable[[Any], Any], inputs: Any, batch_size: int) -> Any:
    """``function`` of arrays ``[N, …]``, at most ``batch_size`` examples at a time, inside ``jit``."""
    # Batch ``j`` of ``J`` holds the examples ``j, j + J, j + 2J, …``, so that with inputs sharded over their first axis
    # every device works on examples of its own in every batch.
    total = jax.tree.leaves(inputs)[0].shape[0]
    num_batches = -(-total // batch_size)
    if num_batches <= 1:
        return function(inputs)
    rows = -(-total // num_batches)  # even batches: at most num_batches - 1 rows of padding
    padded = jax.tree.map(lambda leaf: jnp.asarray(pad(leaf, rows * num_batches)), inputs)
    strided = jax.tree.map(lambda leaf: leaf.reshape(rows, num_batches, *leaf.shape[1:]), padded)
    batch = lambda j: jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, j, 1, False), strided)  # noqa: E731
    outputs = jax.lax.map(lambda j: function(batch(j)), jnp.arange(num_batches))
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1).reshape(-1, *leaf.shape[2:])[:total], outputs)


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

    Example:
        >>> import numpy as np
        >>> from baal_jax import data
        >>> photos = [{"image": np.full(2, 0.5), "name": "a.png"}, {"image": np.ones(2), "name": "b.png"}]
        >>> data.View(photos, lambda item: item["image"])[1].tolist()
        [1.0, 1.0]
    """

    def __init__(self, source: Source, inputs_of: Callable[[Any], Any] | None = None, ids: Any = None):
        self.source, self.inputs_of = source, inputs_of
        self.ids = None if ids is None else np.maximum(np.asarray(ids), 0)

    def __len__(self) -> int:
        return len(self.source) if self.ids is None else len(self.ids)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Any) -> list[Any]:
        """Several of them, as one batch where the source reads batches."""
        items = _items(self.source, [int(i) for i in (indices if self.ids is None else self.ids[np.asarray(indices)])])
        return items if self.inputs_of is None else [self.inputs_of(item) for item in items]
