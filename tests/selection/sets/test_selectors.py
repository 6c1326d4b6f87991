"""Selectors against definitions written out in float64, and against the library of their benchmark."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from baal_jax import selection
from baal_jax.selection.sets import feature_maps, selectors
from tests.oracles import sets as oracle
from tests.selection.sets import problems
from tests.selection.sets.problems import EVERY, NOISE, NUM, QUERY, SEEDS, SIZE, build, pick, problem

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "bmdal_reg.json").read_text())
with_and_without_labels = pytest.mark.parametrize("use_labelled", [False, True])


@with_and_without_labels
def test_max_det_is_that_of_conditional_variances(use_labelled):
    for seed in SEEDS:
        features, available, labelled = problem(seed)
        found = pick(build("max_det", noise=NOISE, use_labelled=use_labelled), features, available, labelled)
        k, known = oracle.kernel(features), labelled & use_labelled
        picks = oracle.max_det(k, available, QUERY, known, NOISE)
        assert found.indices.tolist() == picks
        for turn in (0, QUERY - 1):
            given = [*np.flatnonzero(known), *picks[:turn]]
            variance = oracle.conditional_variances(k, given, NOISE)[picks[turn]]
            np.testing.assert_allclose(found.scores[turn], variance, rtol=2e-3)
        if not use_labelled:  # the chain rule of determinants
            value = oracle.log_determinant(k, picks, NOISE)
            np.testing.assert_allclose(np.log(found.scores).sum(), value, rtol=1e-3, atol=1e-2)


@with_and_without_labels
@pytest.mark.parametrize("name", ["k_center", "lcmd"])
def test_farthest_and_largest_cluster(name, use_labelled):
    for seed in SEEDS:
        features, available, labelled = problem(seed)
        found = pick(build(name, use_labelled=use_labelled), features, available, labelled)
        known, k = labelled & use_labelled, oracle.kernel(features)
        picks = getattr(oracle, name)(k, available, QUERY, known)
        assert found.indices.tolist() == picks
        centres = [*np.flatnonzero(known), *picks]
        for turn in range(QUERY):
            earlier = centres[: len(centres) - QUERY + turn]  # without any, the distance to the origin
            square = oracle.distances(k)[picks[turn], earlier].min() if earlier else k[picks[0], picks[0]]
            np.testing.assert_allclose(found.scores[turn], np.sqrt(square), rtol=1e-4)


@with_and_without_labels
def test_k_means_pp_inverts_the_distribution(use_labelled):
    for seed in SEEDS:
        features, available, labelled = problem(seed)
        found = pick(build("k_means_pp", use_labelled=use_labelled), features, available, labelled, key=seed)
        known, uniforms = labelled & use_labelled, problems.uniforms(seed)
        picks = oracle.k_means_pp(oracle.kernel(features), available, QUERY, known, uniforms)
        assert found.indices.tolist() == picks
        assert np.isinf(found.scores[0]) == (not known.any())


@with_and_without_labels
def test_frank_wolfe(use_labelled):
    for seed in SEEDS:
        features, available, labelled = problem(seed)
        found = pick(build("frank_wolfe", use_labelled=use_labelled), features, available, labelled)
        known = labelled & use_labelled
        assert found.indices.tolist() == oracle.frank_wolfe(features, available, QUERY, known)
        if not known.any():  # the first score is the product with the whole sum
            first = features[found.indices[0]].astype(np.float64)
            value = first / np.linalg.norm(first) @ features[available].sum(axis=0, dtype=np.float64)
            np.testing.assert_allclose(found.scores[0], value, rtol=1e-4)


def test_max_diag_is_blind_to_redundancy():
    features, available, labelled = problem(1)
    found = pick(build("max_diag"), features, available, labelled)
    lengths = (features.astype(np.float64) ** 2).sum(axis=1)
    expected = np.argsort(np.where(available, -lengths, np.inf))[:QUERY]
    np.testing.assert_array_equal(found.indices, expected)
    np.testing.assert_allclose(found.scores, lengths[expected], rtol=1e-5)


@pytest.mark.parametrize("name", GOLDEN["picks"])
def test_picks_are_those_of_bmdal_reg(name):
    """Picks of the benchmark's own library (in float64), with the labelled points told."""
    arguments = {
        "max_det": {"noise": NOISE, "use_labelled": True},
        "bait": {"features": feature_maps.embedding, "noise": NOISE, "oversampling": 1.0},
        "bait_backward": {"features": feature_maps.embedding, "noise": NOISE, "oversampling": 2.0},
    }
    acquisition = build(name.removesuffix("_backward"), **arguments.get(name, {"use_labelled": True}))
    for given, expected in zip(GOLDEN["problems"], GOLDEN["picks"][name], strict=True):
        # Padded to the shape of the other tests by a feature that is 0 and rows that do not count.
        features, labelled, available = np.zeros((NUM, SIZE), np.float32), ~EVERY, ~EVERY
        num = len(given["labelled"])
        features[:num, :-1], labelled[:num], available[:num] = given["features"], given["labelled"], True
        assert pick(acquisition, features, available & ~labelled, labelled).indices.tolist() == expected


