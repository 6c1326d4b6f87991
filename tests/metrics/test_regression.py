"""Regression metrics against scikit-learn, NumPy, quadrature and the definition over all pairs of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

import baal_jax as baal
from baal_jax import metrics
from tests.oracles import metrics as oracle

LEVELS = (0.9, 0.05, 0.5)


def random_case(num_draws=7, num_examples=20, seed=0):
    rng = np.random.default_rng(seed)
    draws, targets = rng.normal(size=(num_draws, num_examples)), rng.normal(size=num_examples)
    targets[::5] = np.nan
    return draws.astype(np.float32), targets.astype(np.float32)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("num_draws", [1, 2, 7])
def test_crps_equals_the_definition_over_all_pairs(num_draws, fair):
    draws, targets = random_case(num_draws)
    for case in (draws, draws.round(0)):  # with ties
        expected = oracle.crps(case, targets, fair)
        np.testing.assert_allclose(metrics.crps(case, targets, fair=fair), expected, rtol=1e-5)


def test_crps_of_one_draw_is_the_absolute_error():
    draws, targets = random_case(1)
    np.testing.assert_allclose(metrics.crps(draws, targets), metrics.mae(draws[0], targets), rtol=1e-6)


def test_crps_keeps_its_digits_far_from_zero():
    draws, targets = random_case()
    found = metrics.crps(draws + np.float32(2**12), targets + np.float32(2**12))
    expected = oracle.crps(draws + np.float32(2**12), targets + np.float32(2**12))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_fair_crps_expects_the_same_for_any_number_of_draws():
    # Of standard normals, target and draws, the score of the distribution itself is 1 / √π.
    rng = np.random.default_rng(0)
    draws, targets = rng.normal(size=(2, 10_000)).astype(np.float32), rng.normal(size=10_000).astype(np.float32)
    np.testing.assert_allclose(metrics.crps(draws, targets, fair=True), 1 / np.sqrt(np.pi), atol=0.02)
    np.testing.assert_allclose(metrics.crps(draws, targets), 1.5 / np.sqrt(np.pi), atol=0.02)


def test_gaussian_crps_equals_quadrature_and_many_draws():
    rng = np.random.default_rng(0)
    mean, variance, targets = rng.normal(size=6), rng.uniform(0.1, 4, 6), 3 * rng.normal(size=6)
    case = [x.astype(np.float32) for x in (mean, variance, targets)]
    found = metrics.gaussian_crps(*case)
    np.testing.assert_allclose(found, oracle.gaussian_crps(mean, variance, targets), rtol=1e-5)
    draws = case[0] + np.sqrt(case[1]) * rng.normal(size=(4000, 6)).astype(np.float32)
    np.testing.assert_allclose(metrics.crps(draws, case[2]), found, rtol=0.03)


def test_gaussian_crps_of_a_certain_prediction_is_the_absolute_error_with_a_gradient():
    targets = jnp.array([1.0, jnp.nan])
    assert metrics.gaussian_crps(jnp.zeros(2), jnp.zeros(2), targets) == 1.0
    gradient = jax.grad(metrics.gaussian_crps, argnums=(0, 1))(jnp.zeros(2), jnp.zeros(2), targets)
    assert all(np.isfinite(part).all() for part in gradient)


def test_point_errors_and_quantile_losses_equal_scikit_learn():
    draws, targets = random_case()
    known = ~np.isnan(targets)
    mean = draws.mean(0)
    np.testing.assert_allclose(
        metrics.rmse(mean, targets), np.sqrt(mean_squared_error(targets[known], mean[known])), 1e-5
    )
    np.testing.assert_allclose(metrics.mae(mean, targets), mean_absolute_error(targets[known], mean[known]), rtol=1e-5)
    found = np.asarray(metrics.quantiles(draws, LEVELS))
    np.testing.assert_allclose(found, np.quantile(draws, LEVELS, axis=0), rtol=1e-5, atol=1e-6)
    losses = [
        mean_pinball_loss(targets[known], found[i][known], alpha=level)  # float64 of the same quantiles
        for i, level in enumerate(LEVELS)
    ]
    np.testing.assert_allclose(metrics.pinball(found, targets, levels=LEVELS), losses, rtol=1e-5)
    inside = (found[1] <= targets) & (targets <= found[0])
    np.testing.assert_allclose(metrics.coverage(found[1], found[0], targets), inside[known].mean(), rtol=1e-6)


def test_a_missing_bound_covers_nothing_that_is_known():
    bound, targets = jnp.array([jnp.nan, 0.0]), jnp.array([1.0, 0.5])
    assert np.isnan(metrics.coverage(bound, jnp.ones(2), targets))
    assert metrics.coverage(bound, jnp.ones(2), targets.at[0].set(jnp.nan)) == 1.0


@pytest.mark.parametrize("shape", [(20, 1), (5, 2, 2)], ids=["one output", "map"])
def test_a_set_reports_what_the_functions_do(shape):
    draws, targets = random_case()
    target_shape = (20,) if shape[-1] == 1 else shape
    metric_set = metrics.regression(extra=("crps_draws", "crps_fair", "pinball", "coverage"), levels=LEVELS)
    summary = metric_set.summarise(baal.Predictions(draws.reshape(7, *shape)))
    found = metric_set.compute(summary, targets.reshape(target_shape))
    quantiles = np.asarray(metrics.quantiles(draws, LEVELS))
    expected = {
        "rmse": metrics.rmse(draws.mean(0), targets),
        "mae": metrics.mae(draws.mean(0), targets),
        "nll": oracle.gaussian_nll(draws[:, ~np.isnan(targets)], targets[~np.isnan(targets)]),
        "crps": metrics.gaussian_crps(draws.mean(0), draws.var(0), targets),
        "crps_draws": metrics.crps(draws, targets),
        "crps_fair": metrics.crps(draws, targets, fair=True),
        "pinball": metrics.pinball(quantiles, targets, levels=LEVELS),
        "coverage": metrics.coverage(quantiles[1], quantiles[0], targets),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_summary_holds_two_numbers_an_example_unless_draws_are_asked_for():
    predictions = baal.Predictions(jax.ShapeDtypeStruct((7, 20, 1), jnp.bfloat16))

    def shapes(**options):
        summary = jax.eval_shape(metrics.regression(**options).summarise, predictions)
        assert {leaf.dtype for leaf in jax.tree.leaves(summary)} == {jnp.dtype(jnp.float32)}
        return [leaf.shape for leaf in jax.tree.leaves(summary)]

    assert shapes() == [(20, 1), (20, 1)]
    assert shapes(extra=("pinball",), levels=LEVELS) == [(20, 1), (20, 1), (20, 1, 3)]
    assert shapes(extra=("crps_fair",)) == [(20, 1), (20, 1), (20, 1, 7)]


def test_a_draw_that_is_nan_is_never_taken_for_a_number():
    draws, targets = random_case()
    targets[0], draws[3, 0] = 0.0, np.nan
    metric_set = metrics.regression(extra=("crps_draws", "crps_fair", "pinball", "coverage"), levels=LEVELS)
    summary = metric_set.summarise(baal.Predictions(draws[..., None]))
    for name, value in metric_set.compute(summary, targets).items():
        assert np.isnan(value).all(), name
    targets[0] = np.nan  # padding may hold anything
    for name, value in metric_set.compute(summary, targets).items():
        assert np.isfinite(value).all(), name


def test_errors_name_the_argument():
    draws, targets = random_case()
    for metric in (metrics.rmse, metrics.mae):
        with pytest.raises(ValueError, match="make them equal"):
            metric(draws[0], targets[:3])
    with pytest.raises(ValueError, match=r"draws has shape .*at least one draw"):
        metrics.crps(draws[:0], targets)
    with pytest.raises(ValueError, match="variance has shape"):
        metrics.gaussian_crps(draws[0], draws[0, :1], targets)
    with pytest.raises(ValueError, match="levels=2 must be"):
        metrics.quantiles(draws, 2)
    with pytest.raises(ValueError, match=r"levels=\(1\.5,\) must be"):
        metrics.pinball(draws[:1], targets, levels=(1.5,))
    with pytest.raises(ValueError, match=r"predicted has shape .*needs \[2, N"):
        metrics.pinball(draws, targets, levels=(0.1, 0.9))
    with pytest.raises(ValueError, match="extra holds 'f1'"):
        metrics.regression(extra=("f1",))
    with pytest.raises(ValueError, match=r"reads the draws, which lack the noise of noise_variance=0\.5"):
        metrics.regression(noise_variance=0.5, extra=("crps_fair",))
    with pytest.raises(ValueError, match="bound no interval"):
        metrics.regression(extra=("coverage",), levels=(0.5,))
