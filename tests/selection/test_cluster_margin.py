"""Cluster-Margin against the rounds of its paper, with clusters made once and clusters of the candidates."""

import functools

import jax
import numpy as np
import pytest
from scipy.cluster import hierarchy

from baal_jax import Predictions, heuristics, selection
from tests.oracles import unsupervised as oracle
from tests.selection import problems
from tests.selection.problems import NUM, QUERY, SEEDS, SIZE, build, pick

CLUSTERS = np.random.default_rng(0).choice([-3, 4, 5, 6, 70], size=NUM, p=[0.4, 0.3, 0.2, 0.06, 0.04])
given_clusters = functools.cache(lambda number: selection.cluster_margin(CLUSTERS, candidates_per_pick=number))


@pytest.mark.parametrize("candidates_per_pick", [2, 6])
def test_picks_are_those_of_the_paper(candidates_per_pick):
    count = min(candidates_per_pick * QUERY, NUM)
    acquisition = build("cluster_margin", num_clusters=4, candidates_per_pick=candidates_per_pick)
    for seed in SEEDS:
        points, available, labelled = problems.problem(seed)
        scores = -np.random.default_rng(seed).random(NUM).astype(np.float32)
        # Found once for all.
        uniforms = np.asarray(jax.random.uniform(jax.random.key(seed), (count,)))
        expected = oracle.cluster_margin(scores, CLUSTERS, available, QUERY, candidates_per_pick, uniforms)
        found = pick(given_clusters(candidates_per_pick), scores, available, labelled, key=seed)
        assert found.indices.tolist() == expected
        np.testing.assert_array_equal(found.scores, scores[expected])
        if candidates_per_pick == 2:  # are never more than what is available
            continue
        # Found among the candidates.
        found = pick(acquisition, (scores, points), available, labelled, key=seed)
        candidates = sorted(np.flatnonzero(available), key=lambda i, scores=scores: -scores[i])[:count]
        key, key_clusters = jax.random.split(jax.random.key(seed))
        rows, there = points[[*candidates, *[0] * (count - len(candidates))]], np.arange(count) < len(candidates)
        clusters = np.full(NUM, -1)
        clusters[candidates] = problems.clusters_of(rows, there, 4, None, key_clusters)[1][there]
        uniforms = np.asarray(jax.random.uniform(key, (count,)))
        expected = oracle.cluster_margin(scores, clusters, available, QUERY, candidates_per_pick, uniforms)
        assert found.indices.tolist() == expected


def test_one_of_every_cluster_by_default():
    points, truth = problems.blobs(3)
    scores = -np.random.default_rng(0).random(len(truth)).astype(np.float32)
    found = pick(build("cluster_margin", candidates_per_pick=20), (scores, points), truth >= 0, truth < 0)
    assert truth[found.indices].tolist() == list(range(8))


def test_the_summary_holds_what_is_read():
    logits, points = 2 * np.random.default_rng(0).normal(size=(4, NUM, 3)).astype(np.float32), problems.problem(0)[0]
    scores, features = build("cluster_margin").summarise(Predictions(logits, points.reshape(NUM, 1, SIZE)))
    np.testing.assert_array_equal(scores, heuristics.margin(logits))
    np.testing.assert_array_equal(features, points)
    other = selection.cluster_margin(CLUSTERS, score_fn=heuristics.bald).summarise(Predictions(logits))
    np.testing.assert_array_equal(other, heuristics.bald(logits))


def test_clusters_of_a_data_set():
    for seed in range(4):
        points = problems.problem(seed)[0]
        found = selection.cluster(points.reshape(NUM, SIZE, 1), 6)
        assert found.dtype == np.int32
        truth = hierarchy.fcluster(hierarchy.linkage(points, "average"), 6, "maxclust")
        assert len(set(zip(found.tolist(), truth.tolist(), strict=True))) == len(set(found.tolist())) == 6
    assert selection.cluster(points[:1], 1).tolist() == [0]
    assert sorted(selection.cluster(points, NUM).tolist()) == list(range(NUM))


def test_what_does_not_fit_is_refused():
    points, available, labelled = problems.problem(0)
    acquisition, broken = build("cluster_margin"), np.where(points == points[3], np.nan, points)
    for call, message in (
        (lambda: selection.cluster(points, 49), "num_clusters=49 exceeds the 48 examples"),
        (lambda: selection.cluster(points, 0), "num_clusters=0 must be"),
        (lambda: selection.cluster(broken, 2), "not finite"),
        (lambda: selection.cluster_margin(np.zeros(3)), "must be one integer an example"),
        (lambda: selection.cluster_margin(np.zeros((3, 1), int)), "must be one integer an example"),
        (lambda: selection.cluster_margin(np.zeros(3, int), 2), "num_clusters=2 has no use"),
        (lambda: pick(acquisition, (points[:, 0], points[..., None]), available, labelled), "needs one row an example"),
        (lambda: pick(acquisition, (points, points), available, labelled), r"\(48, 5\) cannot be ranked"),
        (lambda: pick(given_clusters(2), points[1:, 0], available[1:], labelled[1:]), "48 ids for 47 examples"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
