"""What is special to sets of metrics: what they are made of, what they keep of an example, where they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import metrics
from tests.contracts.test_metrics import LEVELS, METRICS
from tests.oracles import metrics as oracle


def test_a_gaussian_has_the_variance_of_the_draws_and_of_the_noise():
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=(6, 12, 2)).astype(np.float32), rng.normal(size=(12, 2)).astype(np.float32)
    moments, noisy = (outputs.mean(0), outputs.var(0)), metrics.regression(noise_variance=0.3)
    found = noisy.compute(moments, targets)
    for name, metric in (("nll", oracle.gaussian_nll), ("crps", oracle.gaussian_crps)):
        np.testing.assert_allclose(found[name], metric(moments[0], moments[1] + 0.3, targets), rtol=1e-5)
    # Draws that agree have a variance of 1e-12 for the likelihood, and not of 0.
    values = metrics.regression().compute((targets, np.zeros_like(targets)), targets)
    assert (values["rmse"], values["mae"]) == (0.0, 0.0)
    np.testing.assert_allclose(values["nll"], 0.5 * np.log(2 * np.pi * 1e-12), rtol=1e-5)


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
    assert metrics.default_metrics(np.array([0, 1], np.uint8)) is metrics.classification()
    assert metrics.default_metrics(np.array([0.0, 1.0], np.float32)) is metrics.regression()
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
    regression, noisy = metrics.regression, {"noise_variance": 0.5, "extra": ("crps_fair",)}
    for call, message in (
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
    ):
        with pytest.raises(ValueError, match=message):
            call()
