"""Selections for small budgets and cold starts against definitions written out in float64, and in the loop."""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import Predictions, heuristics, selection
from baal_jax.selection import _k_means, _prob_cover
from tests.oracles import unsupervised as oracle

import cold_start_digits
import harness

NUM, SIZE, QUERY = 48, 5, 9
FROM_FEATURES = ("k_means", "prob_cover", "typiclust")
many = pytest.mark.parametrize("seed", range(24))
every_cold_start = pytest.mark.parametrize("name", FROM_FEATURES)
compiled_k_means = jax.jit(_k_means.clusters_of, static_argnums=(3, 4))
pure_radius = jax.jit(_prob_cover.pure_radius, static_argnums=3)


@functools.cache
def build(name, **arguments):
    return selection.REGISTRY[name](**arguments)


def problem(seed, num=NUM):
    """Loose blobs away from the origin, some rows labelled and some hidden; without labels in one of four."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num, SIZE)) + 2 * rng.normal(size=(4, SIZE))[rng.integers(0, 4, num)] + 5
    labelled = (rng.random(num) < 0.15) & (seed % 4 != 0)
    available = ~labelled & (rng.random(num) < 0.9)
    return points.astype(np.float32), available, labelled


def blobs(seed, count=8, each=12):
    """Tight blobs of sizes from ``each`` up, far apart, rows in random order: points and the blob of each."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(count), each + np.arange(count)))
    points = 30 * rng.normal(size=(count, SIZE))[truth] + rng.normal(size=(len(truth), SIZE))
    return points.astype(np.float32), truth


def pick(acquisition, features, available, labelled, query_size=QUERY, key=0):
    features = jax.tree.map(jnp.asarray, features)
    return acquisition.select(jax.random.key(key), features, jnp.asarray(available), query_size, jnp.asarray(labelled))


def clusters_of(points, known, bound, active, seed):
    """The assignment that a selection finds, whose own test is elsewhere, and its centres."""
    centred = np.where(known[:, None], points - points[known].mean(axis=0), 0).astype(np.float32)
    found = compiled_k_means(jax.random.key(seed), centred, known, bound, 100, active)
    return np.asarray(found.centres, np.float64), np.asarray(found.assignment), centred.astype(np.float64)


# k_means


@many
@pytest.mark.parametrize("num_clusters", [None, 4])
def test_k_means_picks_what_is_nearest_to_centres(seed, num_clusters):
    points, available, labelled = problem(seed)
    found = pick(build("k_means", num_clusters=num_clusters), points, available, labelled, key=seed)
    count = num_clusters or QUERY
    centres, assignment, centred = clusters_of(points, available, count, count, seed)
    picks = oracle.k_means(centred, available, QUERY, centres, assignment)
    assert found.indices.tolist() == picks
    mine = centres[assignment[picks]]
    np.testing.assert_allclose(found.scores, -np.sqrt(((centred[picks] - mine) ** 2).sum(axis=1)), rtol=1e-4, atol=1e-5)


# TypiClust


@many
@pytest.mark.parametrize("arguments", [{}, {"num_clusters": 4, "num_neighbours": 3}, {"max_clusters": 6}])
def test_typiclust_is_that_of_the_paper(seed, arguments):
    points, available, labelled = problem(seed)
    found = pick(build("typiclust", **arguments), points, available, labelled, key=seed)
    bound = min(arguments.get("num_clusters") or arguments.get("max_clusters", 500), NUM)
    active = min(bound, arguments.get("num_clusters") or int(labelled.sum()) + QUERY)
    _, assignment, centred = clusters_of(points, available | labelled, bound, active, seed)
    neighbours = arguments.get("num_neighbours", 20)
    picks, values = oracle.typiclust(centred, available, labelled, QUERY, assignment, neighbours)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(found.scores, values, rtol=1e-4)


def test_typiclust_goes_from_the_largest_cluster_to_the_smallest():
    points, truth = blobs(0)
    found = pick(build("typiclust"), points, np.ones(len(truth), bool), np.zeros(len(truth), bool), 8)
    assert truth[found.indices].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_typiclust_leaves_tiny_clusters_for_the_end():
    points = np.concatenate([np.arange(5), 100 + np.arange(4), 200 + np.arange(6)])[:, None].astype(np.float32)
    everything = np.ones(15, bool)
    found = pick(build("typiclust", num_clusters=3), points, everything, ~everything, 15)
    of = np.repeat([0, 1, 2], [5, 4, 6])[found.indices]
    assert of.tolist() == [2, 0] * 5 + [2] + [1] * 4


