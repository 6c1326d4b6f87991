"""Results of a study on disk: cells, table and pictures, how they are written and read; every kill leaves them whole.

```text
study.json               what was asked for, and with which versions and hardware
cells/NAME-SEEDS.npz     what one call computed: one strategy, some seeds; written at once or not at all
results.csv              all of it as one tidy table: a line for every strategy, seed and round
pictures.npz             inputs of what was queried, where the data are images
```

The cells hold everything; the table is made of them and is the same, byte for byte, however often a study was stopped.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util import files
from baal_jax.typing import short

FORMAT = 1


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
        chunk: seeds that a call takes, padding included.
    """

    runs: Runs
    program: str
    chunk: int


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
        description: the content of ``study.json``; ``description["strategies"]`` has the names in order,
            ``description["baseline"]`` the one that others are compared with, ``description["class_names"]`` the names
            of the classes or None, ``description["metric"]`` the metric that matters most.
        runs: name → :class:`Runs`, in the order of ``description["strategies"]``; only what is there.
        pictures: :class:`Pictures`, or None.
    """

    description: dict[str, Any]
    runs: dict[str, Runs]
    pictures: Pictures | None

    __repr__ = short


def read(folder: str | Path) -> Results:
    """Read a study, finished or not.

    Args:
        folder: where the study is.

    Returns:
        :class:`Results`.

    Raises:
        ValueError: there is no study in the folder, or it is of a newer format.
    """
    folder = Path(folder)
    description = read_description(folder)
    runs = {name: merge(cells) for name in description["strategies"] if (cells := read_cells(folder, name))}
    path = folder / "pictures.npz"
    return Results(description, runs, read_pictures(path) if path.exists() else None)


def read_description(folder: Path) -> dict[str, Any]:
    """Read the content of ``study.json``; refuse a folder without one, and a newer format."""
    path = folder / "study.json"
    if not path.exists():
        raise ValueError(f"folder={str(folder)!r} holds no study: {path.name} is missing; run a study there first")
    description = json.loads(path.read_text(encoding="utf-8"))
    if description.get("format") != FORMAT:
        found = description.get("format")
        raise ValueError(f"{path} has format {found}, but this version reads {FORMAT}: update baal_jax")
    return description


def table(results: Results) -> str:
    """Write all runs as CSV, a line for every strategy, seed and round; NaN is left empty.

    Args:
        results: from :func:`read`.

    Returns:
        The text of ``results.csv``. Numbers have nine significant digits, which is all of a float32.
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


def write_cell(folder: Path, strategy: str, cell: Cell) -> Path:
    """Write what one call computed for a strategy, whole or not at all."""
    content = {name: value for name, value in cell.runs._asdict().items() if not isinstance(value, dict)}
    for group in ("metrics", "diagnostics"):
        content |= {f"{group}/{name}": value for name, value in getattr(cell.runs, group).items()}
    seeds = f"{cell.runs.seeds[0]:05d}-{cell.runs.seeds[-1]:05d}"
    content |= {"program": np.asarray(cell.program), "chunk": np.asarray(cell.chunk), "strategy": np.asarray(strategy)}
    return _write_arrays(folder / "cells" / f"{slug(strategy)}-{seeds}.npz", content)


def read_cells(folder: Path, strategy: str) -> list[Cell]:
    """Read all cells of a strategy, in the order of their first seeds."""
    cells = []
    for path in (folder / "cells").glob(f"{slug(strategy)}-*.npz"):
        with np.load(path, allow_pickle=False) as content:
            if str(content["strategy"]) != strategy:  # "bald-3" has files that look like those of "bald"
                continue
            parts: dict[str, Any] = {"metrics": {}, "diagnostics": {}}
            for name in content:
                group, _, rest = name.partition("/")
                if rest:
                    parts[group][rest] = content[name]
                elif name in Runs._fields:
                    parts[name] = content[name]
            cells.append(Cell(Runs(**parts), str(content["program"]), int(content["chunk"])))
    return sorted(cells, key=lambda cell: tuple(cell.runs.seeds))


def write_pictures(path: Path, pictures: Pictures) -> Path:
    """Write pictures, whole or not at all."""
    return _write_arrays(path, pictures._asdict())


def read_pictures(path: Path) -> Pictures:
    """Read what :func:`write_pictures` wrote."""
    with np.load(path, allow_pickle=False) as content:
        return Pictures(*(content[name] for name in Pictures._fields))


def merge(cells: Iterable[Cell]) -> Runs:
    """Put cells of one strategy together, seeds ascending; a seed that is there twice is taken once."""
    parts = [cell.runs for cell in cells]
    _, first = np.unique(np.concatenate([runs.seeds for runs in parts]), return_index=True)

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: joined([part[name] for part in values]) for name in sorted(values[0])}
        return np.concatenate(values)[first]

    return Runs(*(joined([getattr(runs, name) for runs in parts]) for name in Runs._fields))


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write JSON under a temporary name and rename it, so that no half-written file is ever seen.

    Args:
        path: where to; folders are made.
        content: nested mappings and lists; NumPy and JAX arrays become lists, and non-finite numbers null.

    Returns:
        The path.
    """
    return files.write_text(Path(path), json.dumps(files.plain(content), indent=1, allow_nan=False))


def slug(name: str) -> str:
    """Make a name for files of letters, digits, dots and underscores; a changed name gets a digest of its own."""
    safe = re.sub(r"[^A-Za-z0-9._]+", "_", name)
    return safe if safe == name else f"{safe}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _write_arrays(path: Path, content: Mapping[str, Any]) -> Path:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return files.write_bytes(path, buffer.getvalue())
