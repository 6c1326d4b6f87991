"""Content of the page and the figures: results as plain lists that JSON can hold, and thumbnails."""

import base64
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util.images import png
from baal_jax.study import plots, statistics
from baal_jax.study.results import Results, Runs

# What a page carries at most, so that it can be mailed. Where something is left out, the page says so.
_MOST_PICKS = 60_000
_MOST_SEED_VALUES = 120_000
_MOST_BYTES = 2_000_000  # of all thumbnails together, before compression
_THUMBNAIL = 48  # pixels of the longer side
_RELIABILITY = ("reliability_num_examples", "reliability_confidence", "reliability_accuracy")


class Bins(NamedTuple):
    """Reliability of one strategy by round: seeds pooled, and the mean over seeds of each seed's own ECE."""

    num_examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: np.ndarray


def metrics(results: Results) -> list[str]:
    """All metrics, the one that matters most first."""
    names = list(dict.fromkeys(name for runs in results.runs.values() for name in runs.metrics))
    return sorted(names, key=lambda name: name != results.description.get("metric"))


def reliability(runs: Runs) -> Bins | None:
    """Reliability by round; None where the study has none."""
    if not all(name in runs.diagnostics for name in _RELIABILITY):
        return None
    count, confidence, accuracy = (_last_rounds(runs, runs.diagnostics[name]) for name in _RELIABILITY)
    _, ece = plots.pooled(np.moveaxis(count, -1, 0), np.moveaxis(np.abs(confidence - accuracy), -1, 0))
    count, confidence, accuracy = plots.pooled(count, confidence, accuracy)
    return Bins(count, confidence, accuracy, statistics.mean_curve(runs.num_labelled, ece).mean)


def entropies(runs: Runs) -> np.ndarray | None:
    """Shares of the pool by entropy ``[R, bins]``; None where the study has none."""
    if "entropy_histogram" not in runs.diagnostics:
        return None
    counts = np.nan_to_num(_last_rounds(runs, runs.diagnostics["entropy_histogram"])).sum(axis=0)
    total = counts.sum(axis=-1, keepdims=True)
    return counts / np.where(total > 0, total, np.nan)


def class_names(results: Results) -> list[str] | None:
    """Names of the classes, or their numbers; None in regression."""
    diagnostics = [pair for runs in results.runs.values() for pair in runs.diagnostics.items()]
    count = next((value.shape[-1] for name, value in diagnostics if name.endswith("_per_class")), 0)
    return [str(name) for name in results.description.get("class_names") or range(count)] or None


def targets(results: Results) -> dict[int, Any]:
    """Targets of queried examples, as far as the study knows them, by id."""
    known: dict[int, Any] = {}
    for runs in results.runs.values():
        queried = np.asarray(runs.diagnostics.get("query_targets", ()))
        if queried.shape[:3] == runs.indices.shape:
            there = runs.indices >= 0
            known |= dict(zip(runs.indices[there].tolist(), queried[there], strict=True))
    if results.pictures is not None:
        known |= dict(zip(results.pictures.ids.tolist(), results.pictures.targets, strict=True))
    return {index: target.item() for index, target in known.items() if np.ndim(target) == 0}


def queried_by_class(results: Results) -> tuple[dict[str, np.ndarray], float]:
    """Queries of each class ``[seeds, C]`` by strategy, and the share of queries whose class is known."""
    names, known, counts = class_names(results), targets(results), {}
    if names is None or not known:
        return {}, 0.0
    class_of = np.full(1 + max([*known, *(int(runs.indices.max(initial=-1)) for runs in results.runs.values())]), -1)
    for index, target in known.items():
        if target == target and 0 <= int(target) < len(names):
            class_of[index] = int(target)
    for name, runs in results.runs.items():
        classes = np.where(runs.indices >= 0, class_of[runs.indices], -1).reshape(len(runs.seeds), -1)
        counts[name] = np.stack([np.bincount(row[row >= 0], minlength=len(names)) for row in classes])
    num_queries = sum(int((runs.indices >= 0).sum()) for runs in results.runs.values())
    return counts, sum(int(part.sum()) for part in counts.values()) / max(num_queries, 1)


def seeds_of(results: Results) -> list[int]:
    """Seeds that the study is to have."""
    there = {seed for runs in results.runs.values() for seed in runs.seeds.tolist()}
    return sorted(there | set(results.description.get("seeds", ())))


