"""ProbCover against greedy maximum coverage written out in float64, and its estimate of a radius."""

import jax
import numpy as np
import pytest

from baal_jax.selection import _prob_cover
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import QUERY, SEEDS, build, pick

pure_radius = jax.jit(_prob_cover.pure_radius, static_argnums=3)


@pytest.mark.parametrize("radius", [1.5, 20.0])
def test_picks_are_greedy_maximum_coverage(radius):
    for seed in SEEDS:
        points, available, labelled = problems.loose(seed)
        found = pick(build("prob_cover", radius=radius), points, available, labelled)
        picks, values = oracle.prob_cover(points.astype(np.float64), available, labelled, QUERY, radius)
        assert found.indices.tolist() == picks
        assert found.scores.tolist() == values
        order = np.random.default_rng(seed).permutation(len(points))  # without a radius to find, no key matters
        moved = pick(build("prob_cover", radius=radius), points[order], available[order], labelled[order], key=1)
        assert order[moved.indices].tolist() == picks


def test_many_points_are_worked_through_in_blocks():
    points, available, labelled = problems.loose(1, num=400)
    found = pick(build("prob_cover", radius=1.5), points, available, labelled, 60)
    picks, values = oracle.prob_cover(points.astype(np.float64), available, labelled, 60, 1.5)
    assert found.indices.tolist() == picks
    assert found.scores.tolist() == values


@pytest.mark.parametrize("purity", [0.75, 1.0])
def test_the_radius_is_the_largest_that_is_pure_enough(purity):
    for seed in SEEDS:
        points, available, labelled = problems.loose(seed)
        known, exact = available | labelled, points.astype(np.float64)
        _, assignment, centred = problems.clusters_of(points, known, 4, 4, seed)
        radius = float(pure_radius(centred.astype(np.float32), known, assignment, purity))
        assert oracle.pure_share(exact, known, assignment, radius) >= purity
        assert oracle.pure_share(exact, known, assignment, radius * 1.001) < purity
        if purity == 1:
            continue  # the same program but for a number
        found = pick(build("prob_cover", purity=purity, num_classes=4), points, available, labelled, key=seed)
        assert found.indices.tolist() == oracle.prob_cover(exact, available, labelled, QUERY, radius)[0]


def test_the_radius_of_a_line_of_points():
    points = np.array([0, 1, 2, 3, 4, 14, 15, 16, 17, 11.0], np.float32)[:, None]
    everything = np.ones(10, bool)  # distances to the other cluster: 11, 10, 9, 8, 7 and 10, 11, 12, 13, 7
    classes = (points[:, 0] > 10).astype(np.int32)
    found = [float(pure_radius(points - points.mean(), everything, classes, purity)) for purity in (0.9, 0.8, 0.7)]
    np.testing.assert_allclose(found, [7, 8, 9], rtol=2e-4)
    assert np.isinf(pure_radius(points - points.mean(), everything, 0 * classes, 0.9))  # one class alone


@pytest.mark.parametrize(("num", "pure"), [(22, 9), (38, 11)])
def test_exactly_a_share_of_balls_is_pure(num, pure):
    """In floating point ``num · (1 − pure / num)`` is below the whole number that it is."""
    points = np.concatenate([np.arange(num // 2) ** 1.1, 90 + np.arange(num - num // 2)])[:, None].astype(np.float32)
    assignment = np.repeat([0, 1], [num // 2, num - num // 2])
    radius = float(pure_radius(points - points.mean(), np.ones(num, bool), assignment, pure / num))
    other = np.where(assignment[:, None] != assignment[None], oracle.distances(points, points), np.inf).min(axis=1)
    assert radius == pytest.approx(np.sort(other)[num - pure], rel=2e-4)


def test_a_covered_pool_is_continued_by_farthest_first():
    points, available, labelled = problems.loose(1)
    found = pick(build("prob_cover", radius=20.0), points, available, labelled)
    assert (found.scores == 0).all()
    farthest = pick(build("k_center"), points, available, labelled)
    assert found.indices.tolist() == farthest.indices.tolist()


def test_a_ball_holds_its_boundary():
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(np.float32) + 0.1
    everything = np.ones(25, bool)
    found = pick(build("prob_cover", radius=1.0), grid, everything, ~everything, 1)
    assert (found.indices.tolist(), found.scores.tolist()) == ([12], [5.0])
