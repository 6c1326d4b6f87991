"""What is special to metrics of classes: averages over classes, Baal's numbers, and values that define them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
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
    return [
        metric(log_probs, targets, average=average, zero_division=zero_division)
        for average in AVERAGES
        for metric in (metrics.precision, metrics.recall, metrics.f1)
    ]


def test_precision_recall_and_f1_equal_scikit_learn_with_absent_classes():
    # Fault 28: Baal's precision is the recall.
    rng = np.random.default_rng(0)
    log_probs, targets = make_logits((40, 4)), rng.integers(-1, 4, 40).astype(np.int32)
    log_probs[:, [0, 2]] = -20  # class 0 is never predicted, class 1 never a target, class 2 neither
    targets[(targets == 1) | (targets == 2)] = 3
    known = targets >= 0
    for zero_division in (0.0, 1.0, np.nan):
        found = every_average(log_probs, targets, zero_division)
        for average, values in zip(AVERAGES, zip(*[iter(found)] * 3, strict=True), strict=True):
            expected = precision_recall_fscore_support(
                targets[known],
                log_probs[known].argmax(1),
                labels=range(4) if average is None else None,
                average=average,
                zero_division=zero_division,
            )
            close(values, expected[:3], rtol=1e-6)
    unknown = every_average(log_probs, np.full(40, -1, np.int32), 0.0)
    assert all(np.isnan(value).all() for value in unknown)


def test_golden_numbers_of_baal():
    # Case 51. Baal's per-class entries are grouped by the true class as well, and no class is empty here.
    n, c, k = np.ogrid[:5, :3, :4]
    logits = np.sin(1 + n + 2 * c + 3 * k) * (1 + 0.5 * n)  # [N, C, S], Baal's layout
    golden = GOLDEN["metrics(mean P, y=[0,1,2,0,1])"]

    chosen = metrics.classification(num_bins=10, top_k=(2,), extra=("ece_per_class", "confusion_matrix"))
    summary = jax.jit(chosen.summarise)(baal.Predictions(np.moveaxis(logits, -1, 0).astype(np.float32)))
    found = jax.device_get(chosen.compute(summary, labels(0, 1, 2, 0, 1)))
    np.testing.assert_allclose(found["ece"], golden["ECE10"], rtol=1e-6)
    np.testing.assert_allclose(found["ece_per_class"], golden["ECE_PerCLs"], rtol=1e-6)
    accuracies = [found["accuracy"], found["top_2_accuracy"]]
    np.testing.assert_allclose(accuracies, golden["Accuracy_top1_top2"][0], rtol=1e-6)
    np.testing.assert_array_equal(found["confusion_matrix"], golden["confusion(rows=true)"])


def test_the_loss_of_the_model_average_is_taken_in_probability_space():
    # Case 41: −mean log mean_k p_k[y], where Baal scores the mean of the logits.
    logits, targets = make_logits((5, 24, 4), scale=2.0), np.random.default_rng(0).integers(0, 4, 24).astype(np.int32)
    loss = jax.jit(lambda logits, targets: metrics.nll(metrics.model_average(logits), targets))
    found = float(loss(logits, targets))
    np.testing.assert_allclose(found, oracle.nll(oracle.model_average(logits), targets), rtol=1e-5)
    # Of one draw it is the ordinary one, and by Jensen the average is at most the mean of those.
    singles = [float(loss(draw[None].repeat(5, axis=0), targets)) for draw in logits]
    ordinary = jax.jit(jax.vmap(baal.losses.cross_entropy, in_axes=(0, None)))(logits, targets)
    np.testing.assert_allclose(singles, np.mean(ordinary, axis=1), rtol=1e-5)
    assert found < np.mean(singles) - 0.1
    assert abs(found - float(loss(logits.mean(0)[None].repeat(5, axis=0), targets))) > 0.1


def test_an_impossible_class_is_infinitely_surprising_only_where_it_is_the_target():
    log_probs = log_of([[1.0, 0.0], [0.5, 0.5]])
    for targets, expected in (((1, 0), np.inf), ((0, 0), np.log(2) / 2), ((-1, 0), np.log(2))):
        np.testing.assert_allclose(metrics.nll(log_probs, labels(*targets)), expected, rtol=1e-6)


def test_of_equal_probabilities_the_first_class_is_the_prediction():
    log_probs, targets = log_of([[0.25] * 4, [0.1, 0.4, 0.1, 0.4]]), labels(1, 3)
    assert [float(metrics.accuracy(log_probs, targets, k=k)) for k in (1, 2)] == [0.0, 1.0]
    predicted = np.argwhere(np.asarray(metrics.confusion_matrix(log_probs, targets)))
    np.testing.assert_array_equal(predicted, [[1, 0], [3, 1]])


def test_any_integer_type_labels_many_classes():
    # 29 · 30 + 29 is no number of eight bits.
    targets, log_probs = np.array([0, 9, 20, 29], np.uint8), log_of(0.01 + 0.7 * np.eye(30)[[0, 9, 20, 29]])
    found = jax.device_get((metrics.confusion_matrix(log_probs, targets), metrics.ece_per_class(log_probs, targets)))
    np.testing.assert_array_equal(np.argwhere(found[0]), [[i, i] for i in (0, 9, 20, 29)])
    np.testing.assert_allclose(found[1][targets], 0.29, rtol=1e-5)


def test_without_examples_all_is_nan_and_counts_are_zero():
    everything = METRICS["classification"][1]
    for name, value in everything.compute(np.zeros((0, 3), np.float32), labels()).items():
        counts = name in ("confusion_matrix", "entropy_histogram", "reliability_num_examples")
        np.testing.assert_array_equal(value, 0 if counts else np.nan, err_msg=name)


def test_what_does_not_fit_is_refused():
    log_probs, targets = np.zeros((4, 2), np.float32), labels(0, 0, 0, 0)
    for name in ("accuracy", "nll", "brier", "ece", "confusion_matrix", "precision", "auroc", "classwise_ece"):
        for wrong in (targets[:3], targets[:, None], np.zeros(4, np.float32)):
            with pytest.raises(ValueError, match="do not fit log_probs"):
                getattr(metrics, name)(log_probs, wrong)
    for name in ("precision", "recall", "f1"):
        with pytest.raises(ValueError, match="average='mean' must be 'macro', 'micro', 'weighted'"):
            getattr(metrics, name)(log_probs, targets, average="mean")
    for name in ("auroc", "average_precision", "classwise_ece"):
        with pytest.raises(ValueError, match="average='micro' must be 'macro', or None"):
            getattr(metrics, name)(log_probs, targets, average="micro")
    for name in ("ece", "reliability", "ece_per_class", "classwise_ece", "adaptive_ece"):
        with pytest.raises(ValueError, match="num_bins=0"):
            getattr(metrics, name)(log_probs, targets, num_bins=0)
    for k, message in ((3, "k=3 exceeds the 2 classes"), (0, "k=0 must be an integer")):
        with pytest.raises(ValueError, match=message):
            metrics.accuracy(log_probs, targets, k=k)
    with pytest.raises(ValueError, match="logits has shape"):
        metrics.model_average(log_probs)
