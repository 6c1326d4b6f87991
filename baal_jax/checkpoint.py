"""Exact resume: the state of a run on disk, so that a killed run ends as if it had never been killed.

A folder of checkpoints belongs to one configuration and to one process at a time. Every checkpoint is written under
another name and renamed when it is complete, so whatever moment a process dies, the newest one is whole. Arrays are
written by orbax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from baal_jax._util import checks, files, random
from baal_jax.typing import PyTree

_FORMAT = 1
_PREFIX = "step_"


class Checkpoints:
    """The checkpoints of one run, made by :func:`open`.

    Attributes:
        directory: where they lie.
        keep: how many of the newest ones are kept.
    """

    def __init__(self, directory: Path, keep: int):
        self.directory, self.keep = directory, keep

    @property
    def latest(self) -> int | None:
        """Number of the newest complete checkpoint, None before the first."""
        return max(self._numbers(), default=None)

    def save(self, number: int, state: PyTree) -> None:
        """Writes a checkpoint and returns when it is durable.

        Args:
            number: of the checkpoint, larger than those before.
            state: pytree of arrays, typed keys, numbers and None.

        Raises:
            ValueError: ``number`` exists already or is not larger than the latest.
        """
        number, latest = checks.positive_int("number", number, least=0), self.latest
        if latest is not None and number <= latest:
            raise ValueError(f"number={number} does not come after checkpoint {latest}: count upwards")
        leaves = {_path(path): _bits(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
        target = self._path(number)
        temporary = target.with_name(f"tmp_{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        # orbax refuses empty arrays, and names may hold anything: it gets numbered, not empty, rows of bytes.
        rows = {f"{i:06d}": bits for i, (_, bits) in enumerate(leaves.values()) if bits.size}
        if rows:
            with _checkpointer() as checkpointer:
                checkpointer.save((temporary / "arrays").absolute(), args=_orbax().args.StandardSave(rows))
        manifest = [{"name": name, **described, "crc32": _crc(bits)} for name, (described, bits) in leaves.items()]
        files.write_text(temporary / "manifest.json", json.dumps({"number": number, "leaves": manifest}))
        for folder, _, names in os.walk(temporary, topdown=False):
            for file in names:
                _sync_file(Path(folder, file))
            files.sync_folder(Path(folder))
        os.rename(temporary, target)
        files.sync_folder(self.directory)
        for old in sorted(self._numbers())[: -self.keep]:
            self._discard(old)

    def restore(self, like: PyTree, *, number: int | None = None) -> PyTree:
        """Reads a checkpoint.

        Args:
            like: the structure, shapes and dtypes to expect, such as ``jax.eval_shape(make_state)`` or a state. A leaf
                with a sharding gives its placement.
            number: which checkpoint; by default the newest.

        Returns:
            A pytree like ``like``, equal bit for bit to what was saved.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or it does not fit ``like``.
        """
        number = self.latest if number is None else number
        if number is None or number not in self._numbers():
            raise ValueError(f"number={number} is not among the checkpoints {self._numbers()} of {self.directory}")
        path = self._path(number)
        try:
            described, rows = self._read(path)
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} is damaged ({type(error).__name__}: {error}). Delete this folder to go on from the "
                "checkpoint before it"
            ) from error
        expected, structure = jax.tree_util.tree_flatten_with_path(like)
        names = [_path(place) for place, _ in expected]
        saved = {leaf["name"]: (leaf, bits) for leaf, bits in zip(described, rows, strict=True)}
        for name in [*names, *saved]:
            if name not in saved or name not in names:
                there, missing = ("expected", "saved") if name not in saved else ("saved", "expected")
                raise ValueError(f"checkpoint {path} does not fit: {name} is {there}, but not {missing}")
        leaves = [_restored(name, leaf, *saved[name]) for name, (_, leaf) in zip(names, expected, strict=True)]
        return jax.tree.unflatten(structure, leaves)

    def _read(self, path: Path) -> tuple[list[dict], list[np.ndarray]]:
        described = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["leaves"]
        shapes = {f"{i:06d}": np.zeros(leaf["bytes"], np.uint8) for i, leaf in enumerate(described) if leaf["bytes"]}
        found: dict[str, np.ndarray] = {}
        if shapes:
            with _checkpointer() as checkpointer:
                args = _orbax().args.StandardRestore(shapes)
                found = checkpointer.restore((path / "arrays").absolute(), args=args)
        rows = [np.asarray(found.get(f"{i:06d}", np.zeros(0, np.uint8))) for i in range(len(described))]
        for leaf, bits in zip(described, rows, strict=True):
            if bits.shape != (leaf["bytes"],) or _crc(bits) != leaf["crc32"]:
                raise ValueError(f"the checksum of {leaf['name']} is wrong")
        return described, rows

    def _numbers(self) -> list[int]:
        names = (path.name for path in self.directory.iterdir() if path.name.startswith(_PREFIX))
        return sorted(int(name.removeprefix(_PREFIX)) for name in names)

    def _path(self, number: int) -> Path:
        return self.directory / f"{_PREFIX}{number:08d}"

    def _discard(self, number: int) -> None:
        # Renamed first: a checkpoint is never seen in part.
        gone = self.directory / f"tmp_gone_{number:08d}"
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(self._path(number), gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def open(directory: str | Path, config: Any, *, keep: int = 2) -> Iterator[Checkpoints]:
    """Opens the folder of checkpoints of a run, new or to be continued, for this process alone.

    Args:
        directory: where the checkpoints lie; made if it does not exist.
        config: mapping or dataclass, nested as you like, that a continued run must share.
        keep: how many of the newest checkpoints to keep.

    Yields:
        :class:`Checkpoints`.

    Raises:
        ValueError: the folder belongs to another configuration or format, with every difference named.
        RuntimeError: another process (or another ``open`` in this one) works in the folder.
        ImportError: orbax is not installed.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from baal_jax import checkpoint
        >>> folder = tempfile.mkdtemp()
        >>> with checkpoint.open(folder, {"rate": 0.1}) as saved:
        ...     saved.save(1, {"key": jax.random.key(0), "weights": jnp.arange(3)})
        >>> with checkpoint.open(folder, {"rate": 0.1}) as saved:
        ...     state = saved.restore({"key": jax.random.key(1), "weights": jnp.zeros(3, int)})
        >>> saved.latest, state["weights"].tolist()
        (1, [0, 1, 2])
    """
    _orbax()
    keep = checks.positive_int("keep", keep)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        for left_over in directory.glob("tmp_*"):
            shutil.rmtree(left_over, ignore_errors=True)
        _check_identity(directory, config)
        yield Checkpoints(directory, keep)


def append_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a journal and makes it durable.

    Args:
        path: the journal; made if it does not exist.
        record: mapping; arrays become lists, and numbers that are not finite null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(files.plain(record), allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: str | Path) -> list[dict]:
    """The complete lines of a journal.

    Args:
        path: the journal; none yet is an empty one.

    Returns:
        One dict a line. A last line without its end was being written when its process died, and is left out.

    Raises:
        ValueError: a complete line is not JSON.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
    records = []
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {i + 1} of {path} is not JSON: delete the file and its checkpoints") from error
    return records


