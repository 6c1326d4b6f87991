"""All of it about one study, for programs and for people."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from baal_jax.study.results import Results, Runs
from baal_jax.study.statistics._comparisons import Saved, Verdict, compare_all, direction, labels_saved
from baal_jax.study.statistics._curves import area, labels_to_target, mean_and_error, shared_range
from baal_jax.study.statistics._ranking import Ranking, rank


class Row(NamedTuple):
    """What is known about one strategy.

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
    """What a study shows in one metric.

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


def summary(
    results: Results,
    metric: str | None = None,
    baseline: str | None = None,
    *,
    higher_is_better: bool | None = None,
    target: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Summary:
    """Everything this module computes, for one metric of a study, finished or not.

    Strategies are compared by their areas, seed by seed over the labels that all of them have seen
    (:func:`shared_range`); a seed that a strategy lacks is left out of its comparison, and of the ranks of all.

    Args:
        results: from :func:`baal_jax.study.results.read`.
        metric: by default the one that the study says matters most.
        baseline: by default the study's.
        higher_is_better: by default told by the metric's name.
        target: the value that labels are counted to; by default the study's, or else the best value that at least three
            quarters of the baseline's runs reach.
        confidence: of intervals and verdicts.
        seed: of the resampling.

    Returns:
        A :class:`Summary`.

    Raises:
        ValueError: the metric or the baseline is not in the results, or the direction is not known.

    Example:
        >>> from baal_jax.study import results, statistics
        >>> found = results.read("runs/digits")  # doctest: +SKIP
        >>> print(statistics.markdown(statistics.summary(found, "nll")))  # doctest: +SKIP
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
    higher = direction(metric, higher_is_better)
    seeds = np.unique(np.concatenate([runs.seeds for runs in results.runs.values()]))
    curves = {name: _aligned(runs, metric, seeds) for name, runs in results.runs.items()}
    lows, highs = shared_range(curves.values())
    areas = {name: area(*curve, low=lows, high=highs) for name, curve in curves.items()}
    finals = {name: _last(values) for name, (_, values) in curves.items()}
    if target is None:
        target = description.get("target")
    if target is None:
        target = _reached_by_most(curves[baseline][1], higher)
    # A baseline without values has no target, which then nobody reaches.
    labels = {
        name: np.full(len(seeds), np.nan)
        if math.isnan(target)
        else np.where(np.isnan(finals[name]), np.nan, labels_to_target(*curve, target=target, higher_is_better=higher))
        for name, curve in curves.items()
    }
    verdicts = compare_all(areas, baseline, higher_is_better=higher, confidence=confidence, seed=seed)
    ranking = rank(areas, higher_is_better=higher, confidence=confidence) if len(areas) > 1 else None
    rows = []
    for name, runs in results.runs.items():
        other = name != baseline
        needed = labels[name][~np.isnan(labels[name])]
        final, final_error, count = mean_and_error(finals[name])
        height, height_error, _ = mean_and_error(areas[name])
        rows.append(
            Row(
                strategy=name,
                num_seeds=int(count),
                num_stopped=int(np.asarray(runs.stopped).any(axis=1).sum()),
                final=float(final),
                final_error=float(final_error),
                area=float(height),
                area_error=float(height_error),
                verdict=verdicts[name] if other else None,
                labels=float(np.median(needed)) if needed.size else math.nan,
                saved=labels_saved(labels[name], labels[baseline], confidence=confidence, seed=seed) if other else None,
                mean_rank=math.nan if ranking is None else ranking.mean_ranks[name],
            )
        )
    usable = lows <= highs
    low, high = (lows[usable].min(), highs[usable].max()) if usable.any() else (math.nan, math.nan)
    return Summary(
        metric=metric,
        higher_is_better=higher,
        baseline=baseline,
        target=float(target),
        confidence=confidence,
        low=float(low),
        high=float(high),
        num_shortened=int((~(highs >= high)).sum()),
        rows=tuple(rows),
        ranking=ranking,
    )


def markdown(found: Summary) -> str:
    """A summary as a table in Markdown, with what is to be known about it below.

    Args:
        found: from :func:`summary`.

    Returns:
        The text, ending in a newline.
    """
    share = f"{found.confidence:.0%}" if round(found.confidence * 100, 6).is_integer() else f"{found.confidence:.1%}"
    heads = (
        "strategy",
        f"final {found.metric}",
        "area",
        f"difference of area [{share}]",
        "adjusted p",
        f"against {found.baseline}",
        f"labels to {number(found.target)}",
        f"share of the labels [{share}]",
        "mean rank",
    )
    lines = ["| " + " | ".join(_cell(head) for head in heads) + " |", "|---" * len(heads) + "|"]
    for row in found.rows:
        lines.append("| " + " | ".join(_cell(text) for text in _row(row)) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(found))]) + "\n"