def test_typiclust_counts_labels_of_every_run_under_vmap():
    points, available, _ = problem(0)
    labelled = np.stack([~available & (np.arange(NUM) < num) for num in (0, 20, NUM)])
    taken = np.stack([(np.arange(NUM) % 3 == 0) & (np.arange(NUM) < num) for num in (0, 20, NUM)])
    key, select = jax.random.key(1), build("typiclust").select
    run = functools.partial(select, key, jnp.asarray(points))
    together = jax.vmap(lambda available, labelled: run(available, QUERY, labelled))(~taken, taken | labelled)
    alone = [run(~one, QUERY, one | other).indices for one, other in zip(taken, labelled, strict=True)]
    np.testing.assert_array_equal(together.indices, np.stack(alone))
    assert len({tuple(row.tolist()) for row in np.asarray(together.indices)}) == 3


def test_typicality_of_the_lonely_and_of_the_repeated():
    points = np.array([[0.0], [50.0], [50.0], [90.0], [91.0]], np.float32)
    found = pick(build("typiclust", num_clusters=3), points, np.ones(5, bool), np.zeros(5, bool), 5)
    values = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    assert values == {0: 0.0, 1: np.inf, 2: np.inf, 3: 1.0, 4: 1.0}


# ProbCover


@many
@pytest.mark.parametrize("radius", [1.5, 2.5, 20.0])
def test_prob_cover_is_greedy_maximum_coverage(seed, radius):
    points, available, labelled = problem(seed)
    found = pick(build("prob_cover", radius=radius), points, available, labelled)
    picks, values = oracle.prob_cover(points.astype(np.float64), available, labelled, QUERY, radius)
    assert found.indices.tolist() == picks
    assert found.scores.tolist() == values


def test_prob_cover_of_many_points():
    points, available, labelled = problem(1, num=400)
    found = pick(build("prob_cover", radius=1.5), points, available, labelled, 60)
    picks, values = oracle.prob_cover(points.astype(np.float64), available, labelled, 60, 1.5)
    assert found.indices.tolist() == picks
    assert found.scores.tolist() == values


@many
@pytest.mark.parametrize("purity", [0.75, 0.9, 1.0])
def test_the_radius_is_the_largest_that_is_pure_enough(seed, purity):
    points, available, labelled = problem(seed)
    known, exact = available | labelled, points.astype(np.float64)
    _, assignment, centred = clusters_of(points, known, 4, 4, seed)
    radius = float(pure_radius(centred.astype(np.float32), known, assignment, purity))
    assert oracle.pure_share(exact, known, assignment, radius) >= purity
    assert oracle.pure_share(exact, known, assignment, radius * 1.001) < purity
    found = pick(build("prob_cover", purity=purity, num_classes=4), points, available, labelled, key=seed)
    assert found.indices.tolist() == oracle.prob_cover(exact, available, labelled, QUERY, radius)[0]


def test_the_radius_of_a_line_of_points():
    points = np.array([0, 1, 2, 3, 4, 14, 15, 16, 17, 11.0], np.float32)[:, None]
    everything = np.ones(10, bool)  # distances to the other cluster: 11, 10, 9, 8, 7 and 10, 11, 12, 13, 7
    classes = (points[:, 0] > 10).astype(np.int32)
    found = [float(pure_radius(points - points.mean(), everything, classes, purity)) for purity in (0.9, 0.8, 0.7)]
    np.testing.assert_allclose(found, [7, 8, 9], rtol=2e-4)


