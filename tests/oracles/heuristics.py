"""Heuristics written from the papers' equations, slowly, on float64 probabilities ``[S, N, …, C]``."""

import numpy as np


def softmax(logits):
    logits = np.asarray(logits).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def of_logits(name, logits):
    """The score of that name; regression outputs are read as they are."""
    return globals()[name](np.asarray(logits) if name == "variance" else softmax(logits))


def shannon(p):
    """``−Σ p log p`` over the last axis, with ``0 log 0 = 0``."""
    return -np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1)


def entropy(p):
    return shannon(p.mean(axis=0))


def expected_entropy(p):
    return shannon(p).mean(axis=0)


def bald(p):
    """The mean divergence of a draw from the mean, which unlike a difference of entropies keeps small values."""
    mean = np.broadcast_to(p.mean(axis=0), p.shape)
    ratio = np.divide(p, mean, out=np.ones_like(p), where=p > 0)
    return np.sum(p * np.log(ratio), axis=-1).mean(axis=0)


def margin(p):
    ordered = np.sort(p.mean(axis=0), axis=-1)
    return ordered[..., -2] - ordered[..., -1]


def least_confidence(p):
    return 1 - p.mean(axis=0).max(axis=-1)


def variation_ratio(p):
    num_draws, num_classes = p.shape[0], p.shape[-1]
    votes = p.argmax(axis=-1).reshape(num_draws, -1)
    modal = [np.bincount(column, minlength=num_classes).max() for column in votes.T]
    return (1 - np.array(modal) / num_draws).reshape(p.shape[1:-1])


def mean_std(p):
    return np.sqrt(np.mean((p - p.mean(axis=0)) ** 2, axis=0)).mean(axis=-1)


def variance(outputs):
    """Of regression outputs, which are no probabilities."""
    outputs = np.asarray(outputs).astype(np.float64)
    return np.mean((outputs - outputs.mean(axis=0)) ** 2, axis=0).mean(axis=-1)


def mutual_information(p, q):
    """Between the labels of two inputs whose draws are ``p [S, C]`` and ``q [S, K]``."""
    joint = p.T @ q / len(p)
    apart = np.outer(p.mean(axis=0), q.mean(axis=0))
    return np.sum(joint * np.log(np.divide(joint, apart, out=np.ones_like(joint), where=joint > 0)))


def epig(p, targets):
    """``p [S, N, C]`` and ``targets [S, M, K]``."""
    pairs = [[mutual_information(p[:, n], targets[:, m]) for m in range(targets.shape[1])] for n in range(p.shape[1])]
    return np.mean(pairs, axis=1)


def central_difference(function, x, step=1e-6):
    """The gradient of the sum of what a function of float64 gives."""
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        gradient[i] = np.sum(function(high) - function(low)) / (2 * step)
    return gradient
