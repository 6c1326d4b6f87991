"""What the page and the figures show: results as plain lists that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from baal_jax.study import statistics
from baal_jax.study.report import _pictures
from baal_jax.study.results import Results, Runs

# What a page carries at most, so that it can be mailed. Where something is left out, the page says so.
_MOST_PICKS = 60_000
_MOST_SEED_VALUES = 120_000
_RELIABILITY = ("reliability_num_examples", "reliability_confidence", "reliability_accuracy")


class Curve(NamedTuple):
    """A mean curve of one strategy with its 95 % band, and how many seeds each round's mean is of."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_seeds: np.ndarray


class Bins(NamedTuple):
    """Reliability of one strategy by round: seeds pooled, and the mean over seeds of each seed's own ECE."""

    num_examples: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: np.ndarray


def metrics(results: Results) -> list[str]:
    """All metrics, the one that matters most first."""
    names = list(dict.fromkeys(name for runs in results.runs.values() for name in runs.metrics))
    main = results.description.get("metric")
    return sorted(names, key=lambda name: name != main)


def order(results: Results) -> list[int]:
    """Number of each strategy's style; 6, which is black, is the baseline's."""
    others = iter(i for i in range(10**6) if i != 6)
    baseline = results.description.get("baseline")
    return [6 if name == baseline else next(others) for name in results.runs]


def curve(runs: Runs, values: Any) -> Curve | None:
    """A mean curve over the number of labels; None where no round has a value."""
    values = np.where(runs.stopped, np.nan, np.asarray(values, np.float64))
    there = ~np.isnan(values)
    if not there.any():
        return None
    count = there.sum(axis=0)
    labels = np.where(there, runs.num_labelled, 0).sum(axis=0) / np.where(count, count, np.nan)
    return Curve(labels, *statistics.band(values), count)


def last_rounds(runs: Runs, values: Any) -> np.ndarray:
    """``[n, R, …]`` where a run that has stopped keeps the values of its last round."""
    values = np.asarray(values, np.float64)
    rounds = np.arange(runs.stopped.shape[1])
    kept = np.maximum.accumulate(np.where(runs.stopped, 0, rounds), axis=1)
    return np.take_along_axis(values, kept.reshape(kept.shape + (1,) * (values.ndim - 2)), axis=1)


def reliability(runs: Runs) -> Bins | None:
    """Reliability by round; None where the study has none."""
    if not all(name in runs.diagnostics for name in _RELIABILITY):
        return None
    count, confidence, accuracy = (last_rounds(runs, runs.diagnostics[name]) for name in _RELIABILITY)
    count = np.nan_to_num(count)
    gap = np.nan_to_num(np.abs(confidence - accuracy)) * count
    examples = count.sum(axis=-1)
    each = gap.sum(axis=-1) / np.where(examples > 0, examples, np.nan)  # [n, R]
    there = ~np.isnan(each)
    ece = np.where(there, each, 0.0).sum(axis=0) / np.where(there.any(axis=0), there.sum(axis=0), np.nan)
    total = count.sum(axis=0)
    pooled = [
        np.nan_to_num(part * count).sum(axis=0) / np.where(total > 0, total, np.nan) for part in (confidence, accuracy)
    ]
    return Bins(total, pooled[0], pooled[1], ece)


def entropies(runs: Runs) -> np.ndarray | None:
    """Shares of the pool by entropy ``[R, bins]``; None where the study has none."""
    if "entropy_histogram" not in runs.diagnostics:
        return None
    counts = np.nan_to_num(last_rounds(runs, runs.diagnostics["entropy_histogram"])).sum(axis=0)
    total = counts.sum(axis=-1, keepdims=True)
    return counts / np.where(total > 0, total, np.nan)


def num_classes(results: Results) -> int | None:
    """Classes, by their names or by what is known of each."""
    names = results.description.get("class_names")
    if names:
        return len(names)
    for runs in results.runs.values():
        for name, value in runs.diagnostics.items():
            if name.endswith("_per_class"):
                return value.shape[-1]
    return None


def class_names(results: Results) -> list[str] | None:
    """Names of the classes, or their numbers; None in regression."""
    names, count = results.description.get("class_names"), num_classes(results)
    if names:
        return [str(name) for name in names]
    return None if count is None else [str(c) for c in range(count)]


def targets(results: Results) -> dict[int, Any]:
    """Targets of the examples asked for, as far as the study knows them, by id."""
    found: dict[int, Any] = {}
    for runs in results.runs.values():
        if "query_targets" in runs.diagnostics:
            known = np.asarray(runs.diagnostics["query_targets"])
            if known.shape[:3] == runs.indices.shape:
                there = runs.indices >= 0
                found |= dict(zip(runs.indices[there].tolist(), known[there], strict=True))
    if results.pictures is not None:
        found |= dict(zip(results.pictures.ids.tolist(), results.pictures.targets, strict=True))
    return {index: target.item() for index, target in found.items() if np.ndim(target) == 0}


