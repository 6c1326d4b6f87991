"""Embeddings of a network that stays as it is, computed once; in a file, a process that is killed goes on with it."""

import hashlib
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import checks, files, meshes, sources

_EVERY = 1.0  # seconds between records of what is done, each of which waits for the disk


@meshes.auto
def encode(apply: Callable, inputs: Any, batch_size: int = 256, *, cache: str | Path | None = None) -> np.ndarray:
    """Embeds every example once. With a cache, one that is killed goes on, and memory does not grow with ``N``.

    Args:
        apply: ``inputs [B, …] -> [B, D]``, compiled with its weights; no row depends on others (batch statistics).
        inputs: array or pytree ``[N, …]``, or a source on the host (``__len__``, ``__getitem__``; a memory map).
        batch_size: ``B``. Another one may go on with a cache, with other roundings.
        cache: a ``.npy`` file, which has its name only when it is whole. ``….npy.json`` beside it knows the program (as
            this version of jax prints it), the weights and all inputs; those of a source are compared by 16 of them.

    Returns:
        NumPy ``[N, D]``, at least float32; with a cache a read-only memory map.

    Raises:
        ValueError: ``apply`` gives no floats ``[B, D]`` or non-finite ones; the cache is of others, damaged or in use.

    Example:
        >>> baal.encode(lambda x: x @ jnp.ones((3, 2)), jnp.eye(5, 3)).shape
        (5, 2)
    """
    checks.function("apply", apply, "lambda x: network.apply(variables, x)")
    if not (total := sources.length(inputs)):
        raise ValueError("inputs is empty: give examples")
    some = sources.load(inputs, np.linspace(0, total - 1, 16).astype(int))
    compiled = jax.jit(lambda batch: apply(batch))  # of a new function: what it closes over may have changed
    out = (traced := compiled.trace(some)).out_info
    if np.shape(out)[:-1] != (16,) or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"apply returns {out} for 16 examples, but floats [B, D] are needed: reshape or average them")
    dtype = np.promote_types(out.dtype, np.float32)
    if cache is None:
        return np.concatenate([rows for rows, _ in _encoded(compiled, inputs, batch_size, dtype)])
    (path := Path(cache)).parent.mkdir(parents=True, exist_ok=True)
    asked = {"inputs": _crcs(some, 16), "shape": [total, out.shape[1]], "dtype": dtype.str}
    asked["encoder"] = _digest(traced.jaxpr)
    with nullcontext() if path.exists() else files.lock(path.parent, f".{path.name}.lock"):
        _fill(path, asked, inputs, lambda *start: _encoded(compiled, inputs, batch_size, dtype, *start))
    return np.load(path, mmap_mode="r")


def _fill(path: Path, asked: dict[str, Any], inputs: Any, encoded: Callable[..., Iterator]) -> None:
    """Looks at what is there, which is refused if it is of something else, and computes what is missing."""
    partial, record = path.with_name(f".{path.name}.partial"), path.with_name(f"{path.name}.json")
    cure = f"give another cache, or delete {path.name} and {record.name}"
    place, total, now = path if path.exists() else partial, asked["shape"][0], {"rows": 0, "crcs": [], "seen": []}
    if place == path or (partial.exists() and record.exists()):
        now = files.read_json(record, cure)
        other = [name for name in asked if now[name] != asked[name]]
        if not other and (isinstance(inputs, np.ndarray) or not sources.is_source(inputs)):
            other = ["inputs"] * (_crcs(inputs, now["rows"]) != now["seen"])
        if other:
            raise ValueError(f"cache={str(path)!r} holds embeddings of another encoder or inputs ({other[0]}): {cure}")
        with files.about(place, cure):
            rows = np.load(place, mmap_mode="r")
            is_whole = [[*rows.shape], rows.dtype.str] == [asked["shape"], asked["dtype"]]
            if not is_whole or _crcs(rows, now["rows"]) != now["crcs"] or (place == path and now["rows"] < total):
                raise ValueError("its checksum is another")
    else:
        record.unlink(missing_ok=True)
        with files.about(partial):
            rows = np.lib.format.open_memmap(partial, "w+", np.dtype(asked["dtype"]), tuple(asked["shape"]))
    since = time.monotonic()
    for part, seen in encoded(now["rows"], now["seen"]) if now["rows"] < total else ():
        start, done = rows.offset + rows[: now["rows"]].nbytes, now["rows"] + len(part)
        with files.about(partial), partial.open("r+b") as file:  # no memory map: a full disk would end the process
            file.seek(start)
            file.write(part)
            file.flush()
            if is_due := done == total or time.monotonic() - since > _EVERY:
                os.fsync(file.fileno())
        now = {"rows": done, "crcs": _crcs(part, len(part), now["crcs"]), "seen": seen}
        if is_due:
            files.write_json(record, asked | now)
            since = time.monotonic()
    if place == partial:
        files.rename(partial, path)


def _encoded(compiled: Any, inputs: Any, batch_size: int, dtype: Any, done: int = 0, seen: Any = None) -> Iterator:
    """Embeddings of each batch from row ``done`` on, and the checksums of all inputs up to its end."""
    read = deque()
    run = lambda batch: (read.append(batch), compiled(batch))[1]  # noqa: E731
    for rows in sources.stream(run, inputs, batch_size, start=done, title="encode"):
        rows, batch = rows.astype(dtype, copy=False), read.popleft()
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            wrong = (done + np.flatnonzero(~finite))[:5].tolist()
            raise ValueError(f"apply gives non-finite embeddings of inputs {wrong} …: look at these and the weights")
        done, seen = done + len(rows), None if seen is None else _crcs(batch, len(rows), seen)
        yield rows, seen


def _crcs(arrays: Any, stop: int, before: Any = ()) -> list[int]:
    """Checksums of the first rows of each leaf, which go on from those of all rows before."""
    leaves = jax.tree.leaves(arrays)
    crcs = [*before] or [0] * len(leaves)
    for start in range(0, stop, 256):
        parts = [np.ascontiguousarray(leaf[start : min(start + 256, stop)]) for leaf in leaves]
        crcs = [zlib.crc32(part.reshape(-1).view(np.uint8).data, crc) for part, crc in zip(parts, crcs, strict=True)]
    return crcs


def _digest(program: Any) -> str:
    """Of what is computed and of all it closes over, also within functions that were compiled before."""
    checksum, programs = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", str(program)).encode()), [program]
    for now in programs:  # which grow meanwhile
        literals: list[Any] = [getattr(atom, "val", None) for equation in now.eqns for atom in equation.invars]
        values = [*getattr(now, "consts", ()), *(value for value in literals if np.ndim(value))]
        for words in files.packed([value[...] for value in values]).values():
            checksum.update(np.ascontiguousarray(words).reshape(-1).view(np.uint8).data)
        programs += [leaf for each in now.eqns for leaf in jax.tree.leaves(each.params) if hasattr(leaf, "eqns")]
    return checksum.hexdigest()