def notes(found: Summary) -> list[str]:
    """What a reader of the table has to know, a sentence or two each.

    Args:
        found: from :func:`summary`.

    Returns:
        Plain text, a list.
    """
    alpha = 1 - found.confidence
    better = "higher" if found.higher_is_better else "lower"
    lines = [
        f"{found.metric}: {better} is better. Mean ± standard error over seeds. Areas are mean heights of the curves "
        f"from {found.low:g} to {found.high:g} labels."
    ]
    shown = [row.strategy for row in found.rows if row.verdict and row.verdict.verdict in ("better", "worse")]
    others = [row for row in found.rows if row.verdict]
    if others and not shown:
        lines.append(f"No difference from {found.baseline} is shown. That does not say that there is none.")
    if others:
        lines.append(
            f"Verdicts are by paired sign-flip tests with Holm's correction for {len(others)} comparisons: the chance "
            f"that any difference is claimed falsely is at most {alpha:.2g}. Each interval is for its difference alone."
        )
    if any(row.saved and math.isinf(row.saved.baseline_median) for row in others):
        lines.append(
            f"Half of the runs of {found.baseline} or more did not reach {number(found.target)}: what share of its "
            "labels others need is not known."
        )
    few = [row for row in others if row.verdict and row.verdict.verdict.startswith("too few")]
    if few:
        least = np.fmax.reduce([row.verdict.comparison.least_p_value for row in few if row.verdict])
        why = "there is no pair of seeds" if math.isnan(least) else f"no p-value can be below {least:.2g}, uncorrected"
        lines.append(f"Too few seeds: {why}.")
    most = max(row.num_seeds for row in found.rows)
    pairs = {row.strategy: row.verdict.comparison.num_seeds for row in others if row.verdict}
    if min([*pairs.values(), *(row.num_seeds for row in found.rows)]) < most:
        runs = ", ".join(f"{row.strategy} {row.num_seeds}" for row in found.rows)
        compared = ", ".join(f"{name} {count}" for name, count in pairs.items())
        lines.append(
            f"Runs with values: {runs}. Pairs of runs with a finite difference, which alone count: {compared}."
        )
    stopped = [f"{row.strategy} {row.num_stopped}" for row in found.rows if row.num_stopped]
    if stopped:
        shortened = f" Seeds whose areas end with the first run that stopped: {found.num_shortened}."
        lines.append(
            f"Runs that stopped early: {', '.join(stopped)}. Their final values are at fewer labels."
            + (shortened if found.num_shortened else "")
        )
    ranking = found.ranking
    if ranking and ranking.num_seeds:
        groups = "; ".join(", ".join(group) for group in ranking.groups if len(group) > 1)
        lines.append(
            f"Ranks are by area, seeds: {ranking.num_seeds}; Friedman p = {number(ranking.p_value)}, critical "
            f"difference {ranking.critical_difference:.2f} (Nemenyi). Not shown to differ: {groups or 'none'}."
        )
    return lines


def number(value: float) -> str:
    """Four decimals, or four digits of what is large or small; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    large_or_small = abs(value) >= 1e4 or 0 < abs(value) < 1e-3
    return f"{value:.4g}" if large_or_small else f"{value:.4f}"


def _row(row: Row) -> list[str]:
    found = [
        row.strategy,
        f"{number(row.final)} ± {number(row.final_error)}",
        f"{number(row.area)} ± {number(row.area_error)}",
    ]
    if row.verdict is None:
        found += ["", "", "baseline"]
    else:
        one = row.verdict.comparison
        sign = "+" if one.difference > 0 else ""
        interval = f"[{number(one.low)}, {number(one.high)}]"
        found += [
            f"{sign}{number(one.difference)} {interval}",
            number(row.verdict.adjusted_p_value),
            row.verdict.verdict,
        ]
    found.append("not reached" if math.isinf(row.labels) else "–" if math.isnan(row.labels) else f"{row.labels:g}")
    found.append("" if row.saved is None else _share(row.saved))
    return [*found, "–" if math.isnan(row.mean_rank) else f"{row.mean_rank:.2f}"]


def _share(saved: Saved) -> str:
    if math.isinf(saved.baseline_median):
        return "–"

    def text(value: float) -> str:
        return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.2f}"

    return f"{text(saved.ratio)} [{text(saved.low)}, {text(saved.high)}]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


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
    best = np.fmax.reduce(values, axis=1) if higher else np.fmin.reduce(values, axis=1)
    best = best[~np.isnan(best)]
    if not best.size:
        return math.nan
    return float(np.quantile(best, 0.25 if higher else 0.75, method="lower" if higher else "higher"))
