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
LABELLED = np.isin(np.arange(14), [1, 4, 5, 8, 11, 12])
KERNEL, WIDTH = kernels.dense(2), 30
OPTIONS = {"regression": {}, "classification": {"num_classes": 3, "alpha": 0.01}}
GRAM = oracle.gram(oracle.dense_kernel, INPUTS, INPUTS, 2, "relu", np.sqrt(2.0), 0.1)
SCALES, NOISES = 4.0 ** np.arange(-2, 6), 2.0 ** np.arange(-6, 1)


def data(targets):
    return baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(targets))


@functools.cache
def posterior_of(task):
    return gaussian_process(KERNEL, num_features=WIDTH, **OPTIONS[task])


@functools.cache
def fitted(task):
    return posterior_of(task).fit(jax.random.key(0), data(TARGETS[task]), jnp.asarray(LABELLED))


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
    scale, (seen, centre) = float(state.scale), columns(task, labelled)
    noise = np.asarray(state.noise)[0][np.asarray(state.known)] if task == "regression" else 1.0
    prior = scale * GRAM
    each = [
        oracle.moments(prior, prior[:, labelled], prior[np.ix_(labelled, labelled)], noise * variances, values)
        for values, variances in seen
    ]
    return np.stack([mean for mean, _ in each], 1) + centre, np.stack([np.diag(spread) for _, spread in each], 1)


@pytest.mark.parametrize("task", OPTIONS)
def test_moments_are_exact_and_unknown_targets_do_not_count(task):
    unknown, nothing = TARGETS[task].copy(), np.zeros(14, bool)
    unknown[(4, 1) if task == "regression" else 4] = np.nan if task == "regression" else -1  # anywhere in a row
    for targets, labelled, known in (
        (TARGETS[task], LABELLED, LABELLED),
        (unknown, LABELLED, LABELLED & (np.arange(14) != 4)),
        (TARGETS[task], nothing, nothing),
    ):
        state = posterior_of(task).fit(jax.random.key(0), data(targets), jnp.asarray(labelled))
        close(moments_of(state, INPUTS), expected_moments(task, state, known), 1e-4, 5e-5)
        evidence = log_evidence(task, float(state.scale), float(state.noise[0, 0]) ** 0.5, known) if known.any() else 0
        if task == "regression" or not known.any():
            np.testing.assert_allclose(state.log_evidence, evidence, rtol=1e-3)
    assert float(state.scale) == 1.0  # the first of the grid, as nothing tells


@pytest.mark.parametrize("task", OPTIONS)
def test_a_draw_is_a_prior_function_moved_to_agree_with_the_labels(task):
    """Matheron's rule in float64, with a key each for the function and for the noise of what it would have seen."""
    posterior, labelled, unseen = posterior_of(task), fitted(task), np.zeros(14, bool)
    nothing = posterior.fit(jax.random.key(0), data(TARGETS[task]), jnp.asarray(unseen))
    same(labelled.features, jax.jit(KERNEL.init, static_argnums=2)(jax.random.key(0), INPUTS[:1], WIDTH))
    phi = np.asarray(jax.jit(KERNEL.features)(labelled.features, INPUTS), float)
    for state, chosen in ((labelled, LABELLED), (nothing, unseen)):
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
    tight = gaussian_process(KERNEL, **given).fit(jax.random.key(0), data(TARGETS[task]), jnp.asarray(LABELLED))
    assert tight.inputs.shape == (6, 3)
    close(moments_of(tight, INPUTS), moments_of(state, INPUTS), 1e-4, 1e-5)
    np.testing.assert_allclose(tight.log_evidence, state.log_evidence, rtol=1e-4)


def test_one_value_an_example_is_one_output():
    posterior, values = posterior_of("regression"), TARGETS["regression"]
    one = jax.eval_shape(posterior.fit, jax.random.key(0), data(values[:, 0]), jnp.asarray(LABELLED))
    assert (one.targets.shape, one.targets.dtype) == ((14, 1), jnp.float32)
    many = baal.Dataset(jnp.zeros((3000, 3)), jnp.zeros(3000))  # of which room is made for so many at most
    state = jax.eval_shape(posterior.fit, jax.random.key(0), many, jax.ShapeDtypeStruct((3000,), bool))
    assert state.cholesky.shape == (1, 2048, 2048)


