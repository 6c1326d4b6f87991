"""Metrics against a float64 oracle, Baal's golden numbers and the values that define them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import baal_jax as baal
from baal_jax import metrics
from tests.oracles import metrics as oracle

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "baal.json").read_text())
SHAPES = {"flat": (60,), "map": (7, 3, 4)}


def random_case(shape, num_classes=4, num_draws=5, seed=0, unknown=0.2):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=(num_draws, *shape, num_classes))).astype(np.float32)
    targets = rng.integers(0, num_classes, shape).astype(np.int32)
    return logits, np.where(rng.random(shape) < unknown, -1, targets).astype(np.int32)


def golden_case():
    n, c, k = np.ogrid[:5, :3, :4]
    logits = np.sin(1 + n + 2 * c + 3 * k) * (1 + 0.5 * n)  # [N, C, S], Baal's layout
    return jnp.asarray(np.moveaxis(logits, -1, 0), jnp.float32), jnp.array([0, 1, 2, 0, 1])


def log_of(probs):
    return jnp.log(jnp.array(probs, jnp.float32))


def test_golden_numbers_of_baal():
    # Case 51. Baal's per-class entries are grouped by the true class as well, and no class is empty here.
    logits, targets = golden_case()
    log_probs = metrics.model_average(logits)
    golden = GOLDEN["metrics(mean P, y=[0,1,2,0,1])"]
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=10), golden["ECE10"], rtol=1e-6)
    np.testing.assert_allclose(metrics.ece_per_class(log_probs, targets, num_bins=10), golden["ECE_PerCLs"], rtol=1e-6)
    top = [metrics.accuracy(log_probs, targets, k=k) for k in (1, 2)]
    np.testing.assert_allclose(top, golden["Accuracy_top1_top2"][0], rtol=1e-6)
    np.testing.assert_array_equal(metrics.confusion_matrix(log_probs, targets), golden["confusion(rows=true)"])


def test_calibration_errors_of_baals_own_test():
    # Case 51; the class without examples is NaN where Baal reports 0.
    log_probs, targets = log_of([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1]]), jnp.array([2, 1])
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=3), 0.35, rtol=1e-6)
    np.testing.assert_allclose(metrics.ece_per_class(log_probs, targets, num_bins=3), [np.nan, 0.2, 0.5], rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_everything_equals_the_oracle(shape):
    logits, targets = random_case(shape)
    log_probs, probs = metrics.model_average(logits), oracle.model_average(logits)
    np.testing.assert_allclose(jnp.exp(log_probs), probs, rtol=1e-5)
    for k in (1, 2, 4):
        np.testing.assert_allclose(metrics.accuracy(log_probs, targets, k=k), oracle.accuracy(probs, targets, k), 1e-6)
    np.testing.assert_allclose(metrics.nll(log_probs, targets), oracle.nll(probs, targets), rtol=1e-5)
    np.testing.assert_allclose(metrics.brier(log_probs, targets), oracle.brier(probs, targets), rtol=1e-5)
    np.testing.assert_allclose(metrics.ece(log_probs, targets), oracle.ece(probs, targets), rtol=1e-5)
    np.testing.assert_allclose(
        metrics.ece_per_class(log_probs, targets, num_bins=5), oracle.ece_per_class(probs, targets, 5), rtol=1e-5
    )
    np.testing.assert_array_equal(metrics.confusion_matrix(log_probs, targets), oracle.confusion(probs, targets))
    np.testing.assert_allclose(
        metrics.average_precision(log_probs, targets), oracle.average_precision(probs, targets), rtol=1e-5
    )


def test_loss_of_the_model_average_is_taken_in_probability_space():
    # Case 41: −mean log mean_k p_k[y], where Baal scores the mean of the logits.
    logits, targets = random_case((50,), unknown=0.0)
    probs = np.exp(np.asarray(jax.nn.log_softmax(logits), np.float64))
    expected = -np.mean(np.log(probs.mean(0)[np.arange(50), targets]))
    found = metrics.nll(metrics.model_average(logits), targets)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.isclose(found, metrics.nll(jax.nn.log_softmax(logits.mean(0)), targets), rtol=1e-2)


def test_loss_of_one_draw_is_the_ordinary_nll():
    # Case 41.
    logits, targets = random_case((50,), num_draws=1, unknown=0.0)
    expected = np.mean(baal.losses.cross_entropy(jnp.asarray(logits[0]), jnp.asarray(targets)))
    np.testing.assert_allclose(metrics.nll(metrics.model_average(logits), targets), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_loss_of_the_average_is_at_most_the_average_loss(seed):
    # Case 41, Jensen; equality only where the draws agree, so it is strict here.
    logits, targets = random_case((20,), seed=seed, unknown=0.0)
    each = [metrics.nll(metrics.model_average(logits[s : s + 1]), targets) for s in range(len(logits))]
    assert metrics.nll(metrics.model_average(logits), targets) < np.mean(each)


def test_examples_with_unknown_targets_do_not_count():
    logits, targets = random_case((40,), unknown=0.0)
    log_probs = metrics.model_average(logits)
    padded = jnp.concatenate([log_probs, log_probs[:7]])
    padded_targets = jnp.concatenate([targets, jnp.full(7, -1, jnp.int32)])
    for name in ("accuracy", "nll", "brier", "ece", "ece_per_class", "confusion_matrix", "average_precision"):
        metric = getattr(metrics, name)
        np.testing.assert_allclose(metric(padded, padded_targets), metric(log_probs, targets), rtol=1e-5, err_msg=name)


def test_nothing_but_unknown_targets_is_nan():
    log_probs, targets = metrics.model_average(random_case((6,))[0]), jnp.full(6, -1)
    for name in ("accuracy", "nll", "brier", "ece", "ece_per_class", "average_precision"):
        assert np.isnan(getattr(metrics, name)(log_probs, targets)).all(), name
    assert metrics.confusion_matrix(log_probs, targets).sum() == 0


def test_an_impossible_class_is_infinitely_surprising_only_where_it_is_the_target():
    log_probs = log_of([[1.0, 0.0], [0.5, 0.5]])
    assert metrics.nll(log_probs, jnp.array([1, 0])) == np.inf
    np.testing.assert_allclose(metrics.nll(log_probs, jnp.array([0, 0])), np.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics.nll(log_probs, jnp.array([-1, 0])), np.log(2), rtol=1e-6)


def test_a_class_without_examples_is_nan_and_the_others_are_not():
    # Case 52.
    log_probs, targets = log_of([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]), jnp.array([0, 0])
    for name in ("ece_per_class", "average_precision"):
        np.testing.assert_array_equal(np.isnan(getattr(metrics, name)(log_probs, targets)), [False, True, True])


def test_a_perfect_classifier_is_perfect():
    # Case 52: Baal gives 1e-4 and .6875.
    targets = jnp.array([0, 2, 1, 2])
    log_probs = jnp.log(jax.nn.one_hot(targets, 3))
    assert metrics.ece(log_probs, targets) == 0
    np.testing.assert_array_equal(metrics.ece_per_class(log_probs, targets), [0, 0, 0])
    np.testing.assert_array_equal(metrics.average_precision(log_probs, targets), [1, 1, 1])
    assert metrics.accuracy(log_probs, targets) == 1
    assert metrics.nll(log_probs, targets) == 0
    assert metrics.brier(log_probs, targets) == 0


def test_a_confidence_of_one_shares_the_last_bin():
    # Case 52: in a bin of its own the two gaps would not cancel (0.525), and dropped it would leave 0.025.
    log_probs, targets = log_of([[1.0, 0.0], [0.95, 0.05]]), jnp.array([1, 0])
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=10), 0.475, rtol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_metrics_do_not_depend_on_the_batch_split(kind):
    # Case 52: Baal's 9 + 1 batches weigh the single example like the nine others.
    logits, targets = random_case((10,), unknown=0.0)
    metric_set = metrics.classification(top_k=(2,))
    if kind == "regression":
        metric_set, targets = metrics.regression(), logits[0] * 0.5
    whole = metric_set.compute(metric_set.summarise(baal.Predictions(logits)), targets)
    parts = [metric_set.summarise(baal.Predictions(logits[:, rows])) for rows in (slice(0, 9), slice(9, 10))]
    split = metric_set.compute(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), targets)
    assert whole.keys() == split.keys()
    for name in whole:
        np.testing.assert_allclose(split[name], whole[name], rtol=1e-6, err_msg=name)


LINEAR = baal.Posterior(
    fit=None,
    sample=lambda key, state, num_samples: jax.random.split(key, num_samples),
    apply=lambda state, draw, inputs: inputs @ (state + 0.5 * jax.random.normal(draw, state.shape)),
)
SETS = {
    "classification": metrics.classification(diagnostics=True, extra=("auroc", "adaptive_ece")),
    "regression": metrics.regression(extra=("crps_draws",)),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_stream_is_mapped_batch_by_batch_and_reduced_once_without_an_error(kind, key):
    # 70 examples in batches of 16, the last one padded, against all of them in memory.
    rng = np.random.default_rng(0)
    source, state = rng.normal(size=(70, 4)).astype(np.float32), jnp.float32(rng.normal(size=(4, 3)))
    targets = rng.integers(-1, 3, 70) if kind == "classification" else rng.normal(size=(70, 3)).astype(np.float32)
    metric_set, targets = SETS[kind], jnp.asarray(targets)

    whole, streamed = (
        baal.evaluate(
            key, LINEAR, state, baal.Dataset(inputs, targets), metrics=metric_set, num_samples=5, batch_size=16
        )
        for inputs in (jnp.asarray(source), baal.data.View(source))
    )
    assert streamed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(streamed[name], value, rtol=2e-7, atol=0, err_msg=name)


@pytest.mark.parametrize("kind", SETS)
def test_an_explicit_mesh_is_no_obstacle(kind):
    # Sharding types are checked while tracing: nothing has to be compiled.
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(jax.sharding.AxisType.Explicit,))
    metric_set, targets = SETS[kind], np.zeros((28, 3), np.float32) if kind == "regression" else np.zeros(28, np.int32)
    with jax.set_mesh(mesh):
        predictions = baal.Predictions(
            jax.device_put(np.zeros((3, 28, 3), np.float32), jax.NamedSharding(mesh, jax.P(None, "pool", None)))
        )
        targets = jax.device_put(targets, jax.NamedSharding(mesh, jax.P("pool")))
        values = jax.eval_shape(lambda p, t: metric_set.compute(metric_set.summarise(p), t), predictions, targets)
    assert {"nll"} < values.keys()


@pytest.mark.parametrize("decimals", [1, 2, 8])
def test_average_precision_equals_scikit_learn_with_and_without_ties(decimals):
    rng = np.random.default_rng(3)
    scores = np.round(np.log(rng.dirichlet(np.ones(3), 80)), decimals).astype(np.float32)
    targets = np.where(rng.random(80) < 0.1, -1, rng.integers(0, 3, 80)).astype(np.int32)
    known = targets >= 0
    expected = [average_precision_score(targets[known] == c, scores[known, c]) for c in range(3)]
    np.testing.assert_allclose(metrics.average_precision(jnp.asarray(scores), targets), expected, rtol=1e-5)
    shuffle = rng.permutation(80)
    np.testing.assert_allclose(
        metrics.average_precision(jnp.asarray(scores[shuffle]), targets[shuffle]), expected, 1e-5
    )


def test_average_precision_when_every_score_is_minus_infinity_for_some_examples():
    # An unknown example must not join the run of equal scores at the very end.
    log_probs = log_of([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    targets = jnp.array([1, 0, -1, 0])
    expected = [
        average_precision_score([0, 1, 1], [1.0, 0.0, 0.5]),
        average_precision_score([1, 0, 0], [0.0, 1.0, 0.5]),
    ]
    np.testing.assert_allclose(metrics.average_precision(log_probs, targets), expected, rtol=1e-6)


def test_of_equal_probabilities_the_first_class_is_the_prediction():
    log_probs = log_of([[0.25] * 4, [0.25] * 4])
    targets = jnp.array([0, 1])
    np.testing.assert_allclose([metrics.accuracy(log_probs, targets, k=k) for k in (1, 2)], [0.5, 1.0])


def test_classification_names_and_values_with_top_k():
    logits, targets = random_case((30,))
    metric_set = metrics.classification(top_k=(2, 3), num_bins=4)
    log_probs = metric_set.summarise(baal.Predictions(jnp.asarray(logits)))
    found = jax.jit(metric_set.compute)(log_probs, targets)
    probs = oracle.model_average(logits)
    expected = {
        "accuracy": oracle.accuracy(probs, targets),
        "top_2_accuracy": oracle.accuracy(probs, targets, 2),
        "top_3_accuracy": oracle.accuracy(probs, targets, 3),
        "nll": oracle.nll(probs, targets),
        "brier": oracle.brier(probs, targets),
        "ece": oracle.ece(probs, targets, 4),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == (), name
        assert found[name].dtype == jnp.float32, name
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("noise_variance", [0.0, 0.3])
@pytest.mark.parametrize(("output_shape", "target_shape"), [((25, 1), (25,)), ((25, 1), (25, 1)), ((25, 2), (25, 2))])
def test_regression_equals_the_oracle(noise_variance, output_shape, target_shape):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, *output_shape)).astype(np.float32)
    targets = rng.normal(size=target_shape).astype(np.float32)
    metric_set = metrics.regression(noise_variance=noise_variance)
    found = metric_set.compute(metric_set.summarise(baal.Predictions(outputs)), targets)
    errors = outputs.astype(np.float64).mean(0).ravel() - targets.ravel()
    expected = {
        "rmse": np.sqrt(np.mean(errors**2)),
        "mae": np.mean(np.abs(errors)),
        "nll": oracle.gaussian_nll(outputs.reshape(6, -1), targets.ravel(), noise_variance),
        "crps": oracle.gaussian_crps(
            outputs.mean(0).ravel(), outputs.var(0).ravel() + noise_variance, targets.ravel().astype(np.float64)
        ),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_regression_with_equal_draws_and_no_noise_stays_finite():
    metric_set = metrics.regression()
    found = metric_set.compute(metric_set.summarise(baal.Predictions(jnp.ones((3, 4, 1)))), jnp.ones(4))
    assert found["rmse"] == 0
    assert np.isfinite(found["nll"])


def test_default_metrics_follow_the_type_of_the_targets():
    assert metrics.default_metrics(jnp.array([0, 1])) is metrics.classification()
    assert metrics.default_metrics(np.array([0, 1], np.uint8)) is metrics.classification()
    assert metrics.default_metrics(jnp.array([0.0, 1.0])) is metrics.regression()


def test_equal_configurations_are_one_object_so_that_evaluate_compiles_once():
    assert metrics.classification(top_k=(5,), num_bins=10) is metrics.classification(top_k=(5,), num_bins=10)
    assert metrics.classification(top_k=(5,)) is not metrics.classification(top_k=(4,))
    assert metrics.regression(noise_variance=1) is metrics.regression(noise_variance=1.0)


@pytest.mark.parametrize(
    "name", ["accuracy", "nll", "brier", "ece", "ece_per_class", "confusion_matrix", "average_precision"]
)
@pytest.mark.parametrize("targets", [jnp.zeros(3, int), jnp.zeros((4, 1), int), jnp.zeros(4)])
def test_targets_that_do_not_fit_are_refused(name, targets):
    with pytest.raises(ValueError, match="do not fit log_probs"):
        getattr(metrics, name)(jnp.zeros((4, 2)), targets)


def test_other_errors_name_the_argument():
    log_probs, targets = jnp.zeros((4, 2)), jnp.zeros(4, int)
    with pytest.raises(ValueError, match="k=3 exceeds the 2 classes"):
        metrics.accuracy(log_probs, targets, k=3)
    with pytest.raises(ValueError, match="k=0"):
        metrics.accuracy(log_probs, targets, k=0)
    with pytest.raises(ValueError, match="num_bins=0"):
        metrics.ece(log_probs, targets, num_bins=0)
    with pytest.raises(ValueError, match=r"num_bins=2\.5"):
        metrics.ece_per_class(log_probs, targets, num_bins=2.5)
    with pytest.raises(ValueError, match="top_k=0"):
        metrics.classification(top_k=(0,))
    with pytest.raises(ValueError, match="noise_variance=-1"):
        metrics.regression(noise_variance=-1)
    with pytest.raises(ValueError, match="logits has shape"):
        metrics.model_average(log_probs)
    metric_set = metrics.regression()
    with pytest.raises(ValueError, match="make them equal"):
        metric_set.compute(metric_set.summarise(baal.Predictions(jnp.zeros((2, 4, 3)))), jnp.zeros(4))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_any_integer_type_labels_many_classes(dtype):
    targets = np.array([0, 9, 20, 29], dtype)
    log_probs = jnp.log(jnp.full((4, 30), 1 / 30))
    confusion = np.asarray(metrics.confusion_matrix(log_probs, jnp.asarray(targets)))
    assert confusion.sum(axis=1).nonzero()[0].tolist() == [0, 9, 20, 29]
    np.testing.assert_allclose(metrics.nll(log_probs, jnp.asarray(targets)), np.log(30), rtol=1e-5)
    assert float(metrics.ece(log_probs, jnp.asarray(targets))) < 1


def test_reliability_is_what_the_ece_sums_up(key):
    log_probs = jax.nn.log_softmax(3 * jax.random.normal(key, (200, 4)))
    targets = jax.random.randint(jax.random.key(1), (200,), -1, 4)
    found = metrics.reliability(log_probs, targets, num_bins=7)
    probs, known = np.exp(np.asarray(log_probs, np.float64)), np.asarray(targets) >= 0
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == np.asarray(targets)
    total = 0.0
    for b in range(7):
        inside = known & (confidence >= b / 7) & ((confidence < (b + 1) / 7) | (b == 6))
        assert float(found.num_examples[b]) == inside.sum()
        if not inside.any():
            assert np.isnan(found.accuracy[b])
            assert np.isnan(found.confidence[b])
            continue
        np.testing.assert_allclose(found.accuracy[b], correct[inside].mean(), rtol=1e-5)
        np.testing.assert_allclose(found.confidence[b], confidence[inside].mean(), rtol=1e-5)
        total += inside.sum() / known.sum() * abs(correct[inside].mean() - confidence[inside].mean())
    np.testing.assert_allclose(metrics.ece(log_probs, targets, num_bins=7), total, rtol=1e-4)
