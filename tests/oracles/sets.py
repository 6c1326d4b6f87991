"""Set selection from the definitions, in float64: kernels written out, every step computed anew."""

import numpy as np


def kernel(*factors):
    """``Π_f Φ_f Φ_fᵀ``."""
    result = 1.0
    for factor in factors:
        factor = np.asarray(factor, np.float64)
        result = result * (factor @ factor.T)
    return result


def distances(k):
    """``k_ii + k_jj − 2 k_ij``."""
    return np.maximum(np.diag(k)[:, None] + np.diag(k)[None] - 2 * k, 0.0)


def greedy(score, available, query_size):
    """Picks by ``score(picks) -> [N]``, the largest of what is left, the lowest id of equal ones."""
    picks, left = [], np.array(available)
    for _ in range(min(query_size, int(left.sum()))):
        values = np.where(left, score(picks), -np.inf)
        picks.append(int(np.argmax(values)))
        left[picks[-1]] = False
    return picks


def conditional_variances(k, given, noise):
    """Variance of a new label at every point, given noisy labels at some (repeats of a point count again)."""
    given = list(given)
    if not given:
        return np.diag(k) + noise**2
    inner = k[np.ix_(given, given)] + noise**2 * np.eye(len(given))
    return np.diag(k) + noise**2 - np.einsum("ni,ij,nj->n", k[:, given], np.linalg.inv(inner), k[:, given])


def max_det(k, available, query_size, labelled, noise):
    known = np.flatnonzero(labelled).tolist()
    return greedy(lambda picks: conditional_variances(k, known + picks, noise), available, query_size)


def log_determinant(k, picks, noise):
    return np.linalg.slogdet(k[np.ix_(picks, picks)] + noise**2 * np.eye(len(picks)))[1]


def k_center(k, available, query_size, labelled):
    d, known = distances(k), np.flatnonzero(labelled).tolist()

    def score(picks):
        centres = known + picks
        return d[:, centres].min(axis=1) if centres else np.diag(k)

    return greedy(score, available, query_size)


def lcmd(k, available, query_size, labelled):
    d, known = distances(k), np.flatnonzero(labelled).tolist()

    def score(picks):
        centres = known + picks
        if not centres:
            return np.diag(k)
        mine = np.array(centres)[np.argmin(d[:, centres], axis=1)]
        nearest = d[:, centres].min(axis=1)
        sizes = {c: nearest[np.asarray(available) & (mine == c)].sum() for c in centres}
        largest = max(sizes, key=sizes.get)
        return np.where(mine == largest, nearest, -1.0)

    return greedy(score, available, query_size)


def k_means_pp(k, available, query_size, labelled, uniforms, largest_first=False):
    d, picks, left = distances(k), [], np.array(available)
    known = np.flatnonzero(labelled).tolist()
    for turn in range(min(query_size, int(left.sum()))):
        centres = known + picks
        if not centres and largest_first:
            pick = int(np.argmax(np.where(left, np.diag(k), -np.inf)))
        else:
            weights = np.where(left, d[:, centres].min(axis=1) if centres else 1.0, 0.0)
            weights = weights if weights.sum() > 0 else left.astype(float)
            cumulative = np.cumsum(weights)
            pick = int(np.searchsorted(cumulative, uniforms[turn] * cumulative[-1], side="right"))
        picks.append(pick)
        left[pick] = False
    return picks


def frank_wolfe(phi, available, query_size, labelled):
    phi, known = np.asarray(phi, np.float64), np.flatnonzero(labelled).tolist()
    counted = np.asarray(available) | np.asarray(labelled)
    lengths = np.linalg.norm(phi, axis=1)
    target, radius = phi[counted].sum(axis=0), lengths[counted].sum()

    def score(picks):
        approximation = np.zeros(phi.shape[1])
        for index in known + picks:
            towards = radius * phi[index] / lengths[index] - approximation
            approximation = approximation + towards @ (target - approximation) / (towards @ towards) * towards
        return phi / lengths[:, None] @ (target - approximation)

    return greedy(score, available, query_size)


def bait_trace(rows, counted, picks, noise):
    """``tr(F (I + σ⁻² Σ Vᵀ V)⁻¹)`` for rows ``[N, r, D]``."""
    rows = np.asarray(rows, np.float64)
    flat = rows[np.asarray(counted)].reshape(-1, rows.shape[-1])
    chosen = rows[list(picks)].reshape(-1, rows.shape[-1])
    precision = np.eye(rows.shape[-1]) + chosen.T @ chosen / noise**2
    return np.trace(flat.T @ flat @ np.linalg.inv(precision))


def bait(rows, available, query_size, labelled, noise, oversampling=1.0):
    known, counted = np.flatnonzero(labelled).tolist(), np.asarray(available) | np.asarray(labelled)

    def score(picks):
        return np.array([-bait_trace(rows, counted, [*known, *picks, i], noise) for i in range(len(rows))])

    picks = greedy(score, available, min(round(oversampling * query_size), len(rows)))
    while len(picks) > query_size:
        traces = [bait_trace(rows, counted, [*known, *picks[:j], *picks[j + 1 :]], noise) for j in range(len(picks))]
        picks.pop(int(np.argmin(traces)))
    return picks


def posterior_kernel(k, labelled, noise):
    """``k − k_L (K_LL + σ² I)⁻¹ k_Lᵀ``."""
    known = np.flatnonzero(labelled)
    inner = k[np.ix_(known, known)] + noise**2 * np.eye(len(known))
    return k - k[:, known] @ np.linalg.inv(inner) @ k[known]


def gradient_embeddings(p, hidden):
    """BADGE's gradients written out, ``[N, C·D]``, for mean probabilities ``[N, C]``."""
    p, hidden = np.asarray(p, np.float64), np.asarray(hidden, np.float64)
    residual = p - np.eye(p.shape[1])[p.argmax(axis=1)]
    return (residual[:, :, None] * hidden[:, None]).reshape(len(p), -1)


def fisher_rows(p, hidden):
    """``[N, C, C·D]`` whose sum of outer products is ``Σ_c p_c g_c g_cᵀ``."""
    p, hidden = np.asarray(p, np.float64), np.asarray(hidden, np.float64)
    result = np.zeros((*p.shape, p.shape[1] * hidden.shape[1]))
    for n in range(len(p)):
        for c in range(p.shape[1]):
            result[n, c] = np.sqrt(p[n, c]) * np.outer(np.eye(p.shape[1])[c] - p[n], hidden[n]).ravel()
    return result
