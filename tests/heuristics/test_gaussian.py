"""Scores for regression against moments and determinants written out in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baal_jax
from baal_jax import Dataset, Posterior, Predictions, heuristics, losses, selection


def outputs_of(seed, draws=7, num=9, size=1):
    rng = np.random.default_rng(seed)
    mean, log_variance = rng.normal(size=(2, draws, num, size)) * rng.uniform(0.1, 2, (2, 1, num, 1))
    return jnp.asarray(np.concatenate([mean, log_variance], axis=-1), jnp.float32)


def moments(outputs, noise=None):
    outputs = np.asarray(outputs, np.float64)
    if noise is not None:
        return outputs, np.full_like(outputs, noise**2)
    mean, log_variance = np.split(outputs, 2, axis=-1)
    return mean, np.exp(log_variance)


def predictive_covariance(mean, variance):
    """Of the labels of one or several examples, ``[S, K]`` each."""
    centred = mean - mean.mean(axis=0)
    return centred.T @ centred / len(mean) + np.diag(variance.mean(axis=0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 3])
def test_bald_is_the_entropy_of_the_moments_minus_that_of_the_noise(seed, size):
    outputs = outputs_of(seed, size=size)
    mean, variance = moments(outputs)
    expected = 0.5 * (np.log(mean.var(axis=0) + variance.mean(axis=0)) - np.log(variance).mean(axis=0)).sum(axis=-1)
    np.testing.assert_allclose(heuristics.gaussian_bald(outputs), expected, rtol=1e-4, atol=1e-6)
    known = outputs[..., :size]
    expected = 0.5 * np.log1p(np.asarray(known, np.float64).var(axis=0) / 0.3**2).sum(axis=-1)
    np.testing.assert_allclose(heuristics.gaussian_bald(known, noise=0.3), expected, rtol=1e-4)


def test_bald_bounds_the_information_of_the_mixture():
    """By quadrature: the entropy of a mixture is at most that of a Gaussian with its moments."""
    outputs = outputs_of(3)
    mean, variance = moments(outputs)
    grid = np.linspace(-30, 30, 60_001)
    for n, score in enumerate(heuristics.gaussian_bald(outputs)):
        m, v = mean[:, n, 0, None], variance[:, n, 0, None]
        density = np.mean(np.exp(-((grid - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v), axis=0)
        mixture = -np.trapezoid(np.where(density > 0, density * np.log(np.maximum(density, 1e-300)), 0), grid)
        information = mixture - np.mean(0.5 * np.log(2 * np.pi * np.e * v))
        assert 0 <= information <= score + 1e-4
        assert information <= np.log(len(mean)) + 1e-6


def test_equal_draws_tell_nothing():
    same = jnp.repeat(outputs_of(0, draws=1), 5, axis=0)
    np.testing.assert_allclose(heuristics.gaussian_bald(same), 0, atol=1e-6)
    np.testing.assert_allclose(heuristics.gaussian_epig(same, same), 0, atol=1e-6)
    assert float(heuristics.gaussian_bald(1e-4 * outputs_of(1)[..., :1], noise=1.0).min()) > 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [1, 2])
def test_epig_is_the_mutual_information_of_two_labels(seed, size):
    outputs, targets = outputs_of(seed, size=size), outputs_of(seed + 100, num=4, size=size)
    (mean, variance), (target_mean, target_variance) = moments(outputs), moments(targets)
    expected = np.zeros(9)
    for n in range(9):
        for m in range(4):
            joint = predictive_covariance(
                np.concatenate([mean[:, n], target_mean[:, m]], axis=1),
                np.concatenate([variance[:, n], target_variance[:, m]], axis=1),
            )
            apart = [np.linalg.slogdet(part)[1] for part in (joint[:size, :size], joint[size:, size:], joint)]
            expected[n] += 0.5 * (apart[0] + apart[1] - apart[2]) / 4
    found = heuristics.gaussian_epig(outputs, targets)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
    assert (found >= 0).all()


@given(seed=st.integers(0, 1000), noise=st.floats(0.05, 3))
def test_epig_never_exceeds_bald_with_known_noise(seed, noise):
    outputs, targets = outputs_of(seed)[..., :1], outputs_of(seed + 1)[..., :1]
    epig = score_with("gaussian_epig", noise)(outputs, targets)
    assert (epig <= score_with("gaussian_bald", noise)(outputs) + 1e-5).all()


def score_with(name, noise):
    return functools.partial(getattr(heuristics, name), noise=round(noise, 1) or 0.1)


def test_bad_outputs_are_named():
    with pytest.raises(ValueError, match="means and as many log-variances are needed"):
        heuristics.gaussian_bald(jnp.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="noise="):
        heuristics.gaussian_bald(jnp.zeros((2, 3, 1)), noise=-1.0)
    with pytest.raises(ValueError, match=r"noise=0.0 must be a finite number above 0"):
        heuristics.gaussian_bald(jnp.zeros((2, 3, 1)), noise=0.0)
    with pytest.raises(ValueError, match="2 draws of outputs and 3 of target_outputs"):
        heuristics.gaussian_epig(jnp.zeros((2, 3, 2)), jnp.zeros((3, 3, 2)))
    with pytest.raises(ValueError, match="target_outputs is None: pass the inputs that matter as target_inputs"):
        heuristics.gaussian_epig(jnp.zeros((2, 3, 2)), None)


def test_the_loss_is_the_negative_log_likelihood():
    outputs = outputs_of(0, size=2)[0]
    targets = np.random.default_rng(1).normal(size=(9, 2))
    targets[2, 1] = np.nan
    mean, variance = moments(outputs)
    terms = 0.5 * (np.log(2 * np.pi * variance) + (targets - mean) ** 2 / variance)
    found = losses.gaussian_nll(outputs, jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(found, np.nanmean(terms, axis=1), rtol=1e-5)
    one = losses.gaussian_nll(outputs[:, ::2], jnp.asarray(targets[:, 0], jnp.float32))
    np.testing.assert_allclose(one, terms[:, 0], rtol=1e-5)
    gradient = jax.grad(lambda out: losses.gaussian_nll(out, jnp.asarray(targets, jnp.float32)).sum())(outputs)
    assert np.isfinite(gradient).all()
    assert (gradient[2, 1::2] == 0).all()  # the unknown target moves neither its mean nor its variance
    with pytest.raises(ValueError, match="a mean and a log-variance for each of the targets"):
        losses.gaussian_nll(jnp.zeros((3, 3)), jnp.zeros((3, 2)))


def test_epig_picks_what_tells_about_the_targets(key):
    """Two independent directions; the targets live on one of them, the pool varies more on the other."""

    def fit(key, dataset, labelled, previous=None):
        return jnp.zeros(())

    def apply(state, draw, inputs):
        return inputs @ draw[:, None]

    posterior = Posterior(fit, lambda key, state, num: jax.random.normal(key, (num, 2)), apply)
    train = Dataset(jnp.array([[0.0, 5.0], [0.0, 4.0], [1.0, 0.0], [0.5, 0.0]]), jnp.zeros(4))
    score = functools.partial(heuristics.gaussian_epig, noise=0.5)
    bald = functools.partial(heuristics.gaussian_bald, noise=0.5)
    for acquisition, best in ((selection.top_k_epig(score), 2), (selection.top_k(bald), 0)):
        loop = baal_jax.active_loop(posterior, acquisition, query_size=1, num_samples=200)
        _, info = loop.step(loop.init(key, train), train, jnp.array([[1.0, 0.0], [2.0, 0.0]]))
        assert info.indices.tolist() == [best]


def test_epig_needs_targets():
    with pytest.raises(ValueError, match="target_logits is None: pass the inputs that matter as target_inputs"):
        selection.top_k_epig().summarise(Predictions(jnp.zeros((2, 3, 2))))
