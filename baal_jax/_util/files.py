"""Atomic writes, journals, a lock on a folder, and what JSON and ``.npz`` files can hold."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name that is made durable and renamed when all of it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # a temporary file is private, what it becomes is not
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # a rename is durable once its folder is, which Windows does not open
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> Path:
    """Writes all of a file, or nothing."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes all of a file, or nothing."""
    with replacing(path) as file:
        file.write(content)
    return path


def append_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a journal and makes it durable.

    Args:
        path: the journal; made if it does not exist.
        record: mapping; arrays become lists, and non-finite numbers null.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(plain(record), allow_nan=False) + "\n")
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
    records = []
    for number, line in enumerate(_lines(path), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is not JSON: delete the file and its checkpoints") from error
    return records


def keep_lines(path: str | Path, count: int) -> None:
    """Drops what was written to a journal after the checkpoint that a run continues from.

    Args:
        path: the journal.
        count: how many lines to keep.

    Raises:
        ValueError: there are fewer lines than that, or one of them is not JSON.
    """
    number = len(read_lines(path))
    if number < count:
        raise ValueError(f"{path} holds {number} lines, but {count} belong to the checkpoint: start afresh")
    if Path(path).exists():
        write_text(Path(path), "".join(f"{line}\n" for line in _lines(path)[:count]))


def _lines(path: str | Path) -> list[str]:
    path = Path(path)
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []


@contextmanager
def lock(folder: Path) -> Iterator[str | None]:
    """Yields None and keeps other processes out, or yields the process that holds the lock already.

    The system takes a lock back when its process dies, however it dies.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two writers are not told apart there
        yield None
        return
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            yield file.read(32).strip() or "unknown"
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield None


def plain(value: Any) -> Any:
    """What JSON can hold: arrays become lists, paths strings, and non-finite numbers None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def packed(state: Any) -> dict[str, np.ndarray]:
    """What an ``.npz`` file can hold: the bits of every leaf by its place, type and shape."""
    return {name: _words(leaf) for name, leaf in _named(state).items()}


def unpacked(like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The pytree that :func:`packed` took apart, placed as ``like``; leaves of other places or shapes are refused."""
    expected = _named(like)
    different = [f"{name} is saved, but not expected" for name in arrays if name not in expected]
    different += [f"{name} is expected, but not saved" for name in expected if name not in arrays]
    if different:
        raise ValueError("; ".join(different))
    leaves = [_restored(name, leaf, arrays[name]) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(state: Any) -> dict[str, Any]:
    """Leaves by place, type and shape, such as ``['weights'] float32 (3,)``."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {f"{jax.tree_util.keystr(path) or 'the state'} {_kind(leaf)}": leaf for path, leaf in leaves}


def _kind(leaf: Any) -> str:
    if type(leaf) in (bool, int, float):
        return f"number {type(leaf).__name__}"
    dtype = getattr(leaf, "dtype", np.dtype(object))
    if not any(jnp.issubdtype(dtype, kind) for kind in (np.number, np.bool_, jax.dtypes.prng_key)):
        raise ValueError(f"a {type(leaf).__name__} cannot be saved: only arrays, typed keys, real numbers and None")
    return f"{dtype.name} {leaf.shape}"


def _words(leaf: Any) -> np.ndarray:
    """The bits of a leaf in a dtype that every NumPy knows."""
    array = np.asarray(jax.random.key_data(leaf) if "key<" in _kind(leaf) else leaf)
    is_foreign = array.dtype.kind == "V"  # bfloat16 and its like
    return array.view(f"u{array.itemsize}") if is_foreign else array.astype(array.dtype.newbyteorder("="), copy=False)


def _restored(name: str, like: Any, words: np.ndarray) -> Any:
    if type(like) in (bool, int, float):
        return words.item()
    if "key<" in _kind(like):
        implementation = jax.random.key_impl(jnp.zeros((), like.dtype))  # which shapes alone do not tell
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(words), impl=implementation), like.sharding)
    array = words.view(like.dtype.name)
    if isinstance(like, np.ndarray | np.generic):
        return array
    leaf = jax.device_put(array, like.sharding)
    if leaf.dtype != array.dtype:
        raise ValueError(f"{name} becomes {leaf.dtype} in this process: set jax_enable_x64")
    return leaf
