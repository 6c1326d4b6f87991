"""The folder of a study while it is being made: one process, which adds cells (written by ``results.write_cell``)."""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from baal_jax._util import __version__, files, images
from baal_jax.study import results
from baal_jax.study.results import Cell, Pictures, Results, Runs

SECONDS_BETWEEN_TABLES = 10.0
TEMPORARIES = (".study.json.*", ".results.csv.*", ".pictures.npz.*", "cells/.*.npz.*")


def environment() -> dict[str, str]:
    """Versions and hardware that numbers were made with.

    Returns:
        Name → version, with ``python``, ``platform`` and ``device`` among them.
    """
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    device = jax.devices()[0]
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    machine["device"] = f"{device.device_kind} ({device.platform}), {os.cpu_count()} CPU cores"
    return {"baal_jax": __version__, **versions, **machine}


class Folder:
    """A study on disk that this process writes to."""

    def __init__(self, path: Path, description: dict[str, Any]):
        self.path, self._place = path, path.stat()
        for pattern in TEMPORARIES:  # left by a process that was killed
            for stale in path.glob(pattern):
                stale.unlink()
        self.description = _description(path, description)
        self.cells: dict[str, list[Cell]] = results.read_cells(path, self.description)
        (path / "cells").mkdir(exist_ok=True)
        files.write_json(path / "study.json", self.description)
        self._written = 0.0

    def missing(self, strategy: str, seeds: Sequence[int]) -> np.ndarray:
        """Seeds that no cell has yet."""
        there = [seed for cell in self.cells.get(strategy, []) for seed in cell.runs.seeds.tolist()]
        return np.setdiff1d(np.asarray(seeds, int), there)

    def chunk(self, strategy: str) -> int | None:
        """Seeds in a call when this strategy was begun, None if it was not."""
        cells = self.cells.get(strategy)
        return cells[0].chunk if cells else None

    def require_same_program(self, strategy: str, program: str) -> None:
        """Refuses to go on with another program than the one that made the cells which are there."""
        if other := [cell for cell in self.cells.get(strategy, []) if cell.program != program]:
            cells = f"made its {len(other)} cells in {str(self.path)!r}"
            why = "the loop, the data's shapes, the number of devices or the versions (in study.json) have changed"
            cure = f"Give it another name, use another folder, or delete cells/{results.slug(strategy)}-*.npz"
            raise ValueError(f"loops[{strategy!r}] is another program than the one that {cells}: {why}. {cure}")

    def require_place(self) -> None:
        """Refuses to write where the folder was before somebody moved it."""
        if not os.path.samestat(self.path.stat(), self._place):
            raise ValueError(f"folder={str(self.path)!r} is another one now: go on where the study was moved to")

    def add(self, strategy: str, cell: Cell) -> None:
        """Writes a cell, and the table now and then."""
        self.require_place()
        results.write_cell(self.path, self.description, strategy, cell)
        self.cells.setdefault(strategy, []).append(cell)
        if time.monotonic() - self._written > SECONDS_BETWEEN_TABLES:
            self.write_table()

    def write_table(self) -> Results:
        """Writes ``results.csv`` if it is not what the cells say; returns what is there."""
        runs = {name: results.merge(self.cells[name]) for name in self.description["strategies"] if name in self.cells}
        study = Results(self.description, runs, None)
        self.require_place()
        files.write_text(self.path / "results.csv", results.table(study))
        self._written = time.monotonic()
        return study


@contextmanager
def opened(path: str | Path, description: dict[str, Any]) -> Iterator[Folder]:
    """The folder for one writer at a time, made if needed; the table is written at the end, whatever ends it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with files.lock(path):
        folder = Folder(path, description)
        try:
            yield folder
        finally:
            folder.write_table()


def cell(seeds: np.ndarray, initial: Any, infos: Any, targets: Any, program: str, chunk: int) -> Cell:
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
    return Cell(Runs(**content), program, chunk)


def digest(tree: Any) -> str:
    """Of all numbers of a pytree, in order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.data if array.dtype.kind != "V" else array.tobytes())
    return digest.hexdigest()[:16]


def save_pictures(folder: Folder, inputs: Any, targets: Any, most: int = 1000) -> Pictures:
    """What the first seeds of strategies asked for, of ``inputs [N, H, W, 1 or 3]``; ``most``, earlier rounds first."""
    firsts = [results.merge(cells) for cells in folder.cells.values()]
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
    asked = {**files.plain(asked), "environment": environment()}
    if not (path / "study.json").exists():
        for left in sorted(path.glob("cells/*.npz"))[:1]:
            has = f"cells, such as {left.name}, but no study.json"
            raise ValueError(f"folder={str(path)!r} has {has}: restore it from a backup, or empty the folder")
        description = asked
    else:
        old = results.read_description(path)
        for name in dict.fromkeys([*old, *asked]):
            if name not in results.MAY_CHANGE and old.get(name) != asked.get(name):
                changed = f"{name}={old.get(name)!r}, but now it is {asked.get(name)!r}"
                cure = "use another folder, or ask for the same"
                raise ValueError(f"{path / 'study.json'} is of a study with {changed}: {cure}")
        description = {
            **asked,
            "strategies": list(dict.fromkeys([*old["strategies"], *asked["strategies"]])),
            **{name: asked.get(name) or old[name] for name in ("baseline", "higher_is_better") if name in old},
            "seeds": max(old["seeds"], asked["seeds"], key=len),
            "environment": old["environment"],
        }
    names = description["strategies"]
    description["baseline"] = description["baseline"] or ("random" if "random" in names else names[0])
    return description
