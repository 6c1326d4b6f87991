"""Studies that nobody ran: results of any size, with a known effect, for what reads results."""

import jax
import numpy as np

from baal_jax._util import files
from baal_jax.study import results as study_results
from baal_jax.study.results import Cell, Pictures, Results, Runs

NUM_INITIAL, QUERY_SIZE, NUM_BINS = 10, 5, 10


def make_results(
    strategies=("random", "bald", "entropy"),
    seeds=5,
    rounds=6,
    effect=None,
    stopped=None,
    classes=3,
    pictures=0,
    noise=0.02,
):
    """A study of learning curves that rise to 0.95.

    ``effect`` is what is added to the accuracies of a strategy, ``stopped`` its first round that did not happen (of all
    seeds or ``int[seeds]``), ``noise`` a seed's standard deviation, half of whose variance all strategies share. Of
    ``pictures`` ids there are grey pixels. The first strategy is the baseline; without ``classes`` it is regression.
    """
    rng = np.random.default_rng(0)
    effect, stopped = effect or {}, stopped or {}
    num_labelled = NUM_INITIAL + QUERY_SIZE * np.arange(rounds)
    num_pool = NUM_INITIAL + QUERY_SIZE * (rounds + 4)
    initial = np.stack([rng.permutation(num_pool)[:NUM_INITIAL] for _ in range(seeds)])
    shared = noise / np.sqrt(2) * rng.normal(size=(seeds, 1))  # a lucky start is lucky for all
    runs = {}
    for name in strategies:
        own = noise / np.sqrt(2) * rng.normal(size=(seeds, 1)) + noise / 4 * rng.normal(size=(seeds, rounds))
        height = 0.95 - 4.5 / num_labelled + effect.get(name, 0.0) + shared + own
        gone = np.arange(rounds) >= np.broadcast_to(stopped.get(name, rounds), seeds)[:, None]
        runs[name] = _runs(rng, np.clip(height, 0.01, 0.99), gone, initial, num_labelled, num_pool, classes)
    description = {
        "name": "a study that nobody ran",
        "strategies": list(strategies),
        "baseline": strategies[0],
        "metric": "rmse" if classes is None else "accuracy",
        "class_names": None if classes is None else [f"class {c}" for c in range(classes)],
        "num_pool": num_pool,
        "num_initial": NUM_INITIAL,
        "query_size": QUERY_SIZE,
        "num_rounds": rounds,
        "seeds": list(range(seeds)),
        "environment": {"baal_jax": "0.1.0", "jax": "0.10.0", "python": "3.11.0", "device": "cpu"},
    }
    ids = np.unique(np.concatenate([run.indices[:, :1].ravel() for run in runs.values()]))
    ids = ids[ids >= 0][:pictures]
    images = rng.integers(0, 256, (len(ids), 8, 8, 1)).astype(np.uint8)
    targets = rng.normal(size=len(ids)) if classes is None else rng.integers(0, classes, len(ids))
    return Results(description, runs, Pictures(ids, images, targets) if pictures else None)


def write_study(folder, results):
    """Writes what ``results.read`` reads, every seed in a cell of its own."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "study.json", results.description)
    for name, runs in results.runs.items():
        for i in range(len(runs.seeds)):
            cell = Cell(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], runs), program="none", device="cpu (cpu)")
            study_results.write_cell(folder, results.description, name, cell)
    (folder / "results.csv").write_text(study_results.table(results))
    if results.pictures is not None:
        study_results.write_pictures(folder / "pictures.npz", results.pictures, results.description)
    return folder


def _runs(rng, height, gone, initial, num_labelled, num_pool, classes):
    seeds, rounds = gone.shape
    order = np.stack([rng.permutation(np.setdiff1d(np.arange(num_pool), first)) for first in initial])
    indices = order[:, : rounds * QUERY_SIZE].reshape(seeds, rounds, QUERY_SIZE)
    scores = -np.sort(-rng.gamma(2.0, 0.2, (seeds, rounds, QUERY_SIZE)), axis=-1)

    def happened(values):
        values = np.asarray(values, np.float32)
        return np.where(gone.reshape(gone.shape + (1,) * (values.ndim - 2)), np.float32(np.nan), values)

    if classes is None:
        metrics = {"rmse": 1 - height, "mae": 0.8 * (1 - height), "nll": 2 * (1 - height) - 1}
        diagnostics = {}
    else:
        metrics = {"accuracy": height, "nll": -2 * np.log(height), "brier": 1.2 * (1 - height), "ece": (1 - height) / 3}
        count = rng.multinomial(200, np.full(NUM_BINS, 1 / NUM_BINS), (seeds, rounds)).astype(float)
        count[..., 0] = 0  # nothing is less sure than chance
        centre = np.broadcast_to((np.arange(NUM_BINS) + 0.5) / NUM_BINS, count.shape)
        empty = np.where(count > 0, 0.0, np.nan)
        diagnostics = {
            "reliability_num_examples": count,
            "reliability_confidence": centre + empty,
            "reliability_accuracy": np.clip(centre - 0.05, 0, 1) + empty,
            "entropy_histogram": rng.multinomial(200, np.full(20, 1 / 20), (seeds, rounds)),
            "accuracy_per_class": np.clip(height[..., None] + 0.02 * rng.normal(size=(*gone.shape, classes)), 0, 1),
        }
    last = np.maximum((~gone).sum(axis=1) - 1, 0)
    return Runs(
        seeds=np.arange(seeds),
        num_labelled=np.where(gone, num_labelled[last][:, None], num_labelled).astype(np.int32),
        num_picked=np.where(gone, 0, QUERY_SIZE).astype(np.int32),
        mean_score=happened(scores.mean(axis=-1) / 2),
        stopped=gone,
        metrics={name: happened(metrics[name]) for name in sorted(metrics)},
        initial=initial.astype(np.int32),
        indices=np.where(gone[..., None], -1, indices).astype(np.int32),
        scores=happened(scores),
        diagnostics={name: happened(diagnostics[name]) for name in sorted(diagnostics)},
    )
