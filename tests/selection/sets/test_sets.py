"""Set selections over features against definitions written out in float64."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import Predictions, selection
from baal_jax.selection.sets import _kernel, feature_maps, selectors, transforms
from tests.oracles import sets as oracle

NUM, SIZE, QUERY, NOISE = 40, 6, 9, 0.3
EVERY = np.ones(NUM, bool)
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "bmdal_reg.json").read_text())


@functools.cache
def build(name, *parts, **arguments):
    return getattr(selection, name)(*parts, **arguments)


def problem(seed, num=NUM, size=SIZE):
    """Features with a common offset and unequal scales, some rows labelled and some hidden."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num, size)) * rng.uniform(0.2, 2, size) + rng.normal(size=size)
    labelled = rng.random(num) < 0.15
    labelled[0] = seed % 4 != 0  # one in four may have no centre
    labelled &= seed % 4 != 0
    available = ~labelled & (rng.random(num) < 0.9)
    return features.astype(np.float32), available, labelled


def pick(acquisition, features, available, labelled, query_size=QUERY, key=0):
    features = jax.tree.map(jnp.asarray, features)
    return acquisition.select(jax.random.key(key), features, jnp.asarray(available), query_size, jnp.asarray(labelled))


many = pytest.mark.parametrize("seed", range(24))


@many
@pytest.mark.parametrize("use_labelled", [False, True])
def test_max_det_is_that_of_conditional_variances(seed, use_labelled):
    features, available, labelled = problem(seed)
    found = pick(build("max_det", noise=NOISE, use_labelled=use_labelled), features, available, labelled)
    k, known = oracle.kernel(features), labelled & use_labelled
    picks = oracle.max_det(k, available, QUERY, known, NOISE)
    assert found.indices.tolist() == picks
    if not use_labelled:  # the chain rule of determinants
        value = oracle.log_determinant(k, picks, NOISE)
        np.testing.assert_allclose(np.log(found.scores).sum(), value, rtol=1e-4, atol=1e-3)
    else:
        variances = oracle.conditional_variances(k, [*np.flatnonzero(known), *picks[:-1]], NOISE)
        np.testing.assert_allclose(found.scores[-1], variances[picks[-1]], rtol=1e-3)


@many
@pytest.mark.parametrize("use_labelled", [False, True])
@pytest.mark.parametrize("name", ["k_center", "lcmd"])
def test_farthest_and_largest_cluster(name, seed, use_labelled):
    features, available, labelled = problem(seed)
    found = pick(build(name, use_labelled=use_labelled), features, available, labelled)
    picks = getattr(oracle, name)(oracle.kernel(features), available, QUERY, labelled & use_labelled)
    assert found.indices.tolist() == picks
    centres = [*np.flatnonzero(labelled & use_labelled), *picks[:-1]]
    nearest = oracle.distances(oracle.kernel(features))[picks[-1], centres].min()
    np.testing.assert_allclose(found.scores[-1], np.sqrt(nearest), rtol=1e-4)


def uniforms(key, query_size=QUERY):
    return np.asarray(jax.random.uniform(jax.random.split(jax.random.key(key), 1)[0], (query_size,)), np.float64)


@many
@pytest.mark.parametrize("use_labelled", [False, True])
def test_k_means_pp_inverts_the_distribution(seed, use_labelled):
    features, available, labelled = problem(seed)
    found = pick(build("k_means_pp", use_labelled=use_labelled), features, available, labelled, key=seed)
    picks = oracle.k_means_pp(oracle.kernel(features), available, QUERY, labelled & use_labelled, uniforms(seed))
    assert found.indices.tolist() == picks


@many
@pytest.mark.parametrize("use_labelled", [False, True])
def test_frank_wolfe(seed, use_labelled):
    features, available, labelled = problem(seed)
    found = pick(build("frank_wolfe", use_labelled=use_labelled), features, available, labelled)
    assert found.indices.tolist() == oracle.frank_wolfe(features, available, QUERY, labelled & use_labelled)


