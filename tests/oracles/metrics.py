"""Metrics of averaged probabilities in float64 NumPy, one example after the other."""

import numpy as np


def model_average(logits):
    """``[S, N, …, C]`` logits to the mean of their softmax ``[N, …, C]``."""
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).mean(0)


def _known(probs, targets):
    probs, targets = np.asarray(probs, np.float64), np.asarray(targets)
    return [(p, int(y)) for p, y in zip(probs.reshape(-1, probs.shape[-1]), targets.ravel(), strict=True) if y >= 0]


def accuracy(probs, targets, k=1):
    return float(np.mean([y in np.argsort(-p, kind="stable")[:k] for p, y in _known(probs, targets)]))


def nll(probs, targets):
    return float(np.mean([-np.log(p[y]) for p, y in _known(probs, targets)]))


def brier(probs, targets):
    return float(np.mean([np.sum((p - np.eye(len(p))[y]) ** 2) for p, y in _known(probs, targets)]))


def _calibration_error(examples, num_bins):
    if not examples:
        return float("nan")
    total = 0.0
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = [(p, y) for p, y in examples if low <= p.max() < high or (b == num_bins - 1 and p.max() >= high)]
        if inside:
            gap = np.mean([p.argmax() == y for p, y in inside]) - np.mean([p.max() for p, _ in inside])
            total += len(inside) / len(examples) * abs(gap)
    return float(total)


def ece(probs, targets, num_bins=15):
    return _calibration_error(_known(probs, targets), num_bins)


def ece_per_class(probs, targets, num_bins=15):
    classes = range(np.shape(probs)[-1])
    return np.array([_calibration_error([e for e in _known(probs, targets) if e[1] == c], num_bins) for c in classes])


def confusion(probs, targets):
    counts = np.zeros((np.shape(probs)[-1],) * 2, int)
    for p, y in _known(probs, targets):
        counts[y, p.argmax()] += 1
    return counts


def average_precision(probs, targets):
    """One threshold at every distinct score: ``Σ_t (R_t − R_{t−1}) P_t``."""
    examples = _known(probs, targets)
    results = []
    for c in range(np.shape(probs)[-1]):
        positives = sum(y == c for _, y in examples)
        total, recall = 0.0, 0.0
        for threshold in sorted({p[c] for p, _ in examples}, reverse=True):
            kept = [y == c for p, y in examples if p[c] >= threshold]
            now = sum(kept) / positives if positives else float("nan")
            total, recall = total + (now - recall) * np.mean(kept), now
        results.append(total)
    return np.array(results)


def gaussian_nll(outputs, targets, noise_variance=0.0):
    """Of ``[S, N]`` outputs."""
    outputs, targets = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    mean, variance = outputs.mean(0), outputs.var(0) + noise_variance
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + (targets - mean) ** 2 / (2 * variance)))