def test_equal_labelled_inputs_are_harmless():
    """The noise is beyond what float32 tells from nothing."""
    inputs = np.repeat(INPUTS[:3], 40, axis=0)
    targets = (np.repeat(INPUTS[:3, 0], 40) + np.random.default_rng(1).normal(size=120)).astype(np.float32)
    posterior = gaussian_process(KERNEL, num_features=8, scale=1.0, noise=1e-6)
    dataset = baal.Dataset(jnp.asarray(inputs), jnp.asarray(targets))
    mean, variance = moments_of(posterior.fit(jax.random.key(0), dataset, jnp.ones(120, bool)), inputs)
    assert (np.asarray(variance) < 1e-3).all()
    assert (np.asarray(variance) >= 0).all()
    close(mean[::40, 0], targets.reshape(3, 40).mean(axis=1), 0, 0.1)


def test_a_choice_whose_evidence_cannot_be_computed_is_not_taken():
    """No covariance at all: its smallest eigenvalue is −3/4, so that larger scales have no factor."""
    broken = KERNEL._replace(gram=lambda x1, x2: 0.25 * jnp.eye(len(x1), len(x2)) - jnp.eye(len(x1), len(x2)))
    posterior = gaussian_process(broken, num_features=4)
    state = posterior.fit(jax.random.key(0), data(TARGETS["regression"]), jnp.asarray(LABELLED))
    assert np.isfinite(state.log_evidence)
    assert float(state.scale) < 2


def test_too_many_labels_and_too_large_classes_are_refused_or_nan():
    key, values = jax.random.key(0), data(TARGETS["regression"])
    posterior = gaussian_process(KERNEL, num_features=8, max_labelled=5, scale=1.0, noise=0.1)
    for fit in (posterior.fit, lambda key, data, labelled: jax.jit(lambda: posterior.fit(key, data, LABELLED))()):
        with pytest.raises(ValueError, match="max_labelled=5, but 6 examples are labelled"):
            fit(key, values, jnp.asarray(LABELLED))  # also where they are a constant of compiled code
    state = jax.jit(posterior.fit)(key, values, jnp.asarray(LABELLED))
    assert np.isnan(moments_of(state, INPUTS)[0]).all()
    posterior = gaussian_process(KERNEL, num_features=8, num_classes=2, scale=1.0)
    classes = data(np.where(np.arange(14) == 4, 2, TARGETS["classification"] > 0).astype(np.int32))
    with pytest.raises(ValueError, match="targets hold 2, but num_classes=2"):
        posterior.fit(key, classes, jnp.asarray(LABELLED))
    fit = jax.jit(posterior.fit)
    assert np.isnan(moments_of(fit(key, classes, jnp.asarray(LABELLED)), INPUTS)[0]).any()
    others = LABELLED & (np.arange(14) != 4)  # a class is only in the way where it is labelled
    assert np.isfinite(moments_of(posterior.fit(key, classes, jnp.asarray(others)), INPUTS)[0]).all()


def test_draws_share_features_and_covariances():
    posterior, inputs = posterior_of("classification"), jax.ShapeDtypeStruct((32, 3), jnp.float32)
    state = jax.eval_shape(posterior.fit, jax.random.key(0), data(TARGETS["classification"]), jnp.asarray(LABELLED))

    def flops(num_samples):
        draws = jax.eval_shape(lambda state: posterior.sample(jax.random.key(0), state, num_samples), state)
        apply = jax.jit(lambda state, draws, x: jax.vmap(lambda draw: posterior.apply(state, draw, x))(draws))
        return apply.lower(state, draws, inputs).cost_analysis()["flops"]

    products = 2 * 32 * 3 * (WIDTH + 1 + 14)
    assert flops(21) - flops(1) < 1.2 * 20 * products
    assert flops(1) > 2 * 32 * WIDTH * WIDTH


def test_what_cannot_be_is_refused():
    values, classes = TARGETS["regression"][:, 0], TARGETS["classification"]
    for options, targets, message in [
        ({"scale": 0.0}, values, "scale=0.0 must be a finite number above 0"),
        ({"noise": 0.0}, values, "noise=0.0 must be a finite number above 0"),
        ({"alpha": -1.0}, values, "alpha=-1.0"),
        ({"num_classes": 1}, classes, "num_classes=1"),
        ({"max_labelled": 0}, values, "max_labelled=0"),
        ({"num_features": 0}, values, "num_features=0"),
        ({}, classes, "give num_classes"),
        ({}, values[:, None, None], r"of shape \(14, 1, 1\), but without num_classes real values"),
        ({"num_classes": 3}, values, "num_classes=3 needs integers"),
        ({"num_classes": 3}, classes[:, None], "num_classes=3 needs integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            gaussian_process(KERNEL, **options).fit(jax.random.key(0), data(targets), jnp.asarray(LABELLED))
    with pytest.raises(ValueError, match=r"labelled has shape \(15,\), but must have one entry for each of 14"):
        gaussian_process(KERNEL).fit(jax.random.key(0), data(values), jnp.ones(15, bool))
