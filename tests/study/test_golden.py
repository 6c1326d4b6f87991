"""Statistics, summaries, pages and figures of studies that nobody ran, as they were when they were looked at."""

from unittest import mock

import harness
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from baal_jax import metrics
from baal_jax._util import __version__
from baal_jax.study import plots, results, statistics
from baal_jax.study.report import _content, _figures, _page
from tests.study import golden
from tests.study.files import make_results
from tests.study.test_report import Page

NAN = float("nan")


def some_of(study, missing=(), **seeds):
    runs = {
        name: jax.tree.map(lambda leaf, name=name: leaf[seeds.get(name, ...)], study.runs[name]) for name in study.runs
    }
    return study._replace(runs={name: run for name, run in runs.items() if name not in missing})


def described(study, **description):
    study.description.update(description)
    return study


def diverged(study):
    bald, random = (study.runs[name].metrics["nll"] for name in ("bald", "random"))
    bald[2, 3], random[1], random[0, 0] = np.inf, np.nan, np.nan
    return study


def with_targets(study):
    for runs in study.runs.values():
        runs.diagnostics["query_targets"] = np.where(runs.indices >= 0, runs.indices % 3, np.nan)
    return study


# Statistics

LABELS, CURVE = np.array([[10, 20, 30], [12, 22, 32]]), [[0.5, 0.7, 0.9]]
LONG, SHORT = [[0.1, 0.2, 0.9], [0.4, 0.6, 0.8]], [[0.3, 0.4, NAN], [NAN, NAN, NAN]]
ENDS = ((10, 40), (15, 30), (25, 40), (10, 15), (30, 30), (9, 30), (15, 41), (30, 15))  # the last three are nowhere
REACHED = [[0.1, 0.9, 0.8], [0.2, 0.3, 0.4], [0.95, 0.1, 0.1], [NAN, 0.9, NAN]]
HIGHER = ("accuracy", "top_5_accuracy", "f1", "average_precision", "joint_log_likelihood", "exact_match")
LOWER = ("nll", "adaptive_ece", "crps_fair", "RMSE", "gaussian_nll")
A, B = np.random.default_rng(0).normal(size=(2, 9))
DRAWN = ((99, 0.95), (99, 0.9), (100, 0.9), (199, 0.95), (99, 0.99))  # of the last, no draw leaves 0.5 %
AREAS = {"high": A + 0.1, "base": A, "low": A - 0.1 * np.arange(1, 10)}
RANDOM = np.linspace(0.5, 0.6, 8)
CLEAR, ALIKE = RANDOM + 0.1 + 0.01 * np.arange(8), RANDOM + 0.01 * (-1.0) ** np.arange(8)
ORDER = np.arange(5.0)[:, None] + 0.1 * np.random.default_rng(0).uniform(-1, 1, (5, 12))
TABLE = np.random.default_rng(47).integers(0, 10, (6, 6))  # far apart, but Friedman's test does not reject


def verdicts(**areas):
    return statistics.compare_all(areas, "random", metric="f1")


