"""Last-layer Laplace in float64 NumPy, from the equations: Jacobians written out, determinants taken directly."""

import numpy as np


def with_one(hidden):
    return np.concatenate([hidden, np.ones((len(hidden), 1))], axis=1)


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def linear_regression(design, targets, precision, noise):
    """Mean and covariance of the weights of Bayesian linear regression (Bishop 2006, equations 3.53 and 3.54)."""
    covariance = np.linalg.inv(precision * np.eye(design.shape[1]) + design.T @ design / noise**2)
    return covariance @ design.T @ targets / noise**2, covariance


def regression_evidence(design, targets, precision, noise):
    """``log N(y | 0, σ² I + X Xᵀ / τ)``: the marginal likelihood, with the weights integrated out beforehand."""
    covariance = noise**2 * np.eye(len(targets)) + design @ design.T / precision
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (log_det + targets @ np.linalg.solve(covariance, targets))


def logistic_map(design, targets, num_classes, precision, steps=50):
    """Weights ``[D, C]`` at the mode of multinomial logistic regression with a Gaussian prior, by Newton's method."""
    weights, one_hot = np.zeros((design.shape[1], num_classes)), np.eye(num_classes)[targets]
    for _ in range(steps):
        gradient = design.T @ (softmax(design @ weights) - one_hot) + precision * weights
        hessian = gauss_newton(design, softmax(design @ weights)) + precision * np.eye(weights.size)
        weights -= np.linalg.solve(hessian, gradient.ravel()).reshape(weights.shape)
    return weights


def gauss_newton(design, probs):
    """``Σ_n J_nᵀ Λ_n J_n [D C, D C]`` with ``J_n [C, D C]``, weights in the order ``[D, C]``."""
    total = 0
    for h, p in zip(design, probs, strict=True):
        jacobian = np.kron(h[None], np.eye(len(p)))
        total = total + jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
    return total


def kronecker(design, probs):
    """``(1/n) Σ h hᵀ ⊗ Σ Λ``."""
    return np.kron(design.T @ design / len(design), sum(np.diag(p) - np.outer(p, p) for p in probs))


def log_evidence(log_likelihood, weights, hessian, precision):
    """Log of the prior times the likelihood at the weights, times the volume of the Gaussian around them."""
    size = weights.size
    log_prior = 0.5 * size * np.log(precision / (2 * np.pi)) - 0.5 * precision * np.sum(weights**2)
    _, log_det = np.linalg.slogdet((hessian + precision * np.eye(size)) / (2 * np.pi))
    return log_likelihood + log_prior - 0.5 * log_det


def output_covariance(hidden, covariance, num_outputs):
    """``J Σ Jᵀ [C, C]`` at one example."""
    jacobian = np.kron(hidden[None], np.eye(num_outputs))
    return jacobian @ covariance @ jacobian.T
