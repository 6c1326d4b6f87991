"""Gaussian processes and kernels of wide networks from the papers' equations, in float64."""

import numpy as np


def expectation(covariance, variance1, variance2, activation):
    """``E[φ(u)φ(u')]`` for zero-mean Gaussians, in closed form (Cho and Saul 2009; Williams 1997)."""
    if activation == "erf":
        return 2 / np.pi * np.arcsin(2 * covariance / np.sqrt((1 + 2 * variance1) * (1 + 2 * variance2)))
    norm = np.sqrt(variance1 * variance2)
    angle = np.arccos(np.clip(covariance / norm, -1, 1))
    return norm / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle))


def dense_kernel(x, y, depth, activation, weight_std, bias_std):
    """One pair of vectors."""
    a, b, c = (bias_std**2 + weight_std**2 * np.mean(p * q) for p, q in ((x, x), (y, y), (x, y)))
    for _ in range(depth):
        a, b, c = (
            bias_std**2 + weight_std**2 * expectation(*abc, activation) for abc in ((a, a, a), (b, b, b), (c, a, b))
        )
    return c


def conv_kernel(x, y, depth, sides, activation, weight_std, bias_std):
    """One pair of images ``[H, W, channels]``, position by position."""
    height, width = x.shape[:2]

    def affine(values):
        out = np.zeros((height, width))
        for i in range(height):
            for j in range(width):
                for di in range(sides[0]):
                    for dj in range(sides[1]):
                        p, q = i + di - (sides[0] - 1) // 2, j + dj - (sides[1] - 1) // 2
                        if 0 <= p < height and 0 <= q < width:
                            out[i, j] += values[p, q] / (sides[0] * sides[1])
        return bias_std**2 + weight_std**2 * out

    a, b, c = (affine(np.mean(p * q, axis=-1)) for p, q in ((x, x), (y, y), (x, y)))
    for layer in range(depth):
        a, b, c = (expectation(*abc, activation) for abc in ((a, a, a), (b, b, b), (c, a, b)))
        if layer < depth - 1:
            a, b, c = affine(a), affine(b), affine(c)
    return bias_std**2 + weight_std**2 * np.mean(c)


def gram(kernel, x1, x2, *arguments):
    return np.array([[kernel(p, q, *arguments) for q in x2.astype(np.float64)] for p in x1.astype(np.float64)])


def moments(prior, cross, inner, noise, targets):
    """Mean ``[B]`` and covariance ``[B, B]`` of a zero-mean process given ``targets [L]`` with noise variances."""
    inverse = np.linalg.inv(inner + np.diag(noise))
    return cross @ inverse @ targets, prior - cross @ inverse @ cross.T


def dirichlet(targets, num_classes, alpha):
    """Targets ``[L, C]`` and noise variances ``[L, C]`` of Milios et al. 2018, equation by equation."""
    values, variances = np.zeros((len(targets), num_classes)), np.zeros((len(targets), num_classes))
    for i, target in enumerate(targets):
        for c in range(num_classes):
            concentration = alpha + (target == c)
            variances[i, c] = np.log(1 / concentration + 1)
            values[i, c] = np.log(concentration) - variances[i, c] / 2
    return values, variances
