"""Pools that never fit: rankings, sets and neighbours of labelled examples from a file of embeddings.

Logistic head of 10 classes, 20 draws, 100 picks a round, from memory maps of 64 float32 an example: a round of top-k
BALD, margin and power over 10,000,000; BADGE and k-center over 1,000,000; SEALS, 100 rounds, beside the full pool of
1,000,000 in which classes are rare. Every part is a process of its own. Seconds are of the first round (with its
compilation) and of the second. Memory is resident memory (VmHWM): of rankings that of the whole process, of sets what
comes on top of a process that has done such rounds over copies of one row. Picks are compared with those in memory, on
a tenth.

    python experiments/benchmarks/big_pool.py --folder /tmp/big
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from measuring import hand_over, in_process, timed

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection

RANKINGS = {
    "bald": lambda: selection.top_k(heuristics.bald),
    "margin": lambda: selection.top_k(heuristics.margin),
    "power": lambda: selection.power(heuristics.bald),
}
SETS = {"badge": selection.badge, "k_center": selection.k_center}


@dataclasses.dataclass(frozen=True)
class Config:
    """All parts.

    Attributes:
        folder: where the files of embeddings are made; it is deleted at the end.
        part: what this process measures, such as "bald disk"; empty for the one that starts the others.
        parts: which ones.
        rows: examples that are ranked.
        set_rows: examples of which sets are picked, and among which neighbours are looked for.
        dims: features.
        classes: of the head.
        query_size: picks a round.
        num_samples: draws.
        batch_size: examples in work at a time.
        rounds: with candidates.
        neighbours: of each labelled example.
    """

    folder: str = "/tmp/big_pool"
    part: str = ""
    parts: tuple[str, ...] = ("rankings", "sets", "seals")
    rows: int = 10_000_000
    set_rows: int = 1_000_000
    dims: int = 64
    classes: int = 10
    query_size: int = 100
    num_samples: int = 20
    batch_size: int = 4096
    rounds: int = 100
    neighbours: int = 100


def main(config: Config) -> dict[str, dict[str, Any]]:
    """All parts, one after the other."""
    if config.part:
        hand_over(measure(config))
        return {}
    parts = [
        f"{name} disk"
        for kind, names in (("rankings", RANKINGS), ("sets", SETS))
        if kind in config.parts
        for name in names
    ]
    parts += [f"{part.split()[0]} tenth {place}" for part in parts for place in ("disk", "memory")]
    parts += ["seals", "full"] if "seals" in config.parts else []
    measured: dict[str, dict[str, Any]] = {}
    Path(config.folder).mkdir(parents=True)
    try:
        for part in parts:
            make(config, file_of(config, part), rows_of(config, part))
            measured[part] = in_process(__file__, dataclasses.replace(config, part=part))
            shown = {name: value for name, value in measured[part].items() if name not in ("picks", "curve")}
            print(part, shown, flush=True)
    finally:
        shutil.rmtree(config.folder)
    for part in parts:
        if part.endswith("memory"):
            same = measured[part]["picks"] == measured[part.replace("memory", "disk")]["picks"]
            print(part.split()[0], "picks from disk are", "those in memory" if same else "OTHERS", flush=True)
    if "full" in measured:
        target = 0.95 * max(measured["full"]["curve"])
        for part in ("full", "seals"):
            reached = np.flatnonzero(np.array(measured[part]["curve"]) >= target)
            labels = (1 + reached[0]) * config.query_size if len(reached) else None
            print(f"{part}: {labels} labels to a balanced accuracy of {target:.3f}", flush=True)
    return measured


def rows_of(config: Config, part: str) -> int:
    """How many examples a part has."""
    rows = config.rows if part.split()[0] in RANKINGS else config.set_rows
    return rows // 10 if "tenth" in part else rows


def file_of(config: Config, part: str) -> Path:
    """Of the embeddings; classes lie beside them."""
    return Path(config.folder) / f"{'clusters' if part in ('seals', 'full') else 'noise'}{rows_of(config, part)}.npy"


def make(config: Config, path: Path, rows: int) -> None:
    """Embeddings in a file: noise with classes of a linear rule, or clusters, of which each class has fewer."""
    if path.exists():
        return
    rng = np.random.default_rng(0)
    rule = rng.standard_normal((config.dims, config.classes), dtype=np.float32)
    embeddings = np.lib.format.open_memmap(path, "w+", np.float32, (rows, config.dims))
    classes = np.empty(rows, np.int32)
    for start in range(0, rows, 100_000):
        part = slice(start, min(start + 100_000, rows))
        if path.name.startswith("noise"):
            embeddings[part] = rng.standard_normal((part.stop - start, config.dims), dtype=np.float32)
            classes[part] = np.argmax(embeddings[part] @ rule, axis=1)
        else:
            embeddings[part], classes[part] = clusters(config, rng, part.stop - start, 0.5)
    np.save(path.with_suffix(".classes.npy"), classes)


def clusters(config: Config, rng: Any, rows: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of clusters, twenty a class; a class has ``ratio`` times the examples of the one before it."""
    centres = np.random.default_rng(1).standard_normal((config.classes, 20, config.dims), dtype=np.float32)
    share = ratio ** np.arange(config.classes)
    classes = rng.choice(config.classes, rows, p=share / share.sum()).astype(np.int32)
    places = centres[classes, rng.integers(0, 20, rows)]
    return places + 0.9 * rng.standard_normal((rows, config.dims), dtype=np.float32), classes


