"""What is special to metrics of classes: averages, Baal's numbers, the ends of bins, ties, and perfect predictions."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

import baal_jax as baal
from baal_jax import metrics
from tests.contracts.test_metrics import METRICS
from tests.fixtures import close, make_logits
from tests.oracles import metrics as oracle

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "baal.json").read_text())
AVERAGES = ("macro", "micro", "weighted", None)


def log_of(probs):
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs, np.float32))


def labels(*targets):
    return np.array(targets, np.int32)


@jax.jit
def every_average(log_probs, targets, zero_division):
    functions, options = (metrics.precision, metrics.recall, metrics.f1), {"zero_division": zero_division}
    return [[one(log_probs, targets, average=average, **options) for one in functions] for average in AVERAGES]


def test_precision_recall_and_f1_equal_scikit_learn_with_absent_classes():
    # Fault 28: Baal's precision is the recall.
    rng = np.random.default_rng(0)
    log_probs, targets = make_logits((40, 4)), rng.integers(-1, 4, 40).astype(np.int32)
    log_probs[:, [0, 2]] = -20  # class 0 is never predicted, class 1 never a target, class 2 neither
    targets[(targets == 1) | (targets == 2)] = 3
    known = targets >= 0
    for zero_division in (0.0, 1.0, np.nan):
        found = every_average(log_probs, targets, zero_division)
        for average, values in zip(AVERAGES, found, strict=True):
            options = {"labels": range(4)} if average is None else {"average": average}
            pairs = targets[known], log_probs[known].argmax(1)
            expected = precision_recall_fscore_support(*pairs, zero_division=zero_division, **options)
            close(values, [*expected[:3]], rtol=1e-6)
    unknown = every_average(log_probs, np.full(40, -1, np.int32), 0.0)
    assert all(np.isnan(value).all() for value in jax.tree.leaves(unknown))


def test_golden_numbers_of_baal():
    # Case 51. Baal's per-class entries are grouped by the true class as well.
    n, c, k = np.ogrid[:5, :3, :4]
    logits = np.sin(1 + n + 2 * c + 3 * k) * (1 + 0.5 * n)  # [N, C, S], Baal's layout
    golden = GOLDEN["metrics(mean P, y=[0,1,2,0,1])"]
    chosen = metrics.classification(num_bins=10, top_k=(2,), extra=("ece_per_class", "confusion_matrix"))
    summary = jax.jit(chosen.summarise)(baal.Predictions(np.moveaxis(logits, -1, 0).astype(np.float32)))
    found = jax.device_get(chosen.compute(summary, labels(0, 1, 2, 0, 1)))
    for name, other in (
        ("ece", "ECE10"),
        ("ece_per_class", "ECE_PerCLs"),
        ("confusion_matrix", "confusion(rows=true)"),
    ):
        np.testing.assert_allclose(found[name], golden[other], rtol=1e-6)
    accuracies = [found["accuracy"], found["top_2_accuracy"]]
    np.testing.assert_allclose(accuracies, golden["Accuracy_top1_top2"][0], rtol=1e-6)
    # Of Baal's own test; the class without examples is NaN where Baal reports 0.
    log_probs, targets = log_of([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]]), labels(2, 1)
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=3), 0.35, rtol=1e-6)
    np.testing.assert_allclose(metrics.ece_per_class(log_probs, targets, num_bins=3), [np.nan, 0.2, 0.5], rtol=1e-6)


def test_the_loss_of_the_model_average_is_taken_in_probability_space():
    # Case 41: −mean log mean_k p_k[y], where Baal scores the mean of the logits.
    logits, targets = make_logits((5, 24, 4), scale=2.0), np.random.default_rng(0).integers(0, 4, 24).astype(np.int32)
    found = metrics.nll(metrics.model_average(logits), targets)
    np.testing.assert_allclose(found, oracle.nll(oracle.model_average(logits), targets), rtol=1e-5)
    assert found < np.mean([baal.losses.cross_entropy(draw, targets) for draw in logits]) - 0.1


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
    log_probs = log_of([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.3, 0.7]])
    found = metrics.reliability(log_probs, labels(0, 0, 0, 0), num_bins=4)
    close([*found], [[0, 0, 2, 2], [np.nan, np.nan, 0.6, 0.875], [np.nan, np.nan, 0.5, 0.5]], rtol=1e-6)
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


def test_impossible_classes_ties_and_small_integers():
    log_probs = log_of([[1.0, 0.0], [0.5, 0.5]])
    for targets, expected in (((1, 0), np.inf), ((0, 0), np.log(2) / 2), ((-1, 0), np.log(2))):
        np.testing.assert_allclose(metrics.nll(log_probs, labels(*targets)), expected, rtol=1e-6)
    # Of equal probabilities the first class is the prediction.
    log_probs, targets = log_of([[0.25] * 4, [0.1, 0.4, 0.1, 0.4]]), labels(1, 3)
    assert [float(metrics.accuracy(log_probs, targets, k=k)) for k in (1, 2)] == [0.0, 1.0]
    np.testing.assert_array_equal(np.argwhere(metrics.confusion_matrix(log_probs, targets)), [[1, 0], [3, 1]])
    # 29 · 30 + 29 is no number of eight bits.
    targets, log_probs = np.array([0, 9, 20, 29], np.uint8), log_of(0.01 + 0.7 * np.eye(30)[[0, 9, 20, 29]])
    np.testing.assert_array_equal(
        np.argwhere(metrics.confusion_matrix(log_probs, targets)), targets[:, None] * [[1, 1]]
    )
    np.testing.assert_allclose(metrics.ece_per_class(log_probs, targets)[targets], 0.29, rtol=1e-5)
    for name, value in METRICS["classification"][1].compute(np.zeros((0, 3), np.float32), labels()).items():
        counts = name in ("confusion_matrix", "entropy_histogram", "reliability_num_examples")
        np.testing.assert_array_equal(value, 0 if counts else np.nan, err_msg=name)


scored = st.tuples(st.sampled_from([-np.inf, -3.0, -1.0, -0.5, 0.0]), st.sampled_from([-1, 0, 1]))


@jax.jit
def rankings(log_probs, targets):
    functions = (metrics.auroc, metrics.average_precision)
    return [[metric(log_probs, targets, average=average) for average in (None, "macro")] for metric in functions]


# In the example an unknown score equals the last known one, whose run it must not join.
@given(st.lists(scored, min_size=12, max_size=12))
@example([(0.0, 1), (-np.inf, 0), (-np.inf, -1), (-0.5, 0)] * 3)
@settings(phases=[Phase.explicit, Phase.generate])  # shrinking takes its time
def test_rankings_of_any_scores_equal_scikit_learn(cases):
    log_probs = np.array([[score, -1.0] for score, _ in cases], np.float32)
    targets = np.array([target for _, target in cases], np.int32)
    (auroc, _), (precise, _) = rankings(log_probs, targets)
    np.testing.assert_allclose(auroc, oracle.auroc(log_probs, targets), rtol=1e-6)
    np.testing.assert_allclose(precise, oracle.average_precision(log_probs, targets), rtol=1e-5)


def test_a_class_that_is_absent_or_alone_is_in_no_average():
    # Case 52.
    rng = np.random.default_rng(0)
    log_probs, two = make_logits((12, 4)) - 4, rng.integers(-1, 2, 12).astype(np.int32)
    one = np.where(two >= 0, 1, -1).astype(np.int32)
    for targets, undefined in ((two, ((0, 0, 1, 1), (0, 0, 1, 1))), (one, ((1, 1, 1, 1), (1, 0, 1, 1)))):
        for (each, mean), nan in zip(jax.device_get(rankings(log_probs, targets)), undefined, strict=True):
            np.testing.assert_array_equal(np.isnan(each), nan)
            expected = np.nan if all(nan) else np.mean(each[np.array(nan) == 0])
            np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    log_probs, targets = np.zeros((4, 2), np.float32), labels(0, 0, 0, 0)
    wrong = [(name, {"average": "mean"}, "'macro', 'micro', 'weighted'") for name in ("precision", "recall", "f1")]
    named = ("auroc", "average_precision", "classwise_ece")
    wrong += [(name, {"average": "micro"}, "average='micro' must be 'macro', or None") for name in named]
    binned = ("ece", "reliability", "ece_per_class", "classwise_ece", "adaptive_ece")
    wrong += [(name, {"num_bins": 0}, "num_bins=0") for name in binned]
    wrong += [("accuracy", {"k": 3}, "k=3 exceeds the 2 classes"), ("accuracy", {"k": 0}, "k=0 must be an integer")]
    for name, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            getattr(metrics, name)(log_probs, targets, **options)
    for name in ("accuracy", "nll", "brier", "ece", "confusion_matrix", "precision", "auroc", "classwise_ece"):
        for unfit in (targets[:3], targets[:, None], np.zeros(4, np.float32)):
            with pytest.raises(ValueError, match="do not fit log_probs"):
                getattr(metrics, name)(log_probs, unfit)
    with pytest.raises(ValueError, match="logits has shape"):
        metrics.model_average(log_probs)
