"""What is special to metrics: Baal's numbers, ends of bins, ties, certain predictions, groups, and sets."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, metrics, posteriors
from tests.contracts.test_metrics import LEVELS, METRICS
from tests.fixtures import close

# Classes

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "baal.json").read_text())


def test_golden_numbers_of_baal():
    # Case 51. Baal's per-class entries are grouped by the true class as well.
    n, c, k = np.ogrid[:5, :3, :4]
    logits = np.sin(1 + n + 2 * c + 3 * k) * (1 + 0.5 * n)  # [N, C, S], Baal's layout
    golden = GOLDEN["metrics(mean P, y=[0,1,2,0,1])"]
    chosen = metrics.classification(num_bins=10, top_k=(2,), extra=("ece_per_class", "confusion_matrix"))
    summary = jax.jit(chosen.summarise)(baal.Predictions(np.moveaxis(logits, -1, 0).astype(np.float32)))
    found = jax.device_get(chosen.compute(summary, np.int32([0, 1, 2, 0, 1])))
    names = {"ece": "ECE10", "ece_per_class": "ECE_PerCLs", "confusion_matrix": "confusion(rows=true)"}
    for name, other in names.items():
        np.testing.assert_allclose(found[name], golden[other], rtol=1e-6)
    accuracies = [found["accuracy"], found["top_2_accuracy"]]
    np.testing.assert_allclose(accuracies, golden["Accuracy_top1_top2"][0], rtol=1e-6)


def test_what_does_not_fit_classes_is_refused():
    log_probs, targets = np.full((4, 2), np.log(0.5), np.float32), np.zeros(4, np.int32)
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
        for unfit in (targets[:3], targets[:, None, None], np.zeros(4, np.float32)):
            with pytest.raises(ValueError, match="do not fit log_probs"):
                getattr(metrics, name)(log_probs, unfit)
    with pytest.raises(ValueError, match="logits has shape"):
        metrics.model_average(log_probs)


# Groups

DRAWS, EXAMPLES = 7, 12
GROUPS = np.array([[0, 1, 2, 3], [4, 4, 5, 5], [11, -1, 6, -1], [-1, -1, -1, -1]], np.int32)
joint_log_likelihood = jax.jit(metrics.joint_log_likelihood, static_argnames="noise")


def expected(log_p):
    """From ``[S, N]``, group by group, draw by draw."""
    groups = [[np.exp(sum(draw[n] for n in group if n >= 0)) for draw in log_p] for group in GROUPS]
    return np.log(np.mean(groups, axis=1))


def test_joint_likelihood_of_classes():
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=(DRAWS, EXAMPLES, 2, 3))).astype(np.float32)
    classes = rng.integers(0, 3, (EXAMPLES, 2)).astype(np.int32)
    log_p = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    chosen = np.broadcast_to(classes[..., None], (DRAWS, EXAMPLES, 2, 1))
    log_p = np.take_along_axis(log_p, chosen, axis=-1)[..., 0].sum(-1)
    close(joint_log_likelihood(logits, classes, GROUPS), expected(log_p), 2e-5)


@pytest.mark.parametrize("noise", [None, 0.6])
def test_joint_likelihood_of_values(noise):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(DRAWS, EXAMPLES, 2 if noise is None else 1)).astype(np.float32)
    values = rng.normal(size=EXAMPLES).astype(np.float32)
    variance = np.exp(np.float64(outputs[..., 1])) if noise is None else noise**2
    log_p = -0.5 * (np.log(2 * np.pi * variance) + (values - np.float64(outputs[..., 0])) ** 2 / variance)
    close(joint_log_likelihood(outputs, values, GROUPS, noise=noise), expected(log_p), 2e-5)


# Sets


def test_a_summary_holds_two_numbers_an_example_unless_draws_are_asked_for():
    predictions = baal.Predictions(jax.ShapeDtypeStruct((7, 20, 1), jnp.bfloat16))

    def shapes(**options):
        summary = jax.eval_shape(metrics.regression(**options).summarise, predictions)
        assert {leaf.dtype for leaf in jax.tree.leaves(summary)} == {jnp.dtype(jnp.float32)}
        return [leaf.shape for leaf in jax.tree.leaves(summary)]

    assert shapes() == [(20, 1), (20, 1)]
    assert shapes(extra=("pinball",), levels=LEVELS) == shapes(extra=("coverage",)) == [(20, 1), (20, 1), (20, 1, 3)]
    assert shapes(extra=("crps_fair",)) == shapes(extra=("crps_draws",)) == [(20, 1), (20, 1), (20, 1, 7)]


def test_sets_report_what_they_are_asked_for_and_follow_the_type_of_the_targets():
    seen, chosen = [], metrics.classification(top_k=(3, 2), extra=("f1", "auroc", "f1"), diagnostics=True)
    shapes = jax.ShapeDtypeStruct((20, 4), jnp.float32), jax.ShapeDtypeStruct((20,), jnp.int32)
    jax.eval_shape(lambda *arrays: seen.extend(chosen.compute(*arrays)), *shapes)
    names = "accuracy top_3_accuracy top_2_accuracy nll brier ece entropy_histogram accuracy_per_class f1 auroc"
    assert [name for name in seen if not name.startswith("reliability")] == names.split()
    # Equal configurations are one object, so that evaluate compiles once.
    assert metrics.classification(top_k=(5,), num_bins=10) is metrics.classification(top_k=[5], num_bins=np.int64(10))
    assert metrics.classification(top_k=(5,)) is not metrics.classification(top_k=(4,))
    assert metrics.regression(noise_variance=1, levels=[0.5]) is metrics.regression(noise_variance=1.0, levels=(0.5,))
    assert metrics.regression(extra=("crps_fair",) * 2) is metrics.regression(extra=["crps_fair"])


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_an_explicit_mesh_is_no_obstacle(kind):
    # Sharding types are checked while tracing: nothing has to be compiled.
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(jax.sharding.AxisType.Explicit,))
    targets = np.zeros((28, 3), np.float32) if kind == "regression" else np.zeros(28, np.int32)
    with jax.set_mesh(mesh):
        outputs = jax.device_put(np.zeros((3, 28, 3), np.float32), jax.NamedSharding(mesh, jax.P(None, "pool", None)))
        targets = jax.device_put(targets, jax.NamedSharding(mesh, jax.P("pool")))
        summarise, compute = METRICS[kind][1]
        assert "nll" in jax.eval_shape(lambda p, t: compute(summarise(baal.Predictions(p)), t), outputs, targets)


def test_what_does_not_fit_is_refused():
    rng, noisy = np.random.default_rng(0), {"noise_variance": 0.5, "extra": ("crps_fair",)}
    draws, targets = np.float32(rng.normal(size=(7, 20))), np.float32(rng.normal(size=20))
    logits, classes, regression = np.zeros((7, 12, 2, 3), np.float32), np.zeros((12, 2), np.int32), metrics.regression
    joint, vectors = metrics.joint_log_likelihood, np.zeros((12, 2, 3), np.float32)
    for call, message in (
        (lambda: metrics.rmse(draws[0], targets[:3]), r"targets have shape \(3,\), but predicted \(20,\)"),
        (lambda: metrics.mae(draws, targets), "make them equal"),
        (lambda: metrics.coverage(draws[0], draws[:2], targets), r"but upper \(2, 20\)"),
        (lambda: metrics.crps(draws[:0], targets), r"draws has shape .*at least one draw"),
        (lambda: metrics.quantiles(targets, (0.5,)), r"draws has shape \(20,\)"),
        (lambda: metrics.gaussian_crps(draws[0], draws[0, :1], targets), r"variance has shape \(1,\), but predicted"),
        (lambda: metrics.quantiles(draws, 2), "levels=2 must be"),
        (lambda: metrics.quantiles(draws, ()), r"levels=\(\) must be one or more"),
        (lambda: metrics.pinball(draws[:1], targets, levels=(1.5,)), r"levels=\(1\.5,\) must be"),
        (lambda: metrics.pinball(draws[:1], targets, levels=(-0.5,)), r"levels=\(-0\.5,\) must be"),
        (lambda: metrics.pinball(draws, targets, levels=(0.1, 0.9)), r"predicted has shape .*needs \[2, N"),
        (lambda: heuristics.gaussian_uncertainty(np.zeros((2, 3)), noise=0.0), r"noise=0\.0 must be a finite number"),
        (lambda: posteriors.probit(np.zeros((2, 3)), np.zeros((2, 1, 3))), "covariance has shape .* is needed"),
        (lambda: metrics.classification(top_k=(0,)), "top_k=0"),
        (lambda: metrics.classification(num_bins=0), "num_bins=0"),
        (lambda: metrics.classification(extra=("f1", "rmse")), r"extra holds 'rmse'.*f1"),
        (lambda: metrics.classification(extra="f1"), r"extra='f1' must be a sequence of names: pass \('f1',\)"),
        (lambda: regression(extra="coverage"), r"extra='coverage' must be a sequence"),
        (lambda: regression(noise_variance=-1), "noise_variance=-1"),
        (lambda: regression(extra=("f1",)), "extra holds 'f1'"),
        (lambda: regression(levels=(2.0,)), r"levels=\(2\.0,\) must be"),
        (lambda: regression(**noisy), r"lack the noise of noise_variance=0\.5"),
        (lambda: regression(extra=("coverage",), levels=(0.5, 0.5)), "bound no interval"),
        (lambda: regression().summarise(baal.Predictions(np.zeros((4, 2)))), "outputs has shape"),
        (lambda: regression().compute((np.zeros((4, 3)), np.ones((4, 3))), np.zeros(4)), "make them equal"),
        (lambda: joint(logits, classes, GROUPS[0]), r"groups are int32\(4,\)"),
        (lambda: joint(logits, classes, GROUPS.astype(np.float32)), "integer ids"),
        (lambda: joint(logits, classes[:, 0], GROUPS), r"targets have shape \(12,\)"),
        (lambda: joint(logits, classes, GROUPS, noise=1.0), r"noise=1\.0 belongs to regression"),
        (lambda: joint(logits[..., :1], classes, GROUPS), "single class"),
        (lambda: joint(logits, vectors, GROUPS, noise=-1.0), r"noise=-1\.0 must be"),
        (lambda: joint(logits[..., :2], vectors[:, 0], GROUPS), "make them equal"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