@many
@pytest.mark.parametrize(("rank", "oversampling"), [(1, 1.0), (1, 2.0), (3, 1.0), (3, 1.5)])
def test_bait(seed, rank, oversampling):
    features, available, labelled = problem(seed, size=rank * 4)
    rows = features.reshape(NUM, rank, 4)
    acquisition = build("bait", feature_maps.embedding, noise=NOISE, oversampling=oversampling)
    found = pick(acquisition, rows[:, 0] if rank == 1 else rows, available, labelled)
    picks = oracle.bait(rows, available, QUERY, labelled, NOISE, oversampling)
    assert found.indices.tolist() == picks
    if oversampling == 1:
        known, counted = np.flatnonzero(labelled).tolist(), available | labelled
        traces = [oracle.bait_trace(rows, counted, known + picks[:t], NOISE) for t in range(QUERY + 1)]
        np.testing.assert_allclose(found.scores, -np.diff(traces), rtol=2e-3, atol=1e-5 * traces[0])


def test_backward_steps_help_on_average():
    rows = [problem(seed) for seed in range(24)]
    excess = []
    for features, available, labelled in rows:
        both = [
            pick(build("bait", feature_maps.embedding, noise=NOISE, oversampling=o), features, available, labelled)
            for o in (1.0, 2.0)
        ]
        known, counted = np.flatnonzero(labelled).tolist(), available | labelled
        forward, backward = (
            oracle.bait_trace(features[:, None], counted, known + b.indices.tolist(), NOISE) for b in both
        )
        excess.append(backward / forward - 1)
    assert np.mean(excess) < 0.0


# Factors


def predictions(seed, num=NUM, draws=5, classes=4, size=SIZE):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(draws, num, classes))
    return Predictions(jnp.asarray(logits, jnp.float32), jnp.asarray(rng.normal(size=(num, size)), jnp.float32))


def mean_probabilities(given):
    p = np.asarray(jax.nn.softmax(given.logits), np.float64)
    return p.mean(axis=0)


@many
def test_badge_is_dense_k_means_pp(seed):
    given = predictions(seed)
    available = np.random.default_rng(seed).random(NUM) < 0.8
    found = pick(build("badge"), selection.badge().summarise(given), available, ~available, key=seed)
    dense = oracle.gradient_embeddings(mean_probabilities(given), given.features)
    picks = oracle.k_means_pp(
        oracle.kernel(dense), available, QUERY, np.zeros(NUM, bool), uniforms(seed), largest_first=True
    )
    assert found.indices.tolist() == picks
    nearest = [np.linalg.norm(dense[picks[t]] - dense[picks[:t]], axis=1).min() for t in range(1, QUERY)]
    np.testing.assert_allclose(found.scores[1:], nearest, rtol=1e-3)


def test_badge_never_writes_the_gradient_out():
    num, classes, size = 500, 20, 64
    acquisition, key = build("badge"), jax.random.key(0)
    summary = (jnp.zeros((num, classes)), jnp.zeros((num, size)))
    compiled = acquisition.select.lower(key, summary, jnp.ones(num, bool), 5).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * num * classes * size / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["max_det", "k_center", "lcmd", "k_means_pp", "max_diag"])