STATISTICS = {
    "areas": lambda: [statistics.area([10, 20, 40], CURVE, low=low, high=high) for low, high in ENDS],
    "an area": lambda: statistics.area([10, 20, 40], CURVE),
    "areas of several": lambda: statistics.area([10, 20, 40], 2 * CURVE, low=[10, 20], high=[20, 30]),
    "areas of a point": lambda: statistics.area([10], [[0.5], [0.7]]),
    "areas with failed rounds": lambda: statistics.area([10, 15, 20, 40, 40, 5], [[0.5, NAN, 0.7, 0.9, 0.9, NAN]]),
    "areas where all have been": lambda: [statistics.area(LABELS, values) for values in (LONG, SHORT)],
    "shared range": lambda: statistics.shared_range([(LABELS, LONG), (LABELS[0], SHORT)]),
    "ranges apart": lambda: statistics.shared_range([([1, 2], [[0, 1]]), ([5, 6], [[0, 1]]), ([1, 2], [[NAN, NAN]])]),
    "labels to a target": lambda: statistics.labels_to_target([10, 20, 30], REACHED, 0.9),
    "labels down to it": lambda: statistics.labels_to_target([10, 20, 30], REACHED, 0.1, higher_is_better=False),
    "labels of one's own": lambda: statistics.labels_to_target([[10, 20], [11, 21]], [[0.0, 1.0], [0.0, 1.0]], 1.0),
    "directions": lambda: [statistics.is_higher_better(name) for name in (*HIGHER, *LOWER)],
    "comparison": lambda: [statistics.compare(A, B), statistics.compare(B, A)],
    "comparison of what is finite": lambda: statistics.compare([*A, NAN, np.inf, np.inf], [*B, 1.0, 1.0, np.inf]),
    "intervals": lambda: [
        statistics.compare(A, 0 * A, num_resamples=n, confidence=share, seed=7) for n, share in DRAWN
    ],
    "intervals of shares": lambda: [
        statistics.labels_saved(abs(A) + 1, abs(B) + 2, num_resamples=n, confidence=p, seed=4) for n, p in DRAWN
    ],
    "one seed drawn every time": lambda: statistics.compare([0, 0, 0, 1, 0.1], np.zeros(5), num_resamples=99),
    "comparison of one seed": lambda: statistics.compare([0.9], [0.5]),
    "comparison of three seeds": lambda: statistics.compare([0.9, 0.8, 0.7], [0.5, 0.6, 0.6]),
    "comparison of none": lambda: statistics.compare([NAN], [0.5]),
    "comparison of constants": lambda: [statistics.compare([value] * 6, [0.5] * 6) for value in (0.5, 0.75)],
    "Holm": lambda: [
        statistics.holm(p) for p in ([0.01, 0.04, 0.03, 0.005], [0.022, 0.021, 0.02], [0.5, NAN, 0.02, 0.9], [])
    ],
    "verdicts": lambda: statistics.compare_all(AREAS, "base", metric="f1", confidence=0.9, num_resamples=199, seed=3),
    "verdicts of losses": lambda: statistics.compare_all(AREAS, "base", metric="nll"),
    "verdicts turned over": lambda: statistics.compare_all(AREAS, "base", metric="f1", higher_is_better=False),
    "verdicts of five and six seeds": lambda: [verdicts(random=RANDOM[:n], bald=CLEAR[:n]) for n in (5, 6)],
    "verdicts of many": lambda: [verdicts(random=RANDOM, **dict.fromkeys("abcdefg"[:n], ALIKE)) for n in (6, 7)],
    "verdicts of missing seeds": lambda: verdicts(
        random=RANDOM, a=[*CLEAR[:5], NAN, NAN, NAN], b=CLEAR, c=RANDOM * NAN
    ),
    "labels saved": lambda: statistics.labels_saved([30, 40, 30, 35, 30, 30], [60, 50, np.inf, 70, 60, 60]),
    "labels saved by all": lambda: statistics.labels_saved([1.0, 1.0], [2.0, 2.0]),
    "labels saved, half reached": lambda: statistics.labels_saved([20, 20], [40, np.inf]),
    "labels saved, not reached": lambda: statistics.labels_saved([np.inf] * 3, [np.inf, np.inf, 20]),
    "labels saved by two of three": lambda: statistics.labels_saved([NAN, 20, 30], [20, 40, 60]),
    "labels saved by one": lambda: statistics.labels_saved([NAN, 20], [20, 40]),
    "labels saved by none": lambda: statistics.labels_saved([NAN], [20]),
    "ranks": lambda: [
        statistics.rank(dict(zip("abcde", ORDER, strict=True)), higher_is_better=up) for up in (True, False)
    ],
    "ranks of some": lambda: statistics.rank({"a": np.zeros(40), "b": np.ones(40), "c": 2 - np.arange(40) % 2}),
    "ranks with care": lambda: statistics.rank(dict(zip("abcdef", TABLE, strict=True)), confidence=0.5),
    "ranks of equals": lambda: statistics.rank({name: np.ones(6) for name in "abc"}),
    "ranks with gaps": lambda: statistics.rank({"a": [1.0, 2.0, NAN], "b": [2.0, 3.0, 9.0]}),
    "ranks of nothing": lambda: statistics.rank({"a": [NAN, 1.0], "b": [1.0, NAN]}),
}

# Summaries


def summarised(study, *arguments, **options):
    found = statistics.summary(study, *arguments, **options)
    return {"numbers": found, "text": statistics.markdown(found)}


