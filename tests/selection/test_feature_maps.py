"""Feature maps and transforms against matrices written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import Predictions, selection
from baal_jax.selection.sets import _kernel, feature_maps, selectors, transforms
from tests.oracles import heuristics
from tests.oracles import sets as oracle
from tests.selection.problems import EVERY, NOISE, NUM, QUERY, mean_probabilities, pick, predictions, problem


def test_fisher_rows_are_written_out_or_sketched():
    fisher = jax.jit(feature_maps.fisher, static_argnames="sketch_size")
    given = predictions(0)
    rows = oracle.fisher_rows(mean_probabilities(given), given.features)
    for sketch_size in (None, 20):  # as many as there are: not sketched
        np.testing.assert_allclose(fisher(given, sketch_size=sketch_size), rows, atol=2e-6)
    single = predictions(0, classes=1)  # the Fisher information of a Gaussian
    np.testing.assert_array_equal(fisher(single), single.features)
    # A sketch keeps inner products and is alike in every round.
    given = predictions(0, size=1000)
    whole = oracle.fisher_rows(mean_probabilities(given), given.features).reshape(NUM * 4, -1)
    sketched = np.asarray(fisher(given, sketch_size=3000)).reshape(NUM * 4, 3000)
    assert np.abs(sketched @ sketched.T - whole @ whole.T).max() < 0.15 * (whole**2).sum(axis=1).max()


def test_centred_draws_have_the_covariance_as_kernel():
    given = predictions(0)
    for feature_map, outputs in (
        (feature_maps.draws, given.logits.astype(np.float64)),
        (feature_maps.probability_draws, heuristics.softmax(given.logits)),
    ):
        phi = np.asarray(jax.jit(feature_map)(given))
        covariance = sum(np.cov(outputs[..., c].T) for c in range(outputs.shape[-1]))
        np.testing.assert_allclose(phi @ phi.T, covariance, atol=1e-5)


def test_features_are_flattened_and_kept_as_tuples():
    given = predictions(0)
    both = feature_maps.embedding(given._replace(features=(given.features.reshape(NUM, 5, 1), given.features[:, 0])))
    np.testing.assert_array_equal(both[0], given.features)
    assert both[1].shape == (NUM, 1)


def test_predictions_that_do_not_fit_are_refused():
    logits, hidden = np.zeros((2, 3, 2), np.float32), np.zeros((3, 2), np.float32)
    for feature_map, given, message in (
        (feature_maps.embedding, Predictions(logits), "features is None: pass features="),
        (feature_maps.badge, Predictions(np.zeros((2, 3, 4, 2)), hidden), r"\[S, B, C\], is needed"),
        (feature_maps.badge, Predictions(logits, (hidden, hidden)), "several factors, but the last hidden layer"),
        (feature_maps.badge, Predictions(logits[..., :1], hidden), "binary_logits"),
        (feature_maps.fisher, Predictions(None, hidden), "there is no fit to predict with"),
        (lambda given: feature_maps.fisher(given, sketch_size=0), Predictions(logits, hidden), "sketch_size=0 must be"),
        (feature_maps.draws, Predictions(logits[:1]), "one draw has no covariance"),
        (feature_maps.probability_draws, Predictions(logits[..., :1]), "binary_logits"),
    ):
        with pytest.raises(ValueError, match=message):
            feature_map(given)


# Transforms


def transformed(transform, factors, labelled, counted=EVERY, noise=0.0):
    """New factors, the noise and the diagonal."""

    def run(key, factors, labelled, counted, noise):
        found = transform(key, _kernel.Features(factors, noise), labelled, counted)
        return (*found, _kernel.trace(found))

    found = jax.jit(run)(jax.random.key(0), tuple(factors), labelled, counted, np.float32(noise))
    return jax.tree.map(np.asarray, found)


def test_scale_centre_normalise_noise_and_posterior():
    features, available, labelled = problem(1)
    counted, squares = available | labelled, (features.astype(np.float64) ** 2).sum(axis=1)
    # Of two factors the product and its noise are divided, once.
    _, noise, diagonal = transformed(transforms.scale(), [features, features], labelled, counted, noise=0.5)
    mean = (squares**2 + 0.5)[labelled].mean()
    np.testing.assert_allclose(diagonal, (squares**2 + 0.5) / mean, rtol=1e-5)
    np.testing.assert_allclose(noise, 0.5 / mean, rtol=1e-5)
    _, _, diagonal = transformed(transforms.scale(), [features], ~EVERY, counted)
    np.testing.assert_allclose(diagonal, squares / squares[counted].mean(), rtol=1e-5)
    ((centred,), _, _) = transformed(transforms.centre(), [features], labelled, counted)
    np.testing.assert_allclose(centred, features - features[counted].mean(axis=0), atol=1e-5)
    (factors, _, diagonal) = transformed(transforms.normalise(), [features, 2 * features], labelled)
    np.testing.assert_allclose(diagonal, 1, rtol=1e-5)
    np.testing.assert_allclose(factors[1], features / np.sqrt(squares)[:, None], rtol=1e-5)
    _, noise, diagonal = transformed(transforms.predictive(0.7), [features], labelled, noise=0.5)
    np.testing.assert_allclose(noise, 0.99, rtol=1e-6)
    np.testing.assert_allclose(diagonal, squares + 0.99, rtol=1e-5)
    noisy = _kernel.Features((features,), np.float32(0.99))
    column = features @ features[3] + 0.99 * (np.arange(NUM) == 3)
    np.testing.assert_allclose(jax.jit(_kernel.column)(noisy, 3), column, rtol=1e-4, atol=1e-5)
    ((given,), _, _) = transformed(transforms.posterior(NOISE), [features], labelled)
    k = oracle.kernel(features)
    truth = oracle.posterior_kernel(k, np.flatnonzero(labelled), NOISE)
    np.testing.assert_allclose(oracle.kernel(given), truth, atol=1e-4 * k.max())
    with pytest.raises(ValueError, match=r"transforms.centre needs plain features"):
        transformed(transforms.centre(), [features, features], labelled)


def test_features_without_length_stay_finite():
    zeros = [np.zeros((NUM, 3), np.float32)]
    for transform in (transforms.scale(), transforms.normalise(), transforms.centre(), transforms.posterior(1.0)):
        np.testing.assert_array_equal(transformed(transform, zeros, ~EVERY)[0][0], 0)


def test_a_sketch_is_unbiased_for_factors_too():
    rng = np.random.default_rng(0)
    factors = tuple(rng.normal(size=(8, size)).astype(np.float32) for size in (3, 5))

    def gram(key):
        given = _kernel.Features(factors, jnp.float32(0))
        phi = transforms.sketch(16)(key, given, jnp.zeros(8, bool), jnp.ones(8, bool)).factors[0]
        return phi @ phi.T

    found = np.asarray(jax.jit(jax.vmap(gram))(jax.random.split(jax.random.key(1), 4000)), np.float64)
    error = found.std(axis=0) / np.sqrt(4000)
    assert (np.abs(found.mean(axis=0) - oracle.kernel(*factors)) < 4.5 * error).all()
    assert (error > 1e-4).all()


def test_a_grid_applies_its_transforms_in_order_each_with_a_key_of_its_own():
    features, available, labelled = problem(2)
    parts = (transforms.scale(), transforms.posterior(NOISE), transforms.predictive(NOISE))
    found = pick(selection.grid(feature_maps.embedding, parts, selectors.max_det()), features, available, labelled)
    k = oracle.kernel(features / np.sqrt((features[labelled] ** 2).sum(axis=1).mean()))
    assert found.indices.tolist() == oracle.max_det(k, available, QUERY, labelled, NOISE)[0]

    def noisy(key, given, *_):
        return given._replace(factors=(given.factors[0] + jax.random.normal(key, features.shape),))

    acquisition = selection.grid(feature_maps.embedding, (noisy, noisy), selectors.k_means_pp(use_labelled=False))
    found = pick(acquisition, features, available, labelled, key=3)
    key_select, *keys = jax.random.split(jax.random.key(3), 3)
    k = oracle.kernel(features + sum(np.asarray(jax.random.normal(key, features.shape), np.float64) for key in keys))
    uniforms = np.asarray(jax.random.uniform(key_select, (QUERY,)), np.float64)
    assert found.indices.tolist() == oracle.k_means_pp(k, available, QUERY, ~EVERY, uniforms)[0]
