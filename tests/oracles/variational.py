"""Gaussian weights in float64 NumPy: divergences, exact posteriors, moments of activations."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def kl_divergence(mean, std, prior_std):
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return np.sum(np.log(prior_std / std) + (std**2 + mean**2) / (2 * prior_std**2) - 0.5)


def linear_posterior(features, targets, noise_std, prior_std, kl_weight=1.0):
    """Mean of the exact posterior of a linear regression, and the standard deviations of its best factorised Gaussian.

    The latter are one over the roots of the diagonal of the precision (Bishop 2006, section 10.1.2).
    """
    features = np.asarray(features, np.float64) / (noise_std * np.sqrt(kl_weight))
    precision = features.T @ features + np.eye(features.shape[1]) / prior_std**2
    mean = np.linalg.solve(precision, features.T @ np.asarray(targets, np.float64)) / (noise_std * np.sqrt(kl_weight))
    return mean, 1 / np.sqrt(np.diag(precision))


def patches(inputs, kernel_size, strides, padding):
    """``[B, H, W, C] -> [B, P, h · w · C]``: what every output pixel sees, one after the other."""
    inputs = np.pad(np.asarray(inputs, np.float64), ((0, 0), *padding, (0, 0)))
    windows = sliding_window_view(inputs, kernel_size, axis=(1, 2))[:, :: strides[0], :: strides[1]]
    return np.moveaxis(windows, 3, -1).reshape(len(inputs), windows.shape[1] * windows.shape[2], -1)


def moments(seen, kernel, bias, kernel_std, bias_std):
    """Of ``seen [B, P, K] @ W [K, F] + b [F]`` under random weights.

    Returns:
        The mean ``[B, P, F]`` and, for every output channel, the covariance ``[F, B, P, B, P]`` of all activations.
    """
    covariance = np.einsum("apk,kf,bqk->fapbq", seen, np.float64(kernel_std) ** 2, seen)
    return seen @ kernel + bias, covariance + (np.float64(bias_std) ** 2)[:, None, None, None, None]
