"""Last-layer Laplace in float64 NumPy, from the equations: Jacobians written out, determinants taken directly."""

import numpy as np
from sklearn.linear_model import LogisticRegression


def linear_regression(design, targets, precision, noise):
    """Mean and covariance of the weights of Bayesian linear regression (Bishop 2006, equations 3.53 and 3.54)."""
    covariance = np.linalg.inv(precision * np.eye(design.shape[1]) + design.T @ design / noise**2)
    return covariance @ design.T @ targets / noise**2, covariance


def logistic_map(design, targets, precision):
    """Weights ``[D, C]`` at the mode of multinomial logistic regression with a Gaussian prior."""
    return LogisticRegression(
        C=1 / precision, fit_intercept=False, solver="newton-cg", tol=1e-10
    ).fit(design, targets).coef_.T  # fmt: skip


def hessians(probs):
    """``Λ [N, C, C]``."""
    return [np.diag(p) - np.outer(p, p) for p in probs]


def gauss_newton(design, probs):
    """``Σ_n J_nᵀ Λ_n J_n [D C, D C]`` with ``J_n [C, D C]``, weights in the order ``[D, C]``."""
    jacobians = [np.kron(h[None], np.eye(probs.shape[1])) for h in design]
    return sum(jacobian.T @ hessian @ jacobian for jacobian, hessian in zip(jacobians, hessians(probs), strict=True))


def kronecker(design, probs):
    """``(1/n) Σ h hᵀ ⊗ Σ Λ``."""
    return np.kron(design.T @ design / len(design), sum(hessians(probs)))


def log_evidence(log_likelihood, weights, hessian, precision):
    """Log of the prior times the likelihood at the weights, times the volume of the Gaussian around them."""
    size = weights.size
    log_prior = 0.5 * size * np.log(precision / (2 * np.pi)) - 0.5 * precision * np.sum(weights**2)
    return log_likelihood + log_prior - 0.5 * np.linalg.slogdet((hessian + precision * np.eye(size)) / (2 * np.pi))[1]
