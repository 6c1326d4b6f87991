"""The UCI handwritten digits that come inside scikit-learn."""

from __future__ import annotations

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