def measure(config: Config) -> dict[str, Any]:
    """One part."""
    path = file_of(config, config.part)
    embeddings = np.load(path, mmap_mode=None if "memory" in config.part else "r")
    train = baal.Dataset(embeddings, np.load(path.with_suffix(".classes.npy")))
    name = config.part.split()[0]
    if name in ("seals", "full"):
        return seals(config, train)
    loop = loop_of(config, {**RANKINGS, **SETS}[name]())
    if name in SETS:  # programs are no part of what a pool needs
        alike = np.broadcast_to(np.asarray(embeddings[0]), embeddings.shape)
        rounds(config, loop, train._replace(inputs=baal.data.View(alike)))
    before = resident("VmRSS") if name in SETS else 0
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is that of from now on
    seconds, picks = rounds(config, loop, train)
    megabytes = resident("VmHWM") - before
    source = embeddings.nbytes / 1e6
    return {"seconds": seconds, "MB": round(megabytes), "of source": round(megabytes / source, 2), "picks": picks}


def rounds(config: Config, loop: baal.ActiveLoop, train: baal.Dataset) -> tuple[list[float], list[list[int]]]:
    """Seconds and picks of two of them."""
    state = jax.block_until_ready(loop.init(jax.random.key(0), train, num_initial=2 * config.query_size))
    seconds, picks = [], []
    for _ in range(2):
        (state, info), spent = timed(lambda state=state: loop.step(state, train))
        seconds.append(round(spent, 1))
        picks.append(np.asarray(info.indices).tolist())
    return seconds, picks


def resident(name: str) -> float:
    """Megabytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e6


def loop_of(config: Config, acquisition: Any, **options: Any) -> baal.ActiveLoop:
    """With a logistic head."""
    given = {"query_size": config.query_size, "num_samples": config.num_samples, "batch_size": config.batch_size}
    head = posteriors.logistic_regression(config.classes)
    return baal.active_loop(head, acquisition, features=lambda state, rows: rows, **given, **options)


def seals(config: Config, train: baal.Dataset) -> dict[str, Any]:
    """Rounds with candidates, or with the full pool; a test set in which all classes are equally frequent."""
    scored, near = [], selection.nearest(config.neighbours, train.inputs)

    def candidates(ids: np.ndarray) -> np.ndarray:
        neighbours = near(ids)
        scored.append(len(np.setdiff1d(neighbours, ids)))
        return neighbours

    is_full = config.part == "full"
    test = baal.Dataset(*clusters(config, np.random.default_rng(2), 10_000, 1.0))
    loop = loop_of(config, selection.top_k(heuristics.margin), candidates=None if is_full else candidates)
    options = {"num_initial": config.query_size, "num_rounds": config.rounds}
    (_, infos), seconds = timed(lambda: baal.run(loop, jax.random.key(0), train, test, **options))
    left = [len(train.targets) - int(labelled) for labelled in infos.num_labelled]
    return {
        "seconds": round(seconds),
        "scored": sum(left if is_full else scored),
        "accuracy": float(infos.metrics["accuracy"][-1]),
        "curve": np.asarray(infos.metrics["accuracy"]).tolist(),
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
