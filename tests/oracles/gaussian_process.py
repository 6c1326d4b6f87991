"""Gaussian processes and kernels of wide networks from the papers' equations, in float64."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def expectation(covariance, variance1, variance2, activation):
    """``E[φ(u)φ(u')]`` for zero-mean Gaussians, in closed form (Cho and Saul 2009; Williams 1997)."""
    if activation == "erf":
        return 2 / np.pi * np.arcsin(2 * covariance / np.sqrt((1 + 2 * variance1) * (1 + 2 * variance2)))
    norm = np.sqrt(variance1 * variance2)
    angle = np.arccos(np.clip(covariance / norm, -1, 1))
    return norm / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle))


def kernel(x, y, depth, sides, activation, weight_std, bias_std):
    """One pair of images ``[H, W, channels]``, position by position; of vectors without ``sides``."""

    def affine(values):
        if sides:
            padded = np.pad(values, [((side - 1) // 2, side // 2) for side in sides])
            values = sliding_window_view(padded, sides).mean(axis=(2, 3))
        return bias_std**2 + weight_std**2 * values

    a, b, c = (affine(np.mean(p * q, axis=-1)) for p, q in ((x, x), (y, y), (x, y)))
    for layer in range(depth):
        a, b, c = (expectation(*abc, activation) for abc in ((a, a, a), (b, b, b), (c, a, b)))
        if not sides or layer < depth - 1:
            a, b, c = affine(a), affine(b), affine(c)
    return bias_std**2 + weight_std**2 * np.mean(c) if sides else c


def gram(x1, x2, *arguments):
    return np.array([[kernel(p, q, *arguments) for q in x2.astype(np.float64)] for p in x1.astype(np.float64)])


def moments(prior, cross, inner, noise, targets):
    """Mean ``[B]`` and covariance ``[B, B]`` of a zero-mean process given ``targets [L]`` with noise variances."""
    inverse = np.linalg.inv(inner + np.diag(noise))
    return cross @ inverse @ targets, prior - cross @ inverse @ cross.T


def dirichlet(targets, num_classes, alpha):
    """Targets ``[L, C]`` and noise variances ``[L, C]`` of Milios et al. 2018."""
    concentration = alpha + np.eye(num_classes)[targets]
    variances = np.log(1 / concentration + 1)
    return np.log(concentration) - variances / 2, variances
