"""Selectors and acquisitions over features, against definitions in float64 and the library of their benchmark."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from baal_jax import selection
from baal_jax.selection.sets import feature_maps, selectors, transforms
from tests.oracles import sets as oracle
from tests.selection import problems
from tests.selection.problems import EVERY, NOISE, NUM, QUERY, SEEDS, SIZE, build, pick, predictions, problem, uniforms

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "bmdal_reg.json").read_text())


def made(name, use_labelled):
    noise = {"noise": NOISE} if name == "max_det" else {}
    return build(name) if name == "max_diag" else build(name, use_labelled=use_labelled, **noise)


def check(name, features, available, labelled, *, use_labelled=False, key=0):
    """The same picks as the definition, and their values as scores."""
    found = pick(made(name, use_labelled), features, available, labelled, key=key)
    k = oracle.kernel(*features) if isinstance(features, tuple) else oracle.kernel(features)
    given = features if name == "frank_wolfe" else k
    more = {"max_det": [NOISE], "k_means_pp": [uniforms(key)]}.get(name, [])
    picks, values = getattr(oracle, name)(given, available, QUERY, labelled & use_labelled, *more)
    assert found.indices.tolist() == picks
    np.testing.assert_allclose(found.scores, values, rtol=2e-3, atol=1e-3 * (name == "frank_wolfe"))


@pytest.mark.parametrize("use_labelled", [False, True])
@pytest.mark.parametrize("name", ["max_diag", "max_det", "k_center", "lcmd", "k_means_pp", "frank_wolfe"])
def test_picks_and_scores_are_those_of_the_definition(name, use_labelled):
    for seed in SEEDS:
        points, available, labelled = problem(seed)
        check(name, points, available, labelled, use_labelled=use_labelled, key=seed)
        if name != "frank_wolfe" and not use_labelled:  # products of factors are kernels like any other
            check(name, (points[:, :2] - 5, points[:, 2:]), available, labelled, key=seed)


@pytest.mark.parametrize(
    ("rank", "oversampling", "use_labelled"), [(1, 1.0, False), (1, 2.0, True), (3, 1.0, True), (3, 1.5, True)]
)
def test_bait_shrinks_the_trace_most(rank, oversampling, use_labelled):
    options = {"noise": NOISE, "oversampling": oversampling, "use_labelled": use_labelled}
    acquisition = build("bait", feature_maps.embedding, **options)
    for seed in SEEDS:
        features, available, labelled = problem(seed, size=5 if rank == 1 else 12)
        rows = features.reshape(NUM, rank, -1)
        found = pick(acquisition, features if rank == 1 else rows, available, labelled)
        picks, values = oracle.bait(rows, available, QUERY, labelled, **options)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, values, rtol=3e-3, atol=1e-4 * max(values))


@pytest.mark.parametrize("name", GOLDEN["picks"])
def test_picks_are_those_of_bmdal_reg(name):
    """Picks of the benchmark's own library (in float64), with the labelled points told."""
    if name.startswith("bait"):
        options = {"noise": NOISE, "oversampling": 2.0 if name == "bait_backward" else 1.0, "use_labelled": True}
        acquisition = build("bait", feature_maps.embedding, **options)
    else:
        acquisition = made(name, True)
    for given, expected in zip(GOLDEN["problems"], GOLDEN["picks"][name], strict=True):
        # Padded to the shape of the other tests by rows that do not count.
        features, labelled, available = np.zeros((NUM, SIZE), np.float32), ~EVERY, ~EVERY
        num = len(given["labelled"])
        features[:num], labelled[:num], available[:num] = given["features"], given["labelled"], True
        assert pick(acquisition, features, available & ~labelled, labelled).indices.tolist() == expected


def test_equal_examples_are_all_picked_once():
    for name in ("max_det", "k_center", "lcmd", "k_means_pp", "frank_wolfe"):
        found = pick(made(name, False), np.ones((NUM, SIZE), np.float32), np.arange(NUM) < QUERY, ~EVERY)
        assert sorted(found.indices.tolist()) == list(range(QUERY))


def test_max_det_without_noise_ends_in_random_picks():
    acquisition = build("max_det", noise=0.0, use_labelled=False)
    runs = [pick(acquisition, *problem(4), key=key).indices.tolist() for key in range(4)]
    assert all(run[:SIZE] == runs[0][:SIZE] for run in runs)
    assert len({tuple(run[SIZE:]) for run in runs}) > 1
    assert all(len(set(run)) == QUERY for run in runs)


def test_large_features_and_few_labels_keep_their_digits():
    """The squares of such features would drown the prior in float32, and an offset would blur distances."""
    features, available, labelled = problem(5)
    runs = [pick(made("lcmd", True), x, available, labelled).indices for x in (features, features + 300)]
    np.testing.assert_array_equal(*runs)
    bait = build("bait", feature_maps.embedding, noise=1.0, oversampling=1.0)
    labelled = np.arange(NUM) < 10
    for scale in (10.0, 100.0):
        features = (np.abs(np.random.default_rng(0).normal(size=(NUM, 24))) * scale).astype(np.float32)
        found = pick(made("max_det", True), features, ~labelled, labelled)
        assert found.indices.tolist() == oracle.max_det(oracle.kernel(features), ~labelled, QUERY, labelled, NOISE)[0]
        found = pick(bait, features, ~labelled, labelled)
        assert found.indices.tolist() == oracle.bait(features[:, None], ~labelled, QUERY, labelled, 1.0)[0]