def notices(results: Results) -> list[str]:
    """What is missing or ended early, in sentences."""
    sentences = []
    if absent := [name for name in results.description["strategies"] if name not in results.runs]:
        sentences.append(f"The study is unfinished: nothing is there of {', '.join(absent)}.")
    wanted = seeds_of(results)
    lacking: dict[tuple[int, ...], list[str]] = {}
    for name, runs in results.runs.items():
        lacking.setdefault(tuple(sorted({*wanted} - {*runs.seeds.tolist()})), []).append(name)
    for missing, names in lacking.items():
        if missing:
            numbers = f"seed {missing[0]} is" if len(missing) == 1 else f"seeds {_ranges(missing)} are"
            there = f"{len(wanted) - len(missing)} of {len(wanted)} are there"
            sentences.append(f"Unfinished: of {', '.join(names)}, {numbers} missing, and {there}.")
    for name, runs in results.runs.items():
        ended = np.flatnonzero(np.any(runs.stopped, axis=1))
        if ended.size:
            last = runs.num_labelled[ended].max(axis=1)
            labels = f"{last.min()}" if last.min() == last.max() else f"{last.min()} to {last.max()}"
            sentences.append(f"{name}: {ended.size} of {len(runs.seeds)} runs stopped early, at {labels} labels.")
            sentences[-1] += " Its later means are of the runs that went on."
        for metric, values in runs.metrics.items():
            if bad := int((~np.isfinite(values) & ~runs.stopped).sum()):
                sentences.append(f"{name}: {metric} is non-finite in {bad} rounds.")
    return sentences


