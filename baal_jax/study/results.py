"""Results of a study on disk: cells, table and pictures, how they are written and read; every kill leaves them whole.

The page on studies lists the files. The cells hold everything, and the table is made of them, the same however often a
study was stopped. All but the table carry a checksum: what is damaged or of another study is refused by name. What is
deleted the study's call makes anew.
"""

import csv
import hashlib
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from baal_jax._util import files
from baal_jax.typing import short

# What a folder may be asked for more of, what only says how it is to be looked at, and what is told by the programs.
MAY_CHANGE = ("strategies", "seeds", "name", "baseline", "metric", "target", "class_names", "environment")
MAY_CHANGE += ("higher_is_better", "command", "chunk", "programs", "devices")
_CURE = "delete it, and the study's call computes it anew"
_NAME = re.compile(r"([^-]+)-(\d+)-(\d+)\.npz")  # of a cell: slug, first and last seed


class Runs(NamedTuple):
    """Runs of one strategy, a row for every seed.

    Rounds after a run has stopped did not happen: ``stopped`` is True there, numbers are NaN, picks −1.

    Attributes:
        seeds: ``int[n]``, ascending.
        num_labelled: ``int[n, R]``, labels that each round's fit has seen.
        num_picked: ``int[n, R]``, labels that each round queried.
        mean_score: ``float[n, R]``, mean score of the pool; NaN where there is none.
        stopped: ``bool[n, R]``, rounds that did not happen.
        metrics: name → ``float[n, R]``.
        initial: ``int[n, I]``, ids of the examples labelled at first.
        indices: ``int[n, R, Q]``, ids in order of picking; −1 is padding.
        scores: ``float[n, R, Q]``, their scores.
        diagnostics: name → ``float[n, R, …]``, what is an array in every round, such as reliability bins.
    """

    seeds: np.ndarray
    num_labelled: np.ndarray
    num_picked: np.ndarray
    mean_score: np.ndarray
    stopped: np.ndarray
    metrics: dict[str, np.ndarray]
    initial: np.ndarray
    indices: np.ndarray
    scores: np.ndarray
    diagnostics: dict[str, np.ndarray]
    __repr__ = short


class Cell(NamedTuple):
    """Some seeds of one strategy, computed by one call.

    Attributes:
        runs: some seeds of one strategy.
        program: fingerprint of what computed them.
        device: kind and platform of where.
    """

    runs: Runs
    program: str
    device: str


class Pictures(NamedTuple):
    """Inputs of queried examples, as images.

    Attributes:
        ids: ``int[m]``, ascending ids into the pool.
        images: ``[m, H, W, 1 or 3]``, bytes.
        targets: ``[m, …]``.
    """

    ids: np.ndarray
    images: np.ndarray
    targets: np.ndarray


class Results(NamedTuple):
    """Results of a study.

    Attributes:
        description: the content of ``study.json``, among it ``"strategies"`` in order, ``"baseline"``, the one that
            others are compared with, ``"class_names"`` or None, and ``"metric"``, the one that matters most.
        runs: name → :class:`Runs`, in the order of ``description["strategies"]``; only what is there.
        pictures: :class:`Pictures`, or None.
        devices: kind of device → how many cells it computed; None where nobody says.
    """

    description: dict[str, Any]
    runs: dict[str, Runs]
    pictures: Pictures | None
    devices: dict[str, int] | None = None
    __repr__ = short


def read(folder: str | Path) -> Results:
    """Read a study, finished or not.

    Args:
        folder: where the study is.

    Raises:
        ValueError: there is no study in the folder, it is of another format, or a file is damaged or of another study.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> list(digits.runs)  # doctest: +SKIP
    """
    folder = Path(folder)
    description = read_description(folder)
    path = folder / "pictures.npz"
    pictures = read_pictures(path, description) if path.exists() else None
    return merged(folder, description)._replace(pictures=pictures)


