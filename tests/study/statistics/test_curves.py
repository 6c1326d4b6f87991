"""Curves agree with SciPy and with sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import baal_jax as baal
from baal_jax import metrics
from baal_jax.study import statistics

NAN, INF = float("nan"), float("inf")


def test_a_band_is_the_t_interval_of_what_happened():
    values = np.random.default_rng(0).normal(size=(7, 4))
    values[2:, 1], values[1:, 2], values[:, 3] = NAN, NAN, NAN
    labels = np.arange(7)[:, None] + [1, 2, 3, 4]
    found = statistics.mean_curve(labels, values, 0.9)
    np.testing.assert_array_equal(found.num_labelled, [4.0, 2.5, 3.0, NAN])
    np.testing.assert_allclose(found.mean, [values[:, 0].mean(), values[:2, 1].mean(), values[0, 2], NAN])
    expected = [
        scipy.stats.ttest_1samp(part, 0).confidence_interval(0.9) for part in (values[:, 0], values[:2, 1])
    ]  # one seed has no spread, none has nothing
    np.testing.assert_allclose(np.transpose([found.low, found.high]), [*expected, [NAN, NAN], [NAN, NAN]])
    spread = values[:, 0].std(ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(statistics.standard_error(values)[[0, 2]], [spread, NAN])
    assert statistics.mean_curve([1, 2], values[:, :2]).num_labelled.tolist() == [1, 2]


def test_areas_by_hand():
    def area(values, **ends):
        return statistics.area([10, 20, 40], values, **ends)

    curve = [[0.5, 0.7, 0.9]]
    np.testing.assert_allclose(area(curve), (0.6 * 10 + 0.8 * 20) / 30)
    # From 15 to 30 the curve runs through 0.6, 0.7 and 0.8.
    np.testing.assert_allclose(area(curve, low=15, high=30), (0.65 * 5 + 0.75 * 10) / 15)
    np.testing.assert_allclose(area(curve, low=25), (0.75 + 0.9) / 2)
    np.testing.assert_allclose(area(curve, high=15), (0.5 + 0.6) / 2)
    np.testing.assert_allclose(area(curve, low=30, high=30), 0.8)
    for low, high in ((9, 30), (15, 41), (30, 15)):  # nothing is guessed beyond the ends
        assert np.isnan(area(curve, low=low, high=high)).all()
    np.testing.assert_allclose(area(2 * curve, low=[10, 20], high=[20, 30]), [0.6, 0.75])
    np.testing.assert_array_equal(statistics.area([10], [[0.5], [0.7]]), [0.5, 0.7])
    # Rounds that failed, or did not happen, whatever they say of labels, do not count; steps of no label are allowed.
    found = statistics.area([10, 15, 20, 40, 40, 5], [[0.5, NAN, 0.7, 0.9, 0.9, NAN]])
    np.testing.assert_allclose(found, area(curve))
    assert np.isnan(area(np.full((2, 3), NAN))).all()


def test_runs_that_stop_are_compared_where_all_have_been():
    labels = np.array([[10, 20, 30], [12, 22, 32]])
    long, short = np.array([[0.1, 0.2, 0.9], [0.4, 0.6, 0.8]]), np.array([[0.3, 0.4, NAN], [NAN, NAN, NAN]])
    # By itself, from where the latest of the runs begins to where the first of them ends.
    np.testing.assert_allclose(statistics.area(labels, long), [(0.16 * 8 + 0.55 * 10) / 18, (0.5 * 10 + 0.68 * 8) / 18])
    low, high = statistics.shared_range([(labels, long), (labels[0], short)])
    np.testing.assert_array_equal([low, high], [[10, 12], [20, 32]])
    np.testing.assert_allclose(statistics.area(labels, long, low=low, high=high), [0.15, 0.6])
    np.testing.assert_allclose(statistics.area(labels, short, low=low, high=high), [0.35, NAN])
    apart = statistics.shared_range([([1, 2], [[0.0, 1.0]]), ([5, 6], [[0.0, 1.0]]), ([1, 2], [[NAN, NAN]])])
    np.testing.assert_array_equal(apart, [[5], [2]])


def test_labels_to_target_in_both_directions():
    values = [[0.1, 0.9, 0.8], [0.2, 0.3, 0.4], [0.95, 0.1, 0.1], [NAN, 0.9, NAN]]
    np.testing.assert_array_equal(statistics.labels_to_target([10, 20, 30], values, 0.9), [20, INF, 10, 20])
    found = statistics.labels_to_target([10, 20, 30], values, 0.1, higher_is_better=False)
    np.testing.assert_array_equal(found, [10, INF, 20, INF])
    own = statistics.labels_to_target([[10, 20], [11, 21]], [[0.0, 1.0], [0.0, 1.0]], 1.0)
    np.testing.assert_array_equal(own, [20, 21])


def test_the_name_of_a_metric_tells_its_direction_or_it_is_asked_for():
    for name in ("accuracy", "top_5_accuracy", "f1", "average_precision", "joint_log_likelihood"):
        assert statistics.is_higher_better(name) is True, name
    for name in ("nll", "adaptive_ece", "crps_fair", "RMSE", "gaussian_nll"):
        assert statistics.is_higher_better(name) is False, name
    for name in ("coverage", "neg_log_loss", "false_negative_error", "top_k_accuracy", "val/accuracy", None, "x" * 999):
        with pytest.raises(
            ValueError, match=f"metric='{str(name)[:60]}' does not tell .* pass higher_is_better"
        ) as told:
            statistics.is_higher_better(name)
        assert len(str(told.value)) < 300
        assert statistics.is_higher_better(name, True) is not statistics.is_higher_better(name, higher_is_better=False)
    classes = metrics.classification(top_k=(2,), extra=("precision", "recall", "f1", "auroc", "average_precision"))
    more = metrics.classification(extra=("adaptive_ece", "classwise_ece"))
    real = metrics.regression(extra=("crps_draws", "crps_fair"))
    for metric_set, logits, targets in (
        (classes, (1, 3, 3), [0, 1, 2]),
        (more, (1, 3, 3), [0, 1, 2]),
        (real, (2, 3, 1), [0.0] * 3),
    ):
        summary = jax.eval_shape(lambda x, one=metric_set: one.summarise(baal.Predictions(x)), jnp.zeros(logits))
        values = jax.eval_shape(metric_set.compute, summary, jnp.array(targets))
        assert {statistics.is_higher_better(name) for name in values} <= {True, False}


def test_bad_input_is_named():
    for call, message in (
        (
            lambda: statistics.is_higher_better("f1", "lower"),
            "higher_is_better='lower' is no answer: pass True or False",
        ),
        (lambda: statistics.mean_curve([1, 2], [0.5, 0.6]), r"values has shape \(2,\), but \[seeds, R\] is needed"),
        (lambda: statistics.mean_curve([1], [[0.5]], 95), "confidence=95 must be between 0 and 1"),
        (lambda: statistics.mean_curve([1], [[0.5]], 1.0), r"confidence=1\.0 must be between 0 and 1"),
        (lambda: statistics.area([1, 2, 3], [[0.5, 0.6]]), r"num_labelled has shape \(3,\), but \(2,\)"),
        (lambda: statistics.area([20, 10], [[0.5, 0.6]]), "num_labelled must not decrease"),
        (lambda: statistics.area([20, NAN, 10], [[0.5, NAN, 0.6]]), "num_labelled must not decrease"),
        (lambda: statistics.area([20, NAN], [[0.5, 0.6]]), "num_labelled must not decrease"),
        (lambda: statistics.labels_to_target([1], [[0.5]], NAN), "target=nan is not a number"),
        (lambda: statistics.shared_range([]), "runs is empty"),
        (lambda: statistics.shared_range([([1], [[0.5]]), ([1], [[0.5], [0.6]])]), r"runs have \[1, 2\] seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