def queries(results: Results) -> dict[str, Any]:
    """What every run queried, and the thumbnails; ``left_out`` has a sentence for each thing that did not fit."""
    left_out = []
    rounds, size = _shape(results)
    per_pick = max(rounds * len(results.runs), 1)
    num_seeds = max(_MOST_PICKS // max(per_pick * size, 1), 1)
    cut = min(size, max(_MOST_PICKS // per_pick, 1))
    if num_seeds < max((len(runs.seeds) for runs in results.runs.values()), default=0):
        left_out.append(f"Queries of the first {num_seeds} seeds are listed; the folder of the study has all.")
    if cut < size:
        left_out.append(f"Of each round, the first {cut} of {size} queries are listed.")
    listed = {}
    for name, runs in results.runs.items():
        listed[name] = [_queries_of(runs, i, cut) for i in range(len(runs.seeds))[:num_seeds]]
    shown = {index for runs in listed.values() for run in runs for ids in run["ids"] for index in ids}
    names, known = class_names(results), targets(results)
    labels = {i: target_label(known[i], names) for i in sorted(shown) if i in known}
    return {"runs": listed, "targets": labels, "sheet": _thumbnails(results, listed, left_out), "left_out": left_out}


def page_data(results: Results) -> dict[str, Any]:
    """All that the page's script draws from."""
    styles = plots.styles_of(results.runs, results.description.get("baseline"))
    all_runs, names = results.runs.values(), metrics(results)
    count = sum(runs.num_labelled.size * len(runs.metrics) for runs in all_runs)
    seeded = names if count <= _MOST_SEED_VALUES else names[:1]
    queried, known = queried_by_class(results)
    by_class = [_plain(part.sum(axis=0) / max(part.sum(), 1), 4) for part in queried.values()]
    counts, diagrams = results.description.get("class_counts"), map(reliability, all_runs)
    pool = _plain(np.divide(counts, np.sum(counts)), 4) if counts else None
    return {
        "strategies": [
            # The colour is a variable of the style sheet, light or dark.
            {"name": name, "colour": f"var(--c{style.number})", "dash": style.dashes, "marker": style.path}
            for name, style in styles.items()
        ],
        "metrics": [{"name": name, "label": plots.axis_label(name)} for name in names],
        "curves": {name: [_curve(runs, runs.metrics.get(name), name in seeded) for runs in all_runs] for name in names},
        "scores": [_curve(runs, runs.mean_score, False) for runs in all_runs],
        "rounds": _shape(results)[0],
        "classes": class_names(results),
        "entropy": [None if (shares := entropies(runs)) is None else _plain(shares, 4) for runs in all_runs],
        "reliability": [bins and {name: _plain(part, 4) for name, part in bins._asdict().items()} for bins in diagrams],
        "queried": {"shares": by_class, "known": known, "pool": pool} if queried else None,
        "queries": queries(results),
    }


def target_label(value: Any, names: list[str] | None) -> str:
    """The name of a class, or a number as it is."""
    if names is not None and value == value and 0 <= int(value) < len(names):
        return names[int(value)]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def small(images: np.ndarray) -> np.ndarray:
    """Thumbnails ``uint8[m, h, w, c]``: means of blocks, so that no side is above 48 pixels."""
    _, height, width, channels = images.shape
    factor = -(-max(height, width) // _THUMBNAIL)
    height, width = max(height // factor, 1), max(width // factor, 1)
    cut = images[:, : height * factor, : width * factor]
    blocks = cut.reshape(len(images), height, -1, width, cut.shape[2] // width, channels)
    return np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)


def _shape(results: Results) -> tuple[int, int]:
    """Rounds and queries of a round, at most."""
    shapes = [runs.indices.shape[1:] for runs in results.runs.values()]
    return max((shape[0] for shape in shapes), default=0), max((shape[1] for shape in shapes), default=0)


def _last_rounds(runs: Runs, values: Any) -> np.ndarray:
    """``[n, R, …]`` where a run that has stopped keeps the values of its last round."""
    values = np.asarray(values, np.float64)
    rounds = np.arange(runs.stopped.shape[1])
    kept = np.maximum.accumulate(np.where(runs.stopped, 0, rounds), axis=1)
    return np.take_along_axis(values, kept.reshape(kept.shape + (1,) * (values.ndim - 2)), axis=1)


def _ranges(numbers: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1–3, 7``."""
    groups = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    parts = [[number for _, number in group] for _, group in groups]
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def _queries_of(runs: Runs, i: int, most: int) -> dict[str, Any]:
    """What one seed queried: of each round, the first so many."""
    rounds = list(zip(runs.indices[i, :, :most], runs.scores[i, :, :most], strict=True))
    return {
        "seed": int(runs.seeds[i]),
        "before": _plain(np.where(runs.stopped[i], np.nan, runs.num_labelled[i]), 15),
        "ids": [ids[ids >= 0].tolist() for ids, _ in rounds],
        "scores": [_plain(scores[ids >= 0], 3) for ids, scores in rounds],
    }


def _curve(runs: Runs, values: Any, with_seeds: bool) -> dict[str, Any] | None:
    """A learning curve with its band, and its seeds if they are wanted; None where no round has a value."""
    if values is None:
        return None
    values = np.where(runs.stopped, np.nan, values)
    x, *band = statistics.mean_curve(runs.num_labelled, values)
    if np.isnan(values).all():
        return None
    curve: dict[str, Any] = {"x": _plain(x, 9), **dict(zip(("mean", "low", "high"), map(_plain, band), strict=True))}
    if with_seeds:
        curve["seeds"] = _plain(values, 4)
        if (runs.num_labelled != runs.num_labelled[:1]).any():
            curve["labels"] = runs.num_labelled.tolist()
    return curve


def _thumbnails(results: Results, listed: dict[str, Any], left_out: list[str]) -> dict[str, Any] | None:
    """Pictures of what is listed as one PNG, row by row: first seeds and first picks first, until the page is full."""
    if results.pictures is None:
        return None
    places = {int(index): i for i, index in enumerate(results.pictures.ids)}
    runs_of = [(i, ids) for runs in listed.values() for i, run in enumerate(runs) for ids in run["ids"]]
    order = (((i, q), index) for i, ids in runs_of for q, index in enumerate(ids) if index in places)
    wanted = list(dict.fromkeys(index for _, index in sorted(order, key=lambda pair: pair[0])))
    if not wanted:
        return None
    images = results.pictures.images
    most = max(_MOST_BYTES // small(images[:1]).size, 1)
    if most < len(wanted):
        left_out.append(f"{most} of {len(wanted)} pictures are in this page; the folder of the study has all.")
    ids = sorted(wanted[:most])
    shown = small(images[[places[i] for i in ids]])
    _, height, width, channels = shown.shape
    columns = math.ceil(math.sqrt(len(ids) * height / width))
    rows = -(-len(ids) // columns)
    sheet = np.pad(shown, [(0, rows * columns - len(ids)), (0, 0), (0, 0), (0, 0)])
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    image = png(sheet.reshape(rows * height, columns * width, channels))
    uri = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    return {"uri": uri, "ids": ids, "columns": columns, "height": height, "width": width}


def _plain(values: Any, digits: int = 5) -> Any:
    """Nested lists of numbers of few digits, without a point where none is needed; None for what is non-finite."""
    if np.ndim(values):
        return [_plain(part, digits) for part in np.asarray(values, np.float64)]
    if not math.isfinite(values):
        return None
    short = float(f"{values:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
