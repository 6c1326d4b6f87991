"""Consistency losses and whole semi-supervised fits in float64 NumPy, from the equations of the papers."""

import math

import numpy as np


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def probability_difference(first, second):
    """Laine and Aila 2017, algorithm 1: one input, logits of the two passes."""
    p, q = softmax(np.asarray(first, np.float64)), softmax(np.asarray(second, np.float64))
    return sum((p[c] - q[c]) ** 2 for c in range(len(p))) / len(p)


def squared_difference(first, second):
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return sum((first[c] - second[c]) ** 2 for c in range(len(first))) / len(first)


def fix_match(weak, strong, threshold):
    """Sohn et al. 2020, equation 4: one input, logits of the two passes."""
    q, p = softmax(np.asarray(weak, np.float64)), softmax(np.asarray(strong, np.float64))
    return -math.log(p[q.argmax()]) if q.max() >= threshold else 0.0


def ramp(step, length, weight):
    """Laine and Aila 2017, section 3.1."""
    return weight if step >= length else weight * math.exp(-5 * (1 - step / length) ** 2)


def pi_regression(inputs, targets, labelled, num_steps, rate, start, length, weight, factors):
    """Full-batch gradient descent of a linear function, whose views are the inputs times two factors."""
    inputs, weights = np.asarray(inputs, np.float64), np.full(np.shape(inputs)[1], start, np.float64)
    known, losses = np.flatnonzero(labelled), []
    for step in range(num_steps):
        w = ramp(step, length, weight)
        error = inputs[known] @ weights - np.asarray(targets, np.float64)[known]
        outputs = inputs @ weights
        # (f₁ x·θ − f₂ x·θ)², with the gradient of both passes
        losses.append(0.5 * np.mean(error**2) + w * np.mean((factors[0] - factors[1]) ** 2 * outputs**2))
        gradient = inputs[known].T @ error / len(known)
        gradient += w * 2 * (factors[0] - factors[1]) ** 2 * inputs.T @ outputs / len(inputs)
        weights = weights - rate * gradient
    return weights, losses


def fix_match_classifier(inputs, targets, labelled, num_steps, rate, kernel, weight, threshold, factors):
    """Full-batch gradient descent of a linear classifier, whose views are the inputs times two factors.

    The labelled ones are changed as those of the pseudo-label.
    """
    inputs, kernel = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    known, sure = np.flatnonzero(labelled), []
    for _ in range(num_steps):
        gradient = np.zeros_like(kernel)
        for i in known:
            p = softmax(factors[0] * inputs[i] @ kernel)
            p[targets[i]] -= 1
            gradient += np.outer(factors[0] * inputs[i], p) / len(known)
        sure.append(0)
        for x in inputs:
            q, p = softmax(factors[0] * x @ kernel), softmax(factors[1] * x @ kernel)
            if q.max() >= threshold:
                sure[-1] += 1
                p[q.argmax()] -= 1
                gradient += weight * np.outer(factors[1] * x, p) / len(inputs)
        kernel = kernel - rate * gradient
    return kernel, sure