def test_features_too_large_to_square_come_last_and_bytes_are_features_too():
    features = problem(1)[0]
    features[3] = 1e30
    picked = pick(made("k_center", True), features, np.arange(NUM) < QUERY, ~EVERY)
    assert int(picked.indices[-1]) == 3
    assert np.isnan(picked.scores[-1])
    check("k_center", np.random.default_rng(0).integers(0, 255, (NUM, SIZE)).astype(np.uint8), EVERY, ~EVERY)


def test_shapes_of_features(key):
    line = made("k_center", True).select(key, np.array([0.0, 3.0, 1.0], np.float32), np.ones(3, bool), 2)
    assert line.indices.tolist() == [1, 0]
    bait = selection.grid(feature_maps.embedding, (), selectors.bait())
    ones, plain = np.ones, r"needs plain features \[N, D\], not 2 factors: put transforms.sketch"
    for acquisition, features, labelled, message in (
        (made("k_center", True), ones((3, 2, 2)), None, r"one row an example, \[N, D\], is needed here"),
        (made("k_center", True), ones((3, 2, 2, 2)), None, "flatten what comes after the examples"),
        (made("k_center", True), ones((3, 2)), ones(4, bool), r"labelled has shape \(4,\), but available \(3,\)"),
        (made("k_center", True), ones((4, 2)), None, "features of 4 examples for 3: one row each is needed"),
        (made("frank_wolfe", False), (ones((3, 2)),) * 2, None, plain),
        (bait, (ones((3, 2)),) * 2, None, plain),
        (made("frank_wolfe", False), ones((3, 2, 2)), None, r"selectors.frank_wolfe needs one row an example"),
    ):
        with pytest.raises(ValueError, match=message):
            acquisition.select(key, jax.tree.map(np.float32, features), ones(3, bool), 2, labelled)


# What acquisitions are put together of


def test_badge_is_dense_k_means_pp_from_the_largest_gradient():
    summarise = jax.jit(build("badge").summarise)
    for seed in SEEDS:
        given = predictions(seed)
        available = np.random.default_rng(seed).random(NUM) < 0.8
        found = pick(build("badge"), summarise(given), available, ~available, key=seed)
        k = oracle.kernel(oracle.gradient_embeddings(problems.mean_probabilities(given), given.features))
        picks, values = oracle.k_means_pp(k, available, QUERY, ~EVERY, uniforms(seed), largest_first=True)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, values, rtol=1e-3)


def test_badge_never_writes_the_gradient_out():
    num, classes, size = 500, 20, 64
    summary = np.zeros((num, classes), np.float32), np.zeros((num, size), np.float32)
    compiled = build("badge").select.lower(jax.random.key(0), summary, np.ones(num, bool), 5).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * num * classes * size / 2


def test_gains_of_gaussian_batch_bald_are_information():
    phi = jax.jit(build("batch_bald_gaussian").summarise)(predictions(3))
    for use_labelled in (False, True):  # given labels, less is left to know
        acquisition, labelled = build("batch_bald_gaussian", noise=0.3, use_labelled=use_labelled), np.arange(NUM) < 4
        found = pick(acquisition, phi, ~labelled, labelled)
        picks, variances = oracle.max_det(oracle.kernel(phi), ~labelled, QUERY, labelled & use_labelled, 0.3)
        assert found.indices.tolist() == picks
        np.testing.assert_allclose(found.scores, 0.5 * np.log(np.array(variances) / 0.3**2), rtol=1e-3, atol=1e-4)


def test_bait_reads_a_classifier():
    given, labelled = predictions(1), np.arange(NUM) < 4
    acquisition = selection.bait(noise=NOISE, oversampling=1.0)
    found = pick(acquisition, jax.jit(acquisition.summarise)(given), ~labelled, labelled)
    rows = oracle.fisher_rows(problems.mean_probabilities(given), given.features)
    assert found.indices.tolist() == oracle.bait(rows, ~labelled, QUERY, labelled, NOISE)[0]


def test_what_reads_no_labels_can_be_given_a_sample():
    assert not build("max_diag").reads_labelled  # and others, as the contract finds
    parts = [transforms.posterior()]
    for acquisition in (selection.max_diag(transforms=parts), selection.badge(parts), selection.frank_wolfe((), parts)):
        assert acquisition.reads_labelled
    assert selection.frank_wolfe(use_labelled=True).reads_labelled
    assert selection.batch_bald_gaussian(use_labelled=True).reads_labelled


def test_arguments_are_checked_where_they_are_given():
    for call, message in (
        (lambda: selectors.max_det(-1.0), "noise=-1.0"),
        (lambda: selectors.max_det(0.0, use_labelled=True), "noise=0.0"),
        (lambda: selectors.bait(0.0), "noise=0.0"),
        (lambda: transforms.posterior(0.0), "noise=0.0"),
        (lambda: transforms.predictive(float("nan")), "noise=nan"),
        (lambda: selection.batch_bald_gaussian(noise=0.0), "noise=0.0"),
        (lambda: selectors.bait(oversampling=0.5), "oversampling=0.5"),
        (lambda: transforms.sketch(0), "size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