DIFFERENT = {"effect": {"bald": 0.06, "entropy": -0.06}}
STOPS = {"bald": [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]}
SUMMARIES = {
    "higher is better": lambda: summarised(make_results(seeds=12, rounds=8, **DIFFERENT)),
    "lower is better": lambda: summarised(make_results(seeds=10, **DIFFERENT), "nll", target=0.5, confidence=0.9),
    "another baseline": lambda: summarised(make_results(seeds=10, **DIFFERENT), "nll", "bald"),
    "turned over": lambda: summarised(make_results(seeds=10, **DIFFERENT), "nll", higher_is_better=True),
    "a target of its own": lambda: summarised(described(make_results(seeds=9), target=0.6)),
    "runs that stopped": lambda: summarised(make_results(seeds=10, stopped=STOPS, effect={"bald": 0.05})),
    "a strategy that stopped": lambda: summarised(make_results(seeds=10, stopped={"bald": 0})),
    "a baseline that stopped": lambda: summarised(make_results(seeds=10, stopped={"random": 0})),
    "missing seeds": lambda: summarised(some_of(make_results(("random", "bald|x"), seeds=9), random=slice(2, None))),
    "diverged": lambda: summarised(diverged(make_results(("random", "bald"), seeds=8)), "nll", target=0.2),
    "one strategy": lambda: summarised(make_results(("random",))),
    "one seed": lambda: summarised(make_results(seeds=1)),
    "one round": lambda: summarised(make_results(rounds=1)),
    "regression": lambda: summarised(make_results(classes=None)),
    "not reached": lambda: summarised(make_results(seeds=20), target=2.0),
    "numbers": lambda: [*map(statistics.number, (0.0, 1e-3, 0.00099, 9999.5, 1e4, np.inf, -np.inf, NAN))],
}


def rounds():
    """Of seeds 4 and 7 one stopped, one strategy lacks a metric, and a third needs nine digits."""
    study = make_results(("random", "bald"), seeds=2, rounds=3, stopped={"bald": [3, 1]})
    study.runs["bald"].seeds[:] = [4, 7]
    study.runs["random"].metrics["accuracy"][0, 0] = 1 / 3
    del study.runs["random"].metrics["brier"], study.runs["random"].metrics["nll"], study.runs["bald"].metrics["nll"]
    return results.table(study)


SUMMARIES["all rounds"] = rounds

# Pages


def page(study, **limits):
    with mock.patch.dict(vars(_content), limits):
        found = Page(study)
    (found.data["queries"]["sheet"] or {}).pop("uri", None)  # another zlib compresses otherwise
    text = " ".join(found.text.replace(__version__, "").split())
    return {"data": found.data, "text": text, "chart": _page._chart(found.data)}


def small(**options):
    return make_results(**{"seeds": 3, "rounds": 4, **options})


LATE = {"stopped": {"bald": [4, 2, 4], "entropy": 0}, "pictures": 9, "noise": 0.2}
NESTED = {"rate": 1e-3, "nested": {"deep": [1, 2, 5]}, "flag": True, "nothing": None, "e": {}, "pair": [3, 4]}
NESTED |= {"row": [[3, 4, 5], [0.1 + 0.2]]}
PAGES = {
    "page of runs that stopped": lambda: page(described(small(**LATE), class_counts=[10, 20, 30], num_pool=1234)),
    "page with findings": lambda: page(
        make_results(seeds=8, rounds=2, effect={"bald": 0.1, "entropy": -0.1}, noise=0.01)
    ),
    "page of an unfinished study": lambda: page(some_of(diverged(small(seeds=5)), ("entropy",), random=[0, 1, 4])),
    "page without its baseline": lambda: page(some_of(small(), ("random",))),
    "page of regression": lambda: page(small(classes=None, pictures=3)),
    "page of nothing": lambda: page(small()._replace(runs={})),
    "page with targets": lambda: page(with_targets(small())),
    "page of a seed": lambda: page(described(make_results(("random",), seeds=1, rounds=1), config=NESTED)),
    "page with a part of the picks": lambda: page(small(pictures=20), _MOST_PICKS=2 * 3 * 4 * 5, _MOST_BYTES=4 * 64),
    "page with less": lambda: page(small(), _MOST_PICKS=3 * 4 * 2, _MOST_SEED_VALUES=3 * 3 * 4 * 4 - 1),
}

# Figures


