"""Clustering and the selections that cover a pool: k-means, TypiClust, Cluster-Margin; first labels."""

import functools

import jax
import numpy as np
import pytest
from scipy.cluster import hierarchy
from sklearn.neighbors import NearestNeighbors

import baal_jax as baal
from baal_jax import Predictions, heuristics, pool, selection
from baal_jax.selection import _common, _k_means, _typiclust
from tests import fixtures
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import EVERY, NUM, QUERY, SEEDS, SIZE, build, pick

CLUSTERS = 7
lloyd = jax.jit(_k_means.lloyd, static_argnums=3)
neighbour_distances = jax.jit(_typiclust.neighbour_distances, static_argnums=3)

# k-means


def check_clusters(found, centres, assignment):
    np.testing.assert_array_equal(found.assignment, assignment)
    np.testing.assert_allclose(found.centres[: len(centres)], centres, atol=1e-4)


def test_k_means_is_that_of_the_definition():
    for seed in range(12):
        points, mask, _ = problems.problem(seed)
        mask = mask | (seed % 3 == 0)
        points[~mask] = 50  # which does not count
        active = 1 + seed % CLUSTERS
        uniforms = np.asarray(jax.random.uniform(jax.random.key(seed), (CLUSTERS, 3)), np.float64)
        seeds = oracle.k_means_pp(points, mask, uniforms, active)
        found = problems.clusters(jax.random.key(seed), points, mask, CLUSTERS, 100, active)
        check_clusters(found, *oracle.lloyd(points, mask, points[seeds]))


def test_lloyd_stops_when_told_and_works_through_centres_in_blocks():
    points, mask, _ = problems.problem(1, num=300)
    start = points[np.flatnonzero(mask)[:CLUSTERS]]
    ends = [oracle.lloyd(points, mask, start, num) for num in (1, 2, 100)]
    assert all((ends[0][1] != later[1]).any() for later in ends[1:])
    for num in (1, 2):
        check_clusters(lloyd(points, mask, start, num), *ends[num - 1])
    for active in (1, 64, 65, 150):
        start = np.zeros((150, SIZE), np.float32)
        start[:active] = points[np.flatnonzero(mask)[:active]]
        start[active:] = points[np.flatnonzero(mask)[0]]  # would win ties, were they in use
        found = lloyd(points, mask, start, 100, np.int32(active))
        check_clusters(found, *oracle.lloyd(points, mask, start[:active]))


@pytest.mark.parametrize(("num_clusters", "num_iterations"), [(None, 100), (4, 1)])
def test_k_means_picks_what_is_nearest_to_centres(num_clusters, num_iterations):
    acquisition = build("k_means", num_clusters=num_clusters, num_iterations=num_iterations)
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        found, count = pick(acquisition, points, available, labelled, key=seed), num_clusters or QUERY
        centres, assignment, centred = problems.clusters_of(points, available, count, count, seed, num_iterations)
        picks = oracle.k_means(centred, available, QUERY, centres, assignment)
        assert found.indices.tolist() == picks
        distances = np.linalg.norm(centred[picks] - centres[assignment[picks]], axis=1)
        np.testing.assert_allclose(found.scores, -distances, rtol=1e-4, atol=1e-5)


def test_what_has_no_weight_is_never_drawn():
    draw = jax.jit(_common.inverse_cdf)
    weights, mask = np.array([0, 1, 0, 3, 5, 0], np.float32), np.array([1, 1, 1, 1, 0, 1], bool)
    uniforms = np.array([0, 0.2, 0.25, 0.5, 1 - 2**-24, 1.0], np.float32)  # a product may be rounded up to the sum
    assert draw(uniforms, weights, mask).tolist() == [1, 1, 3, 3, 3, 3]
    assert draw(uniforms, 0 * weights, mask).tolist() == [0, 1, 1, 2, 5, 5]  # evenly without any weight


# TypiClust


@pytest.mark.parametrize("options", [(None, 20, 500, 100), (4, 3, 500, 100), (None, 20, 6, 1)])
def test_typiclust_is_that_of_the_paper(options):
    num_clusters, neighbours, most, iterations = options
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        found = pick(build("typiclust", *options), points, available, labelled, key=seed)
        bound, active = min(num_clusters or most, NUM), num_clusters or min(most, int(labelled.sum()) + QUERY)
        _, assignment, centred = problems.clusters_of(points, available | labelled, bound, active, seed, iterations)
        picks, values = oracle.typiclust(centred, available, labelled, QUERY, assignment, neighbours)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, values, rtol=1e-4)


