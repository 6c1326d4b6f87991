"""The python archive of CIFAR-10: a format of its makers that describes objects by a small program for a stack machine.

The language's own reader runs such a program, with all that it may call. This one looks at the listing of its
instructions and knows those that build dicts, lists, numbers, strings and NumPy arrays; any other is an error, so
nothing in a file is ever run.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

_MARK = object()
_CONSTANTS = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK,
}  # fmt: skip
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


def read_python_batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``uint8[N, 3072]`` and labels ``[N]`` of one batch file.

    Raises:
        ValueError: the file is damaged, or holds more than arrays.
    """
    try:
        batch = _read(content)
        found = {name.decode("latin1") if isinstance(name, bytes) else name: value for name, value in batch.items()}
        pixels, labels = (_as_array(found[name]) for name in ("data", "labels"))
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels are {labels.dtype}, not integers")
        return pixels, labels.astype(np.int64)
    except Exception as error:  # a damaged program can go wrong in any way
        raise ValueError(f"{where}: cannot be read ({type(error).__name__}: {error}): download it again") from error


class _DType:
    """What a file says of a dtype."""

    def __init__(self, name: str, *unused: Any):
        self.name, self.order = _text(name), "|"

    def build(self, state: tuple) -> None:
        self.order = _text(state[1])


class _Array:
    """What a file says of an array."""

    state: tuple[Any, tuple[int, ...], _DType, bool, bytes | str]

    def __init__(self, *unused: Any): ...

    def build(self, state: tuple) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, kind, fortran, content = self.state
        dtype = np.dtype(kind.name)
        dtype = np.dtype(kind.order + dtype.str[1:]) if kind.order in ("<", ">") else dtype
        content = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(content: bytes | str, kind: _DType, shape: tuple[int, ...], order: bytes | str) -> _Array:
    found = _Array()
    found.build((None, shape, kind, _text(order) == "F", content))
    return found


def _scalar(kind: _DType, content: bytes | str) -> Any:
    return _from_buffer(content, kind, (1,), "C").array()[0]


_CALLS: dict[str, Callable] = {
    **{f"numpy.{core}.multiarray _reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric _frombuffer": _from_buffer for core in ("core", "_core")},
    "numpy ndarray": _Array,
    "numpy dtype": _DType,
    "_codecs encode": lambda text, encoding: text.encode("latin1"),
}


def _read(content: bytes) -> Any:
    """The object that the instructions build."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        position = next(i for i in range(len(stack) - 1, -1, -1) if stack[i] is _MARK)
        items = stack[position + 1 :]
        del stack[position:]
        return items

    def pop(count: int) -> list[Any]:
        if len(stack) < count:
            raise ValueError("it takes more than there is")
        items = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return items

    for instruction, argument, _ in pickletools.genops(content):
        name = instruction.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            asked = argument if name == "GLOBAL" else " ".join(map(_text, pop(2)))
            if asked not in _CALLS:
                raise ValueError(f"{str(asked).replace(' ', '.')} does not belong into CIFAR-10")
            stack.append(_CALLS[asked])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(since_mark() if name == "TUPLE" else pop(int(name[-1]))))
        elif name in ("LIST", "DICT"):
            items = since_mark()
            stack.append(items if name == "LIST" else dict(zip(items[::2], items[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1) if name == "APPEND" else since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "REDUCE":
            called, arguments = pop(2)
            if called not in _CALLS.values():
                raise ValueError("it calls what is no function")
            stack.append(called(*arguments))
        elif name == "BUILD":
            (state,) = pop(1)
            stack[-1].build(state)
        elif name == "STOP":
            return pop(1)[0]
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"instruction {name} does not belong into CIFAR-10")
    raise ValueError("it does not end")


def _as_array(value: Any) -> np.ndarray:
    return value.array() if isinstance(value, _Array) else np.asarray(value)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
