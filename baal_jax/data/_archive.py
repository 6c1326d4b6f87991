"""The python archive of CIFAR-10, a format of its makers that happens to be a pickle.

Nothing in this package writes pickles, and this is the one place that reads one: with a reader that builds NumPy
arrays, lists and numbers, and refuses to look up anything else, so that no code in a file is ever run.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} does not belong into CIFAR-10")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def read_python_batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``uint8[N, 3072]`` and labels ``[N]`` of one batch file.

    Raises:
        ValueError: the file is damaged, or holds more than arrays.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        return np.asarray(batch["data"]), np.asarray(batch["labels"], np.int64)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{where}: cannot be read ({error}): download it again") from error