def asked_by_class(results: Results) -> tuple[dict[str, np.ndarray], float]:
    """Queries of each class ``[seeds, C]`` by strategy, and the share of queries whose class is known."""
    count, known = num_classes(results), targets(results)
    if count is None or not known:
        return {}, 0.0
    found, asked = {}, 0
    size = 1 + max(max(known), *(int(runs.indices.max(initial=-1)) for runs in results.runs.values()))
    table = np.full(size, -1)
    for index, target in known.items():
        if target == target and 0 <= int(target) < count:
            table[index] = int(target)
    for name, runs in results.runs.items():
        asked += int((runs.indices >= 0).sum())
        classes = np.where(runs.indices >= 0, table[runs.indices], -1).reshape(len(runs.seeds), -1)
        found[name] = np.stack([np.bincount(row[row >= 0], minlength=count) for row in classes])
    return found, sum(int(part.sum()) for part in found.values()) / max(asked, 1)


def seeds_of(results: Results) -> list[int]:
    """Seeds that the study is to have."""
    wanted = results.description.get("seeds")
    if isinstance(wanted, int):
        return list(range(wanted))
    there = {int(seed) for runs in results.runs.values() for seed in runs.seeds}
    return sorted(there | {int(seed) for seed in wanted or ()})


def notices(results: Results) -> list[str]:
    """What is missing or ended early, in sentences."""
    found = []
    absent = [name for name in results.description["strategies"] if name not in results.runs]
    if absent:
        found.append(f"The study is unfinished: nothing is there of {', '.join(absent)}.")
    wanted = seeds_of(results)
    lacking: dict[tuple[int, ...], list[str]] = {}
    for name, runs in results.runs.items():
        missing = set(wanted) - {int(seed) for seed in runs.seeds}
        lacking.setdefault(tuple(sorted(missing)), []).append(name)
    for missing, names in lacking.items():
        if missing:
            numbers = f"seed {missing[0]} is" if len(missing) == 1 else f"seeds {ranges(missing)} are"
            found.append(
                f"Unfinished: of {', '.join(names)}, {numbers} missing, "
                f"and {len(wanted) - len(missing)} of {len(wanted)} are there."
            )
    for name, runs in results.runs.items():
        ended = np.flatnonzero(np.any(runs.stopped, axis=1))
        if ended.size:
            last = runs.num_labelled[ended].max(axis=1)
            labels = f"{last.min()}" if last.min() == last.max() else f"{last.min()} to {last.max()}"
            found.append(
                f"{name}: {ended.size} of {len(runs.seeds)} runs stopped early, at {labels} labels. "
                "Its later means are of the runs that went on."
            )
        for metric, values in runs.metrics.items():
            bad = int((~np.isfinite(values) & ~runs.stopped).sum())
            if bad:
                found.append(f"{name}: {metric} is not a finite number in {bad} rounds.")
    return found


