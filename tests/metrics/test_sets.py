"""Summaries of draws against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import heuristics, metrics, posteriors

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 12, 2, 3)) * 2  # [S, N, positions, C]
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
CLASSES = RNG.integers(0, 3, (12, 2))
GROUPS = np.array([[0, 1, 2, 3], [4, 4, 5, 5], [11, -1, 6, -1], [-1, -1, -1, -1]])
single = jnp.float32


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_entropy_is_split_into_its_two_parts():
    found = heuristics.uncertainty(single(LOGITS))
    mean = PROBS.mean(axis=0)
    close(found.total, -(mean * np.log(mean)).sum(axis=-1))
    close(found.aleatoric, -(PROBS * np.log(PROBS)).sum(axis=-1).mean(axis=0))
    close(found.epistemic, (PROBS * np.log(PROBS / mean)).sum(axis=-1).mean(axis=0))
    close(found.total, found.aleatoric + found.epistemic)


def test_variance_is_split_into_its_two_parts():
    outputs = RNG.normal(size=(500, 4, 6))
    found = heuristics.gaussian_uncertainty(single(outputs))
    close(found.aleatoric, np.exp(outputs[..., 3:]).mean(axis=0))
    close(found.epistemic, outputs[..., :3].var(axis=0))
    labels = outputs[..., :3] + np.exp(outputs[..., 3:] / 2) * RNG.normal(size=(400, 500, 4, 3))
    np.testing.assert_allclose(found.total, labels.var(axis=(0, 1)), rtol=0.05)
    close(heuristics.gaussian_uncertainty(single(outputs), noise=0.5).total, outputs.var(axis=0) + 0.25)
    with pytest.raises(ValueError, match=r"noise=0\.0 must be a finite number above 0"):
        heuristics.gaussian_uncertainty(single(outputs), noise=0.0)


def test_probit_of_two_classes_is_the_formula_of_mackay():
    mean, root = RNG.normal(size=(20, 2)), RNG.normal(size=(20, 2, 2))
    covariance = root @ root.swapaxes(1, 2)
    variance = covariance[:, 0, 0] + covariance[:, 1, 1] - 2 * covariance[:, 0, 1]
    expected = 1 / (1 + np.exp((mean[:, 1] - mean[:, 0]) / np.sqrt(1 + np.pi * variance / 8)))
    found = np.exp(posteriors.probit(single(mean), single(covariance)))
    close(found, np.stack([expected, 1 - expected], axis=1))
    draws = mean + np.einsum("ncd,snd->snc", root, RNG.normal(size=(20_000, 20, 2)))
    np.testing.assert_allclose(found, np.exp(metrics.model_average(single(draws))), atol=0.025)


def test_probit_of_many_classes():
    mean, root = RNG.normal(size=(200, 4)), RNG.normal(size=(200, 4, 4))
    covariance = root @ root.swapaxes(1, 2)
    draws = mean + np.einsum("ncd,snd->snc", root, RNG.normal(size=(4_000, 200, 4)))
    expected = np.exp(metrics.model_average(single(draws)))
    found = np.exp(posteriors.probit(single(mean), single(covariance)))
    close(found.sum(axis=-1), 1)
    plugged_in = np.exp(jax.nn.log_softmax(single(mean)))
    assert np.abs(found - expected).mean() < 0.7 * np.abs(plugged_in - expected).mean()
    close(np.exp(posteriors.probit(single(mean), single(covariance + 5.0))), found)  # what all logits share
    close(np.exp(posteriors.probit(single(mean), single(0 * covariance))), plugged_in)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    independent = posteriors.probit(single(mean), single(variance[..., None] * np.eye(4)))
    close(posteriors.probit(single(mean), single(variance)), independent)
    with pytest.raises(ValueError, match=r"\(200, 4, 4\) is needed"):
        posteriors.probit(single(mean), single(covariance[:, :2]))


def joint(log_p):
    """From ``[S, N]``, group by group, draw by draw."""
    groups = [[np.prod([np.exp(log_p[s, n]) for n in group if n >= 0]) for s in range(len(log_p))] for group in GROUPS]
    return np.log(np.mean(groups, axis=1))


def test_joint_likelihood_of_classes():
    chosen = np.take_along_axis(np.log(PROBS), CLASSES[None, ..., None].repeat(7, axis=0), axis=-1)[..., 0]
    found = metrics.joint_log_likelihood(single(LOGITS), jnp.int32(CLASSES), jnp.asarray(GROUPS))
    close(found, joint(chosen.sum(axis=-1)))
    assert found[3] == 0
    unknown = np.where(np.arange(12)[:, None] == 4, -1, CLASSES)
    found = metrics.joint_log_likelihood(single(LOGITS), jnp.int32(unknown), jnp.asarray(GROUPS))
    close(found, joint(np.where(np.arange(12) == 4, 0, chosen.sum(axis=-1))))


def test_joint_likelihood_of_single_labels_is_that_of_the_model_average():
    logits, classes = single(LOGITS[:, :, 0]), jnp.int32(CLASSES[:, 0])
    found = metrics.joint_log_likelihood(logits, classes, jnp.arange(12)[:, None])
    close(-found.mean(), metrics.nll(metrics.model_average(logits), classes))


def test_joint_likelihood_does_not_underflow():
    logits = jnp.stack([jnp.full((600, 2), 0.0), jnp.stack([jnp.zeros(600), jnp.full(600, 1.0)], axis=1)])
    found = metrics.joint_log_likelihood(logits, jnp.zeros(600, jnp.int32), jnp.arange(600)[None])
    close(found / 600, np.array([np.log(0.5) - np.log(2) / 600]))


@pytest.mark.parametrize("noise", [None, 0.6])
def test_joint_likelihood_of_values(noise):
    outputs = RNG.normal(size=(7, 12, 2 if noise is None else 1))
    values = RNG.normal(size=12)
    variance = np.exp(outputs[..., 1]) if noise is None else noise**2
    log_p = -0.5 * (np.log(2 * np.pi * variance) + (values - outputs[..., 0]) ** 2 / variance)
    found = metrics.joint_log_likelihood(single(outputs), single(values), jnp.asarray(GROUPS), noise=noise)
    close(found, joint(log_p))
    unknown = np.where(np.arange(12) == 4, np.nan, values)
    found = metrics.joint_log_likelihood(single(outputs), single(unknown), jnp.asarray(GROUPS), noise=noise)
    close(found, joint(np.where(np.arange(12) == 4, 0, log_p)))
    gradient = jax.grad(
        lambda x: metrics.joint_log_likelihood(x, single(unknown), jnp.asarray(GROUPS), noise=noise).sum()
    )(single(outputs))
    assert np.isfinite(gradient).all()


def test_what_does_not_fit_is_refused():
    logits, classes, groups = single(LOGITS), jnp.int32(CLASSES), jnp.asarray(GROUPS)
    for arguments, options, message in (
        ((logits, classes, groups[0]), {}, r"groups are int\d+\(4,\)"),
        ((logits, classes, groups.astype(jnp.float32)), {}, "integer ids"),
        ((logits, classes[:, 0], groups), {}, r"targets have shape \(12,\)"),
        ((logits, classes, groups), {"noise": 1.0}, r"noise=1\.0 belongs to regression"),
        ((logits[..., :2], jnp.zeros((12, 3)), groups), {}, "is needed for these outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.joint_log_likelihood(*arguments, **options)
