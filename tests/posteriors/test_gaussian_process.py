"""Gaussian processes against float64 formulas: moments, evidence, every draw, and what is not known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import baal_jax as baal
from baal_jax.posteriors import kernels
from baal_jax.posteriors._gaussian_process import gaussian_process, gaussian_process_moments
from tests.fixtures import close, same
from tests.oracles import gaussian_process as oracle

INPUTS = np.random.default_rng(0).normal(size=(14, 3)).astype(np.float32)
WOBBLE = 0.6 * np.random.default_rng(4).normal(size=(14, 2))
TARGETS = {
    "regression": (np.stack([3 * np.sin(INPUTS[:, 0]), 4 - INPUTS[:, 1]], axis=1) + WOBBLE).astype(np.float32),
    "classification": (INPUTS[:, 0] > 0).astype(np.int32) + (INPUTS[:, 1] > 0.5),
}
LABELLED, NOTHING = np.isin(np.arange(14), [1, 4, 5, 8, 11, 12]), np.zeros(14, bool)
KERNEL, WIDTH = kernels.dense(2), 30
OPTIONS = {"regression": {}, "classification": {"num_classes": 3, "alpha": 0.01}}
GRAM = oracle.gram(INPUTS, INPUTS, 2, None, "relu", np.sqrt(2.0), 0.1)
SCALES, NOISES = 4.0 ** np.arange(-2, 6), 2.0 ** np.arange(-6, 1)
KEY = jax.random.key(0)


@functools.cache
def posterior_of(task):
    return gaussian_process(KERNEL, num_features=WIDTH, **OPTIONS[task])


@functools.cache
def fitted(task):
    return posterior_of(task).fit(KEY, baal.Dataset(INPUTS, TARGETS[task]), LABELLED)


moments_of = jax.jit(functools.partial(gaussian_process_moments, KERNEL))


def columns(task, labelled):
    """What was seen of each output beyond the prior mean, the variances of its noise at unit noise, and that mean."""
    targets, count = TARGETS[task][labelled], labelled.sum()
    if task == "regression":
        return [(targets[:, c].astype(float), np.ones(count)) for c in range(2)], 0.0
    values, noise = oracle.dirichlet(targets, 3, 0.01)
    centre = oracle.dirichlet([0], 3, 0.01)[0].mean()
    return [(values[:, c] - centre, noise[:, c]) for c in range(3)], centre


def log_evidence(task, scale, noise, labelled):
    inner, (seen, _) = GRAM[np.ix_(labelled, labelled)], columns(task, labelled)
    return sum(
        stats.multivariate_normal.logpdf(values, cov=scale * inner + noise**2 * np.diag(variances))
        for values, variances in seen
    )


@pytest.mark.parametrize("task", OPTIONS)
def test_hyperparameters_are_the_best_of_the_grid_for_all_outputs_together(task):
    state = fitted(task)
    noises = NOISES if task == "regression" else [1.0]
    values = {(scale, noise): log_evidence(task, scale, noise, LABELLED) for scale in SCALES for noise in noises}
    best = max(values, key=values.get)
    assert float(state.scale) == best[0] != 1.0  # none of the first choices
    np.testing.assert_allclose(state.log_evidence, values[best], rtol=1e-4)
    if task == "regression":
        assert state.cholesky.shape == (1, 14, 14)
        np.testing.assert_allclose(state.noise[0, :6], best[1] ** 2, rtol=1e-3)


def expected_moments(task, state, labelled):
    """Mean ``[N, C]`` and variance ``[N, C]`` in float64, under the hyperparameters of the state."""
    prior, (seen, centre) = float(state.scale) * GRAM, columns(task, labelled)
    noise = np.asarray(state.noise)[0][np.asarray(state.known)] if task == "regression" else 1.0
    inner = prior[np.ix_(labelled, labelled)]
    each = [oracle.moments(prior, prior[:, labelled], inner, noise * scale, values) for values, scale in seen]
    return np.stack([mean for mean, _ in each], 1) + centre, np.stack([np.diag(spread) for _, spread in each], 1)


@pytest.mark.parametrize("task", OPTIONS)
def test_moments_are_exact_and_unknown_targets_do_not_count(task):
    unknown = TARGETS[task].copy()
    unknown[(4, 1) if task == "regression" else 4] = np.nan if task == "regression" else -1  # anywhere in a row
    for targets, labelled, known in (
        (TARGETS[task], LABELLED, LABELLED),
        (unknown, LABELLED, LABELLED & (np.arange(14) != 4)),
        (TARGETS[task], NOTHING, NOTHING),
    ):
        state = posterior_of(task).fit(KEY, baal.Dataset(INPUTS, targets), labelled)
        close(moments_of(state, INPUTS), expected_moments(task, state, known), 1e-4, 5e-5)
        evidence = log_evidence(task, float(state.scale), float(state.noise[0, 0]) ** 0.5, known) if known.any() else 0
        if task == "regression" or not known.any():
            np.testing.assert_allclose(state.log_evidence, evidence, rtol=1e-3)
    assert float(state.scale) == 1.0  # the first of the grid, as nothing tells


@pytest.mark.parametrize("task", OPTIONS)
def test_a_draw_is_a_prior_function_moved_to_agree_with_the_labels(task):
    """Matheron's rule in float64, with a key each for the function and for the noise of what it would have seen."""
    posterior, labelled = posterior_of(task), fitted(task)
    nothing = posterior.fit(KEY, baal.Dataset(INPUTS, TARGETS[task]), NOTHING)
    same(labelled.features, jax.jit(KERNEL.init, static_argnums=2)(KEY, INPUTS[:1], WIDTH))
    phi = np.asarray(jax.jit(KERNEL.features)(labelled.features, INPUTS), float)
    for state, chosen in ((labelled, LABELLED), (nothing, NOTHING)):
        draws = baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=3)
        (seen, centre), scale = columns(task, chosen), float(state.scale)
        for draw, key in zip(draws, jax.random.split(jax.random.key(1), 3), strict=True):
            key_prior, key_noise = jax.random.split(key)
            weights = np.asarray(jax.random.normal(key_prior, (phi.shape[1], len(seen))), float)
            normal = np.asarray(jax.random.normal(key_noise, (14, len(seen))), float)[: chosen.sum()]
            for c, (values, _) in enumerate(seen):
                prior = scale**0.5 * phi @ weights[:, c]
                variances = np.asarray(state.noise, float)[min(c, len(state.noise) - 1), : chosen.sum()]
                covariance = scale * GRAM[np.ix_(chosen, chosen)] + np.diag(variances)
                missing = values - normal[:, c] * variances**0.5 - prior[chosen]
                move = scale * GRAM[:, chosen] @ np.linalg.solve(covariance, missing)
                close(draw[:, c], centre + prior + move, 1e-3, 1e-3)


