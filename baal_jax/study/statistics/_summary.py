"""Summary of a study in one metric, and its table."""

import math
import shutil
import textwrap
from typing import NamedTuple

import numpy as np

from baal_jax.study.results import Results, Runs
from baal_jax.study.statistics._comparisons import Ranking, Saved, Verdict, compare_all, labels_saved, rank
from baal_jax.study.statistics._curves import area, is_higher_better, labels_to_target, mean_and_error, shared_range


class Row(NamedTuple):
    """Numbers of one strategy.

    Attributes:
        strategy: its name.
        num_seeds: runs with any value of the metric.
        num_stopped: runs that ended before the last round.
        final: mean over seeds of the last value that each run has.
        final_error: its standard error; NaN for a single seed.
        area: mean over seeds of the mean height of the curve, over the labels that all strategies have seen.
        area_error: its standard error.
        verdict: areas against the baseline's; None for the baseline.
        labels: median number of labels to the target; inf if half of the seeds or more did not reach it.
        saved: labels to the target against the baseline's; None for the baseline.
        mean_rank: by area; NaN where nothing is ranked.
    """

    strategy: str
    num_seeds: int
    num_stopped: int
    final: float
    final_error: float
    area: float
    area_error: float
    verdict: Verdict | None
    labels: float
    saved: Saved | None
    mean_rank: float


class Summary(NamedTuple):
    """Statistics of a study in one metric.

    Attributes:
        metric: its name.
        higher_is_better: its direction.
        baseline: the strategy that the others are compared with.
        target: the value that labels are counted to.
        confidence: of intervals and verdicts.
        low: smallest number of labels in any area.
        high: largest number of labels in any area.
        num_shortened: seeds whose areas end before ``high``, because a run had stopped.
        rows: :class:`Row` of every strategy, in the order of the study.
        ranking: :class:`Ranking` by area; None with one strategy.
    """

    metric: str
    higher_is_better: bool
    baseline: str
    target: float
    confidence: float
    low: float
    high: float
    num_shortened: int
    rows: tuple[Row, ...]
    ranking: Ranking | None