def axes(ax):
    """What is drawn on axes, by content rather than by pixels."""
    stairs, bars = ([patch for patch in ax.patches if hasattr(patch, "get_data") == wanted] for wanted in (True, False))
    shown = ax.get_legend()
    return {
        "words": [ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_title(loc="left")],
        "legend": [text.get_text() for text in shown.get_texts()] if shown else [],
        "texts": [text.get_text() for text in ax.texts],
        "limits": [ax.get_xlim(), ax.get_ylim(), ax.axison],
        "lines": [
            (line.get_label(), line.get_color(), line.get_marker(), line.is_dashed(), line.get_xydata())
            for line in ax.get_lines()
        ],
        "bars": [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in bars],
        "stairs": [(patch.get_data().values, patch.get_data().edges) for patch in stairs],
        "bands": [sorted({*map(tuple, path.vertices)}) for band in ax.collections for path in band.get_paths()],
        "images": [np.asarray(image.get_array()).ravel()[::7] for image in ax.get_images()],
    }


def figure(drawn):
    legends = [[text.get_text() for text in shown.get_texts()] for shown in drawn.legends]
    return {
        "axes": [axes(ax) for ax in drawn.axes],
        "legends": legends,
        "texts": [text.get_text() for text in drawn.texts],
    }


VALUES = np.array([[0.5, 0.6, 0.9], [0.7, 0.8, NAN], [0.6, 0.6, NAN]])
CURVES = {"random": plots.Curves(np.array([10, 20, 40]), {"nll": VALUES})}
CURVES["bald"] = plots.Curves(np.array([15, 25, 45]), {"nll": VALUES[:2]})
BINS = metrics.Reliability(
    np.array([[0, 1, 3], [0, 3, 0]]),
    np.array([[NAN, 0.4, 0.9], [NAN, 0.6, NAN]]),
    np.array([[NAN, 1, 0.5], [NAN, 0.2, NAN]]),
)


def table():
    accuracy, nll, labels = (
        np.array([[0.5, 0.8], [0.7, 0.9], [0.6, 0.95]]),
        np.array([[1.0, 0.5]] * 3),
        np.array([10, 20]),
    )
    curves = {"bald": plots.Curves(labels, {"accuracy": accuracy, "nll": nll})}
    curves["random"] = plots.Curves(labels, {"accuracy": accuracy / 2, "nll": 2 * nll})
    return [harness.learning_curve_table(curves), harness.learning_curve_table(curves, target=0.7)]


def gallery():
    images, given = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), Figure()
    rows = {"most": (images, ["x", "y"]), "least": (images[:1, ..., :1] / 255, ["z"])}
    assert plots.plot_gallery(rows, given) is given
    return figure(given)


def drawn(plot, *arguments, **options):
    ax = Figure().subplots()
    assert plot(*arguments, ax=ax, **options) is ax
    return axes(ax)


FLAT = {"a": plots.Curves(np.array([10, 20, 40]), {"accuracy": 0.5 + 0 * VALUES[:2]})}
COUNTS = {"a": np.array([[1, 2], [3, 4]]), "b": np.array([5, 6])}
MANY = (*"abcde", "f/g")
FIGURES = {
    "curves": lambda: drawn(
        plots.plot_learning_curves, CURVES, "nll", styles=plots.styles_of(["bald", "random"], "random")
    ),
    "flat curves": lambda: drawn(plots.plot_learning_curves, FLAT),
    "reliability": lambda: drawn(plots.plot_reliability, {"bald": BINS, "random": [part[0] for part in BINS]}),
    "pooled": lambda: plots.pooled(*BINS),
    "classes": lambda: drawn(plots.plot_class_histogram, COUNTS, ["cat", "dog"]),
    "gallery": gallery,
    "table": table,
    "styles": lambda: plots.styles_of([f"s{i}" for i in range(40)], baseline="s3"),
    "labels": lambda: [plots.axis_label(name) for name in ("RMSE", "ece", "top_5_accuracy", "nll", "brier")],
    "figures": lambda: {name: figure(one) for name, one in _figures._all(small(**{**LATE, "pictures": 40}))},
    "many figures": lambda: {name: figure(one) for name, one in _figures._all(small(strategies=MANY, rounds=2))},
}
CASES = {**STATISTICS, **SUMMARIES, **PAGES, **FIGURES}


@pytest.mark.parametrize("name", CASES)
def test_it_is_as_it_was(name):
    golden.is_as_it_was("studies.json", name, CASES[name]())


if __name__ == "__main__":
    golden.write("studies.json", CASES)