def test_products_of_factors_are_kernels_like_any_other(name, seed):
    rng = np.random.default_rng(seed)
    left, right = (rng.normal(size=(NUM, size)).astype(np.float32) for size in (2, 3))
    written_out = (left[:, :, None] * right[:, None]).reshape(NUM, -1)
    acquisition = build(name, use_labelled=False) if name != "max_diag" else build(name)
    both = [pick(acquisition, f, EVERY, ~EVERY) for f in ((left, right), written_out)]
    np.testing.assert_array_equal(both[0].indices, both[1].indices)
    np.testing.assert_allclose(both[0].scores, both[1].scores, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_fisher_rows_are_written_out(seed):
    given = predictions(seed)
    rows = feature_maps.fisher(given, sketch_size=None)
    np.testing.assert_allclose(rows, oracle.fisher_rows(mean_probabilities(given), given.features), atol=2e-6)
    assert feature_maps.fisher(given, sketch_size=24).shape == (NUM, 4, 24)  # as many as there are: not sketched
    np.testing.assert_array_equal(feature_maps.fisher(given, sketch_size=24), rows)


def test_a_sketch_of_the_fisher_rows_keeps_inner_products():
    given = predictions(0)
    exact = feature_maps.fisher(given, sketch_size=None).reshape(NUM * 4, -1)
    wide = predictions(0, size=4000)
    sketched = feature_maps.fisher(wide, sketch_size=8000).reshape(NUM * 4, -1)
    whole = oracle.fisher_rows(mean_probabilities(wide), wide.features).reshape(NUM * 4, -1)
    k, found = whole @ whole.T, np.asarray(sketched @ sketched.T)
    assert np.abs(found - k).max() < 0.1 * np.diag(k).max()
    assert exact.shape[1] == 24


def test_a_single_output_has_the_fisher_information_of_a_gaussian():
    given = predictions(0, classes=1)
    np.testing.assert_array_equal(feature_maps.fisher(given), given.features)


def test_bait_reads_a_classifier():
    given = predictions(1)
    labelled = np.arange(NUM) < 4
    acquisition = selection.bait(noise=NOISE, oversampling=1.0)
    found = pick(acquisition, acquisition.summarise(given), ~labelled, labelled)
    rows = oracle.fisher_rows(mean_probabilities(given), given.features)
    assert found.indices.tolist() == oracle.bait(rows, ~labelled, QUERY, labelled, NOISE)


# Feature maps of draws


def test_centred_draws_have_the_covariance_as_kernel():
    outputs = np.asarray(predictions(0).logits, np.float64)
    phi = np.asarray(feature_maps.draws(predictions(0)))
    centred = outputs - outputs.mean(axis=0)
    covariance = np.einsum("snc,smc->nm", centred, centred) / (len(outputs) - 1)
    np.testing.assert_allclose(phi @ phi.T, covariance, atol=1e-5)
    single = outputs[..., :1]
    phi = np.asarray(feature_maps.draws(Predictions(jnp.asarray(single, jnp.float32))))
    np.testing.assert_allclose(phi @ phi.T, np.cov(single[..., 0].T), atol=1e-5)


def test_draws_of_probabilities_do_not_see_a_shift_of_the_logits():
    given = predictions(0)
    shifted = given._replace(logits=given.logits + jnp.arange(5.0)[:, None, None])
    one, other = feature_maps.probability_draws(given), feature_maps.probability_draws(shifted)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_batch_bald_gaussian_gains_are_information():
    given = predictions(3)
    acquisition = build("batch_bald_gaussian", noise=NOISE)
    phi = acquisition.summarise(given)
    found = pick(acquisition, phi, EVERY, ~EVERY)
    picks = found.indices.tolist()
    k = oracle.kernel(phi)
    value = 0.5 * oracle.log_determinant(k / NOISE**2, picks, 1.0)
    np.testing.assert_allclose(found.scores.sum(), value, rtol=1e-4)
    assert (np.diff(found.scores) <= 1e-5).all()
    assert picks == oracle.max_det(k, EVERY, QUERY, ~EVERY, NOISE)


# Transforms


def transformed(transform, factors, labelled, counted=None, noise=0.0):
    factors = tuple(jnp.asarray(f) for f in factors)
    counted = jnp.ones(len(labelled), bool) if counted is None else jnp.asarray(counted)
    given = _kernel.Features(factors, jnp.float32(noise))
    return transform(jax.random.key(0), given, jnp.asarray(labelled), counted)


@many
def test_the_posterior_is_that_of_a_gaussian_process(seed):
    features, _, labelled = problem(seed)
    found = transformed(transforms.posterior(NOISE), [features], labelled)
    k = oracle.kernel(features)
    np.testing.assert_allclose(
        oracle.kernel(found.factors[0]), oracle.posterior_kernel(k, labelled, NOISE), atol=1e-4 * np.abs(k).max()
    )


def test_scale_centre_normalise_and_noise():
    features, available, labelled = problem(1)
    counted = available | labelled
    found = transformed(transforms.scale(), [features, features], labelled, counted, noise=0.5)
    before = _kernel.diagonal(_kernel.Features((jnp.asarray(features),) * 2, jnp.float32(0.5)))
    np.testing.assert_allclose(_kernel.diagonal(found), before / before[labelled].mean(), rtol=1e-5)
    nothing = transformed(transforms.scale(), [features], ~EVERY, counted)
    assert float(_kernel.diagonal(nothing)[counted].mean()) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(
        transformed(transforms.centre(), [features], labelled, counted).factors[0],
        features - features[counted].mean(axis=0),
        atol=1e-5,
    )
    lengths = _kernel.diagonal(transformed(transforms.normalise(), [features], labelled))
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    noisy = transformed(transforms.predictive(0.7), [features], labelled, noise=0.5)
    assert float(noisy.noise) == pytest.approx(0.99)
    np.testing.assert_allclose(_kernel.column(noisy, 3)[3], (features[3] ** 2).sum() + 0.99, rtol=1e-5)
    np.testing.assert_allclose(_kernel.column(noisy, 3)[4], features[3] @ features[4], rtol=1e-5)


def test_features_without_length_stay_finite():
    zeros = [np.zeros((NUM, 3), np.float32)]
    for transform in (transforms.scale(), transforms.normalise(), transforms.centre(), transforms.posterior(1.0)):
        assert np.isfinite(transformed(transform, zeros, ~EVERY).factors[0]).all()


def test_a_sketch_is_unbiased_for_factors_too():
    rng = np.random.default_rng(0)
    factors = [rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 5)).astype(np.float32)]
    given = _kernel.Features(tuple(jnp.asarray(f) for f in factors), jnp.float32(0))

    def gram(key):
        phi = transforms.sketch(16)(key, given, jnp.zeros(8, bool), jnp.ones(8, bool)).factors[0]
        return phi @ phi.T

    found = np.asarray(jax.vmap(gram)(jax.random.split(jax.random.key(1), 4000)))
    error = found.std(axis=0) / np.sqrt(4000)
    assert (np.abs(found.mean(axis=0) - oracle.kernel(*factors)) < 4.5 * error).all()
    assert np.abs(found[0] - oracle.kernel(*factors)).max() > 1e-3