class Table(NamedTuple):
    """Cells of a table as text, whatever it is rendered in.

    Attributes:
        heads: names of the columns.
        rows: cells, as many as there are heads in every row.
        notes: what a reader of the table has to know, a sentence or two each.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def summary(
    results: Results,
    metric: str | None = None,
    baseline: str | None = None,
    *,
    higher_is_better: bool | None = None,
    target: float | None = None,
    confidence: float = 0.95,
) -> Summary:
    """Everything this module computes, for one metric of a study, finished or not.

    Strategies are compared by areas over the :func:`shared_range`, seed by seed; a seed that one lacks is left out.

    Args:
        results: from :func:`baal_jax.study.results.read`.
        metric: by default the one that the study says matters most.
        baseline: by default the study's.
        higher_is_better: by default what the study says, or else :func:`is_higher_better`.
        target: value to reach; by default the study's for its metric, else the best that ¾ of baseline runs reach.
        confidence: of intervals and verdicts.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> print(statistics.markdown(statistics.summary(digits, "nll")))  # doctest: +SKIP
    """
    description = results.description
    metric = description.get("metric") if metric is None else metric
    baseline = description.get("baseline") if baseline is None else baseline
    if metric is None:
        raise ValueError("metric=None, and the study names none: pass the name of a metric")
    if baseline not in results.runs:
        raise ValueError(f"baseline={baseline!r} is not among the results: there are {', '.join(results.runs)}")
    for name, runs in results.runs.items():
        if metric not in runs.metrics:
            raise ValueError(f"metric={metric!r} is not among the results of {name!r}: {', '.join(runs.metrics)}")
    told = (description.get("higher_is_better") or {}).get(metric)
    higher = is_higher_better(metric, told if higher_is_better is None else higher_is_better)
    seeds = np.unique(np.concatenate([runs.seeds for runs in results.runs.values()]))
    curves = {name: _aligned(runs, metric, seeds) for name, runs in results.runs.items()}
    lows, highs = shared_range(curves.values())
    areas = {name: area(*curve, low=lows, high=highs) for name, curve in curves.items()}
    finals = {name: _last(values) for name, (_, values) in curves.items()}
    target = description.get("target") if target is None and metric == description.get("metric") else target
    target = _reached_by_most(curves[baseline][1], higher) if target is None else float(target)
    labels = {}
    for name, curve in curves.items():
        # Without values a baseline has no target to reach, and a run has not failed to reach it: both are left out.
        needed = labels_to_target(*curve, target=np.nan_to_num(target), higher_is_better=higher)
        labels[name] = np.where(np.isnan(finals[name]) | math.isnan(target), np.nan, needed)
    verdicts = compare_all(areas, baseline, higher_is_better=higher, confidence=confidence)
    ranking = rank(areas, higher_is_better=higher, confidence=confidence) if len(areas) > 1 else None
    rows = []
    for name, runs in results.runs.items():
        final, final_error, count = map(float, mean_and_error(finals[name]))
        height, height_error, _ = map(float, mean_and_error(areas[name]))
        stopped = int(np.asarray(runs.stopped).any(axis=1).sum())
        pair = labels[name], labels[baseline]
        saved = None if name == baseline else labels_saved(*pair, confidence=confidence)
        needed = pair[0][~np.isnan(pair[0])]
        median = float(np.median(needed)) if needed.size else math.nan
        place = math.nan if ranking is None else ranking.mean_ranks.get(name, math.nan)
        means = (final, final_error, height, height_error)
        rows.append(Row(name, int(count), stopped, *means, verdicts.get(name), median, saved, place))
    usable = lows <= highs
    low, high = (float(lows[usable].min()), float(highs[usable].max())) if usable.any() else (math.nan, math.nan)
    shortened = int((~(highs >= high)).sum())
    return Summary(metric, higher, baseline, target, confidence, low, high, shortened, tuple(rows), ranking)


def table(summary: Summary) -> Table:
    """Cells of the table of a summary, with notes on what it shows and what it does not.

    Args:
        summary: from :func:`summary`.

    Returns:
        A :class:`Table`, a row for every strategy.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> statistics.table(statistics.summary(digits, "nll")).heads  # doctest: +SKIP
    """
    share = f"{summary.confidence * 100:.3g}%"
    compared = f"difference of area [{share}]", "adjusted p", f"against {summary.baseline}"
    labels = f"labels to {number(summary.target)}", f"share of the labels [{share}]"
    heads = ("strategy", f"final {summary.metric}", "area", *compared, *labels, "mean rank")
    return Table(heads, tuple(map(_cells, summary.rows)), tuple(_notes(summary)))


def markdown(content: Summary | Table) -> str:
    """A table in Markdown, with its notes below.

    Args:
        content: from :func:`summary`, or any :class:`Table`.

    Returns:
        The text, ending in a newline.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> print(statistics.markdown(statistics.summary(digits, "nll")))  # doctest: +SKIP
    """
    heads, rows, notes = content if isinstance(content, Table) else table(content)
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heads, *rows))
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([head, "|---" * len(heads) + "|", *body, "", *(f"- {note}" for note in notes)]) + "\n"


def text(content: Summary | Table, width: int | None = None) -> str:
    """A table for a terminal, with its notes below: columns that do not fit beside the first come under it.

    Args:
        content: from :func:`summary`, or any :class:`Table`.
        width: of a line, by default that of the terminal.

    Returns:
        The text, ending in a newline.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> print(statistics.text(statistics.summary(digits, "nll")))  # doctest: +SKIP
    """
    heads, rows, notes = content if isinstance(content, Table) else table(content)
    width = shutil.get_terminal_size((100, 24)).columns if width is None else width
    columns = [[cell.replace("\n", " ") for cell in column] for column in zip(heads, *rows, strict=True)]
    sizes = [max(map(len, column)) for column in columns]
    blocks: list[list[int]] = [[0]]
    for place in range(1, len(columns)):
        if len(blocks[-1]) > 1 and sum(sizes[i] + 2 for i in blocks[-1]) + sizes[place] > width:
            blocks.append([0])
        blocks[-1].append(place)
    lines = []
    for block in blocks:
        for row in range(len(rows) + 1):
            lines.append("  ".join(columns[i][row].ljust(sizes[i]) for i in block).rstrip())
            lines += ["  ".join("─" * sizes[i] for i in block)] if row == 0 else []
        lines.append("")
    for note in notes:
        lines += textwrap.wrap(note, max(width, 20))
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Four decimals, or four digits of what is large or small; a dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return f"{value:.4g}" if abs(value) >= 1e4 or 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _cells(row: Row) -> tuple[str, ...]:
    compared = ("", "", "baseline")
    if row.verdict is not None:
        (difference, low, high, *_), p_value, verdict = row.verdict
        interval = f"{'+' * (difference > 0)}{number(difference)} [{number(low)}, {number(high)}]"
        compared = (interval, number(p_value), verdict)
    labels = "not reached" if math.isinf(row.labels) else "–" if math.isnan(row.labels) else f"{row.labels:g}"
    share = "" if row.saved is None else "–"
    if row.saved is not None and not math.isinf(row.saved.baseline_median):
        ratio, low, high = (f"{part:.2f}" if math.isfinite(part) else number(part) for part in row.saved[2:5])
        share = f"{ratio} [{low}, {high}]"
    means = f"{number(row.final)} ± {number(row.final_error)}", f"{number(row.area)} ± {number(row.area_error)}"
    place = "–" if math.isnan(row.mean_rank) else f"{row.mean_rank:.2f}"
    return (row.strategy, *means, *compared, labels, share, place)


def _notes(summary: Summary) -> list[str]:
    baseline, rows = summary.baseline, summary.rows
    others = [(row, row.verdict, row.saved) for row in rows if row.verdict and row.saved]
    better = "higher" if summary.higher_is_better else "lower"
    areas = f"Areas are mean heights of the curves from {summary.low:g} to {summary.high:g} labels."
    notes = [f"{summary.metric}: {better} is better. Mean ± standard error over seeds. {areas}"]
    if others and not any(verdict.verdict in ("better", "worse") for _, verdict, _ in others):
        notes.append(f"No difference from {baseline} is shown. That does not say that there is none.")
    if others:
        tests = f"paired sign-flip tests with Holm's correction for {len(others)} comparisons"
        most = f"any difference of {summary.metric} is claimed falsely is at most {1 - summary.confidence:.2g}"
        notes.append(f"Verdicts are by {tests}: the chance that {most}. Each interval is for its difference alone.")
    if any(math.isinf(saved.baseline_median) for _, _, saved in others):
        missed = f"Half of the runs of {baseline} or more did not reach {number(summary.target)}"
        notes.append(f"{missed}: what share of its labels others need is not known.")
    if others and all(row.labels <= summary.low for row in rows):
        notes.append(f"All begin with {number(summary.target)} or better: shares of labels say nothing here.")
    if few := [one.comparison.least_p_value for _, one, _ in others if one.verdict.startswith("too few")]:
        least = np.fmax.reduce(few)
        why = "there is no pair of seeds" if math.isnan(least) else f"no p-value can be below {least:.2g}, uncorrected"
        notes.append(f"Too few seeds: {why}.")
    runs = {row.strategy: row.num_seeds for row in rows}
    pairs = {row.strategy: verdict.comparison.num_seeds for row, verdict, _ in others}
    if min([*pairs.values(), *runs.values()]) < max(runs.values()):
        notes.append(f"Runs with values: {_counts(runs)}.")
        notes[-1] += f" Pairs of runs with a finite difference, which alone count: {_counts(pairs)}."
    if stopped := {row.strategy: row.num_stopped for row in rows if row.num_stopped}:
        notes.append(f"Runs that stopped early: {_counts(stopped)}. Their final values are at fewer labels.")
        if summary.num_shortened:
            notes[-1] += f" Seeds whose areas end with the first run that stopped: {summary.num_shortened}."
    ranking = summary.ranking
    if ranking and ranking.num_seeds:
        groups = "; ".join(", ".join(group) for group in ranking.groups if len(group) > 1)
        tested = f"Friedman p = {number(ranking.p_value)}, critical difference {ranking.critical_difference:.2f}"
        notes.append(f"Ranks are by area, seeds: {ranking.num_seeds}; {tested} (by permutation).")
        notes[-1] += f" Not shown to differ: {groups or 'none'}."
    if ranking and ranking.unranked:
        notes.append(f"Without an area, and not ranked: {', '.join(ranking.unranked)}.")
    return notes


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in numbers.items())


def _aligned(runs: Runs, metric: str, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and values ``[seeds, R]``; NaN for a seed that the strategy lacks, and for what did not happen."""
    places = np.searchsorted(seeds, runs.seeds)
    labels = np.zeros((len(seeds), runs.num_labelled.shape[1]))
    values = np.full(labels.shape, np.nan)
    labels[places] = runs.num_labelled
    values[places] = np.where(runs.stopped, np.nan, runs.metrics[metric])
    return labels, values


def _last(values: np.ndarray) -> np.ndarray:
    """The last value of each row that is not NaN."""
    there = ~np.isnan(values)
    last = values.shape[1] - 1 - there[:, ::-1].argmax(axis=1)
    return np.where(there.any(axis=1), values[np.arange(len(values)), last], np.nan)


def _reached_by_most(values: np.ndarray, higher: bool) -> float:
    """The best value that three quarters of the runs, or more, reach at some time."""
    best = (np.fmax if higher else np.fmin).reduce(values, axis=1)
    best = best[~np.isnan(best)]
    share, method = (0.25, "lower") if higher else (0.75, "higher")
    return float(np.quantile(best, share, method=method)) if best.size else math.nan
