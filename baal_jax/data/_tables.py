"""Tables of the UCI repository: the handwritten digits that come with scikit-learn, and regression sets as text."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from baal_jax._util import checks
from baal_jax.typing import Dataset


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
        >>> from baal_jax import data
        >>> train, test = data.digits()
        >>> train.inputs.shape, test.targets.shape
        ((1437, 64), (360,))
    """
    datasets = checks.optional_import("sklearn.datasets", "data")
    loaded = datasets.load_digits()
    inputs = (loaded.data / 16).astype(np.float32)
    targets = loaded.target.astype(np.int32)
    if checks.positive_int("num_test", num_test) >= len(targets):
        raise ValueError(f"num_test={num_test} leaves nothing to train on: there are {len(targets)} images")
    order = np.random.default_rng(seed).permutation(len(targets))
    # Dealing the shuffled examples class by class, an even comb holds out the same share of each.
    by_class = order[np.argsort(targets[order], kind="stable")]
    held_out = by_class[np.linspace(0, len(targets) - 1, num_test).round().astype(int)]
    kept = np.setdiff1d(order, held_out)
    if image:
        inputs = inputs.reshape(-1, 8, 8, 1)
    return Dataset(inputs[kept], targets[kept]), Dataset(inputs[held_out], targets[held_out])


class Regression(NamedTuple):
    """A standardised regression set.

    Attributes:
        train: ``float32[N, D]`` inputs and ``float32[N]`` targets, of mean 0 and standard deviation 1.
        test: the same, by the statistics of the training part.
        target_mean: mean of the training targets, in their own unit.
        target_std: their standard deviation: multiply an RMSE by it to have it in that unit.
    """

    train: Dataset
    test: Dataset
    target_mean: float
    target_std: float


def uci(path: str | Path, *, num_test: int | None = None, seed: int = 0) -> Regression:
    """A regression set from a text file; the last column is the target.

    Inputs and targets are standardised by the training part alone, so that nothing is known of the test part.

    Args:
        path: text with one example a line, columns apart by white space or commas; a first line of names is skipped.
        num_test: how many examples are held out, by default a tenth.
        seed: of the split.

    Returns:
        A :class:`Regression`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another number of columns, or a value is not a finite number.
    """
    rows = _rows(Path(path))
    num_test = max(len(rows) // 10, 1) if num_test is None else checks.positive_int("num_test", num_test)
    if num_test >= len(rows) - 1:
        raise ValueError(f"num_test={num_test} leaves too little to train on: there are {len(rows)} examples")
    order = np.random.default_rng(seed).permutation(len(rows))
    train, test = rows[np.sort(order[num_test:])], rows[np.sort(order[:num_test])]
    mean, std = train.mean(axis=0), train.std(axis=0)
    std = np.where(std > 0, std, 1.0)  # a column that never changes says nothing
    parts = [((part - mean) / std).astype(np.float32) for part in (train, test)]
    train, test = (Dataset(part[:, :-1], part[:, -1]) for part in parts)
    return Regression(train, test, float(mean[-1]), float(std[-1]))


def _rows(path: Path) -> np.ndarray:
    lines = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines()]
    numbered = [(i + 1, line) for i, line in enumerate(lines) if line]
    if numbered and not any(_is_number(cell) for cell in numbered[0][1]):
        numbered = numbered[1:]
    if len(numbered) < 3:
        raise ValueError(f"{path} holds {len(numbered)} examples: at least 3 are needed")
    width = len(numbered[0][1])
    if width < 2:
        raise ValueError(f"{path} has one column: inputs and a target are needed")
    for number, line in numbered:
        if len(line) != width:
            raise ValueError(f"{path}, line {number}: {len(line)} columns, but {width} in the lines before it")
        for column, cell in enumerate(line):
            if not _is_number(cell) or not np.isfinite(float(cell)):
                raise ValueError(f"{path}, line {number}, column {column + 1}: {cell!r} is not a finite number")
    return np.array([line for _, line in numbered], np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
