"""Pictures show the numbers they are given."""

import numpy as np
import pytest

from baal_jax import metrics
from baal_jax.study import plots, statistics

NAN = float("nan")


@pytest.fixture(autouse=True)
def plt():
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def words(ax):
    return [ax.get_xlabel(), ax.get_ylabel(), *(text.get_text() for text in ax.get_legend().get_texts())]


def test_learning_curves_are_means_with_bands_cut_off_at_their_own_height(plt):
    labels, values = np.array([10, 20, 40]), np.array([[0.5, 0.6, 0.9], [0.7, 0.8, NAN], [0.6, 0.6, NAN]])
    curves = {"random": plots.Curves(labels, {"nll": values}), "bald": plots.Curves(labels + 5, {"nll": values[:2]})}
    styles = plots.styles_of(["bald", "random"], baseline="random")
    ax = plots.plot_learning_curves(curves, "nll", plt.figure().subplots(), styles=styles)
    for (name, (x, shown)), line, band in zip(curves.items(), ax.get_lines(), ax.collections, strict=True):
        expected = statistics.mean_curve(x, shown["nll"])
        np.testing.assert_allclose(line.get_xydata(), np.transpose([expected.num_labelled, expected.mean]))
        assert (line.get_color(), line.get_marker(), line.get_label()) == (
            styles[name].colour,
            styles[name].marker,
            name,
        )
        assert line.is_dashed() == (styles[name].dashes != "none")
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
        edges = [*zip(x[:2], expected.low.round(6), strict=False), *zip(x[:2], expected.high.round(6), strict=False)]
        assert corners == set(edges)  # of one seed there is no band
    assert words(ax) == ["labels", "NLL (nats)", "random", "bald"]
    # The curves are between 0.6 and 0.9, the bands between −0.67 and 1.97: there is room for as much again.
    np.testing.assert_allclose(ax.get_ylim(), [0.3, 1.2])
    tight = plots.plot_learning_curves({"a": plots.Curves(labels, {"accuracy": 0.5 + 0 * values[:2]})})
    np.testing.assert_allclose(tight.get_ylim(), [0.4995, 0.5005])
    shown = [plots.axis_label(name) for name in ("RMSE", "ece", "top_5_accuracy")]
    assert shown == ["RMSE", "expected calibration error", "top 5 accuracy"]


def test_the_table_of_learning_curves_has_their_numbers():
    accuracy, nll = np.array([[0.5, 0.8], [0.7, 0.9], [0.6, 0.95]]), np.array([[1.0, 0.5]] * 3)
    curves = {
        "bald": plots.Curves(np.array([10, 20]), {"accuracy": accuracy, "nll": nll}),
        "random": plots.Curves(np.array([10, 20]), {"accuracy": accuracy / 2, "nll": 2 * nll}),
    }
    lines = plots.learning_curve_table(curves).splitlines()
    assert lines[2] == "| 10 | 0.600 ± 0.058  1.000 | 0.300 ± 0.029  2.000 |"
    assert lines[-1] == "- Median labels to 90% accuracy: bald: 20, random: not reached."
    assert "70% accuracy: bald: 20, random" in plots.learning_curve_table(curves, target=0.7)


def test_styles_differ_in_all_and_later_in_how_their_parts_go_together():
    styles = plots.styles_of([f"s{i}" for i in range(40)], baseline="s3")
    assert (styles["s3"].number, styles["s3"].colour) == (6, "#000000")
    others = [style for name, style in styles.items() if name != "s3"]
    assert [style.number for style in others[:9]] == [0, 1, 2, 3, 4, 5, 7, 0, 1]  # all but black
    assert len({style.colour for style in others[:7]}) == len({(one.dashes, one.marker) for one in others[:7]}) == 7
    assert len({(style.colour, style.dashes, style.marker) for style in styles.values()}) == 40


def test_reliability_averages_seeds_by_their_counts(plt):
    count, confidence = np.array([[0, 1, 3], [0, 3, 0]]), np.array([[NAN, 0.4, 0.9], [NAN, 0.6, NAN]])
    bins = metrics.Reliability(count, confidence, np.array([[NAN, 1.0, 0.5], [NAN, 0.2, NAN]]))
    axes = plt.figure().subplots()
    ax = plots.plot_reliability({"bald": bins, "random": metrics.Reliability(*(part[0] for part in bins))}, axes)
    assert ax is axes
    shown = [line.get_xydata().tolist() for line in ax.get_lines()]
    for found, expected in zip(
        shown, ([[0, 0], [1, 1]], [[0.55, 0.4], [0.9, 0.5]], [[0.4, 1], [0.9, 0.5]]), strict=True
    ):
        np.testing.assert_allclose(found, expected)
    assert (words(ax), ax.get_xlim(), ax.get_ylim()) == (["confidence", "accuracy", "bald", "random"], (0, 1), (0, 1))
    np.testing.assert_allclose(plots.pooled(*bins), [[0, 4, 3], [NAN, 0.55, 0.9], [NAN, 0.4, 0.5]])


def test_class_histogram_has_a_bar_a_class_and_strategy():
    ax = plots.plot_class_histogram({"a": np.array([[1, 2], [3, 4]]), "b": np.array([5, 6])}, ["cat", "dog"])
    assert [bar.get_height() for bar in ax.patches] == [2, 3, 5, 6]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    np.testing.assert_allclose(centres, [-0.2, 0.8, 0.2, 1.2])
    assert words(ax) == ["", "labels queried", "a", "b"]


def test_gallery_shows_every_image_with_its_caption(plt):
    images, given = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), plt.figure()
    figure = plots.plot_gallery({"most": (images, ["x", "y"]), "least": (images[:1, ..., :1] / 255, ["z"])})
    shown = [ax for ax in figure.axes if ax.get_images()]
    assert [ax.texts[0].get_text() for ax in shown] == ["x", "y", "z"]
    for ax, picture in zip(shown, [*images, images[0, ..., 0] / 255], strict=True):
        np.testing.assert_array_equal(ax.get_images()[0].get_array(), picture)
    assert [figure.axes[i].get_title(loc="left") for i in (0, 2)] == ["most", "least"]
    assert not any(ax.axison for ax in figure.axes)
    assert plots.plot_gallery({"one": (images[:1], ["x"])}, given) is given
    assert len(given.axes) == 1
