"""Data sets from arrays and from Hugging Face."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from baal_jax import tasks
from baal_jax.typing import Dataset, PyTree

_ROWS = 4096  # of a Hugging Face data set in memory at a time


def from_arrays(inputs: PyTree, targets: Any = None, *, num_classes: int | None = None) -> Dataset:
    """A checked data set from NumPy or JAX arrays.

    Args:
        inputs: array, or pytree of arrays, with one leading axis ``N``. Images are ``[N, H, W, C]``.
        targets: ``[N, …]`` or ``[N, 1]``, integers for classes (−1 or −100 for unknown); None where no target is known.
        num_classes: refuses classes outside of it.

    Returns:
        A :class:`~baal_jax.Dataset` with float64 as float32, integer targets as int32, and all else as it is.

    Raises:
        ValueError: lengths differ, a leaf holds no numbers, inputs are non-finite, or a target is out of range.

    Example:
        >>> import numpy as np
        >>> from baal_jax import data
        >>> dataset = data.from_arrays(np.zeros((4, 2)), np.array([0, 1, 0, 1]))
        >>> dataset.inputs.dtype, dataset.targets.dtype
        (dtype('float32'), dtype('int32'))
    """
    # Lists are arrays here, and whole numbers are classes.
    dataset = Dataset(jax.tree.map(_numbers, inputs), None if targets is None else _numbers(targets))
    shape = None if num_classes is None or targets is None else (*_positions(dataset.targets), num_classes)
    whole = targets is not None and not np.issubdtype(dataset.targets.dtype, np.floating)
    tasks.admit("data", dataset, tasks.classification if whole else None, lambda: shape)
    if not whole:
        return dataset
    classes = dataset.targets.astype(np.int32).reshape(_positions(dataset.targets))
    return dataset._replace(targets=classes.clip(-1))


def _positions(targets: Any) -> tuple[int, ...]:
    """The shape of targets, of which a column is a vector."""
    return targets.shape[:1] if targets.ndim == 2 and targets.shape[1] == 1 else targets.shape


def from_huggingface(dataset: Any, *, inputs: str = "image", label: str | None = "label") -> Dataset:
    """A split of a Hugging Face ``datasets`` data set as arrays, decoded once.

    Args:
        dataset: one split, such as ``datasets.load_dataset("mnist", split="train")``.
        inputs: name of the column that goes into the network; every row needs the same shape.
        label: name of the column with the targets, None where there are none.

    Returns:
        A :class:`~baal_jax.Dataset`; grey images get a last axis of one channel.

    Raises:
        ValueError: a column does not exist, or its rows differ in shape.
    """
    names = [inputs] if label is None else [inputs, label]
    for name in names:
        if name not in dataset.column_names:
            raise ValueError(f"column {name!r} does not exist: choose among {', '.join(dataset.column_names)}")
    if len(dataset) == 0:
        raise ValueError("the data set holds no example")
    view = dataset.with_format("numpy", columns=names)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for start in range(0, len(view), _ROWS):
        part = view[start : start + _ROWS]
        for name in names:
            columns[name].append(_stacked(name, start, part[name]))
    if len({part.shape[1:] for part in columns[inputs]}) > 1:
        raise ValueError(f"rows of column {inputs!r} differ in shape: map a resize over the data set first")
    rows = np.concatenate(columns[inputs])
    if rows.ndim == 3 and rows.dtype == np.uint8:
        rows = rows[..., None]
    if label is None:
        return from_arrays(rows)
    num_classes = getattr((getattr(dataset, "features", None) or {}).get(label), "num_classes", None)
    return from_arrays(rows, np.concatenate(columns[label]), num_classes=num_classes)


def _stacked(name: str, start: int, rows: Any) -> np.ndarray:
    if isinstance(rows, np.ndarray) and rows.dtype != object:
        return rows
    shapes = [np.shape(row) for row in rows]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"row {start + i} of column {name!r} has shape {shape}, but those before it {shapes[0]}: "
                "map a resize over the data set first"
            )
    return np.stack([np.asarray(row) for row in rows])


def _numbers(leaf: Any) -> Any:
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
