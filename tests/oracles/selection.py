"""Sampling without replacement, by enumeration of every sequence of a small pool."""

import itertools

import numpy as np
from scipy import stats


def sequences(weights, query_size):
    """Ordered picks → probability: each pick is proportional to its weight among what is left.

    When only weightless entries are left, each of them is as likely as the other.
    """
    weights, result = np.asarray(weights, np.float64), {}
    for picks in itertools.permutations(range(len(weights)), query_size):
        probability, left = 1.0, list(range(len(weights)))
        for pick in picks:
            total = weights[left].sum()
            probability *= weights[pick] / total if total > 0 else 1 / len(left)
            left.remove(pick)
        result[picks] = probability
    return result


def assert_sequences(picks, weights):
    """χ² of ordered picks ``[n, Q]`` against their exact probabilities; keys are fixed: it passes always or never."""
    table = sequences(weights, picks.shape[1])
    counts = dict.fromkeys(table, 0)
    for row, number in zip(*np.unique(picks, axis=0, return_counts=True), strict=True):
        counts[tuple(row.tolist())] += int(number)
    observed, truth = np.array(list(counts.values())), np.array(list(table.values()))
    assert observed[truth == 0].sum() == 0
    assert stats.chisquare(observed[truth > 0], len(picks) * truth[truth > 0]).pvalue > 1e-3
