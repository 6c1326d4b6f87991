"""The folder of a study while it is being made, by any number of processes on any hosts that share it.

Who computes a cell claims it. Claims are a courtesy: they expire with their process, and a cell that is computed twice
is the same bytes, written under a name of its own and renamed. So nothing but time depends on them.
"""

import hashlib
import importlib.metadata
import itertools
import os
import platform
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from baal_jax._util import __version__, files, images
from baal_jax.study import results
from baal_jax.study.results import Cell, Pictures, Results, Runs

EXPIRES = 300.0  # seconds after which a claim that no process keeps alive is anybody's
TEMPORARIES = (".study.json.*", ".results.csv.*", ".pictures.npz.*", "cells/.*.npz.*")
_held: set[Path] = set()  # claims of this process


def device() -> str:
    """Kind and platform of what this process computes on."""
    first = jax.local_devices()[0]
    return f"{first.device_kind} ({first.platform})"


def environment() -> dict[str, str]:
    """Versions and hardware that numbers were made with.

    Returns:
        Name → version, with ``python``, ``platform`` and ``device`` among them.

    Example:
        >>> sorted(study.environment())
        ['baal_jax', 'device', 'flax', 'jax', 'jaxlib', 'numpy', 'optax', 'platform', 'python']
    """
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    machine["device"] = f"{device()}, {os.cpu_count()} CPU cores"
    return {"baal_jax": __version__, **versions, **machine}


class Folder:
    """A study on disk that this process adds to; nothing is written down before :meth:`begin`."""

    def __init__(self, path: str | Path, asked: Mapping[str, Any]):
        self.path = Path(path)
        for part in ("cells", "claims"):
            (self.path / part).mkdir(parents=True, exist_ok=True)
        self._place, self._asked = self.path.stat(), {**asked, "environment": environment(), "programs": {}}
        self._sweep()
        self.description = _description(self.path, self._asked)

    def begin(self, programs: Mapping[str, str], device: str | None = None, same_device: bool = False) -> None:
        """Writes down what is asked for, with the fingerprints of programs and the device that is to compute."""
        self._asked |= {"programs": programs, "devices": [device] if device else []}
        self.description = _description(self.path, self._asked)
        if same_device and device and (others := [kind for kind in self.description["devices"] if kind != device]):
            cure = f"compute there, or leave out same_device, as this process has {device}"
            raise ValueError(f"folder={str(self.path)!r} has cells of {', '.join(others)}: {cure}")
        if not (self.path / "study.json").exists() or self.description != results.read_description(self.path):
            with locked(self.path):
                self._describe()

    def _describe(self) -> None:
        self.require_place()
        self.description = _description(self.path, self._asked)  # with what others have asked for meanwhile
        files.write_json(self.path / "study.json", self.description)

    def require_place(self) -> None:
        """Refuses to write where the folder was before somebody moved it."""
        if not os.path.samestat(self.path.stat(), self._place):
            raise ValueError(f"folder={str(self.path)!r} is another one now: go on where the study was moved to")

    def add(self, strategy: str, cell: Cell) -> None:
        """Writes a cell."""
        self.require_place()
        try:
            results.write_cell(self.path, self.description, strategy, cell)
        except FileNotFoundError:  # swept by a process that found it computed
            if not results.path_of(self.path, strategy, cell.runs.seeds).exists():
                raise

    def finish(self, inputs: Any, targets: Any) -> Results:
        """Writes table and pictures, these of ``inputs`` unless they are None; returns what is there."""
        with locked(self.path):
            self._describe()
            study, path = results.merged(self.path, self.description), self.path / "pictures.npz"
            if inputs is not None:
                study = study._replace(pictures=save_pictures(self, study, inputs, targets))
            elif path.exists():  # of a call with images; a damaged one is no reason to stop
                with suppress(ValueError):
                    study = study._replace(pictures=results.read_pictures(path, self.description))
            self.require_place()
            files.write_text(self.path / "results.csv", results.table(study))
            self._sweep(at_end=True)
        return study

    def _sweep(self, at_end: bool = False) -> None:
        """Removes what killed processes left: what is old, or at the end of use to nobody."""
        for path in itertools.chain.from_iterable(map(self.path.glob, TEMPORARIES)):
            with suppress(FileNotFoundError):
                is_needless = at_end and path.with_name(path.name[1:].rpartition(".")[0]).exists()
                if is_needless or _age(path, self.path / "claims") > EXPIRES:
                    path.unlink()
        for claim in self.path.glob("claims/*-*") if at_end else ():
            if (self.path / "cells" / f"{claim.name}.npz").exists():
                claim.unlink(missing_ok=True)