@pytest.mark.parametrize(("num", "pure"), [(22, 9), (29, 14), (38, 11)])
def test_exactly_a_share_of_balls_is_pure(num, pure):
    """In floating point ``num · (1 − pure / num)`` is below the whole number that it is."""
    points = np.concatenate([np.arange(num // 2) ** 1.1, 90 + np.arange(num - num // 2)])[:, None].astype(np.float32)
    assignment = np.repeat([0, 1], [num // 2, num - num // 2])
    radius = float(pure_radius(points - points.mean(), np.ones(num, bool), assignment, pure / num))
    other = np.where(assignment[:, None] != assignment[None], oracle.distances(points, points), np.inf).min(axis=1)
    assert radius == pytest.approx(np.sort(other)[num - pure], rel=2e-4)


def test_one_class_alone_is_covered_at_once():
    points, available, labelled = problem(0)
    found = pick(build("prob_cover", num_classes=1), points, available, labelled)
    assert found.scores.tolist() == [available.sum()] + [0] * (QUERY - 1)


def test_a_covered_pool_is_continued_by_farthest_first():
    points, available, labelled = problem(1)
    found = pick(build("prob_cover", radius=1e3), points, available, labelled)
    assert (found.scores == 0).all()
    farthest = pick(selection.k_center(), points, available, labelled)
    assert found.indices.tolist() == farthest.indices.tolist()


def test_a_ball_holds_its_boundary():
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(np.float32) + 0.1
    everything = np.ones(25, bool)
    found = pick(build("prob_cover", radius=1.0), grid, everything, ~everything, 1)
    assert (found.indices.tolist(), found.scores.tolist()) == ([12], [5.0])


# Cluster-Margin


@many
@pytest.mark.parametrize("candidates_per_pick", [1, 2, 10])
def test_cluster_margin_is_that_of_the_paper(seed, candidates_per_pick):
    points, available, labelled = problem(seed)
    rng = np.random.default_rng(seed)
    scores, count = -rng.random(NUM).astype(np.float32), min(candidates_per_pick * QUERY, NUM)
    uniforms = np.asarray(jax.random.uniform(jax.random.key(seed), (count,)))
    # Found once for all.
    clusters = np.random.default_rng(0).choice([-3, 4, 5, 6, 70], size=NUM, p=[0.4, 0.3, 0.2, 0.06, 0.04])
    expected = oracle.cluster_margin(scores, clusters, available, QUERY, candidates_per_pick, uniforms)
    found = pick(given_clusters(candidates_per_pick), scores, available, labelled, key=seed)
    assert found.indices.tolist() == expected
    np.testing.assert_array_equal(found.scores, scores[expected])
    # Found among the candidates.
    acquisition = build("cluster_margin", num_clusters=4, candidates_per_pick=candidates_per_pick)
    found = pick(acquisition, (scores, points), available, labelled, key=seed)
    candidates = sorted(np.flatnonzero(available), key=lambda i: -scores[i])[:count]
    key, key_clusters = jax.random.split(jax.random.key(seed))
    rows, there = points[[*candidates, *[0] * (count - len(candidates))]], np.arange(count) < len(candidates)
    rows = np.where(there[:, None], rows - rows[there].mean(axis=0), 0).astype(np.float32)
    clusters = np.full(NUM, -1)
    clusters[candidates] = compiled_k_means(key_clusters, rows, there, 4, 100).assignment[there]
    uniforms = np.asarray(jax.random.uniform(key, (count,)))
    expected = oracle.cluster_margin(scores, clusters, available, QUERY, candidates_per_pick, uniforms)
    assert found.indices.tolist() == expected


@functools.cache
def given_clusters(candidates_per_pick):
    clusters = np.random.default_rng(0).choice([-3, 4, 5, 6, 70], size=NUM, p=[0.4, 0.3, 0.2, 0.06, 0.04])
    return selection.cluster_margin(clusters, candidates_per_pick=candidates_per_pick)


def test_one_of_every_cluster_by_default():
    points, truth = blobs(3)
    scores = -np.random.default_rng(0).random(len(truth)).astype(np.float32)
    everything = np.ones(len(truth), bool)
    found = pick(build("cluster_margin", candidates_per_pick=20), (scores, points), everything, ~everything, 8)
    assert truth[found.indices].tolist() == list(range(8))


def test_a_cluster_is_drawn_from_at_random():
    clusters = np.array([0, 0, 0, 0, 1])
    acquisition, keys = selection.cluster_margin(clusters), jax.random.split(jax.random.key(0), 4000)
    everything = jnp.ones(5, bool)
    found = jax.vmap(lambda key: acquisition.select(key, jnp.zeros(5), everything, 2).indices)(keys)
    assert (found[:, 0] == 4).all()
    counts = np.bincount(found[:, 1], minlength=5)
    assert counts[4] == 0
    assert (np.abs(counts[:4] - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75)).all()


def test_the_summary_holds_what_is_read():
    logits = 2 * np.random.default_rng(0).normal(size=(4, NUM, 3)).astype(np.float32)
    points = problem(0)[0].reshape(NUM, 1, SIZE)
    scores, features = build("cluster_margin").summarise(Predictions(jnp.asarray(logits), jnp.asarray(points)))
    np.testing.assert_array_equal(scores, heuristics.margin(logits))
    np.testing.assert_array_equal(features, points[:, 0])
    np.testing.assert_array_equal(given_clusters(1).summarise(Predictions(jnp.asarray(logits))), scores)
    other = selection.cluster_margin(np.zeros(NUM, int), score_fn=heuristics.bald).summarise(
        Predictions(jnp.asarray(logits))
    )
    np.testing.assert_array_equal(other, heuristics.bald(logits))


@many
def test_clusters_of_a_data_set(seed):
    points = problem(seed)[0]
    found = selection.cluster(points.reshape(NUM, SIZE, 1), 6)
    assert found.dtype == np.int32
    truth = oracle.average_linkage(points, np.ones(NUM, bool), 6)
    assert len(set(zip(found.tolist(), truth.tolist(), strict=True))) == len(set(found.tolist())) == 6
    assert selection.cluster(points[:1], 1).tolist() == [0]


# What they have in common


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("k_means", {}), ("typiclust", {}), ("prob_cover", {"radius": 12.0}), ("prob_cover", {"num_classes": 8})],
)
def test_one_pick_of_every_blob(name, arguments, seed):
    points, truth = blobs(seed)
    everything = np.ones(len(truth), bool)
    found = pick(build(name, **arguments), points, everything, ~everything, 8, key=seed)
    assert sorted(truth[found.indices].tolist()) == list(range(8))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "arguments"), [("typiclust", {}), ("prob_cover", {"radius": 12.0})])
def test_blobs_with_a_label_are_avoided(name, arguments, seed):
    points, truth = blobs(seed)
    firsts = [int(np.flatnonzero(truth == blob)[0]) for blob in (1, 4, 6, 7)]
    labelled = np.isin(np.arange(len(truth)), firsts)
    found = pick(build(name, **arguments), points, ~labelled, labelled, 4, key=seed)
    assert sorted(truth[found.indices].tolist()) == [0, 2, 3, 5]


@every_cold_start
def test_a_large_common_offset_changes_nothing(name):
    rng = np.random.default_rng(0)
    points = (rng.integers(-512, 512, (NUM, SIZE)) / 1024).astype(np.float32)  # exact beside 4096
    _, available, labelled = problem(1)
    found, moved = (pick(build(name), x, available, labelled) for x in (points, points + np.float32(4096)))
    np.testing.assert_array_equal(found.indices, moved.indices)
    np.testing.assert_allclose(found.scores, moved.scores, rtol=1e-4)


@every_cold_start
def test_hidden_rows_do_not_count(name):
    points, available, labelled = problem(1)
    hidden = ~available & ~labelled
    assert hidden.any()
    found = pick(build(name), points, available, labelled)
    moved = pick(build(name), np.where(hidden[:, None], 1e3, points).astype(np.float32), available, labelled)
    np.testing.assert_array_equal(found.indices, moved.indices)
    np.testing.assert_array_equal(found.scores, moved.scores)


@every_cold_start
def test_one_device_or_four(name, mesh):
    points, available, labelled = problem(1)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pool"))
    spread = pick(build(name), *(jax.device_put(part, split) for part in (points, available, labelled)))
    alone = pick(build(name), points, available, labelled)
    np.testing.assert_array_equal(spread.indices, alone.indices)
    np.testing.assert_allclose(spread.scores, alone.scores, rtol=1e-4)


@every_cold_start
def test_prob_cover_with_a_radius_alone_follows_a_permutation_and_no_key(name):
    points, available, labelled = problem(2)
    order = np.random.default_rng(0).permutation(NUM)
    acquisition = build(name, radius=2.0) if name == "prob_cover" else build(name)
    found = pick(acquisition, points, available, labelled).indices
    other = pick(acquisition, points[order], available[order], labelled[order], key=1).indices
    assert (order[other].tolist() == found.tolist()) == (name == "prob_cover")


@every_cold_start
def test_labels_at_the_start_of_a_loop(name):
    points, truth = blobs(0, count=5)
    train = baal.Dataset(jnp.asarray(points), jnp.asarray(truth.astype(np.int32)))
    posterior = baal.Posterior(lambda key, dataset, labelled, previous=None: jnp.zeros(2), None, None)
    loop = baal.active_loop(posterior, selection.random(), query_size=1)
    acquisition = build(name) if name != "prob_cover" else build(name, num_classes=5)

    def labelled(key):
        state = loop.init(key, train, num_initial=5, acquisition=acquisition, embeddings=points)
        return baal.pool.labelled(state.pool)

    keys = jax.random.split(jax.random.key(0), 4)
    together = np.asarray(jax.vmap(labelled)(keys))
    np.testing.assert_array_equal(together[0], labelled(keys[0]))
    assert all(sorted(truth[row].tolist()) == list(range(5)) for row in together)


# Errors


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("k_means", {"num_clusters": 0}, "num_clusters=0 must be"),
        ("k_means", {"num_iterations": 0}, "num_iterations=0 must be"),
        ("typiclust", {"num_clusters": 0}, "num_clusters=0 must be"),
        ("typiclust", {"num_neighbours": 0}, "num_neighbours=0 must be"),
        ("typiclust", {"max_clusters": 2.5}, "max_clusters=2.5 must be"),
        ("prob_cover", {"radius": 0.0}, "radius=0.0 must be a finite number above 0"),
        ("prob_cover", {"radius": -1.0}, "radius=-1.0 must be"),
        ("prob_cover", {"purity": 1.5}, "purity=1.5 is a share"),
        ("prob_cover", {"purity": 0.0}, "purity=0.0 must be a finite number above 0"),
        ("prob_cover", {"num_classes": 0}, "num_classes=0 must be"),
        ("cluster_margin", {"candidates_per_pick": 0}, "candidates_per_pick=0 must be"),
        ("cluster_margin", {"num_clusters": 0}, "num_clusters=0 must be"),
        ("cluster_margin", {"clusters": np.zeros(3)}, "must be one integer an example"),
        ("cluster_margin", {"clusters": np.zeros((3, 1), int)}, "must be one integer an example"),
        ("cluster_margin", {"clusters": np.zeros(3, int), "num_clusters": 2}, "num_clusters=2 has no use"),
    ],
)
def test_arguments_are_checked_where_they_are_given(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        selection.REGISTRY[name](**arguments)


def test_shapes_are_checked():
    points, available, labelled = problem(0)
    for name in FROM_FEATURES:
        with pytest.raises(ValueError, match=f"{name} needs one row an example"):
            pick(build(name), points[..., None], available, labelled)
    with pytest.raises(ValueError, match="cluster_margin needs one row an example"):
        pick(build("cluster_margin"), (points[:, 0], points[..., None]), available, labelled)
    with pytest.raises(ValueError, match=r"\(48, 5\) cannot be ranked"):
        pick(build("cluster_margin"), (points, points), available, labelled)
    with pytest.raises(ValueError, match="clusters has 48 ids for 47 examples"):
        pick(given_clusters(1), points[1:, 0], available[1:], labelled[1:])
    with pytest.raises(ValueError, match="num_clusters=49 exceeds the 48 examples"):
        selection.cluster(points, 49)
    with pytest.raises(ValueError, match="not finite"):
        selection.cluster(np.where(points == points[3], np.nan, points), 2)


@pytest.mark.parametrize("name", ["typiclust", "prob_cover"])
def test_what_reads_labels_refuses_a_sample_of_the_pool(name):
    with pytest.raises(ValueError, match="max_sample=5 would hide the labelled examples"):
        baal.active_loop(baal.Posterior(None, None, None), build(name), query_size=2, max_sample=5)


# The experiment


def test_cold_start_experiment_writes_a_table_a_picture_and_results(tmp_path, capsys):
    config = cold_start_digits.Config(
        strategies=("random", "k_center"), num_labels=(4,), model="linear", seeds=2, num_steps=3, out=tmp_path
    )
    curves = cold_start_digits.main(config)
    assert curves["k_center"].metrics["accuracy"].shape == (2, 1)
    assert (curves["random"].metrics["classes"] <= 4).all()
    assert "k_center" in capsys.readouterr().out
    assert (tmp_path / "cold_start.png").stat().st_size > 10_000
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["strategies"]["random"]["num_labelled"] == [4]
    with pytest.raises(SystemExit, match="typiclsut"):
        harness.acquisition("typiclsut")


def test_principal_components_keep_distances():
    x = np.random.default_rng(0).normal(size=(30, SIZE)).astype(np.float32) + 3
    found = cold_start_digits.principal_components(jnp.asarray(x), SIZE)
    np.testing.assert_allclose(oracle.distances(found, found), oracle.distances(x, x), atol=1e-4)
    variances = np.var(found, axis=0)
    assert (np.diff(variances) <= 0).all()
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
