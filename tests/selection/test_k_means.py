"""Compiled clustering and neighbours against definitions written out in float64 and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from baal_jax.selection import _common, _k_means, _typiclust
from tests.oracles import unsupervised as oracle

NUM, SIZE, CLUSTERS = 48, 5, 7
many = pytest.mark.parametrize("seed", range(24))
k_means = jax.jit(_k_means.clusters_of, static_argnums=(3, 4))
lloyd = jax.jit(_k_means.lloyd, static_argnums=3)
neighbour_distances = jax.jit(_typiclust.neighbour_distances, static_argnums=3)
points_of = jax.jit(_common.points_of, static_argnums=2)


def problem(seed, num=NUM, size=SIZE):
    """Loose blobs with unequal scales; some rows do not count, and those are far away."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num, size)) + 2 * rng.normal(size=(4, size))[rng.integers(0, 4, num)]
    mask = rng.random(num) < (0.8 if seed % 3 else 2.0)
    return np.where(mask[:, None], points, 50.0).astype(np.float32), mask


def same_partition(one, other):
    pairs = set(zip(np.asarray(one).tolist(), np.asarray(other).tolist(), strict=True))
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


# k-means


@many
def test_k_means_is_that_of_the_definition(seed):
    points, mask = problem(seed)
    active = 1 + seed % CLUSTERS
    found = k_means(jax.random.key(seed), points, mask, CLUSTERS, 100, active)
    uniforms = np.asarray(jax.random.uniform(jax.random.key(seed), (CLUSTERS, 3)), np.float64)
    seeds = oracle.k_means_pp(points.astype(np.float64), mask, uniforms, active)
    centres, assignment = oracle.lloyd(points.astype(np.float64), mask, points[seeds])
    np.testing.assert_array_equal(found.assignment, assignment)
    np.testing.assert_allclose(found.centres[:active], centres, atol=1e-4)


@many
def test_lloyd_is_that_of_scikit_learn(seed):
    points, mask = problem(seed)
    start = points[np.flatnonzero(mask)[:CLUSTERS]]
    other = KMeans(CLUSTERS, init=start, n_init=1, tol=0.0, algorithm="lloyd").fit(points[mask])
    found = lloyd(points, mask, start)
    np.testing.assert_array_equal(found.assignment[mask], other.labels_)
    assert (found.assignment[~mask] == -1).all()
    np.testing.assert_allclose(found.centres, other.cluster_centers_, atol=1e-4)


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_lloyd_stops_when_told(num_iterations):
    points, mask = problem(1, num=300)
    start = points[np.flatnonzero(mask)[:CLUSTERS]]
    found = lloyd(points, mask, start, num_iterations)
    centres, assignment = oracle.lloyd(points.astype(np.float64), mask, start, num_iterations)
    np.testing.assert_array_equal(found.assignment, assignment)
    np.testing.assert_allclose(found.centres, centres, atol=1e-4)
    assert (found.assignment != lloyd(points, mask, start, 100).assignment).any()


@pytest.mark.parametrize("active", [1, 64, 65, 150])
def test_centres_are_worked_through_in_blocks(active):
    points, mask = problem(1, num=300)
    start = np.zeros((150, SIZE), np.float32)
    start[:active] = points[np.flatnonzero(mask)[:active]]
    start[active:] = points[np.flatnonzero(mask)[0]]  # would win ties, were they in use
    found = lloyd(points, mask, start, 100, active)
    _, assignment = oracle.lloyd(points.astype(np.float64), mask, start[:active])
    np.testing.assert_array_equal(found.assignment, assignment)


def test_number_of_clusters_may_differ_under_vmap(key):
    points, mask = problem(2)
    alone = [k_means(key, points, mask, CLUSTERS, 100, active).assignment for active in (1, 4, 7)]
    together = jax.vmap(lambda active: k_means(key, points, mask, CLUSTERS, 100, active))(jnp.array([1, 4, 7]))
    np.testing.assert_array_equal(together.assignment, np.stack(alone))
    assert [len(set(row[mask].tolist())) for row in np.asarray(together.assignment)] == [1, 4, 7]


