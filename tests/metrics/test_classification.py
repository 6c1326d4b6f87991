"""Precision, recall, F1, rankings and calibration against scikit-learn, slow oracles and what defines them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

import baal_jax as baal
from baal_jax import metrics
from tests.oracles import metrics as oracle

EVERYTHING = (
    "precision",
    "recall",
    "f1",
    "confusion_matrix",
    "auroc",
    "average_precision",
    "adaptive_ece",
    "classwise_ece",
    "ece_per_class",
)


def random_case(num_examples=40, num_classes=4, seed=0, unknown=0.2, decimals=8):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.ones(num_classes), num_examples)).round(decimals).astype(np.float32)
    targets = np.where(rng.random(num_examples) < unknown, -1, rng.integers(0, num_classes, num_examples))
    return log_probs, targets.astype(np.int32)


def log_of(probs):
    with np.errstate(divide="ignore"):
        return np.log(np.array(probs, np.float32))


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
def test_precision_recall_and_f1_equal_scikit_learn_with_absent_classes(average):
    log_probs, targets = random_case()
    log_probs[:, 0] = -20  # class 0 is never predicted, class 1 never a target, class 2 neither
    log_probs[:, 2] = -20
    targets[(targets == 1) | (targets == 2)] = 3
    known, labels = targets >= 0, range(4) if average is None else None
    assert {0, 3} == set(targets[known])
    for zero_division in (0.0, 1.0, np.nan):
        expected = precision_recall_fscore_support(
            targets[known],
            log_probs[known].argmax(1),
            labels=labels,
            average=average,
            zero_division=zero_division,
        )
        for metric, value in zip((metrics.precision, metrics.recall, metrics.f1), expected, strict=False):
            found = metric(log_probs, targets, average=average, zero_division=zero_division)
            assert found.dtype == jnp.float32
            np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=f"{metric} {zero_division}")


def test_precision_and_recall_differ_and_both_come_from_the_confusion_matrix():
    # Fault 28: Baal's precision is the recall.
    log_probs, targets = random_case(unknown=0.0)
    confusion = np.asarray(metrics.confusion_matrix(log_probs, targets), np.float64)
    precision = metrics.precision(log_probs, targets, average=None)
    recall = metrics.recall(log_probs, targets, average=None)
    np.testing.assert_allclose(precision, confusion.diagonal() / confusion.sum(0), rtol=1e-6)
    np.testing.assert_allclose(recall, confusion.diagonal() / confusion.sum(1), rtol=1e-6)
    assert not np.allclose(precision, recall)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auroc_equals_scikit_learn_and_all_pairs_with_and_without_ties(decimals):
    log_probs, targets = random_case(decimals=decimals)
    known = targets >= 0
    found = metrics.auroc(log_probs, targets)
    expected = [roc_auc_score(targets[known] == c, log_probs[known, c]) for c in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found, oracle.auroc(log_probs, targets), rtol=1e-6)
    np.testing.assert_allclose(metrics.auroc(log_probs, targets, average="macro"), np.mean(expected), rtol=1e-6)


def test_auroc_is_nan_for_a_class_that_is_absent_or_alone():
    log_probs, targets = random_case()
    two, one = np.where(targets > 1, 0, targets), np.where(targets >= 0, 1, -1)
    np.testing.assert_array_equal(np.isnan(metrics.auroc(log_probs, two)), [False, False, True, True])
    assert np.isnan(metrics.auroc(log_probs, one)).all()
    assert np.isfinite(metrics.auroc(log_probs, two, average="macro"))
    assert np.isnan(metrics.auroc(log_probs, one, average="macro"))


scores_and_targets = st.lists(
    st.tuples(st.sampled_from([-np.inf, -3.0, -1.0, -0.5, 0.0]), st.sampled_from([-1, 0, 1])), min_size=12, max_size=12
)


@given(scores_and_targets, st.randoms(use_true_random=False))
def test_rankings_of_any_scores_equal_all_pairs_in_any_order(cases, random):
    random.shuffle(cases)
    scores = np.array([[score, -1.0] for score, _ in cases], np.float32)
    targets = np.array([target for _, target in cases], np.int32)
    found, expected = metrics.auroc(scores, targets), oracle.auroc(scores, targets)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.auroc(scores * np.float32(4), targets), expected, rtol=1e-6)
    precise = metrics.average_precision(scores, targets)
    np.testing.assert_allclose(precise, oracle.average_precision(scores, targets), rtol=1e-5)


@pytest.mark.parametrize("decimals", [1, 8])
def test_adaptive_and_classwise_ece_equal_their_oracles(decimals):
    log_probs, targets = random_case(decimals=decimals)
    probs = np.exp(log_probs)
    found = metrics.adaptive_ece(log_probs, targets, num_bins=7)
    np.testing.assert_allclose(found, oracle.adaptive_ece(probs, targets, 7), rtol=1e-5)
    by_class = metrics.classwise_ece(log_probs, targets, num_bins=7, average=None)
    np.testing.assert_allclose(by_class, oracle.classwise_ece(probs, targets, 7), rtol=1e-5)
    np.testing.assert_allclose(
        metrics.classwise_ece(log_probs, targets, num_bins=7), np.mean(np.asarray(by_class)), rtol=1e-6
    )


@pytest.mark.parametrize("num_bins", [7, 100])
def test_adaptive_ece_does_not_depend_on_the_order_of_ties(num_bins):
    log_probs, targets = random_case(decimals=0)
    order = np.random.default_rng(1).permutation(len(targets))
    found = [metrics.adaptive_ece(log_probs[i], targets[i], num_bins=num_bins) for i in (slice(None), order)]
    np.testing.assert_allclose(*found, rtol=1e-5)
    np.testing.assert_allclose(found[0], oracle.adaptive_ece(np.exp(log_probs), targets, num_bins), rtol=1e-5)


def test_adaptive_ece_of_one_bin_is_overconfidence():
    log_probs, targets = random_case(unknown=0.0)
    gap = metrics.accuracy(log_probs, targets) - np.exp(log_probs.max(1)).mean()
    np.testing.assert_allclose(metrics.adaptive_ece(log_probs, targets, num_bins=1), abs(gap), rtol=1e-4)


ALL = metrics.classification(num_bins=6, diagnostics=True, extra=EVERYTHING)


def everything(log_probs, targets):
    """All metrics of up to 40 examples, padded: one program for this file."""
    rows = 40 - len(targets)
    log_probs = np.concatenate([np.asarray(log_probs, np.float32), np.zeros((rows, 4), np.float32)])
    return ALL.compute(log_probs, np.concatenate([targets, np.full(rows, -1)]).astype(np.int32))


def test_a_set_reports_what_the_functions_do():
    logits, targets = random_case()
    log_probs = ALL.summarise(baal.Predictions(logits[None]))
    found, probs, known = everything(log_probs, targets), oracle.model_average(logits[None]), targets >= 0
    truth, predicted = targets[known], probs[known].argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="macro")
    entropies = -np.sum(probs * np.log(probs), axis=-1)[known]
    expected = {
        "accuracy": np.mean(truth == predicted),
        "nll": oracle.nll(probs, targets),
        "brier": oracle.brier(probs, targets),
        "ece": oracle.ece(probs, targets, 6),
        "reliability_num_examples": np.histogram(probs[known].max(1), 6, (0, 1))[0],
        "entropy_histogram": np.histogram(entropies, 20, (0, np.log(4)))[0],
        "accuracy_per_class": [np.mean(predicted[truth == c] == c) for c in range(4)],
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "confusion_matrix": oracle.confusion(probs, targets),
        "auroc": np.mean(oracle.auroc(probs, targets)),
        "average_precision": np.mean(oracle.average_precision(probs, targets)),
        "adaptive_ece": oracle.adaptive_ece(probs, targets, 6),
        "classwise_ece": np.mean(oracle.classwise_ece(probs, targets, 6)),
        "ece_per_class": oracle.ece_per_class(probs, targets, 6),
    }
    assert found.keys() == {*expected, "reliability_confidence", "reliability_accuracy"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    gaps = found["reliability_num_examples"] * np.abs(found["reliability_accuracy"] - found["reliability_confidence"])
    np.testing.assert_allclose(np.nansum(gaps) / known.sum(), found["ece"], rtol=1e-5)
    assert ALL is metrics.classification(num_bins=6, diagnostics=True, extra=list(EVERYTHING))
    assert np.isnan(everything(log_probs, np.where(targets == 2, -1, targets))["accuracy_per_class"][2])


def test_the_ends_of_the_entropy_histogram_are_inside():
    found = everything(log_of([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]), np.array([0, 0]))["entropy_histogram"]
    assert found.nonzero()[0].tolist() == [0, 19]


def test_maps_half_precision_and_vmap_agree_with_flat_examples():
    # One program for three sets of maps in bfloat16 against each set flat, in float32.
    log_probs = jnp.stack([random_case(seed=seed)[0] for seed in range(3)]).astype(jnp.bfloat16)
    targets = jnp.stack([random_case(seed=seed)[1] for seed in range(3)])
    maps = jax.vmap(ALL.compute)(log_probs.reshape(3, 2, 4, 5, 4), targets.reshape(3, 2, 4, 5))
    for i in range(3):
        flat = everything(log_probs[i], targets[i])
        for name, value in flat.items():
            np.testing.assert_allclose(maps[name][i], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_prediction_that_is_nan_is_no_class():
    log_probs, good = log_of(0.1 + 0.6 * np.eye(4)[[0, 1, 2, 3, 0]]), np.array([0, 1, 2, 3, 0])
    log_probs[0] = np.nan
    broken = everything(log_probs, good)
    np.testing.assert_allclose(broken["accuracy"], 0.8, rtol=1e-6)
    np.testing.assert_array_equal(broken["confusion_matrix"], np.eye(4))
    np.testing.assert_array_equal(broken["accuracy_per_class"], [0.5, 1, 1, 1])
    np.testing.assert_allclose(broken["f1"], (2 / 3 + 3) / 4, rtol=1e-6)
    assert broken["entropy_histogram"].sum() == 4
    for name in ("nll", "brier", "ece", "auroc", "average_precision", "adaptive_ece", "classwise_ece"):
        assert np.isnan(broken[name]), name
    unknown = everything(log_probs, np.array([-1, 1, 2, 3, 0]))  # padding may hold anything
    for name in ("nll", "brier", "ece", "auroc", "average_precision", "adaptive_ece", "classwise_ece"):
        assert np.isfinite(unknown[name]), name


def test_a_class_beyond_the_last_is_wrong():
    log_probs, targets = log_of(0.1 + 0.6 * np.eye(4)[[0, 1, 2, 3, 0]]), np.array([7, 1, 2, 3, 0])
    found = everything(log_probs, targets)
    np.testing.assert_allclose(found["accuracy"], 0.8, rtol=1e-6)
    assert np.isnan(found["nll"])
    np.testing.assert_array_equal(found["confusion_matrix"], np.eye(4))
    np.testing.assert_allclose(found["precision"], (0.5 + 3) / 4, rtol=1e-6)
    np.testing.assert_allclose(found["auroc"], np.mean(oracle.auroc(log_probs, targets)), rtol=1e-6)


def test_without_examples_all_is_nan_and_counts_are_zero():
    found = metrics.classification(diagnostics=True, extra=EVERYTHING).compute(jnp.zeros((0, 3)), jnp.zeros(0, int))
    for name, value in found.items():
        counts = name in ("confusion_matrix", "entropy_histogram", "reliability_num_examples")
        assert (value == 0).all() if counts else np.isnan(value).all(), name


def test_errors_name_the_argument():
    log_probs, targets = random_case(4)
    for metric in (metrics.precision, metrics.recall, metrics.f1):
        with pytest.raises(ValueError, match="average='mean' must be"):
            metric(log_probs, targets, average="mean")
    for metric in (metrics.auroc, metrics.average_precision, metrics.classwise_ece):
        with pytest.raises(ValueError, match="average='micro' must be 'macro'"):
            metric(log_probs, targets, average="micro")
    for metric in (metrics.adaptive_ece, metrics.classwise_ece):
        with pytest.raises(ValueError, match="num_bins=0"):
            metric(log_probs, targets, num_bins=0)
    names = ("precision", "recall", "f1", "auroc", "adaptive_ece", "classwise_ece")
    for name in names:
        with pytest.raises(ValueError, match="do not fit log_probs"):
            getattr(metrics, name)(log_probs, targets[:3])
    with pytest.raises(ValueError, match=r"extra holds 'rmse'.*f1"):
        metrics.classification(extra=("f1", "rmse"))
    with pytest.raises(ValueError, match=r"extra='f1' must be a sequence"):
        metrics.classification(extra="f1")
