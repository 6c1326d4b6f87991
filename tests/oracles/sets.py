"""Set selection from the definitions, in float64: kernels written out, every step computed anew.

A selection is its picks and their values, what the picks were the best by.
"""

import numpy as np
from scipy.special import entr


def kernel(*factors):
    """``Π_f Φ_f Φ_fᵀ``."""
    return np.prod([np.asarray(factor, np.float64) @ np.asarray(factor, np.float64).T for factor in factors], axis=0)


def greedy(score, available, query_size, labelled):
    """Picks by ``score(labelled ids and picks) -> [N]``, the largest of what is left, the lowest id of equal ones."""
    known, picks, values, left = np.flatnonzero(labelled).tolist(), [], [], np.array(available)
    for _ in range(query_size):
        found = np.where(left, score(known + picks), -np.inf)
        picks.append(int(np.argmax(found)))
        values.append(found[picks[-1]])
        left[picks[-1]] = False
    return picks, values


def posterior_kernel(k, given, noise):
    """``k − k_L (K_LL + σ² I)⁻¹ k_Lᵀ``, given noisy labels at some ids."""
    given = np.asarray(given, int)
    inner = k[np.ix_(given, given)] + noise**2 * np.eye(len(given))
    return k - k[:, given] @ np.linalg.inv(inner) @ k[given]


def max_diag(k, available, query_size, labelled):
    return greedy(lambda _: np.diag(k), available, query_size, labelled)


def max_det(k, available, query_size, labelled, noise):
    """Variances of new labels, given those before."""

    def score(given):
        return np.diag(posterior_kernel(k, given, noise)) + noise**2

    return greedy(score, available, query_size, labelled)


def distances(k, centres):
    """``√(k_ii + k_jj − 2 k_ij)`` to the centres, ``[N, C]``; without any to the origin."""
    if not centres:
        return np.sqrt(np.diag(k))[:, None]
    return np.sqrt(np.maximum(np.diag(k)[:, None] + np.diag(k)[centres] - 2 * k[:, centres], 0.0))


def k_center(k, available, query_size, labelled):
    return greedy(lambda centres: distances(k, centres).min(axis=1), available, query_size, labelled)


def lcmd(k, available, query_size, labelled):
    def score(centres):
        mine, far = distances(k, centres).argmin(axis=1), distances(k, centres).min(axis=1)
        return np.where(mine == np.bincount(mine, far**2 * available).argmax(), far, -1.0)

    return greedy(score, available, query_size, labelled)


def k_means_pp(k, available, query_size, labelled, uniforms, largest_first=False):
    """Each pick in proportion to its squared distance; without a centre at random, or the farthest from the origin."""
    uniforms = iter(uniforms)

    def score(centres):
        uniform, far = next(uniforms), distances(k, centres).min(axis=1)
        if not centres and largest_first:
            return far
        weights = np.where(available & ~np.isin(np.arange(len(k)), centres), far**2 if centres else 1.0, 0.0)
        cumulative = np.cumsum(weights)
        drawn = np.arange(len(k)) == np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        return np.where(drawn, far if centres else np.inf, -1.0)

    return greedy(score, available, query_size, labelled)


def frank_wolfe(phi, available, query_size, labelled):
    phi = np.asarray(phi, np.float64)
    lengths = np.linalg.norm(phi, axis=1)
    target, radius = phi[available | labelled].sum(axis=0), lengths[available | labelled].sum()

    def score(chosen):
        approximation = np.zeros(phi.shape[1])
        for index in chosen:
            towards = radius * phi[index] / lengths[index] - approximation
            approximation = approximation + towards @ (target - approximation) / (towards @ towards) * towards
        return phi / lengths[:, None] @ (target - approximation)

    return greedy(score, available, query_size, labelled)


def bait(rows, available, query_size, labelled, noise, oversampling=1.0, use_labelled=True):
    """By how much ``tr(F (I + σ⁻² Σ Vᵀ V)⁻¹)`` shrinks, for rows ``V [N, r, D]``."""
    rows, known = np.asarray(rows, np.float64), labelled & use_labelled
    counted = rows[available | labelled].reshape(-1, rows.shape[-1])

    def trace(picks):
        chosen = rows[picks].reshape(-1, rows.shape[-1])
        return np.trace(counted.T @ counted @ np.linalg.inv(np.eye(rows.shape[-1]) + chosen.T @ chosen / noise**2))

    def score(chosen):
        return trace(chosen) - np.array([trace([*chosen, i]) for i in range(len(rows))])

    picks, values = greedy(score, available, round(oversampling * query_size), known)
    while len(picks) > query_size:
        without = [np.flatnonzero(known).tolist() + picks[:j] + picks[j + 1 :] for j in range(len(picks))]
        worst = int(np.argmin([trace(rest) for rest in without]))
        del picks[worst], values[worst]
    return picks, values


def fisher_rows(p, hidden):
    """``[N, C, C·D]`` whose sum of outer products is ``Σ_c p_c g_c g_cᵀ``."""
    residual = np.eye(p.shape[1]) - p[:, None]
    return np.einsum("nc,nck,nd->nckd", np.sqrt(p), residual, hidden).reshape(*p.shape, -1)


def joint_entropy(p):
    """``H[y_1, …, y_b]`` of probabilities ``[S, b, C]``: every label configuration is enumerated."""
    joint = np.ones((p.shape[0], 1))
    for t in range(p.shape[1]):
        joint = (joint[:, :, None] * p[:, None, t]).reshape(p.shape[0], -1)
    return entr(joint.mean(axis=0)).sum()


def batch_bald(p, available, query_size):
    """By the joint information ``I(y_picks; θ)``, the draws standing for the posterior of ``θ``."""

    def information(picks):
        return joint_entropy(p[:, picks]) - entr(p[:, picks]).sum(axis=(1, 2)).mean()

    def score(picks):
        return np.array([information([*picks, i]) if free else -np.inf for i, free in enumerate(available)])

    return greedy(score, available, query_size, np.zeros(len(available), bool))