@pytest.mark.parametrize("task", OPTIONS)
def test_given_hyperparameters_and_less_room_change_nothing(task):
    state = fitted(task)
    given = {"scale": float(state.scale), "num_features": 8, "max_labelled": 6} | OPTIONS[task]
    given |= {"noise": float(np.sqrt(state.noise[0, 0]))} if task == "regression" else {}
    tight = gaussian_process(KERNEL, **given).fit(KEY, baal.Dataset(INPUTS, TARGETS[task]), LABELLED)
    assert tight.inputs.shape == (6, 3)
    close(moments_of(tight, INPUTS), moments_of(state, INPUTS), 1e-4, 1e-5)
    np.testing.assert_allclose(tight.log_evidence, state.log_evidence, rtol=1e-4)


def test_one_value_an_example_is_one_output():
    """And room is made for so many at most."""
    many = baal.Dataset(jnp.zeros((3000, 3)), jnp.zeros(3000))
    fit = posterior_of("regression").fit
    state = jax.eval_shape(fit, KEY, many, jax.ShapeDtypeStruct((3000,), bool))
    assert (state.targets.shape, state.targets.dtype, state.cholesky.shape) == ((2048, 1), jnp.float32, (1, 2048, 2048))


def test_equal_labelled_inputs_are_harmless():
    """The noise is beyond what float32 tells from nothing."""
    inputs = np.repeat(INPUTS[:3], 40, axis=0)
    targets = (np.repeat(INPUTS[:3, 0], 40) + np.random.default_rng(1).normal(size=120)).astype(np.float32)
    posterior = gaussian_process(KERNEL, num_features=8, scale=1.0, noise=1e-6)
    mean, variance = moments_of(posterior.fit(KEY, baal.Dataset(inputs, targets), np.ones(120, bool)), inputs)
    assert ((np.asarray(variance) < 1e-3) & (np.asarray(variance) >= 0)).all()
    close(mean[::40, 0], targets.reshape(3, 40).mean(axis=1), 0, 0.1)


def test_a_choice_whose_evidence_cannot_be_computed_is_not_taken():
    """No covariance at all: its smallest eigenvalue is −3/4, so that larger scales have no factor."""
    broken = KERNEL._replace(gram=lambda x1, x2: 0.25 * jnp.eye(len(x1), len(x2)) - jnp.eye(len(x1), len(x2)))
    state = gaussian_process(broken, num_features=4).fit(KEY, baal.Dataset(INPUTS, TARGETS["regression"]), LABELLED)
    assert np.isfinite(state.log_evidence)
    assert float(state.scale) < 2


def test_too_many_labels_and_too_large_classes_are_refused_or_nan():
    values = baal.Dataset(INPUTS, TARGETS["regression"])
    posterior = gaussian_process(KERNEL, num_features=8, max_labelled=5, scale=1.0, noise=0.1)
    for fit in (posterior.fit, lambda key, data, labelled: jax.jit(lambda: posterior.fit(key, data, LABELLED))()):
        with pytest.raises(ValueError, match="max_labelled=5, but 6 examples are labelled"):
            fit(KEY, values, LABELLED)  # also where they are a constant of compiled code
    assert np.isnan(moments_of(jax.jit(posterior.fit)(KEY, values, LABELLED), INPUTS)[0]).all()
    posterior = gaussian_process(KERNEL, num_features=8, num_classes=2, scale=1.0)
    classes = np.where(np.arange(14) == 4, 2, TARGETS["classification"] > 0).astype(np.int32)
    classes = baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(classes))
    with pytest.raises(ValueError, match="targets hold 2, but num_classes=2"):
        posterior.fit(KEY, classes, LABELLED)
    assert np.isnan(moments_of(jax.jit(posterior.fit)(KEY, classes, LABELLED), INPUTS)[0]).any()
    others = LABELLED & (np.arange(14) != 4)  # a class is only in the way where it is labelled
    assert np.isfinite(moments_of(posterior.fit(KEY, classes, others), INPUTS)[0]).all()
