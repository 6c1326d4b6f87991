"""Gaussian processes against float64 formulas: moments, draws, and what is not known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import baal_jax as baal
from baal_jax import heuristics, selection
from baal_jax.posteriors import kernels
from baal_jax.posteriors._gaussian_process import _solve, gaussian_process, gaussian_process_moments
from tests.oracles import gaussian_process as oracle

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(14, 3)).astype(np.float32)
VALUES = np.sin(INPUTS[:, 0]).astype(np.float32)
CLASSES = (INPUTS[:, 0] > 0).astype(np.int32) + (INPUTS[:, 1] > 0.5)
LABELLED = np.isin(np.arange(14), [1, 4, 5, 8, 11])
SCALES = (np.sqrt(2.0), 0.1)
KERNEL = kernels.dense(2)
TASKS = {
    "regression": (VALUES, {"scale": 1.0, "noise": 0.2}),
    "classification": (CLASSES, {"scale": 1.0, "num_classes": 3, "alpha": 0.01}),
}


def data(targets):
    return baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(targets))


def exact(task, labelled=LABELLED):
    """Mean ``[N, C]`` and covariance ``[N, N, C]`` in float64."""
    gram = oracle.gram(oracle.dense_kernel, INPUTS, INPUTS, 2, "relu", *SCALES)
    cross, inner = gram[:, labelled], gram[np.ix_(labelled, labelled)]
    if task == "regression":
        mean, covariance = oracle.moments(gram, cross, inner, np.full(labelled.sum(), 0.04), VALUES[labelled])
        return mean[:, None], covariance[..., None]
    values, noise = oracle.dirichlet(CLASSES[labelled], 3, 0.01)
    centre = oracle.dirichlet([0], 3, 0.01)[0].mean()
    moments = [oracle.moments(gram, cross, inner, noise[:, c], values[:, c] - centre) for c in range(3)]
    return centre + np.stack([m for m, _ in moments], axis=1), np.stack([c for _, c in moments], axis=2)


@pytest.fixture(scope="module", params=TASKS)
def fitted(request):
    targets, options = TASKS[request.param]
    posterior = gaussian_process(KERNEL, num_features=400, **options)
    return request.param, posterior, posterior.fit(jax.random.key(0), data(targets), jnp.asarray(LABELLED))


def test_moments_are_exact(fitted):
    task, _, state = fitted
    mean, variance = gaussian_process_moments(KERNEL, state, INPUTS)
    expected, covariance = exact(task)
    np.testing.assert_allclose(mean, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(variance, np.diagonal(covariance).T, rtol=1e-4, atol=2e-5)


def test_draws_have_these_moments(fitted):
    task, posterior, state = fitted
    draws = np.asarray(baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=3000), np.float64)
    expected, covariance = exact(task)
    error = np.sqrt(np.diagonal(covariance).T / len(draws))
    assert (np.abs(draws.mean(axis=0) - expected) < 5 * error + 1e-4).all()  # whatever the features
    found = np.einsum("snc,smc->nmc", draws - expected, draws - expected) / len(draws)
    prior = oracle.gram(oracle.dense_kernel, INPUTS, INPUTS, 2, "relu", *SCALES)
    np.testing.assert_allclose(found, covariance, atol=0.12 * prior.max())
    # Outputs are independent.
    between = np.mean((draws - expected)[:, :, 0] * (draws - expected)[:, :, -1], axis=0)
    assert task == "regression" or np.abs(between).max() < 0.1 * prior.max()


def test_without_features_a_draw_is_the_exact_mean(fitted):
    _, posterior, state = fitted
    noiseless = state._replace(noise=jnp.zeros_like(state.noise))
    draws = posterior.sample(jax.random.key(0), noiseless, 1)
    weights = jax.tree.map(lambda leaf: leaf[0], draws)
    features = KERNEL.features(state.features, state.inputs)
    # Undoes the prior that this draw subtracted from the targets.
    undone = weights.update + _solve(state, jnp.where(state.known[:, None], features @ weights.prior, 0.0))
    found = posterior.apply(state, weights._replace(prior=0 * weights.prior, update=undone), jnp.asarray(INPUTS))
    np.testing.assert_allclose(found, gaussian_process_moments(KERNEL, state, INPUTS)[0], rtol=1e-4, atol=1e-4)


def test_room_for_labels_changes_nothing(fitted):
    task, _, state = fitted
    targets, options = TASKS[task]
    tight = gaussian_process(KERNEL, num_features=8, max_labelled=5, **options)
    small = tight.fit(jax.random.key(0), data(targets), jnp.asarray(LABELLED))
    assert small.inputs.shape == (5, 3)
    for found, expected in zip(*(gaussian_process_moments(KERNEL, s, INPUTS) for s in (small, state)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_more_labels_than_room_are_refused_or_nan():
    posterior = gaussian_process(KERNEL, num_features=8, max_labelled=4)
    with pytest.raises(ValueError, match="max_labelled=4, but 5 examples are labelled"):
        posterior.fit(jax.random.key(0), data(VALUES), jnp.asarray(LABELLED))
    with pytest.raises(ValueError, match="max_labelled=4, but 5 examples are labelled"):
        jax.jit(lambda key: posterior.fit(key, data(VALUES), LABELLED))(jax.random.key(0))  # a constant
    state = jax.jit(posterior.fit)(jax.random.key(0), data(VALUES), jnp.asarray(LABELLED))
    assert np.isnan(baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=2)).all()


def test_with_nothing_labelled_draws_are_of_the_prior():
    posterior = gaussian_process(KERNEL, num_features=300)
    state = posterior.fit(jax.random.key(0), data(VALUES), jnp.zeros(14, bool))
    mean, variance = gaussian_process_moments(KERNEL, state, INPUTS)
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_allclose(variance[:, 0], KERNEL.diagonal(INPUTS), rtol=1e-6)
    draws = np.asarray(baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=3000))[..., 0]
    np.testing.assert_allclose(draws.var(axis=0), variance[:, 0], rtol=0.15)  # exact, up to 5 standard errors


def test_classes_without_labels_are_equally_likely():
    posterior = gaussian_process(KERNEL, num_classes=3, num_features=8)
    state = posterior.fit(jax.random.key(0), data(CLASSES), jnp.zeros(14, bool))
    mean, variance = gaussian_process_moments(KERNEL, state, INPUTS)
    assert len(np.unique(mean)) == 1
    np.testing.assert_allclose(variance, np.asarray(variance[:, :1]) * np.ones((1, 3)), rtol=1e-6)


def test_unknown_targets_do_not_count(fitted):
    task, posterior, state = fitted
    targets = TASKS[task][0].copy()
    targets[[0, 2]] = -1 if task == "classification" else np.nan
    unknown = LABELLED.copy()
    unknown[[0, 2]] = True
    found = posterior.fit(jax.random.key(0), data(targets), jnp.asarray(unknown))
    for one, other in zip(*(gaussian_process_moments(KERNEL, s, INPUTS) for s in (found, state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_outputs_with_shared_noise_are_regressed_one_by_one():
    both = np.stack([VALUES, -2 * VALUES], axis=1)
    posterior = gaussian_process(KERNEL, num_features=8, scale=1.0, noise=0.2)
    state = posterior.fit(jax.random.key(0), data(both), jnp.asarray(LABELLED))
    mean, _ = gaussian_process_moments(KERNEL, state, INPUTS)
    expected = exact("regression")[0]
    np.testing.assert_allclose(mean, np.concatenate([expected, -2 * expected], axis=1), rtol=1e-4, atol=1e-4)
    assert state.cholesky.shape == (1, 14, 14)


@pytest.mark.parametrize(("noise", "error"), [(1e-2, 0.06), (1e-6, 0.2)])  # near float32 and beyond
def test_equal_labelled_inputs_are_harmless(noise, error):
    inputs = np.repeat(INPUTS[:3], 100, axis=0)
    targets = np.repeat(VALUES[:3], 100) + np.random.default_rng(1).normal(size=300).astype(np.float32)
    posterior = gaussian_process(KERNEL, num_features=8, scale=1.0, noise=noise)
    dataset = baal.Dataset(jnp.asarray(inputs), jnp.asarray(targets))
    state = posterior.fit(jax.random.key(0), dataset, jnp.ones(300, bool))
    mean, variance = gaussian_process_moments(KERNEL, state, INPUTS[:3])
    assert (np.asarray(variance) < 1e-3).all()
    np.testing.assert_allclose(mean[:, 0], targets.reshape(3, 100).mean(axis=1), atol=error)


def test_draws_share_features_and_covariances():
    posterior = gaussian_process(KERNEL, num_features=64, num_classes=3)
    state = posterior.fit(jax.random.key(0), data(CLASSES), jnp.asarray(LABELLED))
    inputs = jax.ShapeDtypeStruct((32, 3), jnp.float32)

    def flops(num_samples):
        draws = posterior.sample(jax.random.key(0), state, num_samples)
        apply = jax.jit(lambda draws, x: jax.vmap(lambda draw: posterior.apply(state, draw, x))(draws))
        return apply.lower(draws, inputs).compile().cost_analysis()["flops"]

    products = 2 * 32 * 3 * (65 + 14)
    assert flops(21) - flops(1) < 1.2 * 20 * products
    assert flops(1) > 2 * 32 * 64 * 64


@pytest.mark.parametrize("task", TASKS)
def test_hyperparameters_are_the_best_of_the_grid(task):
    targets, options = TASKS[task]
    fixed = {name: value for name, value in options.items() if name not in ("scale", "noise")}
    state = gaussian_process(KERNEL, num_features=8, **fixed).fit(jax.random.key(0), data(targets), LABELLED)
    inner = oracle.gram(oracle.dense_kernel, INPUTS[LABELLED], INPUTS[LABELLED], 2, "relu", *SCALES)
    if task == "regression":
        columns = [(VALUES[LABELLED], np.ones(5))]
    else:
        values, noise = oracle.dirichlet(CLASSES[LABELLED], 3, 0.01)
        centre = oracle.dirichlet([0], 3, 0.01)[0].mean()
        columns = [(values[:, c] - centre, noise[:, c]) for c in range(3)]

    def log_evidence(scale, noise):
        return sum(
            stats.multivariate_normal.logpdf(values, cov=scale * inner + noise**2 * np.diag(variances))
            for values, variances in columns
        )

    noises = 2.0 ** np.arange(-6, 1) if task == "regression" else [1.0]
    values = {(scale, noise): log_evidence(scale, noise) for scale in 4.0 ** np.arange(-2, 6) for noise in noises}
    best = max(values, key=values.get)
    assert float(state.scale) == best[0]
    np.testing.assert_allclose(state.log_evidence, values[best], rtol=1e-4)
    if task == "regression":
        np.testing.assert_allclose(state.noise[0, :5], best[1] ** 2, rtol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_it_learns_in_the_loop(task):
    targets, options = TASKS[task]
    acquire = selection.top_k(heuristics.variance if task == "regression" else heuristics.bald)
    posterior = gaussian_process(KERNEL, num_features=32, **options)
    loop = baal.active_loop(posterior, acquire, query_size=2, num_samples=5)
    final, infos = baal.run(loop, jax.random.key(0), data(targets), data(targets), num_initial=3, num_rounds=2)
    assert int(baal.pool.num_labelled(final.pool)) == 7
    assert np.isfinite(infos.metrics["nll"]).all()


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({"scale": 0.0}, VALUES, "scale=0.0 must be a finite number above 0"),
        ({"noise": 0.0}, VALUES, "noise=0.0 must be a finite number above 0"),
        ({"alpha": -1.0}, VALUES, "alpha=-1.0"),
        ({"num_classes": 1}, CLASSES, "num_classes=1"),
        ({"max_labelled": 0}, VALUES, "max_labelled=0"),
        ({"num_features": 0}, VALUES, "num_features=0"),
        ({}, CLASSES, "give num_classes"),
        ({"num_classes": 3}, VALUES, "num_classes=3 needs integers"),
    ],
)
def test_what_cannot_be_is_refused(options, targets, message):
    with pytest.raises(ValueError, match=message):
        gaussian_process(KERNEL, **options).fit(jax.random.key(0), data(targets), jnp.asarray(LABELLED))


def test_a_class_too_many_is_refused_or_nan():
    posterior = gaussian_process(KERNEL, num_classes=2, num_features=8)
    seen = np.where(LABELLED, 2, 0)
    with pytest.raises(ValueError, match="targets hold 2, but num_classes=2"):
        posterior.fit(jax.random.key(0), data(seen), jnp.asarray(LABELLED))
    state = jax.jit(posterior.fit)(jax.random.key(0), data(seen), jnp.asarray(LABELLED))
    assert np.isnan(baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=2)).any()


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"labelled has shape \(15,\)"):
        gaussian_process(KERNEL).fit(jax.random.key(0), data(VALUES), jnp.ones(15, bool))