def test_tiny_clusters_wait_and_typicality_may_be_nothing_or_infinite():
    order = jax.jit(_typiclust.most_typical, static_argnums=4)
    assignment = np.repeat([0, 1, 2, -1], [5, 4, 6, 1]).astype(np.int32)
    available, typical = assignment >= 0, np.arange(16.0, dtype=np.float32)
    picks = order(assignment, typical, available, ~available, 3)
    assert picks.tolist() == [14, 4, 13, 3, 12, 2, 11, 1, 10, 0, 9, 8, 7, 6, 5, -1]
    # The lonely and the repeated.
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
    # Two that are closer than the rounding of squares.
    points = np.arange(NUM, dtype=np.float32)[:, None] * np.ones((1, SIZE), np.float32) * 8
    points[1] = points[0] + np.float32(2**-12)
    found = np.asarray(neighbour_distances(points + 64, EVERY, np.zeros(NUM, np.int32), 9))
    np.testing.assert_allclose(found[:2, 0], np.sqrt(SIZE) / 2**12, rtol=1e-6)


# Cluster-Margin

GIVEN = np.random.default_rng(0).choice([-3, 4, 5, 6, 70], size=NUM, p=[0.4, 0.3, 0.2, 0.06, 0.04])
given_clusters = functools.cache(lambda number: selection.cluster_margin(GIVEN, candidates_per_pick=number))


@pytest.mark.parametrize(("candidates_per_pick", "num_clusters"), [(2, 4), (6, None)])
def test_cluster_margin_is_that_of_the_paper(candidates_per_pick, num_clusters):
    count = min(candidates_per_pick * QUERY, NUM)
    acquisition = build("cluster_margin", num_clusters=num_clusters, candidates_per_pick=candidates_per_pick)
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        scores = -np.random.default_rng(seed).random(NUM).astype(np.float32)

        def expected(clusters, key, scores=scores, available=available):
            uniforms = np.asarray(jax.random.uniform(key, (count,)))
            return oracle.cluster_margin(scores, clusters, available, QUERY, candidates_per_pick, uniforms)

        # Found once for all.
        found = pick(given_clusters(candidates_per_pick), scores, available, labelled, key=seed)
        assert found.indices.tolist() == expected(GIVEN, jax.random.key(seed))
        np.testing.assert_array_equal(found.scores, scores[np.asarray(found.indices)])
        # Found among the candidates.
        found = pick(acquisition, (scores, points), available, labelled, key=seed)
        candidates = np.lexsort((-scores, ~available))[:count]
        there, (key, key_clusters) = available[candidates], jax.random.split(jax.random.key(seed))
        clusters, bound = np.full(NUM, -1), num_clusters or QUERY
        clusters[candidates] = problems.clusters_of(points[candidates], there, bound, None, key_clusters)[1]
        assert found.indices.tolist() == expected(clusters, key)


def test_what_cluster_margin_reads_and_clusters_of_a_data_set():
    logits, points = 2 * np.random.default_rng(0).normal(size=(4, NUM, 3)).astype(np.float32), problems.problem(0)[0]
    scores, features = build("cluster_margin").summarise(Predictions(logits, points.reshape(NUM, 1, SIZE)))
    np.testing.assert_array_equal(scores, heuristics.margin(logits))
    np.testing.assert_array_equal(features, points)
    other = selection.cluster_margin(GIVEN, score_fn=heuristics.bald).summarise(Predictions(logits))
    np.testing.assert_array_equal(other, heuristics.bald(logits))
    for seed in range(4):
        points = problems.problem(seed)[0]
        found = selection.cluster(points.reshape(NUM, SIZE, 1), 6)
        assert found.dtype == np.int32
        truth = hierarchy.fcluster(hierarchy.linkage(points, "average"), 6, "maxclust")
        assert len(set(zip(found.tolist(), truth.tolist(), strict=True))) == len(set(found.tolist())) == 6
    assert selection.cluster(points[:1], 1).tolist() == [0]
    assert sorted(selection.cluster(points, NUM).tolist()) == list(range(NUM))


# The first query

LOOP = baal.active_loop(fixtures.SPY, selection.random(), query_size=1)
DATA = baal.Dataset(problems.problem(0)[0], np.zeros(NUM, np.int32))


