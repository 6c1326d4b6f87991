"""ProbCover against greedy maximum coverage written out in float64, and its estimate of a radius."""

import jax
import numpy as np
import pytest

from baal_jax.selection import _prob_cover
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import EVERY, QUERY, SEEDS, build, pick

pure_radius = jax.jit(_prob_cover.pure_radius, static_argnums=3)


@pytest.mark.parametrize(("num", "query_size", "radius"), [(48, QUERY, 1.5), (48, QUERY, 20.0), (400, 60, 1.5)])
def test_picks_are_greedy_maximum_coverage(num, query_size, radius):
    """Also when all is covered, which the larger radius does, and when many points are worked through in blocks."""
    for seed in SEEDS if num == 48 else [1]:
        points, available, labelled = problems.problem(seed, num)
        found = pick(build("prob_cover", radius=radius), points, available, labelled, query_size)
        picks, values = oracle.prob_cover(points, available, labelled, query_size, radius)
        assert found.indices.tolist() == picks
        assert found.scores.tolist() == values


def test_the_radius_is_the_largest_that_is_pure_enough():
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        known = available | labelled
        _, assignment, centred = problems.clusters_of(points, known, 4, 4, seed)
        radius = oracle.pure_radius(points, known, assignment, 0.75)
        found = pure_radius(centred.astype(np.float32), known, assignment, 0.75)
        np.testing.assert_allclose(found, radius * (1 - 1e-4), rtol=1e-5)
        found = pick(build("prob_cover", purity=0.75, num_classes=4), points, available, labelled, key=seed)
        assert found.indices.tolist() == oracle.prob_cover(points, available, labelled, QUERY, radius * (1 - 1e-4))[0]
    # In floating point ``num · (1 − pure / num)`` is below the whole number that it is.
    for num, pure in ((22, 9), (38, 11), (38, 38)):
        line = np.concatenate([np.arange(num // 2) ** 1.1, 90 + np.arange(num - num // 2)])[:, None].astype(np.float32)
        classes, every = np.repeat([0, 1], [num // 2, num - num // 2]), np.ones(num, bool)
        found = pure_radius(line - line.mean(), every, classes, pure / num)
        np.testing.assert_allclose(found, oracle.pure_radius(line, every, classes, pure / num), rtol=2e-4)
    assert np.isinf(pure_radius(line, every, 0 * classes, pure / num))  # one class alone


def test_a_ball_holds_its_boundary():
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(np.float32) + 0.1
    found = pick(build("prob_cover", radius=1.0), grid, EVERY[:25], ~EVERY[:25], 1)
    assert (found.indices.tolist(), found.scores.tolist()) == ([12], [5.0])
