"""What is special to metrics of values: few draws, large numbers, certain predictions; and summaries of draws."""

import jax
import numpy as np
import pytest

from baal_jax import heuristics, metrics, posteriors
from tests.fixtures import close
from tests.oracles import metrics as oracle


def random_case(num_draws=7, num_examples=20):
    rng = np.random.default_rng(0)
    draws, targets = rng.normal(size=(num_draws, num_examples)), rng.normal(size=num_examples)
    targets[::5] = np.nan
    return draws.astype(np.float32), targets.astype(np.float32)


def test_crps_of_any_number_of_draws_keeps_its_digits_far_from_zero():
    both = jax.jit(lambda *arrays: [metrics.crps(*arrays, fair=fair) for fair in (False, True)])
    for num_draws in (1, 2, 6):
        draws, targets = (part + np.float32(2**12) for part in random_case(num_draws))
        expected = [oracle.crps(draws, targets, fair) for fair in (False, True)]
        np.testing.assert_allclose(both(draws, targets), expected, rtol=1e-5)


def test_every_metric_has_a_gradient_where_targets_are_unknown_and_predictions_certain():
    targets, zeros = np.array([1.0, np.nan, -3.0], np.float32), np.zeros(3, np.float32)

    def total(mean, variance):
        draws = mean[None] + np.array([[-0.5], [0.5]], np.float32)
        values = (
            metrics.rmse(mean, targets),
            metrics.mae(mean, targets),
            metrics.gaussian_crps(mean, variance, targets),
            metrics.pinball(mean[None], targets, levels=(0.75,))[0],
            metrics.crps(draws, targets),
        )
        return sum(values), values

    (_, values), gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(zeros, zeros)
    # Where the variance is 0 the score of a Gaussian is the absolute error.
    np.testing.assert_allclose(values, [np.sqrt(5), 2.0, 2.0, (0.75 + 0.75) / 2, 2.0 - 0.25], rtol=1e-6)
    of_mean = np.array([-1.0, 0.0, 3.0]) / 2 / np.sqrt(5) + np.array([-1.0, 0.0, 1.0]) * (1 + 1 + 1) / 2
    np.testing.assert_allclose(gradient[0], of_mean + np.array([-0.75, 0.0, 0.25]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_bounds_are_covered_and_a_missing_one_covers_nothing_that_is_known():
    lower, upper = np.float32([[np.nan, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for first, expected in ((0.5, np.nan), (np.nan, 1.0)):  # of the others both are on a bound
        assert metrics.coverage(lower, upper, np.float32([first, 0.0, 1.0])) == pytest.approx(expected, nan_ok=True)
    assert metrics.coverage(upper, lower[::-1], np.float32([0.5, 0.5, 0.5])) == pytest.approx(np.nan, nan_ok=True)


def test_variance_is_split_into_its_two_parts():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(500, 4, 6)).astype(np.float32)
    found = heuristics.gaussian_uncertainty(outputs)
    aleatoric, epistemic = np.exp(outputs[..., 3:]).mean(axis=0), outputs[..., :3].var(axis=0)
    close([found.aleatoric, found.epistemic, found.total], [aleatoric, epistemic, aleatoric + epistemic])
    close(heuristics.gaussian_uncertainty(outputs, noise=0.5).total, outputs.var(axis=0) + 0.25)
    with pytest.raises(ValueError, match=r"noise=0\.0 must be a finite number above 0"):
        heuristics.gaussian_uncertainty(outputs, noise=0.0)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_probit_is_nearly_the_mean_over_the_gaussian(num_classes):
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=(50, num_classes)), rng.normal(size=(50, num_classes, num_classes))
    covariance = root @ root.swapaxes(1, 2)
    single = mean.astype(np.float32), covariance.astype(np.float32)
    found = np.exp(posteriors.probit(*single))
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    gaps = variance[:, :, None] + variance[:, None] - 2 * covariance
    inverse = np.exp(-(mean[:, :, None] - mean[:, None]) / np.sqrt(1 + np.pi * gaps / 8)).sum(-1)
    close(found, 1 / inverse / (1 / inverse).sum(-1, keepdims=True))  # of two classes, MacKay's formula
    close(np.exp(posteriors.probit(single[0], single[1] + np.float32(5.0))), found, 1e-3, 1e-5)  # what all logits share
    independent = np.float32(variance[..., None] * np.eye(num_classes))
    close(*jax.device_get([posteriors.probit(single[0], part) for part in (np.float32(variance), independent)]))
    with pytest.raises(ValueError, match=r"covariance has shape .* is needed"):
        posteriors.probit(single[0], single[1][:, :1])


def test_what_does_not_fit_is_refused():
    draws, targets = random_case()
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
    ):
        with pytest.raises(ValueError, match=message):
            call()
