"""The python archive of CIFAR-10: pickles, in which a file may name NumPy's arrays and nothing else."""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from baal_jax._util import files


def read_python_batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``uint8[N, 3072]`` and labels ``[N]`` of one batch file; refuses what is damaged or more than arrays."""
    with files.about(where, "download it again"):
        _scan(content)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()  # strings of Python 2 are bytes
        by_name = {_text(name): getattr(value, "array", value) for name, value in batch.items()}
        pixels, labels = by_name["data"], by_name["labels"]
        if not isinstance(pixels, np.ndarray) or any(isinstance(label, list | tuple) for label in labels):
            raise TypeError("data is no array, or labels are lists of lists")  # which may name one list many times
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels are {labels.dtype}, not integers")
        return pixels, labels.astype(np.int64)


def _scan(content: bytes) -> None:
    """Refuses the two instructions that :class:`_Unpickler` is not asked about."""
    for count, (code, argument, _) in enumerate(pickletools.genops(content)):
        if code.name.startswith("EXT"):
            raise ValueError("extension codes do not belong into CIFAR-10")
        if "PUT" in code.name and int(argument or 0) > count:  # memory is reserved up to this place
            raise ValueError(f"it remembers object {argument} after {count} instructions")


class _Unpickler(pickle.Unpickler):
    """Calls stand-ins for NumPy's functions: no code that a file names is run, and no dtype of a file reads memory."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        asked = f"{module_name}.{global_name}".replace("numpy._core.", "numpy.core.")
        known = {
            "numpy.core.multiarray._reconstruct": _Array,
            "numpy.core.multiarray.scalar": lambda kind, content: _from_buffer(content, kind, (1,), "C")[0],
            "numpy.core.numeric._frombuffer": _from_buffer,
            "numpy.ndarray": None,
            "numpy.dtype": _DType,
            "_codecs.encode": lambda text, encoding: text.encode("latin1"),
        }
        if asked not in known:
            raise ValueError(f"{asked} does not belong into CIFAR-10")
        return known[asked]


class _DType:
    """What a file says of a dtype."""

    def __init__(self, name: str, *unused: Any):
        self.name, self.order = _text(name), "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = _text(state[1])


class _Array:
    """What a file says of an array."""

    def __init__(self, *unused: Any): ...

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, is_fortran, content = state
        self.array = _from_buffer(content, kind, shape, "F" if is_fortran else "C")


def _from_buffer(content: bytes, kind: _DType, shape: tuple[int, ...], order: bytes | str) -> np.ndarray:
    dtype = np.dtype(kind.name).newbyteorder(kind.order if kind.order in ("<", ">") else "|")  # "|" changes nothing
    return np.frombuffer(content, dtype).reshape(shape, order="F" if _text(order) == "F" else "C")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