def test_equal_points_and_empty_masks(key):
    points = np.ones((NUM, SIZE), np.float32)
    for mask in (np.ones(NUM, bool), np.zeros(NUM, bool)):
        found = k_means(key, points, mask, CLUSTERS, 100, CLUSTERS)
        np.testing.assert_array_equal(found.assignment, np.where(mask, 0, -1))
        assert np.isfinite(found.centres).all()
        distances = neighbour_distances(points, mask, np.zeros(NUM, np.int32), 3)
        assert (np.asarray(distances) == (0 if mask.any() else np.inf)).all()


def test_seeding_spreads_over_blobs():
    """Greedy k-means++ finds 20 far blobs nearly always; seeds without a look at distances nearly never would."""
    rng = np.random.default_rng(0)
    blobs = 40 * rng.normal(size=(20, SIZE))
    points = (np.repeat(blobs, 15, axis=0) + 0.1 * rng.normal(size=(300, SIZE))).astype(np.float32)
    mask, truth = np.ones(300, bool), np.repeat(np.arange(20), 15)
    keys = jax.random.split(jax.random.key(0), 20)
    found = jax.vmap(lambda key: k_means(key, points, mask, 20, 100, 20).assignment)(keys)
    assert np.mean([same_partition(row, truth) for row in found]) > 0.9


# Neighbours


@many
@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_are_those_of_the_definition(seed, grouped):
    points, mask = problem(seed)
    groups = np.random.default_rng(seed).integers(0, 1 + 5 * grouped, NUM).astype(np.int32)
    distances = np.asarray(neighbour_distances(points, mask, groups, 9))
    for i in range(NUM):
        others = np.flatnonzero(mask & (groups == groups[i]) & (np.arange(NUM) != i)) if mask[i] else np.array([], int)
        between = oracle.distances(points[[i]], points[others])[0]
        nearest = np.sort(between)[:9]
        np.testing.assert_allclose(distances[i, : len(nearest)], nearest, rtol=1e-5)
        assert np.isinf(distances[i, len(nearest) :]).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_over_many_blocks(grouped):
    points, mask = problem(1, num=1300)
    groups = np.random.default_rng(0).integers(0, 1 + 5 * grouped, 1300).astype(np.int32)
    found = neighbour_distances(points, mask, groups, 9)
    for group in set(groups.tolist()):
        inside = mask & (groups == group)
        truth = NearestNeighbors(n_neighbors=9).fit(points[inside]).kneighbors()[0]
        np.testing.assert_allclose(found[inside], truth, rtol=1e-4)


def test_neighbours_closer_than_rounding_of_squares():
    points = np.arange(NUM, dtype=np.float32)[:, None] * np.ones((1, SIZE), np.float32) * 8
    points[1] = points[0] + np.float32(2**-12)
    found = neighbour_distances(points + 64, np.ones(NUM, bool), np.zeros(NUM, np.int32), 1)
    np.testing.assert_allclose(found[:2, 0], np.sqrt(SIZE) / 2**12, rtol=1e-6)


# Helpers


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.0])), min_size=9, max_size=9))
def test_ranks_within_groups(rows):
    groups, values = (np.array(column) for column in zip(*rows, strict=True))
    found = ranks(groups.astype(np.int32), values.astype(np.float32))
    for i in range(9):
        before = [j for j in range(9) if groups[j] == groups[i] and (values[j], j) < (values[i], i)]
        assert found[i] == len(before)


ranks = jax.jit(_k_means.rank_within)


@functools.cache
def counted(num_clusters):
    return jax.jit(functools.partial(_k_means.sizes_of, num_clusters=num_clusters))


def test_sizes_of_clusters():
    assignment = np.array([0, 2, -1, 2, 2, -1], np.int32)
    assert counted(4)(assignment).tolist() == [1, 0, 3, 0]
    assert counted(4)(assignment, counted=np.array([0, 1, 1, 0, 1, 1], bool)).tolist() == [0, 0, 2, 0]


def test_a_large_offset_is_removed_exactly():
    rng = np.random.default_rng(0)
    points = (rng.integers(-512, 512, (NUM, SIZE)) / 1024).astype(np.float32)
    mask = np.arange(NUM) % 4 != 1
    moved = np.asarray(points_of(np.where(mask[:, None], points + 4096, 1e30).astype(np.float32), mask, ""))
    np.testing.assert_allclose(moved[mask], (points - points[mask].mean(axis=0))[mask], atol=1e-6)
    assert (moved[~mask] == 0).all()
