"""Figures: learning curves, calibration, classes, pictures.

What is drawn on, axes or a figure of matplotlib, is returned. Without matplotlib there is an ImportError.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util import checks
from baal_jax.study import statistics

# Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is darkened for white paper.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#A39600")
_BLACK = 6  # which the page draws white in the dark
_DASHES = ("none", "9 3", "2 4", "9 4 2 4", "14 4", "5 4", "none", "14 4 2 4 2 4")
# The same shapes by matplotlib's names and as SVG paths around the origin.
_MARKERS = (
    ("o", "M-3.6 0A3.6 3.6 0 1 0 3.6 0A3.6 3.6 0 1 0 -3.6 0Z"),
    ("s", "M-3.2 -3.2H3.2V3.2H-3.2Z"),
    ("^", "M0 -4.4L4.2 3.2H-4.2Z"),
    ("D", "M0 -4.6L4.6 0L0 4.6L-4.6 0Z"),
    ("v", "M0 4.4L4.2 -3.2H-4.2Z"),
    ("P", "M-1.4 -4.2H1.4V-1.4H4.2V1.4H1.4V4.2H-1.4V1.4H-4.2V-1.4H-1.4Z"),
    ("X", "M0 -2L2 -4L4 -2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0L-4 -2L-2 -4Z"),
    ("p", "M0 -4.4L4.2 -1.4L2.6 3.6H-2.6L-4.2 -1.4Z"),
)
_LABELS = {"nll": "NLL (nats)", "ece": "expected calibration error", "brier": "Brier score", "miou": "mean IoU"}
_LABELS |= {name: name.upper() for name in ("rmse", "mae", "crps", "auroc")}


class Curves(NamedTuple):
    """Learning curves of one strategy.

    Attributes:
        num_labelled: ``int[R]``, labels that each round's fit has seen, or ``int[seeds, R]`` where runs differ.
        metrics: name → ``float[seeds, R]``; NaN where a run has stopped.
    """

    num_labelled: np.ndarray
    metrics: Mapping[str, np.ndarray]


class Style(NamedTuple):
    """How a strategy is drawn, so that colour is not the only cue.

    Attributes:
        number: of the colour.
        colour: on white paper.
        dashes: in SVG, lengths of dashes and gaps for a line 2 pixels wide.
        marker: matplotlib's name.
        path: the same marker in SVG.
    """

    number: int
    colour: str
    dashes: str
    marker: str
    path: str


Styles = Mapping[str, Style]


def styles_of(strategies: Iterable[str], baseline: str | None = None) -> dict[str, Style]:
    """Styles of strategies: the first eight differ in all, later ones in how colour, dashes and marker go together.

    Args:
        strategies: names.
        baseline: the one that is black.

    Returns:
        Name → :class:`Style`.

    Example:
        >>> list(plots.styles_of(["random", "bald"], baseline="random"))
        ['random', 'bald']
    """
    others = (i for i in itertools.count() if i != _BLACK)
    return {name: _style(_BLACK if name == baseline else next(others)) for name in strategies}


def plot_learning_curves(
    curves: Mapping[str, Curves], metric: str = "accuracy", ax: Any = None, *, styles: Styles | None = None
) -> Any:
    """Learning curves: means over seeds with 95 % bands (:func:`~baal_jax.study.statistics.mean_curve`).

    Args:
        curves: name → :class:`Curves`.
        metric: which metric.
        ax: matplotlib axes to draw on; new ones by default.
        styles: name → :class:`Style`; by default :func:`styles_of` the names.

    Example:
        >>> curves = plots.Curves(np.array([10, 20]), {"accuracy": np.array([[0.5, 0.8], [0.6, 0.9]])})
        >>> plots.plot_learning_curves({"random": curves}).get_ylabel()
        'accuracy'
    """
    ax, styles, means = _axes(ax, 5, 3.5), styles or styles_of(curves), []
    for name, (labels, metrics) in curves.items():
        (x, mean, low, high), look = statistics.mean_curve(labels, metrics[metric]), styles[name]
        # Matplotlib's dashes are in units of the line's width.
        dashes = "-" if look.dashes == "none" else (0, [int(part) / 2 for part in look.dashes.split()])
        ax.plot(x, mean, color=look.colour, label=name, linestyle=dashes, marker=look.marker, markersize=3)
        ax.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0)
        means.append(mean[np.isfinite(mean)])
    # The band of a few seeds may be many times as high as all curves: it is cut off at their own height.
    heights = np.concatenate([[], *means])
    low, high = heights.min(initial=np.inf), heights.max(initial=-np.inf)
    room = max(high - low, abs(high) * 1e-3, 1e-9)
    bottom, top = ax.get_ylim()
    if np.isfinite(room):
        ax.set_ylim(max(bottom, low - room), min(top, high + room))
    return _finish(ax, xlabel="labels", ylabel=axis_label(metric))


def axis_label(metric: str) -> str:
    """Label of an axis for a metric, with its unit if it has one.

    Args:
        metric: a name such as ``"nll"``.

    Returns:
        A label; names that are not known are readable already.

    Example:
        >>> plots.axis_label("nll"), plots.axis_label("balanced_accuracy")
        ('NLL (nats)', 'balanced accuracy')
    """
    return _LABELS.get(metric.lower(), metric.replace("_", " "))


def plot_reliability(bins: Mapping[str, Any], ax: Any = None, *, styles: Styles | None = None) -> Any:
    """Reliability diagram: accuracy against confidence, which are equal where a classifier is calibrated.

    Args:
        bins: name → :class:`~baal_jax.metrics.Reliability`, or its three arrays; a leading axis of seeds is averaged.
        ax: as in :func:`plot_learning_curves`.
        styles: likewise.

    Example:
        >>> bins = {"network": (np.array([4, 6]), np.array([0.3, 0.8]), np.array([0.25, 0.9]))}
        >>> plots.plot_reliability(bins).get_xlabel()
        'confidence'
    """
    ax, styles = _axes(ax, 4, 3.8), styles or styles_of(bins)
    ax.plot((0, 1), (0, 1), color="grey", linewidth=0.8, linestyle=":")
    for name, parts in bins.items():
        count, confidence, accuracy = pooled(*(np.atleast_2d(part) for part in parts))
        kept = count > 0  # an empty bin has neither accuracy nor confidence
        ax.plot(confidence[kept], accuracy[kept], color=styles[name].colour, label=name, marker="o", markersize=3)
    return _finish(ax, xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def pooled(num_examples: Any, *values: Any) -> list[np.ndarray]:
    """Counts and means of bins over the first axis, weighted by the counts; NaN where a bin is empty."""
    counts = np.nan_to_num(np.asarray(num_examples, np.float64))
    total = counts.sum(axis=0)
    sums = (np.nan_to_num(np.asarray(part, np.float64) * counts).sum(axis=0) for part in values)
    return [total, *(part / np.where(total > 0, total, np.nan) for part in sums)]


def plot_class_histogram(
    counts: Mapping[str, np.ndarray], class_names: Sequence[str], ax: Any = None, *, styles: Styles | None = None
) -> Any:
    """Histogram of the classes that every strategy queried.

    Args:
        counts: name → ``[C]``, or ``[seeds, C]`` to be averaged.
        class_names: ``C`` names.
        ax: as in :func:`plot_learning_curves`.
        styles: likewise.

    Example:
        >>> plots.plot_class_histogram({"random": np.array([3, 4])}, ["cat", "dog"]).get_ylabel()
        'labels queried'
    """
    ax, styles, width = _axes(ax, 6, 3.2), styles or styles_of(counts), 0.8 / len(counts)
    for i, (name, labels) in enumerate(counts.items()):
        mean = np.atleast_2d(np.asarray(labels, np.float64)).mean(axis=0)
        places = np.arange(len(class_names)) + (i - (len(counts) - 1) / 2) * width
        ax.bar(places, mean, width, color=styles[name].colour, label=name)
    ax.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    return _finish(ax, ylabel="labels queried")


def plot_gallery(rows: Mapping[str, tuple[np.ndarray, Sequence[str]]], figure: Any = None) -> Any:
    """Rows of images with a caption under each.

    Args:
        rows: title → (images ``[n, H, W, 1 or 3]``, integers or floats between 0 and 1; ``n`` captions).
        figure: matplotlib figure to draw on; a new one by default.

    Example:
        >>> len(plots.plot_gallery({"random": (np.zeros((2, 4, 4, 1)), ["cat", "dog"])}).axes)
        2
    """
    if figure is None:
        figure = checks.optional_import("matplotlib.pyplot", "plot").figure(layout="constrained")
    columns = max(len(images) for images, _ in rows.values())
    figure.set_size_inches(1.1 * columns, 1.5 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for line, (title, (images, captions)) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=9)
        for ax, picture, caption in zip(line, images, captions, strict=False):
            ax.imshow(np.squeeze(picture), cmap="gray")
            ax.text(0.5, -0.04, caption, transform=ax.transAxes, ha="center", va="top", fontsize=6)
    return figure


def _style(i: int) -> Style:
    again = i // len(_COLOURS)
    dashes, marker = _DASHES[(i + 2 * again) % len(_DASHES)], _MARKERS[(i + again) % len(_MARKERS)]
    return Style(i % len(_COLOURS), _COLOURS[i % len(_COLOURS)], dashes, *marker)


def _axes(ax: Any, width: float, height: float) -> Any:
    if ax is None:
        pyplot = checks.optional_import("matplotlib.pyplot", "plot")
        ax = pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    return ax


def _finish(ax: Any, **settings: Any) -> Any:
    ax.set(**settings)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax
