"""Data sets from arrays and from Hugging Face."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from baal_jax._util import checks
from baal_jax.typing import Dataset, PyTree

_ROWS = 4096  # of a Hugging Face data set in memory at a time


def from_arrays(inputs: PyTree, targets: Any = None, *, num_classes: int | None = None) -> Dataset:
    """A checked data set from NumPy or JAX arrays.

    Args:
        inputs: array, or pytree of arrays, with one leading axis ``N``. Images are ``[N, H, W, C]``.
        targets: ``[N, …]``, integers for classes (−1 for unknown); None where no target is known.
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
    inputs = jax.tree.map(lambda leaf: _numbers("inputs", leaf), inputs)
    total = checks.leading_axis("inputs", inputs)
    if total == 0:
        raise ValueError("inputs hold no example")
    for leaf in jax.tree.leaves(inputs):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) and not jax.numpy.isfinite(leaf).all():
            raise ValueError("inputs hold non-finite values: impute or drop those rows")
    if targets is None:
        return Dataset(inputs, None)
    targets = _numbers("targets", targets)
    if targets.shape[:1] != (total,):
        raise ValueError(f"targets have shape {targets.shape}, but inputs {total} examples: make the lengths equal")
    if np.issubdtype(targets.dtype, np.integer):
        high = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
        wrong = np.asarray((np.asarray(targets) < -1) | (np.asarray(targets) > high)).reshape(total, -1).any(axis=1)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"targets[{row}] is {targets[row]}, outside of the classes 0 to {high}")
        targets = targets.astype(np.int32)
    return Dataset(inputs, targets)


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


def _numbers(name: str, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        leaf = np.asarray(leaf)
    if not (jax.numpy.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_):
        raise ValueError(f"{name} hold {leaf.dtype}, not numbers: encode them first")
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
