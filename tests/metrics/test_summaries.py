"""Summaries of draws that are no metrics, ``heuristics.gaussian_uncertainty`` and ``posteriors.probit``."""

import jax
import numpy as np
import pytest

from baal_jax import heuristics, posteriors
from tests.fixtures import close
from tests.oracles import metrics as oracle


def test_variance_is_split_into_its_two_parts():
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(500, 4, 6)).astype(np.float32)
    found = jax.jit(heuristics.gaussian_uncertainty)(outputs)
    close(found.aleatoric, np.exp(outputs[..., 3:]).mean(axis=0))
    close(found.epistemic, outputs[..., :3].var(axis=0))
    labels = outputs[..., :3] + np.exp(outputs[..., 3:] / 2) * rng.normal(size=(400, 500, 4, 3))
    np.testing.assert_allclose(found.total, labels.var(axis=(0, 1)), rtol=0.05)
    of_means = jax.jit(lambda outputs: heuristics.gaussian_uncertainty(outputs, noise=0.5))(outputs)
    close(of_means.total, outputs.var(axis=0) + 0.25)
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
    draws = mean + np.einsum("ncd,snd->snc", root, rng.normal(size=(4_000, 50, num_classes)))
    expected, plugged_in = np.exp(oracle.model_average(draws)), np.exp(oracle.model_average(mean[None]))
    assert np.abs(found - expected).mean() < 0.7 * np.abs(plugged_in - expected).mean()
    close(np.exp(posteriors.probit(single[0], single[1] + np.float32(5.0))), found, 1e-3, 1e-5)  # what all logits share
    independent = np.float32(variance[..., None] * np.eye(num_classes))
    close(*jax.device_get([posteriors.probit(single[0], part) for part in (np.float32(variance), independent)]))
    with pytest.raises(ValueError, match=r"covariance has shape .* is needed"):
        posteriors.probit(single[0], single[1][:, :1])