def first_labels(key, num, given=None, **options):
    state = LOOP.init(key, DATA, num, given, **options)
    return np.flatnonzero(pool.labelled(state.pool)).tolist()


def test_an_acquisition_picks_the_first_labels_and_what_is_labelled_is_a_centre(key):
    picked = pool.first_query(key, pool.init(NUM), 4, build("k_means_pp"), DATA.inputs)
    fixtures.same(picked, build("k_means_pp").select(key, DATA.inputs, EVERY, 4, ~EVERY))
    at_random = pool.first_query(key, pool.init(NUM), 4)
    np.testing.assert_array_equal(at_random.indices, pool.random_query(key, pool.init(NUM), 4))
    assert np.isnan(at_random.scores).all()
    # Random and given scores need no embeddings.
    assert len(first_labels(key, 2, acquisition=selection.random())) == 2
    assert first_labels(key, 2, acquisition=selection.precomputed(np.arange(48.0))) == [46, 47]
    given = pool.exclude(pool.label(pool.init(NUM), [7]), [3, 4])
    distances = ((DATA.inputs - DATA.inputs[7]) ** 2).sum(axis=1)
    farthest = int(np.argmax(np.where(np.isin(np.arange(NUM), [3, 4]), -1, distances)))  # what is excluded is nothing
    found = first_labels(key, 1, given, acquisition=build("k_center"), embeddings=DATA.inputs)
    assert found == sorted([7, farthest])
    # Embeddings may be what the data are.
    pixels = np.random.default_rng(0).integers(0, 255, (NUM, 1, SIZE, 1)).astype(np.uint8)
    flat = pixels.reshape(NUM, -1).astype(np.float32)
    one, other = (first_labels(key, 4, acquisition=build("k_means_pp"), embeddings=x) for x in (pixels, flat))
    assert one == other


def test_what_does_not_fit_is_refused(key):
    for name, wrong in (
        ("k_means", {"num_clusters": 0, "num_iterations": 0}),
        ("typiclust", {"num_clusters": 0, "num_neighbours": 0, "max_clusters": 2.5, "num_iterations": 0}),
        ("prob_cover", {"radius": 0.0, "purity": 0.0, "num_classes": 0}),
        ("cluster_margin", {"candidates_per_pick": 0, "num_clusters": 0}),
    ):
        for argument, value in wrong.items():
            with pytest.raises(ValueError, match=f"{argument}={value} must be"):
                selection.REGISTRY[name](**{argument: value})
    points, typical, one_row = DATA.inputs, build("typiclust"), "needs one row an example"
    broken, given = np.where(points == points[3], np.nan, points), {"acquisition": typical, "embeddings": points}

    def select(acquisition, features, rows=EVERY):
        return lambda: pick(acquisition, features, rows, ~rows)

    for call, message in (
        (lambda: selection.prob_cover(purity=1.5), "purity=1.5 is a share"),
        (lambda: selection.cluster(points, 49), "num_clusters=49 exceeds the 48 examples"),
        (lambda: selection.cluster(points, 0), "num_clusters=0 must be"),
        (lambda: selection.cluster(broken, 2), "not finite"),
        (lambda: selection.cluster_margin(np.zeros(3)), "must be one integer an example"),
        (lambda: selection.cluster_margin(np.zeros((3, 1), int)), "must be one integer an example"),
        (lambda: selection.cluster_margin(np.zeros(3, int), 2), "num_clusters=2 has no use"),
        (select(build("k_means"), points[..., None]), f"k_means {one_row}"),
        (select(typical, points[..., None]), f"typiclust {one_row}"),
        (select(build("prob_cover"), (points, points)), f"prob_cover {one_row}"),
        (select(build("cluster_margin"), (points[:, 0], points[..., None])), f"cluster_margin {one_row}"),
        (select(build("cluster_margin"), (points, points)), r"\(48, 5\) cannot be ranked"),
        (select(given_clusters(2), points[1:, 0], EVERY[1:]), "48 ids for 47 examples"),
        (lambda: first_labels(key, 2, acquisition=typical), "embeddings is None"),
        (lambda: first_labels(key, 2, **given | {"embeddings": points[:29]}), "embeddings of 29 examples for 48"),
        (lambda: first_labels(key, 2, embeddings=points), "embeddings are given but no acquisition"),
        (lambda: first_labels(key, 0, **given), "num_initial=0 leaves the acquisition"),
        (lambda: first_labels(key, 2, **given | {"acquisition": selection.top_k()}), "there is no fit to predict"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