def test_a_grid_applies_its_transforms_in_order():
    features, available, labelled = problem(2)
    parts = (transforms.scale(), transforms.posterior(NOISE), transforms.predictive(NOISE))
    found = pick(selection.grid(feature_maps.embedding, parts, selectors.max_det()), features, available, labelled)
    scaled = features / np.sqrt((features[labelled] ** 2).sum(axis=1).mean())
    picks = oracle.max_det(oracle.kernel(scaled), available, QUERY, labelled, NOISE)
    assert found.indices.tolist() == picks


# Edges


@pytest.mark.parametrize("name", ["max_det", "k_center", "lcmd", "k_means_pp", "frank_wolfe"])
def test_equal_examples_are_all_picked_once(name):
    features = np.ones((NUM, SIZE), np.float32)
    found = pick(build(name, use_labelled=False), features, EVERY, ~EVERY, NUM)
    assert sorted(found.indices.tolist()) == list(range(NUM))


def test_max_det_without_noise_ends_in_random_picks():
    features, available, labelled = problem(4)
    runs = [
        pick(build("max_det", noise=0.0, use_labelled=False), features, available, labelled, 12, key).indices.tolist()
        for key in range(4)
    ]
    assert all(run[:SIZE] == runs[0][:SIZE] for run in runs)
    assert len({tuple(run[SIZE:]) for run in runs}) > 1
    assert all(len(set(run)) == 12 for run in runs)


def test_a_large_offset_does_not_blur_distances():
    features, available, labelled = problem(5)
    apart = pick(build("lcmd"), features + np.float32(300), available, labelled)
    np.testing.assert_array_equal(apart.indices, pick(build("lcmd"), features, available, labelled).indices)


def test_bad_arguments_are_named():
    for call in (
        lambda: selectors.max_det(-1.0),
        lambda: selectors.max_det(0.0, use_labelled=True),
        lambda: selectors.bait(0.0),
        lambda: transforms.posterior(0.0),
        lambda: transforms.predictive(float("nan")),
        lambda: selection.batch_bald_gaussian(noise=0.0),
    ):
        with pytest.raises(ValueError, match="noise="):
            call()
    with pytest.raises(ValueError, match="oversampling="):
        selectors.bait(oversampling=0.5)
    with pytest.raises(ValueError, match="size="):
        transforms.sketch(0)


def test_what_needs_plain_features_says_so():
    features = np.ones((NUM, 2), np.float32)
    for name in ("frank_wolfe", "bait"):
        acquisition = selection.grid(feature_maps.embedding, (), getattr(selectors, name)())
        with pytest.raises(ValueError, match=r"needs plain features \[N, D\], not 2 factors: put transforms.sketch"):
            pick(acquisition, (features, features), EVERY, ~EVERY)
    with pytest.raises(ValueError, match="features is None: pass features="):
        selection.lcmd().summarise(Predictions(jnp.zeros((2, 3, 2))))
    with pytest.raises(ValueError, match=r"\[S, B, C\], is needed"):
        feature_maps.badge(Predictions(jnp.zeros((2, 3, 4, 2)), jnp.zeros((3, 2))))
    with pytest.raises(ValueError, match="one draw has no covariance"):
        feature_maps.draws(Predictions(jnp.zeros((1, 3, 2))))