def keep_lines(path: str | Path, count: int) -> None:
    """Drops what was written to a journal after the checkpoint that a run continues from.

    Args:
        path: the journal.
        count: how many lines to keep.

    Raises:
        ValueError: there are fewer lines than that.
    """
    path = Path(path)
    records = read_lines(path)
    if len(records) < checks.positive_int("count", count, least=0):
        raise ValueError(f"{path} holds {len(records)} lines, but {count} belong to the checkpoint: start afresh")
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:count]
        files.write_text(path, "".join(f"{line}\n" for line in lines))


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """An advisory lock that the system takes back when the process dies, however it dies."""
    import fcntl

    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise RuntimeError(
                f"another run works in {directory} (process {holder}): wait for it, or choose another folder"
            ) from error
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def _check_identity(directory: Path, config: Any) -> None:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    config = json.loads(json.dumps(files.plain(config)))
    path = directory / "config.json"
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    if not path.exists():
        if any(directory.glob(f"{_PREFIX}*")):
            raise ValueError(f"{directory} holds checkpoints but no config.json: choose another folder")
        files.write_text(path, json.dumps({"format": _FORMAT, "versions": versions, "config": config}, indent=1))
        return
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["format"] != _FORMAT:
        raise ValueError(f"{directory} has format {saved['format']}, but this version reads {_FORMAT}: start afresh")
    before, now = _flat(saved["config"]), _flat(config)
    absent = "nothing"
    different = [
        f"  {name}: saved {before.get(name, absent)}, now {now.get(name, absent)}"
        for name in sorted({*before, *now})
        if before.get(name, absent) != now.get(name, absent)
    ]
    if different:
        raise ValueError(
            "\n".join([f"{directory} belongs to another configuration:", *different])
            + "\nGo back to that configuration, choose another folder, or delete this one"
        )
    if saved["versions"] != versions:
        warnings.warn(
            f"{directory} was written with {saved['versions']}, and this is {versions}: results may differ in the last "
            "bits from those of a run that was never interrupted",
            stacklevel=4,
        )


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        parts = [_flat(item, f"{name}.{key}" if name else key) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    return {name: json.dumps(value)}


def _path(path: tuple) -> str:
    return jax.tree_util.keystr(path) or "the state"


def _bits(leaf: Any) -> tuple[dict, np.ndarray]:
    """What a leaf is, and its bytes."""
    kind = "python" if type(leaf) in (bool, int, float) else "array"
    implementation = None
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementation, leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if not (jax.numpy.issubdtype(array.dtype, np.number) or array.dtype == bool) or type(leaf) is complex:
        raise ValueError(f"a {type(leaf).__name__} cannot be saved: only arrays, typed keys, real numbers and None")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    described = {"kind": kind, "dtype": array.dtype.name, "shape": list(array.shape), "key": implementation}
    bits = np.frombuffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8), np.uint8)
    return {**described, "bytes": bits.size}, bits


