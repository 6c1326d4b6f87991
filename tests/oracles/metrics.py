"""Metrics of averaged probabilities in float64 NumPy, one example after the other."""

import itertools

import numpy as np
from scipy import integrate, stats


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
        results.append(total if positives else float("nan"))
    return np.array(results)


def gaussian_nll(outputs, targets, noise_variance=0.0):
    """Of ``[S, N]`` outputs."""
    outputs, targets = np.asarray(outputs, np.float64), np.asarray(targets, np.float64)
    mean, variance = outputs.mean(0), outputs.var(0) + noise_variance
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + (targets - mean) ** 2 / (2 * variance)))


def gaussian_crps(mean, variance, targets):
    """By adaptive quadrature of ``∫ (F(x) − [x ≥ y])² dx``, one target after the other."""

    def one(mu, sigma, y):
        below = integrate.quad(lambda x: stats.norm.cdf(x, mu, sigma) ** 2, mu - 40 * sigma, y, limit=500)[0]
        above = integrate.quad(lambda x: stats.norm.sf(x, mu, sigma) ** 2, y, mu + 40 * sigma, limit=500)[0]
        return below + above

    return float(np.mean([one(*case) for case in zip(mean, np.sqrt(variance), targets, strict=True)]))


def crps(draws, targets, fair=False):
    """Of ``[S, N]`` draws, over all pairs of them; NaN targets are unknown."""
    draws, targets = np.asarray(draws, np.float64), np.asarray(targets, np.float64)
    num_draws, scores = len(draws), []
    for column, y in zip(draws.T, targets, strict=True):
        pairs = np.abs(column[:, None] - column[None]).sum()
        weight = 2 * num_draws * (num_draws - 1) if fair else 2 * num_draws**2
        scores.append(np.abs(column - y).mean() - (pairs / weight if weight else np.nan))
    return float(np.nanmean(scores)) if num_draws > 1 or not fair else float("nan")


def auroc(scores, targets):
    """Over all pairs of an example of the class and one of another; ties count half."""
    scores, targets = np.asarray(scores, np.float64).reshape(-1, np.shape(scores)[-1]), np.ravel(targets)
    results = []
    for c in range(scores.shape[1]):
        ours, others = scores[targets == c, c], scores[(targets >= 0) & (targets != c), c]
        wins = [(a > b) + 0.5 * (a == b) for a in ours for b in others]
        results.append(np.mean(wins) if wins else np.nan)
    return np.array(results)


def adaptive_ece(probs, targets, num_bins=15):
    """Equal mass: bin ``b`` of ``B`` takes the ranks up to ``⌊b N / B⌋``; equal confidences share their accuracy."""
    examples = _known(probs, targets)
    cases = sorted((p.max(), float(p.argmax() == y)) for p, y in examples)
    shared = [(c, np.mean([hit for other, hit in cases if other == c])) for c, _ in cases]
    ends = [b * len(cases) // num_bins for b in range(num_bins + 1)]
    bins = [shared[start:end] for start, end in itertools.pairwise(ends)]
    return sum(abs(sum(hit - c for c, hit in inside)) for inside in bins) / len(cases)


def classwise_ece(probs, targets, num_bins=15):
    """``[C]``: the calibration error of the probability of each class, over all examples."""
    examples, results = _known(probs, targets), []
    for c in range(np.shape(probs)[-1]):
        bins = [[] for _ in range(num_bins)]
        for p, y in examples:
            bins[min(int(p[c] * num_bins), num_bins - 1)].append((y == c) - p[c])
        results.append(sum(abs(sum(gaps)) for gaps in bins) / len(examples))
    return np.array(results)
