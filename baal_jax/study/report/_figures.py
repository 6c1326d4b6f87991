"""The page's figures for papers, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from baal_jax._util import checks, files
from baal_jax.study import plots, results
from baal_jax.study.report import _content, _pictures
from baal_jax.study.report._styles import Style, style
from baal_jax.study.results import Results

_SETTINGS = {"pdf.fonttype": 42, "savefig.bbox": "tight", "savefig.dpi": 200, "font.size": 9}
_GALLERY = (4, 8)  # rounds, pictures of each


def figures(study: str | Path | Results, out: str | Path, *, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Draws the figures of :func:`write` for papers.

    ``curves_METRIC`` for every metric, ``mean_score``, ``entropy``, ``reliability``, ``classes`` and
    ``queries_STRATEGY`` (pictures of the first seed), as far as the study has what they show. Strategies have the
    colours, dashes and markers of the page.

    Args:
        study: the folder of a study, finished or not, or :class:`~baal_jax.study.results.Results`.
        out: folder to write to; made if needed. Figures that are there are replaced.
        formats: endings that matplotlib knows.

    Returns:
        The paths.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no study in the folder, or no run in the study, or matplotlib does not know a format.
    """
    matplotlib = checks.optional_import("matplotlib", "plot")
    canvas = checks.optional_import("matplotlib.backend_bases", "plot").FigureCanvasBase
    for kind in formats:
        if kind not in canvas.filetypes:
            raise ValueError(f"formats holds {kind!r}, which is none of {', '.join(sorted(canvas.filetypes))}")
    found = study if isinstance(study, Results) else results.read(study)
    if not found.runs:
        raise ValueError("the study has no runs yet, so that there is nothing to draw: wait for its first cell")
    paths = []
    with matplotlib.rc_context(_SETTINGS):
        for name, figure in _all(found):
            for kind in formats:
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind)
                paths.append(files.write_bytes(Path(out) / f"{name}.{kind}", buffer.getvalue()))
    return paths


def _all(study: Results) -> Iterator[tuple[str, Any]]:
    looks = dict(zip(study.runs, map(style, _content.order(study)), strict=True))
    for metric in _content.metrics(study):
        values = {name: runs.metrics[metric] for name, runs in study.runs.items() if metric in runs.metrics}
        if (figure := _curves(study, values, looks, plots.axis_label(metric))) is not None:
            yield f"curves_{results.slug(metric)}", figure
    scores = {name: runs.mean_score for name, runs in study.runs.items()}
    if (figure := _curves(study, scores, looks, "mean score of the pool")) is not None:
        yield "mean_score", figure
    histograms = {name: h for name, runs in study.runs.items() if (h := _content.entropies(runs)) is not None}
    if histograms:
        yield "entropy", _entropy(histograms, looks, _content.num_classes(study))
    bins = {name: b for name, runs in study.runs.items() if (b := _content.reliability(runs)) is not None}
    if bins:
        yield "reliability", _reliability(bins, looks)
    asked, _ = _content.asked_by_class(study)
    names = _content.class_names(study)
    if asked and names:
        figure = _figure(min(1.5 + 0.5 * len(names), 12), 3.2)
        colours = [looks[name].colour for name in asked]
        plots.plot_class_histogram(asked, names, figure.subplots(), colours=colours).get_legend().remove()
        figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=4)
        yield "classes", figure
    yield from _galleries(study, names)


def _figure(width: float, height: float) -> Any:
    # Without pyplot: no window, no state, and nothing that has to be closed.
    return checks.optional_import("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")


def _curves(study: Results, values: dict[str, Any], looks: dict[str, Style], label: str) -> Any:
    curves = {name: _content.curve(study.runs[name], found) for name, found in values.items()}
    if not any(curve is not None for curve in curves.values()):
        return None
    figure = _figure(5, 3.5)
    ax = figure.subplots()
    means = []
    for name, curve in curves.items():
        if curve is not None:
            look = looks[name]
            drawn = {"label": name, "colour": look.colour, "dash": look.dash(), "marker": look.marker}
            plots.plot_band(curve.x, curve.mean, curve.low, curve.high, ax, **drawn)
            means.append(curve.mean[np.isfinite(curve.mean)])
    # The band of a few seeds may be many times as high as all curves.
    low, high = np.concatenate(means).min(initial=np.inf), np.concatenate(means).max(initial=-np.inf)
    room = max(high - low, abs(high) * 1e-3, 1e-9)
    bottom, top = ax.get_ylim()
    if np.isfinite(room):
        ax.set_ylim(max(bottom, low - room), min(top, high + room))
    ax.set(xlabel="labels", ylabel=label)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if len(curves) <= 4:
        ax.legend(frameon=False, fontsize=8)
    else:
        figure.legend(loc="outside upper center", frameon=False, fontsize=8, ncols=4)
    return figure


def _entropy(histograms: dict[str, np.ndarray], looks: dict[str, Style], classes: int | None) -> Any:
    figure, axes = _grid(len(histograms))
    end = 1.0 if classes is None else float(np.log(classes))
    for ax, (name, found) in zip(axes, histograms.items(), strict=False):
        edges = np.linspace(0, end, found.shape[-1] + 1)
        ax.stairs(np.nan_to_num(found[0]), edges, color="0.6", linewidth=1, label="first round")
        ax.stairs(np.nan_to_num(found[-1]), edges, color=looks[name].colour, fill=True, alpha=0.8, label="last round")
        ax.set_title(name, fontsize=9)
    axes[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("entropy, as a share of its maximum" if classes is None else "entropy (nats)", fontsize=9)
    figure.supylabel("share of the pool", fontsize=9)
    return figure


def _reliability(bins: dict[str, _content.Bins], looks: dict[str, Style]) -> Any:
    figure, axes = _grid(len(bins))
    for ax, (name, found) in zip(axes, bins.items(), strict=False):
        last = (found.num_examples[-1], found.confidence[-1], found.accuracy[-1])
        plots.plot_reliability({name: last}, ax, colours=[looks[name].colour])
        ax.get_legend().remove()
        ax.set(xlabel="", ylabel="")
        ax.set_title(f"{name}, ECE {found.ece[-1]:.3f}", fontsize=9)
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure


def _galleries(study: Results, names: list[str] | None) -> Iterator[tuple[str, Any]]:
    if study.pictures is None or not len(study.pictures.ids):
        return
    places = {int(index): i for i, index in enumerate(study.pictures.ids)}
    images = _pictures.bytes_of(study.pictures.images)
    targets = _content.targets(study)
    rounds, most = _GALLERY
    for name, runs in study.runs.items():
        rows = {}
        for r in _spread(np.flatnonzero(~runs.stopped[0]), rounds):
            ids = [i for i in runs.indices[0, r].tolist() if i in places][:most]
            if ids:
                captions = [_content.target_label(targets[i], names) if i in targets else f"#{i}" for i in ids]
                title = f"round {r}, at {runs.num_labelled[0, r]} labels"
                rows[title] = (images[[places[i] for i in ids]], captions)
        if rows:
            yield f"queries_{results.slug(name)}", plots.plot_gallery(rows, figure=_figure)


def _spread(rounds: np.ndarray, most: int) -> Iterable[int]:
    """At most so many of the rounds, the first and the last among them."""
    if len(rounds) <= most:
        return rounds.tolist()
    return rounds[np.round(np.linspace(0, len(rounds) - 1, most)).astype(int)].tolist()


def _grid(count: int) -> tuple[Any, list[Any]]:
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = _figure(2.0 * columns + 0.6, 1.9 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel().tolist()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, axes