@pytest.mark.parametrize("name", ["max_det", "k_center", "lcmd", "k_means_pp", "max_diag"])
def test_products_of_factors_are_kernels_like_any_other(name):
    acquisition = build(name) if name == "max_diag" else build(name, use_labelled=False)
    if name == "max_det":
        acquisition = build(name, noise=NOISE, use_labelled=False)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        left, right = (rng.normal(size=(NUM, size)).astype(np.float32) for size in (2, SIZE // 2))
        written_out = (left[:, :, None] * right[:, None]).reshape(NUM, -1)
        both = [pick(acquisition, f, EVERY, ~EVERY) for f in ((left, right), written_out)]
        np.testing.assert_array_equal(both[0].indices, both[1].indices)
        np.testing.assert_allclose(both[0].scores, both[1].scores, rtol=2e-3)


def test_equal_examples_are_all_picked_once():
    for name in ("max_det", "k_center", "lcmd", "k_means_pp", "frank_wolfe"):
        acquisition = build(name, use_labelled=False, **({"noise": NOISE} if name == "max_det" else {}))
        found = pick(acquisition, np.ones((NUM, SIZE), np.float32), np.arange(NUM) < QUERY, ~EVERY)
        assert sorted(found.indices.tolist()) == list(range(QUERY))


def test_max_det_without_noise_ends_in_random_picks():
    features, available, labelled = problem(4)
    acquisition = build("max_det", noise=0.0, use_labelled=False)
    runs = [pick(acquisition, features, available, labelled, 12, key).indices.tolist() for key in range(4)]
    assert all(run[:SIZE] == runs[0][:SIZE] for run in runs)
    assert len({tuple(run[SIZE:]) for run in runs}) > 1
    assert all(len(set(run)) == 12 for run in runs)


def test_a_large_offset_does_not_blur_distances():
    features, available, labelled = problem(5)
    picks = [pick(build("lcmd", use_labelled=True), x, available, labelled) for x in (features, features + 300)]
    np.testing.assert_array_equal(picks[0].indices, picks[1].indices)


def test_large_features_and_few_labels_keep_their_digits():
    """The squares of such features would drown the prior in float32."""
    max_det = build("max_det", noise=NOISE, use_labelled=True)
    bait = build("bait", feature_maps.embedding, noise=1.0, oversampling=1.0)
    labelled = np.arange(NUM) < 10
    for scale in (10.0, 100.0):
        features = (np.abs(np.random.default_rng(0).normal(size=(NUM, 24))) * scale).astype(np.float32)
        found = pick(max_det, features, ~labelled, labelled)
        assert found.indices.tolist() == oracle.max_det(oracle.kernel(features), ~labelled, QUERY, labelled, NOISE)
        found = pick(bait, features, ~labelled, labelled)
        assert found.indices.tolist() == oracle.bait(features[:, None], ~labelled, QUERY, labelled, 1.0)


def test_features_too_large_to_square_come_last_and_bytes_are_features_too():
    acquisition = build("k_center", use_labelled=True)
    features = problem(1)[0]
    features[3] = 1e30
    picked = pick(acquisition, features, np.arange(NUM) < QUERY, ~EVERY)
    assert int(picked.indices[-1]) == 3
    assert np.isnan(picked.scores[-1])
    pixels = np.random.default_rng(0).integers(0, 255, (NUM, SIZE)).astype(np.uint8)
    expected = oracle.k_center(oracle.kernel(pixels), EVERY, QUERY, ~EVERY)
    assert pick(acquisition, pixels, EVERY, ~EVERY).indices.tolist() == expected


def test_shapes_of_features(key):
    acquisition = build("k_center", use_labelled=True)
    line = acquisition.select(key, np.array([0.0, 3.0, 1.0], np.float32), np.ones(3, bool), 2)
    assert line.indices.tolist() == [1, 0]
    for shape, labelled, message in (
        ((3, 2, 2), None, r"one row an example, \[N, D\], is needed here"),
        ((3, 2, 2, 2), None, "flatten what comes after the examples"),
        ((3, 2), np.ones(4, bool), r"labelled has shape \(4,\), but available \(3,\)"),
        ((4, 2), None, "features of 4 examples for 3: one row each is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            acquisition.select(key, np.ones(shape, np.float32), np.ones(3, bool), 2, labelled)
    for name in ("frank_wolfe", "bait"):
        acquisition = selection.grid(feature_maps.embedding, (), getattr(selectors, name)())
        with pytest.raises(ValueError, match=r"needs plain features \[N, D\], not 2 factors: put transforms.sketch"):
            acquisition.select(key, (np.ones((3, 2)),) * 2, np.ones(3, bool), 2)
    with pytest.raises(ValueError, match=r"selectors.frank_wolfe needs one row an example"):
        build("frank_wolfe").select(jax.random.key(0), np.ones((3, 2, 2)), np.ones(3, bool), 2)
