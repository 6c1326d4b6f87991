"""Bayesian logistic regression in float64 NumPy, from the equations: all classes, Hessians written out."""

import numpy as np


def log_probs(logits):
    peak = logits.max(axis=1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))


def fit(design, targets, num_classes, precision):
    """Weights ``[P, C]``, Hessian of the likelihood ``[P C, P C]`` and log evidence, by damped Newton steps."""
    weights, shape = np.zeros((design.shape[1], num_classes)), (design.shape[1], num_classes)
    observed, size = np.eye(num_classes)[targets], design.shape[1] * num_classes

    def value(weights):
        return -np.sum(observed * log_probs(design @ weights)) + precision / 2 * np.sum(weights**2)

    for _ in range(200):
        p = np.exp(log_probs(design @ weights))
        slope = design.T @ (p - observed) + precision * weights
        curvature = p[:, :, None] * np.eye(num_classes) - p[:, :, None] * p[:, None, :]
        hessian = np.einsum("ni,ncd,nj->icjd", design, curvature, design, optimize=True).reshape(size, size)
        step = -np.linalg.solve(hessian + precision * np.eye(size), slope.ravel()).reshape(shape)
        length = 1.0
        while value(weights + length * step) > value(weights) and length > 1e-9:
            length /= 2
        weights = weights + length * step
        if np.abs(step).max() <= 1e-11 * np.abs(weights).max():
            break
    log_det = np.linalg.slogdet(np.eye(size) + hessian / precision)[1]
    return weights, hessian, -value(weights) - log_det / 2
