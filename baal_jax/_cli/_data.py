"""Data that a command can be asked for by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baal_jax import data
from baal_jax.typing import Dataset


class Problem(NamedTuple):
    """A data set as a command works on it.

    Attributes:
        train: the pool.
        test: where to evaluate.
        num_outputs: ``C``, or 1 for regression.
        class_names: of the classes, or None.
        images: ``[N, H, W, 1 or 3]``, what can be shown of the pool, or None.
    """

    train: Dataset
    test: Dataset
    num_outputs: int
    class_names: list[str] | None
    images: Any

    @property
    def is_regression(self) -> bool:
        """Whether the targets are numbers."""
        return np.issubdtype(np.asarray(self.test.targets).dtype, np.floating)


def load(name: str, data_dir: Path | None, as_images: bool, num_test: int, seed: int) -> Problem:
    """A data set by its name on a command line.

    Args:
        name: ``"digits"`` (of scikit-learn), ``"cifar10"`` (a TFDS folder), the path of an ``.npz`` file with the
            arrays ``train_inputs``, ``train_targets``, ``test_inputs`` and ``test_targets`` and perhaps
            ``class_names``, or of a UCI table for regression.
        data_dir: of ``"cifar10"``; by default the folder that ``TFDS_DATA_DIR`` names.
        as_images: digits as 8 × 8 images instead of 64 numbers.
        num_test: examples that are held out of a UCI table.
        seed: of that split.

    Returns:
        A :class:`Problem`.

    Raises:
        ValueError: there is no such data set, or arrays are missing in the file.
    """
    if name == "digits":
        train, test = data.digits(image=as_images)
        images = np.asarray(train.inputs).reshape(-1, 8, 8, 1)
        return Problem(train, test, 10, [str(digit) for digit in range(10)], images)
    if name == "cifar10":
        train, test = data.cifar10(data_dir)
        return Problem(train, test, 10, list(data.CIFAR10_CLASSES), train.inputs)
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"data={name!r} is neither digits, cifar10 nor a file: give the path of an .npz or a UCI table"
        )
    if path.suffix == ".npz":
        return _from_arrays(path)
    train, test, *_ = data.uci(path, num_test=num_test, seed=seed)
    return Problem(train, test, 1, None, None)


def _from_arrays(path: Path) -> Problem:
    wanted = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    with np.load(path, allow_pickle=False) as found:
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"data={str(path)!r} lacks {', '.join(missing)}: it has {', '.join(found) or 'no arrays'}")
        arrays = [found[name] for name in wanted]
        class_names = [str(name) for name in found["class_names"]] if "class_names" in found else None
    train, test = data.from_arrays(*arrays[:2]), data.from_arrays(*arrays[2:])
    num_outputs = 1
    if np.issubdtype(np.asarray(test.targets).dtype, np.integer):
        num_outputs = max(2, int(max(np.max(train.targets), np.max(test.targets))) + 1, len(class_names or ()))
    shape = np.shape(train.inputs)
    images = train.inputs if len(shape) == 4 and shape[-1] in (1, 3) else None
    return Problem(train, test, num_outputs, class_names, images)
