"""Acquisitions over features: what each is put together of."""

import jax
import numpy as np
import pytest

from baal_jax import selection
from baal_jax.selection.sets import selectors, transforms
from tests.oracles import sets as oracle
from tests.selection.sets import problems
from tests.selection.sets.problems import EVERY, NUM, QUERY, build, mean_probabilities, pick, predictions


def test_badge_is_dense_k_means_pp_from_the_largest_gradient():
    summarise = jax.jit(build("badge").summarise)
    for seed in problems.SEEDS:
        given = predictions(seed)
        available = np.random.default_rng(seed).random(NUM) < 0.8
        found = pick(build("badge"), summarise(given), available, ~available, key=seed)
        dense = oracle.gradient_embeddings(mean_probabilities(given), given.features)
        uniforms, nothing = problems.uniforms(seed), ~EVERY
        picks = oracle.k_means_pp(oracle.kernel(dense), available, QUERY, nothing, uniforms, largest_first=True)
        assert found.indices.tolist() == picks
        nearest = [np.linalg.norm(dense[picks[t]] - dense[picks[:t]], axis=1).min() for t in range(1, QUERY)]
        np.testing.assert_allclose(found.scores, [np.linalg.norm(dense[picks[0]]), *nearest], rtol=1e-3)


def test_badge_never_writes_the_gradient_out():
    num, classes, size = 500, 20, 64
    summary = np.zeros((num, classes), np.float32), np.zeros((num, size), np.float32)
    compiled = build("badge").select.lower(jax.random.key(0), summary, np.ones(num, bool), 5).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * num * classes * size / 2


def test_gains_of_gaussian_batch_bald_are_information():
    noise = 0.3
    acquisition = build("batch_bald_gaussian", noise=noise)
    phi = jax.jit(acquisition.summarise)(predictions(3))
    found, k = pick(acquisition, phi, EVERY, ~EVERY), oracle.kernel(phi)
    picks = found.indices.tolist()
    assert picks == oracle.max_det(k, EVERY, QUERY, ~EVERY, noise)
    value = [0.5 * oracle.log_determinant(k / noise**2, picks[: t + 1], 1.0) for t in range(QUERY)]
    np.testing.assert_allclose(np.cumsum(found.scores), value, rtol=1e-4)
    assert (np.diff(found.scores) <= 1e-5).all()
    # Given labels, less is left to know.
    labelled = np.isin(np.arange(NUM), picks[:2])
    acquisition = build("batch_bald_gaussian", noise=noise, use_labelled=True)
    found = pick(acquisition, phi, ~labelled, labelled)
    assert found.indices.tolist() == oracle.max_det(k, ~labelled, QUERY, labelled, noise)
    variance = oracle.conditional_variances(k, picks[:2], noise)[found.indices[0]]
    np.testing.assert_allclose(found.scores[0], 0.5 * np.log(variance / noise**2), rtol=1e-3)


def test_what_reads_no_labels_can_be_given_a_sample():
    for name in ("badge", "batch_bald_gaussian", "frank_wolfe", "max_diag"):
        assert not build(name).reads_labelled
    for name in ("bait", "grid", "k_center", "k_means_pp", "lcmd", "max_det"):
        assert build(name).reads_labelled
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
