"""Consistency losses and whole semi-supervised fits in float64 NumPy, from the equations of the papers."""

import numpy as np
from scipy.special import log_softmax, softmax


def probability_difference(first, second):
    """Laine and Aila 2017, algorithm 1: logits ``[…, C]`` of the two passes."""
    return np.mean((softmax(first, axis=-1) - softmax(second, axis=-1)) ** 2, axis=-1)


def squared_difference(first, second):
    return np.mean((first - second) ** 2, axis=-1)


def fix_match(weak, strong, threshold):
    """Sohn et al. 2020, equation 4: logits ``[…, C]`` of the two passes."""
    q, log_p = softmax(weak, axis=-1), log_softmax(strong, axis=-1)
    surprise = -np.take_along_axis(log_p, q.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return np.where(q.max(axis=-1) >= threshold, surprise, 0.0)


def ramp(step, length, weight):
    """Laine and Aila 2017, section 3.1."""
    return weight * np.exp(-5 * (1 - np.minimum(step / length, 1)) ** 2)


def pi_regression(inputs, targets, labelled, num_steps, rate, start, length, weight, factors):
    """Full-batch gradient descent of a linear function, whose views are the inputs times two factors."""
    inputs, weights = np.asarray(inputs, np.float64), np.full(np.shape(inputs)[1], start, np.float64)
    known, losses = np.flatnonzero(labelled), []
    for step in range(num_steps):
        error = inputs[known] @ weights - np.asarray(targets, np.float64)[known]
        outputs = inputs @ weights
        # (f₁ x·θ − f₂ x·θ)², with the gradient of both passes
        share = ramp(step, length, weight) * (factors[0] - factors[1]) ** 2
        losses.append(0.5 * np.mean(error**2) + share * np.mean(outputs**2))
        slope = inputs[known].T @ error / len(known) + 2 * share * inputs.T @ outputs / len(inputs)
        weights = weights - rate * slope
    return weights, losses


def fix_match_classifier(inputs, targets, labelled, num_steps, rate, kernel, weight, threshold, factors):
    """Full-batch gradient descent of a linear classifier, whose views are the inputs times two factors.

    The labelled ones are changed as those of the pseudo-label. Also how many were sure in every step.
    """
    weak, strong = (factor * np.asarray(inputs, np.float64) for factor in factors)
    kernel, known, classes, sure = np.asarray(kernel, np.float64), np.flatnonzero(labelled), np.eye(kernel.shape[1]), []
    for _ in range(num_steps):
        q, p = softmax(weak @ kernel, axis=1), softmax(strong @ kernel, axis=1)
        used = q.max(axis=1) >= threshold
        slope = weak[known].T @ (q[known] - classes[targets[known]]) / len(known)
        slope += weight * strong[used].T @ (p - classes[q.argmax(axis=1)])[used] / len(inputs)
        sure.append(used.sum())
        kernel = kernel - rate * slope
    return kernel, sure
