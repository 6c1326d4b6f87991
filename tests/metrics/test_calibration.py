"""What is special to calibration errors: the ends of bins, ties, and predictions that are perfect."""

import jax
import numpy as np

from baal_jax import metrics
from tests.fixtures import make_logits
from tests.metrics.test_classification import labels, log_of
from tests.oracles import metrics as oracle


def test_calibration_errors_of_baals_own_test():
    # Case 51; the class without examples is NaN where Baal reports 0.
    log_probs, targets = log_of([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]]), labels(2, 1)
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=3), 0.35, rtol=1e-6)
    np.testing.assert_allclose(metrics.ece_per_class(log_probs, targets, num_bins=3), [np.nan, 0.2, 0.5], rtol=1e-6)


def test_a_perfect_classifier_is_perfect():
    # Case 52: Baal gives 1e-4 and .6875.
    names = ("ece", "ece_per_class", "classwise_ece", "adaptive_ece", "nll", "brier", "accuracy", "average_precision")
    values = jax.jit(lambda *arrays: [getattr(metrics, name)(*arrays) for name in (*names, "auroc")])
    found = values(log_of(np.eye(3)[[0, 2, 1, 2]]), labels(0, 2, 1, 2))
    for value, expected in zip(found, [0, 0, 0, 0, 0, 0, 1, 1, 1], strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_bin_begins_with_its_lower_end_and_the_last_one_holds_its_upper():
    # Case 52: in a bin of its own the two gaps of a confidence of 1 would not cancel, and dropped it would leave 0.025.
    log_probs, targets = log_of([[1.0, 0.0], [0.95, 0.05]]), labels(1, 0)
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=10), 0.475, rtol=1e-5)
    found = metrics.reliability(
        log_of([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.3, 0.7]]), labels(0, 0, 0, 0), num_bins=4
    )
    np.testing.assert_array_equal(found.num_examples, [0, 0, 2, 2])
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, 0.6, 0.875], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, 0.5, 0.5], rtol=1e-6)


def test_the_ends_of_the_entropy_histogram_are_inside():
    log_probs = log_of([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    found = metrics.classification(diagnostics=True).compute(log_probs, labels(0, 0))["entropy_histogram"]
    np.testing.assert_array_equal(found, np.eye(20)[[0, 19]].sum(0))


def test_bins_of_equal_mass_may_be_one_or_more_than_the_examples():
    rng = np.random.default_rng(0)
    log_probs, targets = make_logits((24, 4)).round(0) - 2, rng.integers(-1, 4, 24).astype(np.int32)
    for num_bins in (1, 100):
        found = metrics.adaptive_ece(log_probs, targets, num_bins=num_bins)
        np.testing.assert_allclose(found, oracle.adaptive_ece(log_probs, targets, num_bins), rtol=1e-5)


def test_a_diagram_keeps_its_digits_where_many_examples_share_a_bin():
    # A sum of as many confidences in float32 would lose the difference of accuracy and confidence.
    log_probs = np.broadcast_to(log_of([0.7, 0.3]), (200_000, 2))
    found = metrics.reliability(log_probs, (np.arange(200_000) % 10 >= 7).astype(np.int32), num_bins=2)
    np.testing.assert_allclose([found.confidence[1], found.accuracy[1]], 0.7, rtol=2e-6)
