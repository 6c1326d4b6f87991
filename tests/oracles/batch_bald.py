"""BatchBALD from its definition: every label configuration of every candidate batch is enumerated, in float64."""

import numpy as np
from scipy.special import entr


def joint_entropy(p):
    """``H[y_1, …, y_b]`` of probabilities ``[S, b, C]``."""
    joint = np.ones((p.shape[0], 1))
    for t in range(p.shape[1]):
        joint = (joint[:, :, None] * p[:, None, t]).reshape(p.shape[0], -1)
    return entr(joint.mean(axis=0)).sum()


def joint_information(p, picks):
    """``I(y_picks; θ)``, the draws standing for the posterior of ``θ``."""
    return joint_entropy(p[:, picks]) - entr(p[:, picks]).sum(axis=(1, 2)).mean()


def greedy(p, available, query_size):
    """Picks, and the joint information after each of them; of equal values the lowest id."""
    picks, values = [], []
    for _ in range(query_size):
        candidates = [i for i in np.flatnonzero(available).tolist() if i not in picks]
        found = [joint_information(p, [*picks, i]) for i in candidates]
        picks.append(candidates[int(np.argmax(found))])
        values.append(max(found))
    return picks, values
