"""Gaussian weights in float64 NumPy: divergences, exact posteriors, moments of activations."""

import numpy as np


def kl_divergence(mean, std, prior_std):
    """One weight after the other."""
    total = 0.0
    for m, s in zip(np.ravel(mean).astype(np.float64), np.ravel(std).astype(np.float64), strict=True):
        total += np.log(prior_std / s) + (s**2 + m**2) / (2 * prior_std**2) - 0.5
    return total


def linear_posterior(features, targets, noise_std, prior_std, kl_weight=1.0):
    """Mean of the exact posterior of a linear regression, and the standard deviations of its best factorised Gaussian.

    The latter are one over the roots of the diagonal of the precision (Bishop 2006, section 10.1.2).
    """
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    fit = features.T @ features / noise_std**2
    precision = fit / kl_weight + np.eye(features.shape[1]) / prior_std**2
    mean = np.linalg.solve(precision, features.T @ targets / (noise_std**2 * kl_weight))
    return mean, 1 / np.sqrt(np.diag(precision))


def patches(inputs, kernel_size, strides, padding):
    """``[B, H, W, C] -> [B, P, h · w · C]``: what every output pixel sees, one after the other."""
    inputs = np.pad(np.asarray(inputs, np.float64), ((0, 0), *padding, (0, 0)))
    rows = range(0, inputs.shape[1] - kernel_size[0] + 1, strides[0])
    columns = range(0, inputs.shape[2] - kernel_size[1] + 1, strides[1])
    seen = [inputs[:, i : i + kernel_size[0], j : j + kernel_size[1]] for i in rows for j in columns]
    return np.stack([window.reshape(len(inputs), -1) for window in seen], axis=1)


def moments(seen, kernel, bias, kernel_std, bias_std):
    """Of ``seen [B, P, K] @ W [K, F] + b [F]`` under random weights.

    Returns:
        The mean ``[B, P, F]`` and, for every output channel, the covariance ``[F, B, P, B, P]`` of all activations.
    """
    kernel, bias, kernel_std, bias_std = (np.asarray(part, np.float64) for part in (kernel, bias, kernel_std, bias_std))
    mean = seen @ kernel + bias
    covariance = [
        np.einsum("apk,k,bqk->apbq", seen, kernel_std[:, f] ** 2, seen) + bias_std[f] ** 2
        for f in range(kernel.shape[1])
    ]
    return mean, np.stack(covariance)
