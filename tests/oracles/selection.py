"""Sampling without replacement, by enumeration of every sequence of a small pool."""

import itertools

import numpy as np
from scipy import stats


def sequences(weights, query_size):
    """Ordered picks → probability: each pick is proportional to its weight among what is left.

    When only weightless entries are left, each of them is as likely as the other.
    """
    weights = np.asarray(weights, np.float64)
    result = {}
    for picks in itertools.permutations(range(len(weights)), query_size):
        probability, left = 1.0, list(range(len(weights)))
        for pick in picks:
            total = weights[left].sum()
            probability *= weights[pick] / total if total > 0 else 1 / len(left)
            left.remove(pick)
        result[picks] = probability
    return result


def first_pick_probabilities(weights):
    table = sequences(weights, 1)
    return np.array([table[(i,)] for i in range(len(weights))])


def inclusion_probabilities(weights, query_size):
    table = sequences(weights, query_size)
    return np.array([sum(p for picks, p in table.items() if i in picks) for i in range(len(weights))])


def average_ranks(scores):
    """Rank 1 for the highest; equal scores share the average of the ranks they take together."""
    scores = np.asarray(scores, np.float64)
    return np.array([np.sum(scores > s) + (np.sum(scores == s) + 1) / 2 for s in scores])


def assert_sequences(picks, table):
    """χ² of ordered picks against their exact probabilities; the keys are fixed, so this passes always or never."""
    counts = dict.fromkeys(table, 0)
    for row, number in zip(*np.unique(picks, axis=0, return_counts=True), strict=True):
        counts[tuple(row.tolist())] += int(number)
    observed, truth = np.array(list(counts.values())), np.array(list(table.values()))
    assert observed[truth == 0].sum() == 0
    possible = truth > 0
    assert stats.chisquare(observed[possible], len(picks) * truth[possible]).pvalue > 1e-3
