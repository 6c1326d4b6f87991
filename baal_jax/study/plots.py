"""What a person looks at: tables, learning curves and result files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util import checks, files
from baal_jax.study import statistics

# Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is darkened for white paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#A39600")
_LABELS = {
    "nll": "NLL (nats)",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "rmse": "RMSE",
    "mae": "MAE",
    "crps": "CRPS",
    "auroc": "AUROC",
    "miou": "mean IoU",
}


class Curves(NamedTuple):
    """The runs of one strategy.

    Attributes:
        num_labelled: ``int[R]``, labels that each round's fit has seen.
        metrics: name → ``float[seeds, R]``.
    """

    num_labelled: np.ndarray
    metrics: Mapping[str, np.ndarray]


def standard_error(values: np.ndarray, axis: int = 0) -> np.ndarray:
    r"""Standard error of the mean over seeds.

    .. math:: \sqrt{\tfrac{1}{n (n - 1)} \sum_i (x_i - \bar x)^2}

    Args:
        values: any array.
        axis: the axis of seeds.

    Returns:
        The array without that axis; NaN for a single seed, whose error nothing tells.
    """
    values = np.asarray(values, np.float64)
    count = values.shape[axis]
    if count < 2:
        return np.full(np.delete(values.shape, axis), np.nan)
    return values.std(axis=axis, ddof=1) / np.sqrt(count)


def learning_curve_table(curves: Mapping[str, Curves], target: float = 0.9) -> str:
    """Accuracy ± standard error and NLL by number of labels, one column a strategy.

    Args:
        curves: name → :class:`Curves` with the metrics ``accuracy`` and ``nll``, all with the same ``num_labelled``.
        target: accuracy for the last line, the median number of labels to reach it.

    Returns:
        The table as text.
    """
    names = list(curves)
    width = max(24, *(len(name) + 3 for name in names))
    lines = ["labels" + "".join(f"{name:>{width}}" for name in names)]
    lines.append("      " + "".join(f"{'accuracy ± s.e.   NLL':>{width}}" for _ in names))
    for r, count in enumerate(np.asarray(next(iter(curves.values())).num_labelled)):
        cells = []
        for name in names:
            accuracy, nll = (np.asarray(curves[name].metrics[metric])[:, r] for metric in ("accuracy", "nll"))
            cell = f"{accuracy.mean():.3f} ± {standard_error(accuracy):.3f}  {nll.mean():.3f}"
            cells.append(f"{cell:>{width}}")
        lines.append(f"{count:6d}" + "".join(cells))
    lines.append(f"median labels to {target:.0%} accuracy:")
    for name in names:
        needed = statistics.labels_to_target(curves[name].num_labelled, curves[name].metrics["accuracy"], target)
        median = np.median(needed)
        lines.append(f"  {name}: " + (f"{median:g}" if np.isfinite(median) else "not reached"))
    return "\n".join(lines)


def plot_learning_curves(curves: Mapping[str, Curves], metric: str = "accuracy", ax: Any = None) -> Any:
    """Mean over seeds with a band of one standard error on either side.

    Args:
        curves: name → :class:`Curves`.
        metric: which metric.
        ax: matplotlib axes to draw on; new ones by default.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is None:
        ax = checks.optional_import("matplotlib.pyplot", "plot").subplots(figsize=(5, 3.5), layout="constrained")[1]
    for i, (name, curve) in enumerate(curves.items()):
        values = np.asarray(curve.metrics[metric])
        mean, error = values.mean(axis=0), np.nan_to_num(standard_error(values))
        plot_band(
            curve.num_labelled, mean, mean - error, mean + error, ax, label=name, colour=COLOURS[i % len(COLOURS)]
        )
    ax.set_xlabel("labels")
    ax.set_ylabel(axis_label(metric))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def plot_band(
    x: Any, mean: Any, low: Any, high: Any, ax: Any, *, label: str, colour: str, dash: Any = "-", marker: str = "o"
) -> None:
    """One curve with its band; where a bound is NaN there is no band.

    Args:
        x: ``[R]``.
        mean: ``[R]``.
        low: ``[R]``.
        high: ``[R]``.
        ax: matplotlib axes to draw on.
        label: for the legend.
        colour: of both.
        dash: matplotlib's line style.
        marker: matplotlib's marker.
    """
    ax.plot(x, mean, color=colour, label=label, linestyle=dash, marker=marker, markersize=3)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def axis_label(metric: str) -> str:
    """What to write at an axis of a metric, with its unit if it has one.

    Args:
        metric: a name such as ``"nll"``.

    Returns:
        A label; names that are not known are readable already.

    Example:
        >>> from baal_jax.study import plots
        >>> plots.axis_label("nll"), plots.axis_label("balanced_accuracy")
        ('NLL (nats)', 'balanced accuracy')
    """
    return _LABELS.get(metric.lower(), metric.replace("_", " "))


