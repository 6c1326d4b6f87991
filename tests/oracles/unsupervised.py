"""Clustering and selections without predictions, from their definitions, in float64: every step is computed anew."""

import numpy as np


def distances(a, b):
    """``[n, m]`` by differences."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))


# Clustering


def k_means_pp(points, mask, uniforms, active):
    """Greedy k-means++: of several draws in proportion to squared distances, the one with the smallest potential.

    The first of those whose potentials are equal but for rounding.
    """
    seeds = []
    for t in range(active):
        squares = distances(points, points[seeds]).min(axis=1) ** 2 if seeds else np.ones(len(points))
        weights = np.where(mask, squares, 0.0)
        cumulative = np.cumsum(weights if weights.any() else mask.astype(float))
        draws = [int(np.argmax(cumulative > u * cumulative[-1])) for u in uniforms[t]]
        potentials = [(distances(points, points[[*seeds, i]]).min(axis=1)[mask] ** 2).sum() for i in draws]
        seeds.append(draws[int(np.argmax(potentials <= min(potentials) * (1 + 1e-5)))] if seeds else draws[0])
    return seeds


def lloyd(points, mask, centres, num_iterations=100):
    centres = np.array(centres, np.float64)
    assignment = distances(points, centres).argmin(axis=1)
    for _ in range(num_iterations):
        for c in range(len(centres)):
            if (mask & (assignment == c)).any():
                centres[c] = points[mask & (assignment == c)].mean(axis=0)
        before, assignment = assignment, distances(points, centres).argmin(axis=1)
        if (before == assignment)[mask].all():
            break
    return centres, np.where(mask, assignment, -1)


def average_linkage(points, mask, num_clusters):
    """Merges the two clusters with the smallest mean of all their pairwise distances; numbered by lowest member."""
    between = distances(points, points)
    clusters = [[i] for i in np.flatnonzero(mask)]
    while len(clusters) > num_clusters:
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i + 1, len(clusters))]
        i, j = min(pairs, key=lambda pair: between[np.ix_(clusters[pair[0]], clusters[pair[1]])].mean())
        clusters[i] = clusters[i] + clusters.pop(j)
    result = np.full(len(points), -1)
    for number, members in enumerate(sorted(clusters, key=min)):
        result[members] = number
    return result


# Selections


def k_means(points, available, query_size, centres, assignment):
    """Turn by turn the member of each cluster that is nearest to its centre, clusters from the largest."""
    sizes = [(assignment == c).sum() for c in range(len(centres))]
    left, picks = np.array(available), []
    while len(picks) < query_size and left.any():
        turn = []
        for c in range(len(centres)):
            members = np.flatnonzero(left & (assignment == c))
            if len(members):
                far = distances(points[members], centres[[c]])[:, 0] * (sizes[c] != 2)  # two alone are as near
                turn.append((-sizes[c], int(members[far.argmin()])))
        for _, pick in sorted(turn):
            picks.append(pick)
            left[pick] = False
    return picks[:query_size]


def typicality(points, members, i, num_neighbours):
    """One over the mean distance to the nearest other members."""
    others = [j for j in members if j != i]
    nearest = np.sort(distances(points[[i]], points[others])[0])[:num_neighbours]
    return 1 / nearest.mean() if len(nearest) else 0.0


def typiclust(points, available, labelled, query_size, assignment, num_neighbours=20, smallest=5):
    """Each pick: the most typical example of the largest among the clusters with the fewest labels and picks."""
    picks, values, clusters = [], [], sorted(set(assignment[assignment >= 0].tolist()))
    while len(picks) < query_size:
        options = []
        for c in clusters:
            members = np.flatnonzero(assignment == c)
            candidates = [i for i in members if available[i] and i not in picks]
            if candidates:
                typical = [typicality(points, members, i, num_neighbours) for i in candidates]
                labels = sum(bool(labelled[i]) or i in picks for i in members)
                best = int(np.argmax(typical))
                rank = (len(members) < smallest, labels, -len(members), candidates[best])
                options.append((*rank, typical[best]))
        if not options:
            break
        *_, pick, value = min(options)
        picks.append(int(pick))
        values.append(value)
    return picks, values


def pure_share(points, known, assignment, radius):
    """The share of closed balls with members of one cluster alone."""
    ids = np.flatnonzero(known)
    near = distances(points[ids], points[ids]) <= radius
    same = assignment[ids][:, None] == assignment[ids][None]
    return np.mean((~near | same).all(axis=1))


def prob_cover(points, available, labelled, query_size, radius):
    """Each pick covers most of what no ball covers yet; of several, the farthest from labels and picks."""
    known, balls = available | labelled, distances(points, points) <= radius
    mean = points[known].mean(axis=0, keepdims=True)
    picks, values = [], []
    for _ in range(min(query_size, int(available.sum()))):
        centres = [*np.flatnonzero(labelled), *picks]
        uncovered = known & ~balls[centres].any(axis=0)
        far = distances(points, points[centres]).min(axis=1) if centres else -distances(points, mean)[:, 0]
        left = [i for i in np.flatnonzero(available) if i not in picks]
        gains = [(balls[i] & uncovered).sum() for i in left]
        best = max(range(len(left)), key=lambda k: (gains[k], far[left[k]], -left[k]))
        picks.append(int(left[best]))
        values.append(int(gains[best]))
    return picks, values


def cluster_margin(scores, clusters, available, query_size, candidates_per_pick, uniforms):
    """Round-robin over the clusters of the candidates, from the smallest; ``uniforms`` order each cluster."""
    ranked = sorted(np.flatnonzero(available), key=lambda i: (-scores[i], i))
    candidates = ranked[: candidates_per_pick * query_size]
    names = list(dict.fromkeys(clusters[i] for i in candidates))  # of equal sizes, the one met first
    queues = [[k for k, i in enumerate(candidates) if clusters[i] == name] for name in names]
    queues = [sorted(queue, key=lambda k: uniforms[k]) for queue in sorted(queues, key=len)]
    picks = []
    while any(queues):
        picks += [int(candidates[queue.pop(0)]) for queue in queues if queue]
    return picks[:query_size]
