"""SWAG in float64 NumPy, from algorithm 1 and equation 1 of Maddox et al. 2019."""

import numpy as np


def snapshots(iterates, start, every):
    """Every ``every``-th of the iterates from the share ``start`` on, counted back from the last."""
    first = min(int(start * len(iterates)), len(iterates) - 1)
    return np.asarray(iterates, np.float64)[first:][::-every][::-1]


def moments(seen, rank):
    """Mean, variances, and the last ``rank`` deviations from the means so far, oldest first."""
    deviations = [seen[i] - seen[: i + 1].mean(axis=0) for i in range(len(seen))]
    return seen.mean(axis=0), seen.var(axis=0), np.array(deviations[max(len(seen) - rank, 0) :])


def covariance(seen, rank, scale=1.0):
    _, variance, deviations = moments(seen, rank)
    if rank == 0:
        return scale * np.diag(variance)
    return scale / 2 * (np.diag(variance) + deviations.T @ deviations / (len(deviations) - 1))