def plot_reliability(bins: Mapping[str, Any], ax: Any = None, *, colours: Sequence[str] = COLOURS) -> Any:
    """Accuracy against confidence; on the diagonal a classifier knows how sure it may be.

    Args:
        bins: name → :class:`~baal_jax.metrics.Reliability`, or anything with its three arrays, averaged over seeds if
            they have a leading axis.
        ax: matplotlib axes to draw on; new ones by default.
        colours: in the order of the names.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is None:
        ax = checks.optional_import("matplotlib.pyplot", "plot").subplots(figsize=(4, 3.8), layout="constrained")[1]
    ax.plot((0, 1), (0, 1), color="grey", linewidth=0.8, linestyle=":")
    for i, (name, found) in enumerate(bins.items()):
        count, confidence, accuracy = (np.atleast_2d(np.asarray(part, np.float64)) for part in found)
        total = count.sum(axis=0)
        kept = total > 0  # an empty bin has neither accuracy nor confidence
        mean = [np.nansum(part * count, axis=0)[kept] / total[kept] for part in (confidence, accuracy)]
        ax.plot(*mean, color=colours[i % len(colours)], label=name, marker="o", markersize=3)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def plot_class_histogram(
    counts: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    ax: Any = None,
    *,
    colours: Sequence[str] = COLOURS,
) -> Any:
    """How many labels of each class every strategy asked for.

    Args:
        counts: name → ``[C]``, or ``[seeds, C]`` to be averaged.
        class_names: ``C`` names.
        ax: matplotlib axes to draw on; new ones by default.
        colours: in the order of the names.

    Returns:
        The axes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if ax is None:
        ax = checks.optional_import("matplotlib.pyplot", "plot").subplots(figsize=(6, 3.2), layout="constrained")[1]
    width = 0.8 / len(counts)
    for i, (name, found) in enumerate(counts.items()):
        mean = np.atleast_2d(np.asarray(found, np.float64)).mean(axis=0)
        places = np.arange(len(class_names)) + (i - (len(counts) - 1) / 2) * width
        ax.bar(places, mean, width, color=colours[i % len(colours)], label=name)
    ax.set_xticks(range(len(class_names)), class_names, rotation=45, ha="right")
    ax.set_ylabel("labels asked for")
    ax.legend(frameon=False)
    return ax


def plot_gallery(
    rows: Mapping[str, tuple[np.ndarray, Sequence[str]]], *, figure: Callable[[float, float], Any] | None = None
) -> Any:
    """Rows of images with a caption under each.

    Args:
        rows: title → (images ``[n, H, W, 1 or 3]``, integers or floats between 0 and 1; ``n`` captions).
        figure: makes the figure, of width and height in inches; one of pyplot's by default.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    columns = max(len(images) for images, _ in rows.values())
    size = (1.1 * columns, 1.5 * len(rows))
    if figure is None:
        plt = checks.optional_import("matplotlib.pyplot", "plot")
        drawn = plt.figure(figsize=size, layout="constrained")
    else:
        drawn = figure(*size)
    axes = drawn.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for line, (title, (images, captions)) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=9)
        for ax, picture, caption in zip(line, images, captions, strict=False):
            ax.imshow(np.squeeze(picture), cmap="gray")
            ax.text(0.5, -0.04, caption, transform=ax.transAxes, ha="center", va="top", fontsize=6)
    return drawn


def save_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Writes JSON under a temporary name and renames it, so that no half-written file is ever seen.

    Args:
        path: where to; folders are made.
        content: nested mappings and lists; NumPy and JAX arrays become lists, and numbers that are not finite null.

    Returns:
        The path.
    """
    return files.write_text(Path(path), json.dumps(files.plain(content), indent=1, allow_nan=False))
