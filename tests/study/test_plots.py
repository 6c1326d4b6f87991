"""Pictures show the numbers they are given."""

import numpy as np
import pytest

from baal_jax import metrics
from baal_jax.study import plots


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_reliability_averages_seeds_by_their_counts():
    bins = metrics.Reliability(
        num_examples=np.array([[0.0, 1.0, 3.0], [0.0, 3.0, 0.0]]),
        confidence=np.array([[np.nan, 0.4, 0.9], [np.nan, 0.6, np.nan]]),
        accuracy=np.array([[np.nan, 1.0, 0.5], [np.nan, 0.2, np.nan]]),
    )
    ax = plots.plot_reliability({"bald": bins, "random": metrics.Reliability(*(part[0] for part in bins))})
    curve = ax.get_lines()[1]
    np.testing.assert_allclose(curve.get_xdata(), [0.55, 0.9])
    np.testing.assert_allclose(curve.get_ydata(), [0.4, 0.5])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bald", "random"]


def test_class_histogram_has_a_bar_a_class_and_strategy():
    ax = plots.plot_class_histogram({"a": np.array([[1, 2], [3, 4]]), "b": np.array([5, 6])}, ["cat", "dog"])
    assert [bar.get_height() for bar in ax.patches] == [2, 3, 5, 6]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in ax.patches]
    np.testing.assert_allclose(centres, [-0.2, 0.8, 0.2, 1.2])


def test_gallery_shows_every_image_with_its_caption():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    figure = plots.plot_gallery({"most": (images, ["x", "y"]), "least": (images[:1, ..., :1] / 255, ["z"])})
    shown = [ax for ax in figure.axes if ax.get_images()]
    assert [ax.texts[0].get_text() for ax in shown] == ["x", "y", "z"]
    np.testing.assert_array_equal(shown[1].get_images()[0].get_array(), images[1])
    assert figure.axes[0].get_title(loc="left") == "most"


def test_axes_that_are_given_are_drawn_on():
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    assert plots.plot_class_histogram({"a": np.ones(2)}, ["x", "y"], ax) is ax
    assert plots.plot_reliability({"a": metrics.Reliability(np.ones(2), np.ones(2), np.ones(2))}, ax) is ax
