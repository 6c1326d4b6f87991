"""TypiClust against the definition of its paper, and the search for neighbours in blocks."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from baal_jax.selection import _typiclust
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import EVERY, NUM, QUERY, SEEDS, SIZE, build, pick

neighbour_distances = jax.jit(_typiclust.neighbour_distances, static_argnums=3)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_clusters": 4, "num_neighbours": 3}, {"max_clusters": 6, "num_iterations": 1}],
    ids=["", "num_clusters", "max_clusters"],
)
def test_picks_are_those_of_the_paper(arguments):
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        found = pick(build("typiclust", **arguments), points, available, labelled, key=seed)
        bound = min(arguments.get("num_clusters") or arguments.get("max_clusters", 500), NUM)
        iterations = arguments.get("num_iterations", 100)
        active = min(bound, arguments.get("num_clusters") or int(labelled.sum()) + QUERY)
        _, assignment, centred = problems.clusters_of(points, available | labelled, bound, active, seed, iterations)
        neighbours = arguments.get("num_neighbours", 20)
        picks, values = oracle.typiclust(centred, available, labelled, QUERY, assignment, neighbours)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, values, rtol=1e-4)


def test_tiny_clusters_wait_until_all_others_are_used_up():
    order = jax.jit(_typiclust.most_typical, static_argnums=4)
    assignment = np.repeat([0, 1, 2, -1], [5, 4, 6, 1]).astype(np.int32)
    available, typical = assignment >= 0, np.arange(16.0, dtype=np.float32)
    picks = order(assignment, typical, available, ~available, 3)
    assert picks.tolist() == [14, 4, 13, 3, 12, 2, 11, 1, 10, 0, 9, 8, 7, 6, 5, -1]
    available[[3, 4, 14]] = False  # of which two are labelled: the others of their cluster wait
    picks = order(assignment, typical, available, np.isin(np.arange(16), [3, 4]), 3)
    assert picks.tolist() == [13, 12, 11, 2, 10, 1, 9, 0, 8, 7, 6, 5, -1, -1, -1, -1]


def test_typicality_of_the_lonely_and_of_the_repeated():
    points = np.array([[0.0], [50.0], [50.0], [90.0], [91.0], [93.0]], np.float32)
    assignment = np.array([0, 1, 1, 2, 2, 2], np.int32)
    found = jax.jit(_typiclust.typicalities, static_argnums=3)(points, np.ones(6, bool), assignment, 20)
    np.testing.assert_allclose(found, [0, np.inf, np.inf, 1 / 2, 1 / 1.5, 1 / 2.5])


def test_neighbours_are_those_of_the_definition():
    """Of few points in groups of any size, and of many in many blocks."""
    for seed, num, num_groups in [*((seed, NUM, 1 + 5 * (seed % 2)) for seed in range(6)), (1, 1300, 1), (1, 1300, 6)]:
        points, available, _ = problems.problem(seed, num)
        mask = available if seed % 3 else np.ones(num, bool)
        groups = np.random.default_rng(seed).integers(0, num_groups, num).astype(np.int32)
        distances = np.asarray(neighbour_distances(points, mask, groups, 9))
        assert np.isinf(distances[~mask]).all()
        for group in range(num_groups):
            inside = mask & (groups == group)
            count = min(9, inside.sum() - 1)
            truth = NearestNeighbors(n_neighbors=count).fit(points[inside]).kneighbors()[0]
            np.testing.assert_allclose(distances[inside, :count], truth, rtol=1e-4)
            assert np.isinf(distances[inside, count:]).all()


def test_neighbours_closer_than_rounding_of_squares():
    points = np.arange(NUM, dtype=np.float32)[:, None] * np.ones((1, SIZE), np.float32) * 8
    points[1] = points[0] + np.float32(2**-12)
    found = np.asarray(neighbour_distances(points + 64, EVERY, np.zeros(NUM, np.int32), 9))
    np.testing.assert_allclose(found[:2, 0], np.sqrt(SIZE) / 2**12, rtol=1e-6)
