"""Atomic writes, files that know whether they are whole, journals, a lock on a folder, and what files can hold."""

import hashlib
import importlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax._util import meshes

FORMAT = 3  # of all that is written with a checksum: what is in the files, and how
_COMMENT = 64  # hexadecimal digits
_CRC = ', "crc": '
_CURE = "delete the file and its checkpoints"
CURE = "correct it, or save it again with numpy.savez"  # for a file of a user's own arrays


@contextmanager
def about(path: Path | str, cure: str | None = None) -> Iterator[None]:
    """Errors name the file. With a cure, whatever goes wrong is a ValueError: damaged files can raise all kinds."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system, not of what is in the file
            if cure is not None and isinstance(error, FileNotFoundError):
                raise ValueError(f"{path} is missing: {cure}") from error
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        if cure is None or (isinstance(error, ValueError) and str(path) in str(error)):
            raise
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: cannot be read ({said[:200]}): {cure}") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name that is made durable and renamed when all of it is written; its folder is there."""
    with about(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # a temporary file is private, what it becomes is not
            rename(temporary, path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                os.unlink(temporary)
            raise


def rename(source: Path | str, path: Path) -> None:
    """Gives a durable file its name, durably."""
    with about(path):
        os.replace(source, path)
        if hasattr(os, "O_DIRECTORY"):  # a rename is durable once its folder is, which Windows does not open
            folder = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes all of a file, or nothing."""
    with replacing(path) as file:
        file.write(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Writes all of a file, or nothing; one that is the same already stays."""
    content = text.encode("utf-8")
    return path if path.is_file() and path.read_bytes() == content else write_bytes(path, content)


def digest(value: Any) -> str:
    """Of what JSON can hold, whatever the order of names in mappings."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any], of: str = "") -> Path:
    """Writes JSON with a checksum, of the file's name and of what it belongs to as well (``of``)."""
    content = {"format": FORMAT, **plain(content)}
    sealed = {**content, "sha256": digest([path.name, of, content])}
    return write_text(path, json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, cure: str, of: str = "") -> dict[str, Any]:
    """What :func:`write_json` wrote, or a ValueError that names the file and the cure."""
    with about(path, cure):
        content = json.loads(path.read_bytes().decode("utf-8"))
        seal, found = content.pop("sha256", None), content.get("format")
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, but this version reads {FORMAT}: use the one that wrote it")
    if seal != digest([path.name, of, content]):
        raise ValueError(f"{path} was changed by hand, is damaged or belongs elsewhere: {cure}")
    return {name: value for name, value in content.items() if name != "format"}


def write_arrays(path: Path, arrays: Mapping[str, Any], of: str, compress: bool = False) -> Path:
    """Writes ``.npz`` with the same checksum, as the comment at the end of the archive."""
    with replacing(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)  # pyright: ignore[reportArgumentType]
        size = file.seek(-2, os.SEEK_END) + 2  # the length of the comment, 0 until now
        file.write(_COMMENT.to_bytes(2, "little"))
        file.write(_seal(file, size, path, of))
    return path


def read_arrays(path: Path, cure: str, of: str) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote, or a ValueError as of :func:`read_json`; nothing is parsed before."""
    with about(path, cure), path.open("rb") as file:
        if _seal(file, file.seek(0, os.SEEK_END) - _COMMENT, path, of) != file.read():
            raise ValueError("its checksum is another")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)


def _seal(file: IO[bytes], size: int, path: Path, of: str) -> bytes:
    """The checksum of the first bytes of a file, after which it stands."""
    checksum = hashlib.sha256(f"{path.name} {of}".encode())
    file.seek(0)
    while block := file.read(min(max(size - file.tell(), 0), 1 << 20)):
        checksum.update(block)
    return checksum.hexdigest().encode()


def append_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Adds a line of JSON to a journal and makes it durable.

    Args:
        path: the journal; made if it does not exist, in a folder that does.
        record: mapping; arrays become lists, and non-finite numbers null. A checksum of it and all before is added.

    Example:
        >>> path = tempfile.mkdtemp() + "/log.jsonl"
        >>> checkpoint.append_line(path, {"round": 1})
        >>> checkpoint.read_lines(path)
        [{'round': 1}]
    """
    if not isinstance(record, Mapping):
        raise TypeError(f"record is a {type(record).__name__}: pass a mapping")
    path, text = Path(path), json.dumps(plain(record), allow_nan=False)
    with about(path), path.open("a+b") as file:
        size, tail = file.seek(0, os.SEEK_END), b""
        while tail.rfind(b"\n") < 32 and len(tail) < size:  # until the last checksum is in it
            file.seek(max(size - 2 * len(tail) - 64, 0))
            tail = file.read()
        lines, _, unfinished = tail.rpartition(b"\n")
        file.truncate(size - len(unfinished))
        with about(path, _CURE):
            last = lines.rpartition(b"\n")[2].removesuffix(b"}").rpartition(_CRC[2:].encode())
            if lines and not last[1]:
                raise ValueError("its last line has no checksum")
            crc = zlib.crc32(text.encode(), int(last[2]) if lines else 0)
        file.write(f"{text[:-1]}{_CRC[text == '{}' :]}{crc}}}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: str | Path) -> list[dict]:
    """The complete lines of a journal.

    Args:
        path: the journal; none yet is an empty one.

    Returns:
        One dict a line. A last line without its end was being written when its process died, and is left out.

    Raises:
        ValueError: a complete line is damaged, lost, there twice or at another place.

    Example:
        >>> checkpoint.read_lines(tempfile.mkdtemp() + "/none.jsonl")
        []
    """
    return [record for _, record in _lines(path)]


def keep_lines(path: str | Path, count: int) -> None:
    """Drops what was written to a journal after the checkpoint that a run continues from.

    Args:
        path: the journal.
        count: how many lines to keep.

    Raises:
        ValueError: there are fewer lines than that, or one of these is damaged.

    Example:
        >>> path = tempfile.mkdtemp() + "/log.jsonl"
        >>> for number in range(3):
        ...     checkpoint.append_line(path, {"round": number})
        >>> checkpoint.keep_lines(path, 2)
        >>> checkpoint.read_lines(path)
        [{'round': 0}, {'round': 1}]
    """
    if count < 0:
        raise ValueError(f"count={count} must be at least 0")
    lines = [line for _, (line, _) in zip(range(count), _lines(path), strict=False)]  # whatever comes after them
    if len(lines) < count:
        raise ValueError(f"{path} holds {len(lines)} lines, but {count} belong to the checkpoint: start afresh")
    if Path(path).exists():
        write_text(Path(path), "".join(f"{line}\n" for line in lines))


def _lines(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Complete lines, and what they hold; each has the checksum of itself and of those before it."""
    lines, crc = Path(path).read_bytes().split(b"\n")[:-1] if Path(path).exists() else [], 0
    for number, line in enumerate(lines, 1):
        with about(f"{path}, line {number}", _CURE):
            text, _, said = (line := line.decode("utf-8")).removesuffix("}").rpartition(_CRC[1:])
            crc = zlib.crc32((text := text.removesuffix(",") + "}").encode(), crc)
            if crc != int(said):
                raise ValueError("it or a line before it was changed, moved or lost")
            record = json.loads(text)
        yield line, record


@contextmanager
def lock(folder: Path, name: str = "lock") -> Iterator[None]:
    """Keeps other processes out of a folder; the system takes a lock back when its process dies, however it dies."""
    with (folder / name).open("a+b", buffering=0) as file:
        try:
            _hold(file)
        except OSError as error:
            file.seek(0)
            holder = file.read(32).decode(errors="replace").strip() or "unknown"
            cure = f"wait for it (process {holder}), or choose another folder"
            raise ValueError(f"folder={str(folder)!r} is being written to by another process: {cure}") from error
        with about(folder / name):
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        yield


def _hold(file: IO[bytes]) -> None:
    """Locks a file until it is closed, or raises an OSError at once."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    with suppress(ImportError):  # Windows, where a locked byte cannot be read: it is one far behind the text
        msvcrt: Any = importlib.import_module("msvcrt")
        file.seek(1 << 20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


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
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"a {type(value).__name__} cannot be written as JSON: pass text, numbers, lists or mappings")
    return value


def packed(state: Any) -> dict[str, np.ndarray]:
    """What an ``.npz`` file can hold: the bits of every leaf by its place, type and shape."""
    return {name: _compacted(_words(leaf)) for name, leaf in _named(state).items()}


def _compacted(words: np.ndarray) -> np.ndarray:
    """Of a vector with many −1, such as ``labelled_at``, one bit for each number, and the others; all else as it is."""
    if words.dtype != np.int32 or words.ndim != 1:
        return words
    others = words != -1
    short = np.concatenate([np.packbits(others), words[others].view(np.uint8)])
    return short if short.nbytes < words.nbytes else words


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
    array = meshes.on_host(jax.random.key_data(leaf) if "key<" in _kind(leaf) else leaf)
    if array.dtype.hasobject:
        raise ValueError(f"the number {leaf} has more than 64 bits: save it as text in the configuration, or as two")
    is_foreign = array.dtype.kind == "V"  # bfloat16 and its like
    return array.view(f"u{array.itemsize}") if is_foreign else array.astype(array.dtype.newbyteorder("="), copy=False)


def _restored(name: str, like: Any, words: np.ndarray) -> Any:
    if type(like) in (bool, int, float):
        return words.item()
    if "key<" in _kind(like):
        implementation = jax.random.key_impl(jnp.zeros((), like.dtype))  # which shapes alone do not tell
        return jax.random.wrap_key_data(jax.device_put(words, like.sharding), impl=implementation)
    if words.dtype == np.uint8 and like.dtype == np.int32:  # compacted
        short, words = words, np.full(like.shape, -1, np.int32)
        words[np.unpackbits(short, count=like.size) > 0] = short[-(-like.size // 8) :].copy().view(np.int32)
    array = words.view(like.dtype.name)
    if isinstance(like, np.ndarray | np.generic):
        return array
    leaf = jax.device_put(array, like.sharding)
    if leaf.dtype != array.dtype:
        raise ValueError(f"{name} becomes {leaf.dtype} in this process: set jax_enable_x64")
    return leaf


def arrays_of(path: Path, required: Sequence[str], optional: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` of a user's own."""
    # What a damaged header leaves out of an array is read for its checksum alone.
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
        if missing := [name for name in required if name not in file]:
            cure = f"numpy.savez(path, {', '.join(f'{name}=…' for name in required)})"
            there = ", ".join(file) or "no arrays"
            raise ValueError(f"data={str(path)!r} lacks {', '.join(missing)}: it has {there}; {cure} names them")
        return {name: file[name] for name in (*required, *optional) if name in file}


def texts_of(array: np.ndarray) -> list[str]:
    """An array of texts or whole numbers as texts."""
    if array.ndim != 1 or array.dtype.kind not in "Uiu" or not array.itemsize:  # texts of no length take no room
        raise ValueError(f"{array.dtype}{array.shape} is no list of texts, as numpy.array(['cat', 'dog']) is")
    return [str(text) for text in array]