def take(claim: Path, by_force: bool = False) -> bool:
    """Claims a cell, or whatever the name says, unless another process holds it."""
    with files.about(claim):
        try:
            file = claim.open("xb")
        except FileExistsError:
            if not by_force and not is_stale(claim):
                return False
            file = claim.open("wb")
        try:
            with file:
                file.write(f"{socket.gethostname()} {os.getpid()}".encode())
        except BaseException:
            claim.unlink()
            raise
    _held.add(claim)
    _heart()
    return True


def give_back(claim: Path) -> None:
    """Ends a claim."""
    _held.discard(claim)
    claim.unlink(missing_ok=True)


def is_stale(claim: Path) -> bool:
    """Whether its process is dead, or has not touched it for long."""
    try:
        host, _, pid = claim.read_bytes().decode().partition(" ")
        if _age(claim, claim.parent) > EXPIRES:
            return True
        if host == socket.gethostname() and pid and os.name == "posix":  # elsewhere a look at a process would kill it
            os.kill(int(pid), 0)
            return int(pid) == os.getpid() and claim not in _held  # of an earlier life in a container
    except ProcessLookupError:
        return True
    except OSError:  # given back just now, or somebody else's
        pass
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Waits until no other process writes the description, the table and the pictures."""
    claim = folder / "claims" / "study"
    while not take(claim):
        time.sleep(random.uniform(0.02, 0.2))
    try:
        yield
    finally:
        give_back(claim)


def _age(path: Path, folder: Path) -> float:
    """Seconds since a file was touched, by the clock that gives times to files, whatever that of this host says."""
    return _clock(folder) + time.monotonic() - path.stat().st_mtime


@cache
def _clock(folder: Path) -> float:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime - time.monotonic()


@cache
def _heart() -> None:
    """Starts a thread that keeps claims alive while this process is."""

    def beat() -> None:
        while True:
            time.sleep(EXPIRES / 10)
            for claim in [*_held]:
                with suppress(OSError):
                    os.utime(claim)

    threading.Thread(target=beat, daemon=True).start()


def cell(seeds: np.ndarray, initial: Any, infos: Any, targets: Any, program: str) -> Cell:
    """What a call computed of ``int[n]`` seeds, on the host; in ``initial`` and ``infos`` more rows are padding."""
    infos, initial = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(seeds)], (infos, initial))
    numbers, arrays = {}, {}
    for name, value in (infos.metrics or {}).items():
        (numbers if value.ndim == 2 else arrays)[name] = value
    targets = np.asarray(targets)
    if targets.ndim == 1:
        unknown = np.asarray(np.nan if np.issubdtype(targets.dtype, np.floating) else -1, targets.dtype)
        there = infos.indices >= 0
        arrays["query_targets"] = np.where(there, targets[np.where(there, infos.indices, 0)], unknown)
    content = {name: value for name, value in infos._asdict().items() if name in Runs._fields}
    content |= {"seeds": np.asarray(seeds, np.int32), "initial": initial, "metrics": numbers, "diagnostics": arrays}
    return Cell(Runs(**content), program, device())


def digest(tree: Any) -> str:
    """Of all numbers of a pytree, in order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data if array.dtype.kind != "V" else array.tobytes())
    return digest.hexdigest()[:16]


