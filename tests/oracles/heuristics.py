"""Heuristics written from the papers' equations, on float64 probabilities ``[S, N, …, C]``."""

import numpy as np
from scipy.special import entr, rel_entr
from scipy.special import softmax as scipy_softmax


def softmax(logits):
    return scipy_softmax(np.asarray(logits).astype(np.float64), axis=-1)


def shannon(p):
    """``−Σ p log p`` over the last axis, with ``0 log 0 = 0``."""
    return entr(p).sum(axis=-1)


SCORES = {
    # The mean divergence of a draw from the mean, which unlike a difference of entropies keeps small values.
    "bald": lambda p: rel_entr(p, p.mean(axis=0)).sum(axis=-1).mean(axis=0),
    "entropy": lambda p: shannon(p.mean(axis=0)),
    "expected_entropy": lambda p: shannon(p).mean(axis=0),
    "least_confidence": lambda p: 1 - p.mean(axis=0).max(axis=-1),
    "margin": lambda p: np.diff(np.sort(-p.mean(axis=0), axis=-1)[..., 1::-1])[..., 0],
    "mean_std": lambda p: p.std(axis=0).mean(axis=-1),
    "variance": lambda outputs: outputs.var(axis=0).mean(axis=-1),
    "variation_ratio": lambda p: 1 - np.eye(p.shape[-1])[p.argmax(axis=-1)].mean(axis=0).max(axis=-1),
}


def of_logits(name, logits):
    """The score of that name; regression outputs are read as they are."""
    return SCORES[name](np.asarray(logits).astype(np.float64) if name == "variance" else softmax(logits))


def epig(p, targets):
    """``p [S, N, C]`` and ``targets [S, M, K]``: the information that the labels of two inputs share, pair for pair."""
    joint = np.einsum("snc,smk->nmck", p, targets) / len(p)
    apart = np.einsum("nc,mk->nmck", p.mean(axis=0), targets.mean(axis=0))
    return rel_entr(joint, apart).sum(axis=(2, 3)).mean(axis=1)


def central_difference(function, x, step=1e-6):
    """The gradient of the sum of what a function of float64 gives."""
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        gradient[i] = np.sum(function(high) - function(low)) / (2 * step)
    return gradient