def progress(folder: str | Path) -> tuple[int, int]:
    """Count the cells of a study, without reading them.

    Args:
        folder: where the study is; without one it is a ValueError.

    Returns:
        How many are there, and of how many.

    Example:
        >>> results.progress("runs/digits")  # doctest: +SKIP
    """
    description = read_description(Path(folder))
    every = cells_of(description["strategies"], len(description["seeds"]), description["chunk"])
    return len(every) - len(missing(Path(folder), every)), len(every)


def read_description(folder: Path) -> dict[str, Any]:
    """Read the content of ``study.json``; refuse a folder without one, another format, and what is damaged."""
    return files.read_json(folder / "study.json", "run a study there first, or restore it from a backup")


def _identity(description: Mapping[str, Any]) -> str:
    """What tells a study from others: a digest of all that it cannot change."""
    return files.digest({name: value for name, value in description.items() if name not in MAY_CHANGE})


def table(results: Results) -> str:
    """Write all runs as CSV, a line for every strategy, seed and round; NaN is left empty.

    Args:
        results: from :func:`read`.

    Returns:
        The text of ``results.csv``. Numbers have nine significant digits, which is all of a float32.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> print(results.table(digits))  # doctest: +SKIP
    """
    metrics = list(dict.fromkeys(name for runs in results.runs.values() for name in runs.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["strategy", "seed", "round", "num_labelled", "num_picked", "mean_score", "stopped", *metrics])
    for strategy, runs in results.runs.items():
        values = [runs.mean_score, *(runs.metrics.get(name) for name in metrics)]
        for i, r in np.ndindex(runs.num_labelled.shape):
            score, *rest = ("" if part is None or np.isnan(part[i, r]) else f"{part[i, r]:.9g}" for part in values)
            counts = (int(part[i, r]) for part in (runs.num_labelled, runs.num_picked))
            writer.writerow([strategy, int(runs.seeds[i]), r, *counts, score, int(runs.stopped[i, r]), *rest])
    return text.getvalue()


def cells_of(strategies: Iterable[str], num_seeds: int, chunk: int) -> list[tuple[str, range]]:
    """All cells of a study, ``chunk`` seeds of a strategy each: whoever computes one makes the same file."""
    seeds = range(num_seeds)
    return [(name, seeds[first : first + chunk]) for name in strategies for first in seeds[::chunk]]


def missing(folder: Path, cells: Iterable[tuple[str, range]]) -> list[tuple[str, range]]:
    """Those that are not in the folder, cut to the seeds that are not; by one listing, as there may be many."""
    there: dict[str, set[int]] = defaultdict(set)
    for name in os.listdir(folder / "cells") if (folder / "cells").is_dir() else ():
        if part := _NAME.fullmatch(name):
            there[part[1]].update(range(int(part[2]), int(part[3]) + 1))
    pairs = [(name, [seed for seed in seeds if seed not in there[slug(name)]]) for name, seeds in cells]
    return [(name, range(left[0], left[-1] + 1)) for name, left in pairs if left]


def path_of(folder: Path, strategy: str, seeds: Any) -> Path:
    """The file of a cell."""
    return folder / "cells" / f"{slug(strategy)}-{seeds[0]:05d}-{seeds[-1]:05d}.npz"


def write_cell(folder: Path, description: Mapping[str, Any], strategy: str, cell: Cell) -> Path:
    """Write what one call computed for a strategy, whole or not at all."""
    leaves = jax.tree_util.tree_leaves_with_path(cell.runs)
    content = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    told = {"program": cell.program, "device": cell.device, "strategy": strategy}
    content |= {name: np.asarray(value) for name, value in told.items()}
    path = path_of(folder, strategy, cell.runs.seeds)
    return files.write_arrays(path, content, _identity(description), compress=True)


def read_cell(path: Path, description: Mapping[str, Any]) -> tuple[str, Cell]:
    """Read what :func:`write_cell` wrote, and of which strategy it is."""
    content = files.read_arrays(path, _CURE, _identity(description))
    with files.about(path, _CURE):
        parts: dict[str, Any] = {"metrics": {}, "diagnostics": {}}
        for name, part in content.items():
            group, _, rest = name.partition("/")
            (parts[group] if rest else parts)[rest or name] = part
        program, device, strategy = (parts.pop(name).item() for name in ("program", "device", "strategy"))
        if strategy not in description["strategies"]:
            raise ValueError(f"study.json does not know the strategy {strategy!r}")
        return strategy, Cell(_looked_at(Runs(**parts), description), program, device)


def merged(folder: Path, description: dict[str, Any], only: Iterable[tuple[str, range]] | None = None) -> Results:
    """All cells of a folder put together, or those of some seeds."""
    wanted = None if only is None else {(slug(name), seed) for name, seeds in only for seed in seeds}
    cells: dict[str, list[Cell]] = {name: [] for name in description["strategies"]}
    devices, runs = Counter(), {}
    for path in sorted((folder / "cells").glob("*.npz")):
        name = path.name.split("-")
        if wanted is None or (name[0], int(name[1])) in wanted:
            strategy, cell = read_cell(path, description)
            cells[strategy].append(cell)
            devices[cell.device] += 1
    for name, some in cells.items():
        with files.about(folder / "cells" / f"{slug(name)}-*.npz", "delete those that are wrong"):
            runs |= {name: merge(sorted(some, key=lambda cell: tuple(cell.runs.seeds)))} if some else {}
    return Results(description, runs, None, dict(sorted(devices.items())))


def _looked_at(runs: Runs, description: Mapping[str, Any]) -> Runs:
    """Refuses what no study of this description has."""
    shape = len(runs.seeds), description.get("num_rounds", runs.num_labelled.shape[1])
    parts = jax.tree.leaves(runs._replace(seeds=None, initial=None))
    ids = np.concatenate([runs.initial.ravel(), runs.indices.ravel()])
    if len(runs.initial) != shape[0] or any(part.shape[:2] != shape for part in parts):
        raise ValueError(f"not all of it has {shape[0]} seeds and {shape[1]} rounds")
    if ids.dtype.kind != "i" or ids.min(initial=0) < -1 or ids.max(initial=0) >= description.get("num_pool", np.inf):
        raise ValueError(f"ids are {ids.dtype} from {ids.min()} to {ids.max()}, outside of the pool")
    return runs


def write_pictures(path: Path, pictures: Pictures, description: Mapping[str, Any]) -> Path:
    """Write pictures, whole or not at all."""
    return files.write_arrays(path, pictures._asdict(), _identity(description), compress=True)


def read_pictures(path: Path, description: Mapping[str, Any]) -> Pictures:
    """Read what :func:`write_pictures` wrote."""
    return Pictures(**files.read_arrays(path, _CURE, _identity(description)))


def merge(cells: Iterable[Cell]) -> Runs:
    """Put cells of one strategy together, seeds ascending, the first of each; refuse several programs."""
    cells = list(cells)
    kinds = [jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape[1:]), cell.runs) for cell in cells]
    for cell, kind in zip(cells, kinds, strict=True):
        if (kind, cell.program) != (kinds[0], cells[0].program):
            first, now = cells[0].runs.seeds[0], cell.runs.seeds[0]
            raise ValueError(f"the cell of seed {now} is of another program or kind of value than that of seed {first}")
    _, first = np.unique(np.concatenate([cell.runs.seeds for cell in cells]), return_index=True)
    return jax.tree.map(lambda *values: np.concatenate(values)[first], *(cell.runs for cell in cells))


def slug(name: str) -> str:
    """Make a short name of ``[a-z0-9._]`` for files, with a digest where it is changed or looks as if it were."""
    safe = re.sub(r"[^a-z0-9._]+", "_", name.lower()).lstrip(".")[:80]
    is_own = safe == name and not re.search(r"\.[0-9a-f]{8}$", name)
    return safe if is_own else f"{safe}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"