def ranges(numbers: Sequence[int]) -> str:
    """``[1, 2, 3, 7]`` as ``1–3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def queries(results: Results) -> dict[str, Any]:
    """What every run asked for, and the thumbnails; ``left_out`` has a sentence for each thing that did not fit."""
    left_out = []
    rounds, size = _shape(results)
    per_seed = max(rounds * size * len(results.runs), 1)
    num_seeds = max(_MOST_PICKS // per_seed, 1)
    cut = size if per_seed <= _MOST_PICKS else max(_MOST_PICKS // max(rounds * len(results.runs), 1), 1)
    if num_seeds < max((len(runs.seeds) for runs in results.runs.values()), default=0):
        left_out.append(f"Queries of the first {num_seeds} seeds are listed; the folder of the study has all.")
    if cut < size:
        left_out.append(f"Of each round, the first {cut} of {size} queries are listed.")
    runs_shown = {}
    for name, runs in results.runs.items():
        runs_shown[name] = [
            {
                "seed": int(runs.seeds[i]),
                "before": _numbers(np.where(runs.stopped[i], np.nan, runs.num_labelled[i]), 15),
                "ids": [row[row >= 0].tolist() for row in runs.indices[i, :, :cut]],
                "scores": [
                    _numbers(row[ids >= 0], 3)
                    for row, ids in zip(runs.scores[i, :, :cut], runs.indices[i, :, :cut], strict=True)
                ],
            }
            for i in range(min(num_seeds, len(runs.seeds)))
        ]
    known, shown = targets(results), {i for runs in runs_shown.values() for run in runs for r in run["ids"] for i in r}
    names = class_names(results)
    labels = {i: target_label(known[i], names) for i in sorted(shown) if i in known}
    thumbnails = _thumbnails(results, runs_shown, left_out)
    return {"runs": runs_shown, "targets": labels, "sheet": thumbnails, "left_out": left_out}


def page_data(results: Results, labels: dict[str, str], styles: list[dict[str, str]]) -> dict[str, Any]:
    """All that the page's script draws from."""
    names, all_metrics = list(results.runs), metrics(results)
    count = sum(runs.num_labelled.size * len(runs.metrics) for runs in results.runs.values())
    kept = all_metrics if count <= _MOST_SEED_VALUES else all_metrics[:1]
    bins = [reliability(results.runs[name]) for name in names]
    asked, known = asked_by_class(results)
    pool = results.description.get("class_counts")
    return {
        "strategies": [{"name": name, **style} for name, style in zip(names, styles, strict=True)],
        "metrics": [{"name": name, "label": labels[name]} for name in all_metrics],
        "curves": {
            metric: [_curve(runs, runs.metrics.get(metric), metric in kept) for runs in results.runs.values()]
            for metric in all_metrics
        },
        "scores": [_curve(runs, runs.mean_score, False) for runs in results.runs.values()],
        "rounds": _shape(results)[0],
        "classes": class_names(results),
        "entropy": [
            None if (found := entropies(runs)) is None else [_numbers(row, 4) for row in found]
            for runs in results.runs.values()
        ],
        "reliability": [
            None if found is None else {field: _nested(value) for field, value in found._asdict().items()}
            for found in bins
        ],
        "asked": {
            "shares": [_numbers(asked[name].sum(axis=0) / max(asked[name].sum(), 1), 4) for name in names],
            "known": known,
            "pool": _numbers(np.asarray(pool, np.float64) / np.sum(pool), 4) if pool else None,
        }
        if asked
        else None,
        "queries": queries(results),
    }


def _shape(results: Results) -> tuple[int, int]:
    shapes = [runs.indices.shape[1:] for runs in results.runs.values()]
    return max((shape[0] for shape in shapes), default=0), max((shape[1] for shape in shapes), default=0)


def _curve(runs: Runs, values: Any, with_seeds: bool) -> dict[str, Any] | None:
    if values is None or (found := curve(runs, values)) is None:
        return None
    content: dict[str, Any] = {field: _numbers(getattr(found, field)) for field in ("mean", "low", "high")}
    content["x"] = _numbers(found.x, 9)
    if with_seeds:
        happened = np.where(runs.stopped, np.nan, values)
        content["seeds"] = [_numbers(row, 4) for row in happened]
        if (runs.num_labelled != runs.num_labelled[:1]).any():
            content["labels"] = runs.num_labelled.tolist()
    return content


def _thumbnails(results: Results, runs_shown: dict[str, Any], left_out: list[str]) -> dict[str, Any] | None:
    """Pictures of what is listed: first seeds and first picks first, until the page is full."""
    if results.pictures is None or not len(results.pictures.ids):
        return None
    images = _pictures.bytes_of(results.pictures.images)
    first = _pictures.small(images[:1])
    places = {int(index): i for i, index in enumerate(results.pictures.ids)}
    seeds = max((len(runs) for runs in runs_shown.values()), default=0)
    size = max((len(row) for runs in runs_shown.values() for run in runs for row in run["ids"]), default=0)
    wanted: dict[int, None] = {}
    for i in range(seeds):
        for q in range(size):
            for runs in runs_shown.values():
                for row in runs[i]["ids"] if i < len(runs) else ():
                    if q < len(row) and row[q] in places:
                        wanted[row[q]] = None
    if not wanted:
        return None
    most = _pictures.how_many(*first.shape[1:])
    ids = sorted(list(wanted)[:most])
    if most < len(wanted):
        left_out.append(f"{most} of {len(wanted)} pictures are in this page; the folder of the study has all.")
    shown = _pictures.small(images[[places[i] for i in ids]])
    uri, columns = _pictures.sheet(shown)
    _, height, width, _ = shown.shape
    return {"uri": uri, "ids": ids, "columns": columns, "height": height, "width": width}


def target_label(value: Any, names: list[str] | None) -> str:
    """The name of a class, or a number as it is."""
    if names is not None and value == value and 0 <= int(value) < len(names):
        return names[int(value)]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(values: Any, digits: int = 5) -> list[float | int | None]:
    return [_number(value, digits) for value in np.asarray(values, np.float64)]


def _nested(values: np.ndarray) -> list[Any]:
    return _numbers(values, 4) if values.ndim == 1 else [_numbers(row, 4) for row in values]


def _number(value: float, digits: int) -> float | int | None:
    """A number of few digits, and no point where none is needed."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
