"""SWAG in float64 NumPy, from algorithm 1 and equation 1 of Maddox et al. 2019."""

import numpy as np


def iterates(inputs, targets, num_steps, rate, start):
    """Weights after every step of full-batch gradient descent on half the mean square."""
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    weights, seen = np.full(inputs.shape[1], start), []
    for _ in range(num_steps):
        weights = weights - rate * inputs.T @ (inputs @ weights - targets) / len(targets)
        seen.append(weights)
    return np.array(seen)


def snapshots(iterates, start, every):
    """Every ``every``-th of the iterates from the share ``start`` on, counted back from the last."""
    first = min(int(start * len(iterates)), len(iterates) - 1)
    return np.asarray(iterates, np.float64)[sorted(range(len(iterates) - 1, first - 1, -every))]


def moments(seen, rank):
    """Mean, variances, and the last ``rank`` deviations from the means so far, oldest first."""
    deviations = [seen[i] - sum(seen[: i + 1]) / (i + 1) for i in range(len(seen))]
    mean = sum(seen) / len(seen)
    variance = sum(theta**2 for theta in seen) / len(seen) - mean**2
    return mean, variance, np.array(deviations[max(len(seen) - rank, 0) :])


def covariance(seen, rank, scale=1.0):
    _, variance, deviations = moments(seen, rank)
    if rank == 0:
        return scale * np.diag(variance)
    low_rank = sum(np.outer(d, d) for d in deviations) / (len(deviations) - 1)
    return scale / 2 * (np.diag(variance) + low_rank)
