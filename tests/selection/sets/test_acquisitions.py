"""Acquisitions over features: what each is put together of."""

import jax
import numpy as np
import pytest

from baal_jax import selection
from baal_jax.selection.sets import selectors, transforms
from tests.oracles import sets as oracle
from tests.selection.problems import (
    EVERY,
    NOISE,
    NUM,
    QUERY,
    SEEDS,
    build,
    mean_probabilities,
    pick,
    predictions,
    uniforms,
)


def test_badge_is_dense_k_means_pp_from_the_largest_gradient():
    summarise = jax.jit(build("badge").summarise)
    for seed in SEEDS:
        given = predictions(seed)
        available = np.random.default_rng(seed).random(NUM) < 0.8
        found = pick(build("badge"), summarise(given), available, ~available, key=seed)
        k = oracle.kernel(oracle.gradient_embeddings(mean_probabilities(given), given.features))
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
    rows = oracle.fisher_rows(mean_probabilities(given), given.features)
    assert found.indices.tolist() == oracle.bait(rows, ~labelled, QUERY, labelled, NOISE)[0]


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
