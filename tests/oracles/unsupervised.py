"""Clustering and selections without predictions, from their definitions, in float64: every step is computed anew."""

import numpy as np
from scipy.spatial.distance import cdist as distances


def k_means_pp(points, mask, uniforms, active):
    """Greedy k-means++: of several draws in proportion to squared distances, the one with the smallest potential.

    The first of those whose potentials are equal but for rounding.
    """
    seeds = []
    for t in range(active):
        squares = distances(points, points[seeds]).min(axis=1) ** 2 if seeds else np.ones(len(points))
        weights = np.where(mask, squares, 0.0)
        cumulative = np.cumsum(weights if weights.any() else mask)
        draws = np.searchsorted(cumulative, uniforms[t] * cumulative[-1], side="right").tolist()
        potentials = [(distances(points[mask], points[[*seeds, i]]).min(axis=1) ** 2).sum() for i in draws]
        seeds.append(draws[int(np.argmax(potentials <= min(potentials) * (1 + 1e-5)))] if seeds else draws[0])
    return seeds


def lloyd(points, mask, centres, num_iterations=100):
    points, centres = np.asarray(points, np.float64), np.array(centres, np.float64)
    assignment = distances(points, centres).argmin(axis=1)
    for _ in range(num_iterations):
        for c in set(assignment[mask].tolist()):
            centres[c] = points[mask & (assignment == c)].mean(axis=0)
        before, assignment = assignment, distances(points, centres).argmin(axis=1)
        if (before == assignment)[mask].all():
            break
    return centres, np.where(mask, assignment, -1)


def k_means(points, available, query_size, centres, assignment):
    """Turn by turn the member of each cluster that is nearest to its centre, clusters from the largest."""
    order = []
    for c in range(len(centres)):
        members = np.flatnonzero(available & (assignment == c))
        far = distances(points[members], centres[[c]])[:, 0] * (len(members) != 2)  # two alone are as near
        order += [(turn, -len(members), int(i)) for turn, i in enumerate(members[far.argsort(kind="stable")])]
    return [pick for *_, pick in sorted(order)[:query_size]]


def typiclust(points, available, labelled, query_size, assignment, num_neighbours=20, smallest=5):
    """Each pick: the most typical example of the largest among the clusters with the fewest labels and picks."""
    picks, values = [], []

    def typicality(i, members):  # one over the mean distance to the nearest other members
        nearest = np.sort(distances(points[[i]], points[members[members != i]])[0])[:num_neighbours]
        return 1 / nearest.mean() if len(nearest) else 0.0

    for _ in range(query_size):
        options = []
        for c in range(assignment.max() + 1):
            members = np.flatnonzero(assignment == c)
            candidates = [i for i in members.tolist() if available[i] and i not in picks]
            if candidates:
                typical = [typicality(i, members) for i in candidates]
                labels, best = sum(labelled[i] or i in picks for i in members), int(np.argmax(typical))
                options.append((len(members) < smallest, labels, -len(members), candidates[best], typical[best]))
        *_, pick, value = min(options)
        picks.append(pick)
        values.append(value)
    return picks, values


def pure_radius(points, known, assignment, purity):
    """The largest at which a share of closed balls holds one cluster alone, but for its own end."""
    other = np.where(assignment[known][:, None] != assignment[known], distances(points[known], points[known]), np.inf)
    return np.sort(other.min(axis=1))[int(known.sum() * (1 - purity) + 1e-6)]


def herding(similarity, weights, available, labelled, query_size):
    """Each pick makes the examples most similar to their most similar label; of several the lowest id."""
    nearest = similarity[:, labelled].max(axis=1, initial=0.0)
    picks, values = [], []
    for _ in range(query_size):
        gains = (weights[:, None] * np.maximum(similarity - nearest[:, None], 0)).sum(axis=0)
        left = [i for i in np.flatnonzero(available).tolist() if i not in picks]
        pick = next(i for i in left if gains[i] >= gains[left].max() * (1 - 1e-5))
        picks.append(pick)
        values.append(gains[pick])
        nearest = np.maximum(nearest, similarity[:, pick])
    return picks, values


def prob_cover(points, available, labelled, query_size, radius):
    """Each pick covers most of what no ball covers yet."""
    balls = (distances(points, points) <= radius).astype(np.float64)
    return herding(balls, (available | labelled).astype(float), available, labelled, query_size)


def cluster_margin(scores, clusters, available, query_size, candidates_per_pick, uniforms):
    """Round-robin over the clusters of the candidates, from the smallest; ``uniforms`` order each cluster."""
    ranked = sorted(np.flatnonzero(available).tolist(), key=lambda i: (-scores[i], i))
    candidates = ranked[: candidates_per_pick * query_size]
    names = list(dict.fromkeys(clusters[i] for i in candidates))  # of equal sizes, the one met first
    queues = [[k for k, i in enumerate(candidates) if clusters[i] == name] for name in names]
    queues = [sorted(queue, key=lambda k: uniforms[k]) for queue in sorted(queues, key=len)]
    picks = []
    while any(queues):
        picks += [candidates[queue.pop(0)] for queue in queues if queue]
    return picks[:query_size]
