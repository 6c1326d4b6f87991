"""Data sets from arrays, from Hugging Face, and from scikit-learn (handwritten digits)."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from baal_jax._util import checks, meshes
from baal_jax.training import tasks
from baal_jax.typing import Dataset, PaddedDataset, PyTree

_ROWS = 4096  # of a Hugging Face data set in memory at a time
_CURE = "map a resize over the data set first"


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
        >>> dataset = data.from_arrays(np.zeros((4, 2)), np.array([0, 1, 0, 1]))
        >>> dataset.inputs.dtype, dataset.targets.dtype
        (dtype('float32'), dtype('int32'))
    """
    # Lists are arrays here, and whole numbers are classes.
    dataset = Dataset(jax.tree.map(_numbers, inputs), None if targets is None else _numbers(targets))
    shape = None if targets is None else (*_positions(dataset.targets), 2**31 if num_classes is None else num_classes)
    whole = targets is not None and not np.issubdtype(dataset.targets.dtype, np.floating)
    tasks.admit("data", dataset, tasks.classification if whole else None, lambda: shape)
    if not whole:
        return dataset
    classes = dataset.targets.astype(np.int32).reshape(_positions(dataset.targets))
    return dataset._replace(targets=classes.clip(-1))


def shard(dataset: Dataset, mesh: Mesh, *, axis: str | tuple[str, ...] | None = None) -> Dataset | PaddedDataset:
    """A data set over the devices of a mesh, whatever its size: each has rows of its own, and reads these alone.

    Ids stay what they are, because padding comes behind the examples. ``init`` excludes it, and ``evaluate`` leaves it
    out. In a job of several processes each calls this with the same data set, such as a memory map that all can read.

    Args:
        dataset: arrays or memory maps ``[N, …]``.
        mesh: of devices, with Auto or Explicit axes.
        axis: of the mesh, over which the examples are split, or several; by default all.

    Returns:
        A :class:`~baal_jax.Dataset`, or where ``N`` is no multiple of the devices a
        :class:`~baal_jax.typing.PaddedDataset`.

    Raises:
        TypeError: the data are no arrays.
        ValueError: the mesh has no such axis, or the data set is not right.

    Example:
        >>> mesh = jax.make_mesh((jax.device_count(),), ("pool",))
        >>> dataset = data.shard(data.from_arrays(np.ones((5, 2))), mesh, axis="pool")
        >>> len(dataset.inputs) % jax.device_count()
        0
    """
    names = (axis,) if isinstance(axis, str) else mesh.axis_names if axis is None else axis
    if unknown := [name for name in names if name not in mesh.axis_names]:
        raise ValueError(f"axis={unknown[0]!r} is none of the mesh: choose among {', '.join(mesh.axis_names)}")
    whole = Dataset(*jax.tree.map(meshes.on_host, tuple(dataset)))
    tasks.admit("dataset", whole)
    size, parts = checks.leading_axis("dataset", whole), math.prod(mesh.shape[name] for name in names)
    total, sharding = -(-size // parts) * parts, NamedSharding(mesh, PartitionSpec(names))

    def place(values: np.ndarray) -> jax.Array:
        kind = jax.dtypes.canonicalize_dtype(values.dtype)
        rows = lambda index: np.minimum(np.arange(total)[index[0]], size - 1)  # noqa: E731, the last one is repeated
        part = lambda index: values[rows(index)].astype(kind)  # noqa: E731
        return jax.make_array_from_callback((total, *values.shape[1:]), sharding, part)

    inputs, targets = jax.tree.map(place, tuple(whole))
    return Dataset(inputs, targets) if total == size else PaddedDataset(inputs, targets, size)


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

    Example:
        >>> import datasets  # doctest: +SKIP
        >>> train = data.from_huggingface(datasets.load_from_disk("mnist")["train"])  # doctest: +SKIP
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
        raise ValueError(f"rows of column {inputs!r} differ in shape: {_CURE}")
    rows = np.concatenate(columns[inputs])
    if rows.ndim == 3 and rows.dtype == np.uint8:
        rows = rows[..., None]
    if label is None:
        return from_arrays(rows)
    num_classes = getattr((getattr(dataset, "features", None) or {}).get(label), "num_classes", None)
    return from_arrays(rows, np.concatenate(columns[label]), num_classes=num_classes)


def digits(num_test: int = 360, seed: int = 0, *, image: bool = False) -> tuple[Dataset, Dataset]:
    """1,797 real images of handwritten digits, 8×8 pixels, without any network.

    Args:
        num_test: how many examples are held out, the same number of each class as near as possible.
        seed: of the split.
        image: ``[N, 8, 8, 1]`` instead of ``[N, 64]``.

    Returns:
        ``(train, test)``: float32 inputs between 0 and 1, int32 targets.

    Raises:
        ValueError: ``num_test`` is not between 1 and 1,796.
        ImportError: scikit-learn is not installed.

    Example:
        >>> train, test = data.digits()
        >>> train.inputs.shape, test.targets.shape
        ((1437, 64), (360,))
    """
    loaded = checks.optional_import("sklearn.datasets", "data").load_digits()
    inputs = (loaded.data / 16).astype(np.float32).reshape((-1, 8, 8, 1) if image else (-1, 64))
    targets = loaded.target.astype(np.int32)
    if checks.positive_int("num_test", num_test) >= len(targets):
        raise ValueError(f"num_test={num_test} leaves nothing to train on: there are {len(targets)} images")
    order = np.random.default_rng(seed).permutation(len(targets))
    # Dealing the shuffled examples class by class, an even comb holds out the same share of each.
    by_class = order[np.argsort(targets[order], kind="stable")]
    held_out = by_class[np.linspace(0, len(targets) - 1, num_test).round().astype(int)]
    kept = np.setdiff1d(order, held_out)
    return Dataset(inputs[kept], targets[kept]), Dataset(inputs[held_out], targets[held_out])


def _positions(targets: Any) -> tuple[int, ...]:
    """The shape of targets, of which a column is a vector."""
    return targets.shape[:1] if targets.ndim == 2 and targets.shape[1] == 1 else targets.shape


def _stacked(name: str, start: int, rows: Any) -> np.ndarray:
    if isinstance(rows, np.ndarray) and rows.dtype != object:
        return rows
    shapes = [np.shape(row) for row in rows]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            place = f"row {start + i} of column {name!r}"
            raise ValueError(f"{place} has shape {shape}, but those before it {shapes[0]}: {_CURE}")
    return np.stack([np.asarray(row) for row in rows])


def _numbers(leaf: Any) -> Any:
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
