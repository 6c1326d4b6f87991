"""The page's figures for papers, drawn by matplotlib."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baal_jax._util import checks, files
from baal_jax.study import plots, results
from baal_jax.study.report import _content
from baal_jax.study.results import Results

_SETTINGS = {"text.parse_math": False, "pdf.fonttype": 42, "savefig.bbox": "tight", "savefig.dpi": 200, "font.size": 9}
_GALLERY = (4, 8)  # rounds, pictures of each


def figures(study: str | Path | Results, out: str | Path, *, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Draw the figures of :func:`write` for papers.

    ``curves_METRIC`` for every metric, ``mean_score``, ``entropy``, ``reliability``, ``classes`` and
    ``queries_STRATEGY`` (pictures of the first seed), as far as the study has them. Strategies look as in the page.

    Args:
        study: the folder of a study, finished or not, or :class:`~baal_jax.study.results.Results`.
        out: folder to write to; made if needed. Figures that are there are replaced.
        formats: endings that matplotlib knows.

    Returns:
        The paths.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no study in the folder, or no run in the study, or matplotlib does not know a format.

    Example:
        >>> digits = results.read("runs/digits")  # doctest: +SKIP
        >>> report.figures(digits, "figures")  # doctest: +SKIP
    """
    matplotlib = checks.optional_import("matplotlib", "plot")
    canvas = checks.optional_import("matplotlib.backend_bases", "plot").FigureCanvasBase
    for kind in formats:
        if kind not in canvas.filetypes:
            raise ValueError(f"formats holds {kind!r}, which is none of {', '.join(sorted(canvas.filetypes))}")
    study = study if isinstance(study, Results) else results.read(study)
    if not study.runs:
        raise ValueError("the study has no runs yet, so that there is nothing to draw: wait for its first cell")
    paths = []
    Path(out).mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_SETTINGS):
        for name, figure in _all(study):
            for kind in formats:
                paths.append(Path(out) / f"{name}.{kind}")
                with files.replacing(paths[-1]) as file:
                    figure.savefig(file, format=kind)
    return paths


def _all(study: Results) -> Iterator[tuple[str, Any]]:
    styles = plots.styles_of(study.runs, study.description.get("baseline"))
    for metric in _content.metrics(study):
        values = {name: runs.metrics[metric] for name, runs in study.runs.items() if metric in runs.metrics}
        yield from _curves(f"curves_{results.slug(metric)}", study, values, metric, styles)
    scores = {name: runs.mean_score for name, runs in study.runs.items()}
    yield from _curves("mean_score", study, scores, "mean score of the pool", styles)
    names = _content.class_names(study)
    if histograms := {name: h for name, runs in study.runs.items() if (h := _content.entropies(runs)) is not None}:
        yield "entropy", _entropy(histograms, styles, names)
    if bins := {name: b for name, runs in study.runs.items() if (b := _content.reliability(runs)) is not None}:
        yield "reliability", _reliability(bins, styles)
    counts, _ = _content.queried_by_class(study)
    if counts and names:
        figure = _figure(min(1.5 + 0.5 * len(names), 12), 3.2)
        plots.plot_class_histogram(counts, names, figure.subplots(), styles=styles)
        yield "classes", _legend_above(figure)
    yield from _galleries(study, names)


def _figure(width: float = 5, height: float = 3.5) -> Any:
    # Without pyplot: no window, no state, and nothing that has to be closed.
    return checks.optional_import("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")


def _legend_above(figure: Any) -> Any:
    figure.axes[0].get_legend().remove()
    figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    return figure


def _curves(file: str, study: Results, values: Mapping[str, Any], label: str, styles: plots.Styles) -> Iterator[Any]:
    curves = {}
    for name, part in values.items():
        happened = np.where(study.runs[name].stopped, np.nan, part)
        if not np.isnan(happened).all():
            curves[name] = plots.Curves(study.runs[name].num_labelled, {label: happened})
    if curves:
        figure = _figure()
        ax = plots.plot_learning_curves(curves, label, figure.subplots(), styles=styles)
        ax.spines[["top", "right"]].set_visible(False)
        yield file, figure if len(curves) <= 4 else _legend_above(figure)


def _entropy(histograms: Mapping[str, np.ndarray], styles: plots.Styles, classes: list[str] | None) -> Any:
    end, label = (np.log(len(classes)), "nats") if classes else (1.0, "as a share of its maximum")
    figure, axes = _grid(list(histograms), f"entropy ({label})", "share of the pool")
    for ax, (name, shares) in zip(axes, histograms.items(), strict=True):
        edges, shares = np.linspace(0, end, shares.shape[-1] + 1), np.nan_to_num(shares)
        ax.stairs(shares[0], edges, color="0.6", linewidth=1, label="first round")
        ax.stairs(shares[-1], edges, color=styles[name].colour, fill=True, alpha=0.8, label="last round")
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _reliability(bins: Mapping[str, _content.Bins], styles: plots.Styles) -> Any:
    figure, axes = _grid([f"{name}, ECE {ece[-1]:.3f}" for name, (*_, ece) in bins.items()], "confidence", "accuracy")
    for ax, (name, parts) in zip(axes, bins.items(), strict=True):
        plots.plot_reliability({name: [part[-1] for part in parts[:3]]}, ax, styles=styles)
        ax.get_legend().remove()
        ax.set(xlabel="", ylabel="")
    return figure


def _galleries(study: Results, names: list[str] | None) -> Iterator[tuple[str, Any]]:
    if study.pictures is None:
        return
    places = {int(index): i for i, index in enumerate(study.pictures.ids)}
    targets, (rounds, most) = _content.targets(study), _GALLERY
    for name, runs in study.runs.items():
        rows = {}
        for r in _spread(np.flatnonzero(~runs.stopped[0]), rounds):
            if ids := [i for i in runs.indices[0, r].tolist() if i in places][:most]:
                captions = [_content.target_label(targets[i], names) if i in targets else f"#{i}" for i in ids]
                title = f"round {r}, at {runs.num_labelled[0, r]} labels"
                rows[title] = (study.pictures.images[[places[i] for i in ids]], captions)
        if rows:
            yield f"queries_{results.slug(name)}", plots.plot_gallery(rows, _figure())


def _spread(rounds: np.ndarray, most: int) -> Iterable[int]:
    """At most so many of the rounds, the first and the last among them."""
    chosen = np.linspace(0, len(rounds) - 1, most).round().astype(int)
    return dict.fromkeys(rounds[chosen].tolist()) if rounds.size else ()


def _grid(titles: Sequence[str], xlabel: str, ylabel: str) -> tuple[Any, list[Any]]:
    """Small multiples with the same axes: one for every title."""
    columns = min(len(titles), 4)
    rows = -(-len(titles) // columns)
    figure = _figure(2.0 * columns + 0.6, 1.9 * rows + 0.5)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel().tolist()
    for ax in axes[len(titles) :]:
        ax.set_visible(False)
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title, fontsize=9)
    return figure, axes[: len(titles)]