def save_pictures(folder: Folder, study: Results, inputs: Any, targets: Any, most: int = 1000) -> Pictures:
    """What the first seeds of strategies asked for, of ``inputs [N, H, W, 1 or 3]``; ``most``, earlier rounds first."""
    firsts = [*study.runs.values()]
    rounds = max((runs.indices.shape[1] for runs in firsts), default=0)
    order = [runs.initial[0] for runs in firsts[:1]]
    order += [runs.indices[0, r] for r in range(rounds) for runs in firsts if r < runs.indices.shape[1]]
    ids = np.concatenate([np.ravel(part) for part in order]) if order else np.zeros(0, int)
    unique, first = np.unique(ids[ids >= 0], return_index=True)
    ids = np.sort(unique[np.argsort(first)][:most])
    shown = images.as_bytes(np.asarray(inputs)[ids], of=inputs)
    content = Pictures(ids.astype(np.int32), shown, np.asarray(targets)[ids])
    path, there = folder.path / "pictures.npz", ()
    with suppress(ValueError):  # what is damaged or lost is made anew
        there = results.read_pictures(path, folder.description)
    if not there or not all(map(np.array_equal, there, content)):
        folder.require_place()
        results.write_pictures(path, content, folder.description)
    return content


def describe_pool(targets: Any) -> dict[str, Any]:
    """Size and classes of a pool."""
    targets = np.asarray(targets)
    pool: dict[str, Any] = {"num_pool": len(targets)}
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        pool["class_counts"] = np.bincount(targets[targets >= 0]).tolist()
    return pool


def _description(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What the folder is for: what it was, and what is asked for beyond."""
    asked = files.plain(asked)
    if not (path / "study.json").exists():
        for left in sorted(path.glob("cells/*.npz"))[:1]:
            has = f"cells, such as {left.name}, but no study.json"
            raise ValueError(f"folder={str(path)!r} has {has}: restore it from a backup, or empty the folder")
        description = asked
    else:
        old = results.read_description(path)
        for name in dict.fromkeys([*old, *asked]):
            if name not in results.MAY_CHANGE and old.get(name) != asked.get(name):
                changed = _change(name, old.get(name), asked.get(name))
                cure = "use another folder, or ask for the same"
                raise ValueError(f"{path / 'study.json'} is of a study with {changed}: {cure}")
        for strategy, program in asked["programs"].items():
            _require_same_program(path, old, strategy, program)
        description = {
            **asked,
            "strategies": list(dict.fromkeys([*old["strategies"], *asked["strategies"]])),
            **{name: asked.get(name) or old[name] for name in ("baseline", "higher_is_better") if name in old},
            "seeds": max(old["seeds"], asked["seeds"], key=len),
            **{name: old[name] for name in ("environment", "chunk") if name in old},
            "programs": {**old.get("programs", {}), **asked["programs"]},
            "devices": list(dict.fromkeys([*old.get("devices", []), *asked.get("devices", [])])),
        }
    names = description["strategies"]
    description["baseline"] = description["baseline"] or ("random" if "random" in names else names[0])
    return description


def _change(name: str, old: Any, new: Any) -> str:
    """Of mappings the entries that differ, else both."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        differ = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
        return "; ".join(_change(f"{name}[{key!r}]", old.get(key), new.get(key)) for key in differ)
    return f"{name}={old!r}, but now it is {new!r}"


def _require_same_program(path: Path, old: dict[str, Any], strategy: str, program: str) -> None:
    """Refuses to go on with another program than the one that made the cells which are there, or is making them."""
    slug, known = results.slug(strategy), old.get("programs", {}).get(strategy)
    made = [] if known == program else sorted(path.glob(f"c*/{slug}-*"))
    if made and known is None and made[0].suffix == ".npz":  # of a process whose description was lost
        known = results.read_cell(made[0], old)[1].program
    if made and known != program:
        what = f"is another program than the one that made its {len(made)} cells in {str(path)!r}"
        why = "the loop, the data's shapes or the versions (in study.json) have changed"
        cure = f"Give it another name, use another folder, or delete c*/{slug}-*"
        raise ValueError(f"loops[{strategy!r}] {what}: {why}. {cure}")