def _restored(name: str, like: Any, described: dict, bits: np.ndarray) -> Any:
    if type(like) in (bool, int, float):
        wanted: tuple = ("number", type(like).__name__)
    elif jax.numpy.issubdtype(like.dtype, jax.dtypes.prng_key):
        wanted = (f"key<{random.implementation(like)}>", tuple(like.shape))
    else:
        wanted = (np.dtype(like.dtype).name, tuple(like.shape))
    shape = tuple(described["shape"])
    array = np.frombuffer(bits.tobytes(), np.dtype(described["dtype"])).reshape(shape)
    if described["kind"] == "python":
        found: tuple = ("number", type(array.item()).__name__)
    elif described["key"] is not None:
        found = (f"key<{described['key']}>", shape[:-1])
    else:
        found = (described["dtype"], shape)
    if found != wanted:
        raise ValueError(f"{name} does not fit: saved {found[0]} {found[1]}, expected {wanted[0]} {wanted[1]}")
    if described["kind"] == "python":
        return array.item()
    if isinstance(like, np.ndarray | np.generic):
        return array.copy()
    sharding = getattr(like, "sharding", None)
    if described["key"] is not None:
        keys = jax.random.wrap_key_data(jax.numpy.asarray(array), impl=random.implementation(like))
        return keys if sharding is None else jax.device_put(keys, sharding)
    placed = jax.device_put(array, sharding)
    if placed.dtype != array.dtype:
        raise ValueError(f"{name} is {array.dtype}, which this process turns into {placed.dtype}: set jax_enable_x64")
    return placed


def _crc(bits: np.ndarray) -> int:
    return zlib.crc32(memoryview(np.ascontiguousarray(bits)))  # pyright: ignore[reportArgumentType]


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _orbax() -> Any:
    return checks.optional_import("orbax.checkpoint", "checkpoint")


def _checkpointer() -> Any:
    orbax = _orbax()
    return orbax.Checkpointer(orbax.StandardCheckpointHandler())
