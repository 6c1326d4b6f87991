"""BatchBALD from its definition: every label configuration of every candidate batch is enumerated, in float64."""

import numpy as np


def joint_entropy(p):
    """``H[y_1, …, y_b]`` of probabilities ``[S, b, C]``."""
    joint = np.ones((p.shape[0], 1))
    for t in range(p.shape[1]):
        joint = (joint[:, :, None] * p[:, None, t]).reshape(p.shape[0], -1)
    return entropy(joint.mean(axis=0))


def entropy(p):
    """``−Σ p log p`` with ``0 log 0 = 0``."""
    p = np.asarray(p, np.float64)
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum()


def joint_information(p, picks):
    """``I(y_picks; θ)``, the draws standing for the posterior of ``θ``."""
    conditional = np.mean([sum(entropy(draw[i]) for i in picks) for draw in p])
    return joint_entropy(p[:, list(picks)]) - conditional


def greedy(p, available, query_size):
    """Picks, and the joint information after each of them; of equal values the lowest id."""
    picks, values = [], []
    for _ in range(query_size):
        candidates = [i for i in range(p.shape[1]) if available[i] and i not in picks]
        if not candidates:
            break
        found = [joint_information(p, [*picks, i]) for i in candidates]
        best = int(np.argmax(found))
        picks.append(candidates[best])
        values.append(found[best])
    return picks, values
