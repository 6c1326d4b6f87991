"""Consistency losses in float64 NumPy, from the equations of the papers."""

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
