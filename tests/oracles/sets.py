"""Set selection from the definitions, in float64: kernels written out, every step computed anew."""

import numpy as np


def kernel(*factors):
    """``Π_f Φ_f Φ_fᵀ``."""
    return np.prod([np.asarray(factor, np.float64) @ np.asarray(factor, np.float64).T for factor in factors], axis=0)


def distances(k):
    """``k_ii + k_jj − 2 k_ij``."""
    return np.maximum(np.diag(k)[:, None] + np.diag(k)[None] - 2 * k, 0.0)


def greedy(score, available, query_size, labelled):
    """Picks by ``score(labelled ids and picks) -> [N]``, the largest of what is left, the lowest id of equal ones."""
    known, picks, left = np.flatnonzero(labelled).tolist(), [], np.array(available)
    for _ in range(query_size):
        picks.append(int(np.argmax(np.where(left, score(known + picks), -np.inf))))
        left[picks[-1]] = False
    return picks


def posterior_kernel(k, given, noise):
    """``k − k_L (K_LL + σ² I)⁻¹ k_Lᵀ``, given noisy labels at some ids."""
    given = np.asarray(given, int)
    inner = k[np.ix_(given, given)] + noise**2 * np.eye(len(given))
    return k - k[:, given] @ np.linalg.inv(inner) @ k[given]


def conditional_variances(k, given, noise):
    """Of a new label at every point."""
    return np.diag(posterior_kernel(k, given, noise)) + noise**2


def max_det(k, available, query_size, labelled, noise):
    return greedy(lambda given: conditional_variances(k, given, noise), available, query_size, labelled)


def nearest(k, centres):
    """Squared distances to the nearest centre, without any to the origin."""
    return distances(k)[:, centres].min(axis=1) if centres else np.diag(k)


def k_center(k, available, query_size, labelled):
    return greedy(lambda centres: nearest(k, centres), available, query_size, labelled)


def lcmd(k, available, query_size, labelled):
    def score(centres):
        if not centres:
            return np.diag(k)
        mine, far = distances(k)[:, centres].argmin(axis=1), nearest(k, centres)
        return np.where(mine == np.bincount(mine, far * available).argmax(), far, -1.0)

    return greedy(score, available, query_size, labelled)


def k_means_pp(k, available, query_size, labelled, uniforms, largest_first=False):
    uniforms = iter(uniforms)

    def score(centres):
        uniform, left = next(uniforms), available & ~np.isin(np.arange(len(k)), centres)
        if not centres and largest_first:
            return np.diag(k)
        weights = np.where(left, nearest(k, centres) if centres else 1.0, 0.0)
        cumulative = np.cumsum(weights if weights.any() else left)
        return np.arange(len(k)) == np.searchsorted(cumulative, uniform * cumulative[-1], side="right")

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


def bait_trace(rows, counted, picks, noise):
    """``tr(F (I + σ⁻² Σ Vᵀ V)⁻¹)`` for rows ``[N, r, D]``."""
    rows = np.asarray(rows, np.float64)
    flat, chosen = (rows[index].reshape(-1, rows.shape[-1]) for index in (counted, picks))
    return np.trace(flat.T @ flat @ np.linalg.inv(np.eye(rows.shape[-1]) + chosen.T @ chosen / noise**2))


def bait(rows, available, query_size, labelled, noise, oversampling=1.0, use_labelled=True):
    counted, known = available | labelled, np.flatnonzero(labelled & use_labelled).tolist()

    def score(chosen):
        return np.array([-bait_trace(rows, counted, [*chosen, i], noise) for i in range(len(rows))])

    picks = greedy(score, available, round(oversampling * query_size), labelled & use_labelled)
    while len(picks) > query_size:
        traces = [bait_trace(rows, counted, [*known, *picks[:j], *picks[j + 1 :]], noise) for j in range(len(picks))]
        picks.pop(int(np.argmin(traces)))
    return picks


def gradient_embeddings(p, hidden):
    """BADGE's gradients written out, ``[N, C·D]``, for mean probabilities ``[N, C]``."""
    residual = p - np.eye(p.shape[1])[p.argmax(axis=1)]
    return np.einsum("nc,nd->ncd", residual, hidden).reshape(len(p), -1)


def fisher_rows(p, hidden):
    """``[N, C, C·D]`` whose sum of outer products is ``Σ_c p_c g_c g_cᵀ``."""
    residual = np.eye(p.shape[1]) - p[:, None]
    return np.einsum("nc,nck,nd->nckd", np.sqrt(p), residual, hidden).reshape(*p.shape, -1)
