"""Compiled clustering against definitions written out in float64, and what picks by it."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baal_jax.selection import _common, _k_means
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import NUM, QUERY, SEEDS, SIZE, build, pick

CLUSTERS = 7
lloyd = jax.jit(_k_means.lloyd, static_argnums=3)


def problem(seed, num=NUM):
    """Some rows do not count, and those are far away."""
    points, available, _ = problems.problem(seed, num)
    mask = available if seed % 3 else np.ones(num, bool)
    return np.where(mask[:, None], points - 5, 50.0).astype(np.float32), mask


def check(found, centres, assignment):
    np.testing.assert_array_equal(found.assignment, assignment)
    np.testing.assert_allclose(found.centres[: len(centres)], centres, atol=1e-4)


def test_k_means_is_that_of_the_definition():
    for seed in range(12):
        points, mask = problem(seed)
        active = 1 + seed % CLUSTERS
        uniforms = np.asarray(jax.random.uniform(jax.random.key(seed), (CLUSTERS, 3)), np.float64)
        seeds = oracle.k_means_pp(points, mask, uniforms, active)
        found = problems.clusters(jax.random.key(seed), points, mask, CLUSTERS, 100, active)
        check(found, *oracle.lloyd(points, mask, points[seeds]))


def test_lloyd_stops_when_told_and_works_through_centres_in_blocks():
    points, mask = problem(1, num=300)
    start = points[np.flatnonzero(mask)[:CLUSTERS]]
    ends = [oracle.lloyd(points, mask, start, num) for num in (1, 2, 100)]
    assert all((ends[0][1] != later[1]).any() for later in ends[1:])
    for num in (1, 2):
        check(lloyd(points, mask, start, num), *ends[num - 1])
    for active in (1, 64, 65, 150):
        start = np.zeros((150, SIZE), np.float32)
        start[:active] = points[np.flatnonzero(mask)[:active]]
        start[active:] = points[np.flatnonzero(mask)[0]]  # would win ties, were they in use
        check(lloyd(points, mask, start, 100, np.int32(active)), *oracle.lloyd(points, mask, start[:active]))


@pytest.mark.parametrize("arguments", [{}, {"num_clusters": 4, "num_iterations": 1}], ids=["", "4"])
def test_picks_what_is_nearest_to_centres(arguments):
    count, num_iterations = arguments.get("num_clusters", QUERY), arguments.get("num_iterations", 100)
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        found = pick(build("k_means", **arguments), points, available, labelled, key=seed)
        centres, assignment, centred = problems.clusters_of(points, available, count, count, seed, num_iterations)
        picks = oracle.k_means(centred, available, QUERY, centres, assignment)
        assert found.indices.tolist() == picks
        distances = np.linalg.norm(centred[picks] - centres[assignment[picks]], axis=1)
        np.testing.assert_allclose(found.scores, -distances, rtol=1e-4, atol=1e-5)


# Helpers


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.0])), min_size=9, max_size=9))
def test_ranks_within_groups(rows):
    groups, values = (np.array(column) for column in zip(*rows, strict=True))
    found = ranks(groups.astype(np.int32), values.astype(np.float32))
    for i in range(9):
        assert found[i] == sum(groups[j] == groups[i] and (values[j], j) < (values[i], i) for j in range(9))


ranks = jax.jit(_k_means.rank_within)


def test_sizes_of_clusters():
    counted = jax.jit(functools.partial(_k_means.sizes_of, num_clusters=4))
    assignment = np.array([0, 2, -1, 2, 2, -1], np.int32)
    assert counted(assignment).tolist() == [1, 0, 3, 0]
    assert counted(assignment, counted=np.array([0, 1, 1, 0, 1, 1], bool)).tolist() == [0, 0, 2, 0]


def test_a_large_offset_is_removed_exactly():
    points = (np.random.default_rng(0).integers(-512, 512, (NUM, SIZE)) / 1024).astype(np.float32)
    mask = np.arange(NUM) % 4 != 1
    moved = np.where(mask[:, None], points + 4096, 1e30).astype(np.float32)
    found = jax.jit(_common.points_of, static_argnums=2)(moved, mask, "")
    np.testing.assert_allclose(found, np.where(mask[:, None], points - points[mask].mean(axis=0), 0), atol=1e-6)


def test_what_has_no_weight_is_never_drawn():
    draw = jax.jit(_common.inverse_cdf)
    weights, mask = np.array([0, 1, 0, 3, 5, 0], np.float32), np.array([1, 1, 1, 1, 0, 1], bool)
    uniforms = np.array([0, 0.2, 0.25, 0.5, 1 - 2**-24, 1.0], np.float32)  # a product may be rounded up to the sum
    assert draw(uniforms, weights, mask).tolist() == [1, 1, 3, 3, 3, 3]
    assert draw(uniforms, 0 * weights, mask).tolist() == [0, 1, 1, 2, 5, 5]  # evenly without any weight
