"""Scores for regression against moments and determinants written out in float64."""

import functools

import jax
import numpy as np
import pytest

from baal_jax import heuristics

OF_ONE = heuristics.gaussian_bald, heuristics.gaussian_uncertainty
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6)


def outputs_of(seed, draws=7, num=9, size=1):
    rng = np.random.default_rng(seed)
    mean, log_variance = rng.normal(size=(2, draws, num, size)) * rng.uniform(0.1, 2, (2, 1, num, 1))
    return np.concatenate([mean, log_variance], axis=-1).astype(np.float32)


def moments(outputs, noise=None):
    outputs = np.asarray(outputs, np.float64)
    if noise is not None:
        return outputs, np.full_like(outputs, noise**2)
    mean, log_variance = np.split(outputs, 2, axis=-1)
    return mean, np.exp(log_variance)


def bald(outputs, noise=None):
    mean, variance = moments(outputs, noise)
    return 0.5 * (np.log(mean.var(axis=0) + variance.mean(axis=0)) - np.log(variance).mean(axis=0)).sum(axis=-1)


def epig(outputs, targets, noise=None):
    """From the predictive covariance of two labels, ``½ log |A| |B| / |A, B|``."""
    (mean, variance), (target_mean, target_variance) = moments(outputs, noise), moments(targets, noise)
    size, scores = mean.shape[-1], np.zeros((mean.shape[1], target_mean.shape[1]))
    for n, m in np.ndindex(*scores.shape):
        joint = np.cov(np.concatenate([mean[:, n], target_mean[:, m]], axis=1).T, bias=True)
        joint += np.diag(np.concatenate([variance[:, n], target_variance[:, m]], axis=1).mean(axis=0))
        one, other, both = (np.linalg.slogdet(x)[1] for x in (joint[:size, :size], joint[size:, size:], joint))
        scores[n, m] = 0.5 * (one + other - both)
    return scores.mean(axis=1)


@pytest.mark.parametrize("size", [1, 3])
def test_bald_is_the_entropy_of_the_moments_minus_that_of_the_noise(size):
    for seed in range(4):
        outputs = outputs_of(seed, size=size)
        close(heuristics.gaussian_bald(outputs), bald(outputs))
        close(heuristics.gaussian_bald(outputs[..., :size], noise=0.3), bald(outputs[..., :size], 0.3))
    small = 1e-4 * outputs[..., :size]
    close(heuristics.gaussian_bald(small, noise=1.0), bald(small, 1.0), rtol=1e-3, atol=0)  # keeps its digits
    equal = np.repeat(outputs[:1], 7, axis=0)
    assert (heuristics.gaussian_bald(equal) >= 0).all()


@pytest.mark.parametrize("size", [1, 2])
def test_epig_is_the_mutual_information_of_two_labels(size):
    for seed in range(3):  # more targets than are in work at a time
        outputs, targets = outputs_of(seed, size=size), outputs_of(seed + 100, num=18, size=size)
        close(heuristics.gaussian_epig(outputs, targets), epig(outputs, targets))
    known, targets = outputs[..., :size], targets[..., :size]
    close(heuristics.gaussian_epig(known, targets, noise=0.3), epig(known, targets, 0.3))
    if size == 1:  # without noise a label tells all of itself; rounding must not carry ρ² beyond 1
        assert not np.isnan(heuristics.gaussian_epig(known, known, noise=1e-4)).any()


def test_variance_is_split_into_its_two_parts():
    outputs = outputs_of(5, size=2)
    for parts, (mean, variance) in (
        (jax.jit(heuristics.gaussian_uncertainty)(outputs), moments(outputs)),
        (heuristics.gaussian_uncertainty(outputs[..., :2], noise=0.5), moments(outputs[..., :2], 0.5)),
    ):
        close(parts.aleatoric, variance.mean(axis=0))
        close(parts.epistemic, mean.var(axis=0))
        close(parts.total, parts.aleatoric + parts.epistemic)


def test_bad_outputs_are_named():
    ones, twos = np.zeros((2, 3, 1)), np.zeros((2, 3, 2))
    for score, arguments, message in (
        *((score, (ones, 0.0), "noise=0.0 must be a finite number above 0") for score in OF_ONE),
        *((score, (ones,), "means and as many log-variances are needed") for score in OF_ONE),
        (heuristics.gaussian_epig, (ones, ones, -1.0), "noise=-1.0"),
        (heuristics.gaussian_epig, (twos, np.zeros((3, 3, 2))), "2 draws of outputs and 3 of target_outputs"),
        (heuristics.gaussian_epig, (twos, np.zeros((2, 3, 3))), r"target_outputs has shape .* as many log-variances"),
        (heuristics.gaussian_epig, (twos, None), "target_outputs is None: pass the inputs that matter"),
    ):
        with pytest.raises(ValueError, match=message):
            score(*arguments)