@pytest.mark.parametrize("case", range(len(GOLDEN["problems"])))
@pytest.mark.parametrize("name", GOLDEN["picks"])
def test_picks_are_those_of_bmdal_reg(name, case):
    """Picks of the benchmark's own library (in float64), with the labelled points told."""
    given = GOLDEN["problems"][case]
    features, labelled = np.array(given["features"], np.float32), np.array(given["labelled"])
    arguments = {
        "max_det": {"noise": 0.1},
        "frank_wolfe": {"use_labelled": True},
        "bait": {"features": feature_maps.embedding, "noise": 0.1, "oversampling": 1.0},
        "bait_backward": {"features": feature_maps.embedding, "noise": 0.1, "oversampling": 2.0},
    }
    acquisition = build(name.removesuffix("_backward"), **arguments.get(name, {}))
    found = pick(acquisition, features, ~labelled, labelled, 8)
    assert found.indices.tolist() == GOLDEN["picks"][name][case]


@pytest.mark.parametrize("scale", [10.0, 100.0])
@pytest.mark.parametrize("name", ["max_det", "bait"])
def test_large_features_and_few_labels_keep_their_digits(name, scale):
    """The squares of such features would drown the prior in float32."""
    rng = np.random.default_rng(0)
    features = (np.abs(rng.normal(size=(NUM, 24))) * scale).astype(np.float32)
    labelled = np.arange(NUM) < 10
    if name == "max_det":
        found = pick(build("max_det", noise=0.1), features, ~labelled, labelled, 8)
        expected = oracle.max_det(oracle.kernel(features), ~labelled, 8, labelled, 0.1)
    else:
        acquisition = build("bait", feature_maps.embedding, noise=1.0, oversampling=1.0)
        found = pick(acquisition, features, ~labelled, labelled, 8)
        expected = oracle.bait(features[:, None], ~labelled, 8, labelled, 1.0)
    assert found.indices.tolist() == expected
    assert np.isfinite(found.scores).all()


@pytest.mark.parametrize("name", ["k_center", "typiclust", "prob_cover", "k_means", "bait", "max_det", "lcmd"])
def test_bytes_are_features_too(name):
    pixels = np.random.default_rng(0).integers(0, 255, (NUM, 12)).astype(np.uint8)
    same = [
        pick(build(name), given, EVERY, ~EVERY, 5).indices.tolist() for given in (pixels, pixels.astype(np.float32))
    ]
    assert same[0] == same[1]


def test_ranks_of_features():
    acquisition, key = build("k_center"), jax.random.key(0)
    line = acquisition.select(key, jnp.array([0.0, 3.0, 1.0]), jnp.ones(3, bool), 2)
    assert line.indices.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"one row an example, \[N, D\], is needed here"):
        acquisition.select(key, jnp.ones((3, 2, 2)), jnp.ones(3, bool), 2)
    with pytest.raises(ValueError, match="flatten what comes after the examples"):
        acquisition.select(key, jnp.ones((3, 2, 2, 2)), jnp.ones(3, bool), 2)
    with pytest.raises(ValueError, match=r"labelled has shape \(4,\), but available \(3,\)"):
        acquisition.select(key, jnp.ones((3, 2)), jnp.ones(3, bool), 2, jnp.ones(4, bool))


def test_features_too_large_to_square_come_last():
    features = jnp.asarray(problem(1)[0]).at[3].set(1e30)
    picked = build("k_center").select(jax.random.key(0), features, jnp.ones(NUM, bool), NUM)
    assert int(picked.indices[-1]) == 3
    assert np.isnan(picked.scores[-1])


def test_what_reads_no_labels_can_be_given_a_sample():
    for name in ("badge", "batch_bald_gaussian", "frank_wolfe", "max_diag"):
        assert not build(name).reads_labelled
    assert selection.max_diag(transforms=[transforms.posterior()]).reads_labelled
    assert selection.frank_wolfe(use_labelled=True).reads_labelled
    assert build("lcmd").reads_labelled
