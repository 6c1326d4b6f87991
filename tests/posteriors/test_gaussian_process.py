"""Gaussian processes and their kernels against float64 formulas: moments, evidence, every draw, random features."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import erf

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
    # Given hyperparameters and less room change nothing.
    given = {"scale": best[0], "num_features": 8, "max_labelled": 6} | OPTIONS[task]
    given |= {"noise": float(best[1])} if task == "regression" else {}
    tight = gaussian_process(KERNEL, **given).fit(KEY, baal.Dataset(INPUTS, TARGETS[task]), LABELLED)
    assert tight.inputs.shape == (6, 3)
    close(moments_of(tight, INPUTS), moments_of(state, INPUTS), 1e-4, 1e-5)
    np.testing.assert_allclose(tight.log_evidence, state.log_evidence, rtol=1e-4)


@pytest.mark.parametrize("task", OPTIONS)
def test_the_capacity_changes_nothing(task):
    """Factors of 2, 4, 7 and 14 rows, also where seeds with different numbers of labels share a program."""
    labelled = np.arange(14) < np.array([[2], [3], [9]])
    fit, data = posterior_of(task).fit, baal.Dataset(INPUTS, TARGETS[task])
    states = jax.vmap(fit, (None, None, 0))(KEY, data, labelled)
    for row, chosen in enumerate(labelled):
        for state in (fit(KEY, data, chosen), jax.tree.map(operator.itemgetter(row), states)):
            assert state.cholesky.shape[1:] == (14, 14)
            close(moments_of(state, INPUTS), expected_moments(task, state, chosen), 1e-4, 5e-5)
            noise = float(state.noise[0, 0]) ** 0.5 if task == "regression" else 1.0
            evidence = log_evidence(task, float(state.scale), noise, chosen)
            np.testing.assert_allclose(state.log_evidence, evidence, rtol=1e-3)


def expected_moments(task, state, labelled):
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
    with pytest.raises(ValueError, match=r"hold 2 in 1 of 14 rows \(4"):
        posterior.fit(KEY, classes, LABELLED)
    assert np.isnan(moments_of(jax.jit(posterior.fit)(KEY, classes, LABELLED), INPUTS)[0]).any()


VECTORS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(5, 4, 3, 2)).astype(np.float32)
STDS = {"weight_std": 1.3, "bias_std": 0.4}
# A covariance may be a small difference of large parts: errors count against the variances, which are about one.
CLOSE = {"rtol": 3e-6, "atol": 3e-7}


@pytest.mark.parametrize(
    ("depth", "sides", "activation"),
    [(0, None, "relu"), (3, None, "relu"), (2, None, "erf"), (1, (3, 3), "relu"), (3, (2, 3), "erf")],
)
def test_kernels_are_those_of_the_papers(depth, sides, activation):
    inputs, build = (IMAGES, kernels.convolutional) if sides else (VECTORS, kernels.dense)
    kernel = build(*(depth, sides)[: 2 if sides else 1], activation=activation, **STDS)
    expected = oracle.gram(inputs, inputs[:3], depth, sides, activation, *STDS.values())
    gram, diagonal = jax.jit(lambda x: (kernel.gram(x, x[:3]), kernel.diagonal(x)))(inputs)
    close(gram, expected, **CLOSE)
    close(diagonal[:3], np.diag(expected), **CLOSE)


def scaled_normals(key, *shape):
    key_weights, key_bias = jax.random.split(key)
    weights = STDS["weight_std"] * jax.random.normal(key_weights, shape) / np.prod(shape[:-1]) ** 0.5
    return weights, STDS["bias_std"] * jax.random.normal(key_bias, shape[-1:])


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_features_are_activations_of_a_random_network_which_has_the_covariances_of_the_kernel(name):
    """Each layer with a key of its own, split for weights and biases; all are scaled to the variances."""
    width, key, is_dense = 60, jax.random.key(0), name == "dense"
    inputs = VECTORS if is_dense else IMAGES
    kernel = kernels.dense(2, **STDS) if is_dense else kernels.convolutional(2, (3, 2), activation="erf", **STDS)

    @jax.jit
    def everything(keys):
        params = jax.vmap(lambda key: kernel.init(key, inputs[:1], width))(keys)
        features = jax.vmap(lambda params: kernel.features(params, inputs))(params)
        return params, features, kernel.diagonal(inputs), kernel.gram(inputs, inputs)

    params, networks, variances, gram = everything(jnp.append(key[None], jax.random.split(jax.random.key(1), 99)))
    params, hidden = jax.tree.map(lambda leaf: leaf[0], params), np.asarray(inputs, float)
    if is_dense:
        layers, keys, shapes = params, jax.random.split(key, 2), [(6, width), (width, width)]
    else:
        key_signs, *keys = jax.random.split(key, 3)
        (layers, signs), shapes = params, [(3, 2, 2, width), (3, 2, width, width)]
        close(signs, jax.random.rademacher(key_signs, (4, 3, width)))
    close(layers, [scaled_normals(one, *shape) for one, shape in zip(keys, shapes, strict=True)], 1e-5)
    for weights, bias in jax.tree.map(np.asarray, layers):
        if is_dense:
            hidden = np.maximum(hidden @ weights + bias, 0)
        else:  # windows of three by two, zeros around: one before and after, and one after
            padded = np.pad(hidden, ((0, 0), (1, 1), (0, 1), (0, 0)))
            hidden = sum(padded[:, i : i + 4, j : j + 3] @ weights[i, j] for i in range(3) for j in range(2))
            hidden = erf(hidden + bias)
    if not is_dense:
        hidden = np.einsum("nhwc,hwc->nc", hidden, signs)  # products of two positions vanish in expectation
    terms = width if is_dense else signs.size
    expected = np.append(STDS["weight_std"] * hidden / terms**0.5, np.full((5, 1), STDS["bias_std"]), axis=1)
    expected *= np.sqrt(variances / np.sum(expected**2, axis=1))[:, None]  # as long as the kernel says
    close(networks[0], expected, 2e-4, 2e-5)
    products = np.asarray(networks) @ np.swapaxes(networks, 1, 2)
    close(np.diagonal(products, axis1=1, axis2=2), np.broadcast_to(variances, (100, 5)), 1e-5)
    close(products.mean(axis=0), gram, 0, 0.03 * variances.max())  # of one network it is about 1/√60


@pytest.mark.parametrize(
    ("kernel", "inputs", "rounding"),
    [
        (kernels.dense(2), VECTORS, 2e-6),
        # The arc sine near one gives the root of what rounding takes, on some processors.
        (kernels.dense(2, activation="erf"), VECTORS, 5e-4),
        (kernels.convolutional(2, 3), IMAGES, 2e-6),
    ],
)
def test_equal_inputs_have_their_variance_and_a_slope(kernel, inputs, rounding):
    @jax.jit
    def everything(many, x):
        slope = jax.grad(lambda a: kernel.gram(a, x)[0, 0])(x)
        return kernel.gram(many, many), kernel.diagonal(many), slope, jax.grad(lambda a: kernel.diagonal(a)[0])(x)

    gram, diagonal, slope, twice = everything(np.concatenate([inputs, 1e-3 * inputs, 1e3 * inputs]), inputs[:1])
    gram = np.asarray(gram)
    close(np.diag(gram), diagonal, rounding)
    close(gram, gram.T, 2e-6)
    assert np.linalg.eigvalsh(gram.astype(np.float64) / gram.max()).min() > -1e-6
    close(slope, twice / 2, 1e-3, 1e-4)  # a symmetric function: its slope in one argument is half that of the diagonal


def test_an_input_of_zeros_without_biases_has_no_covariance_and_no_features():
    kernel = kernels.dense(3, bias_std=0.0)
    x = np.stack([np.zeros(6, np.float32), VECTORS[0]])
    gram, features = kernel.gram(x, x), kernel.features(kernel.init(KEY, x[:1], 16), x)
    assert np.abs(gram[0]).max() < 1e-6
    np.testing.assert_array_equal(features[0], 0)
    close(np.sum(features[1] ** 2), gram[1, 1], 1e-5)


def test_gram_matrices_of_images_are_computed_some_rows_at_a_time(monkeypatch):
    images, found = np.random.default_rng(3).normal(size=(33, 6, 6, 1)).astype(np.float32), []
    for limit in (images.size * 33, images.size * 2):
        monkeypatch.setattr(kernels, "_MAX_ELEMENTS", limit)
        found.append(jax.jit(kernels.convolutional(2, 3).gram)(images, images))
    close(*found, 1e-6)


def test_integers_are_inputs_and_images_are_flattened():
    images, kernel = np.arange(24).reshape(2, 3, 4).astype(np.uint8), kernels.dense(1)
    expected = kernel.gram(*[images.reshape(2, 12).astype(np.float32)] * 2)
    close((kernel.gram(images, images), kernel.diagonal(images)), (expected, np.diag(expected)), 1e-6)
    pictures = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.uint8)
    assert jax.eval_shape(kernels.convolutional(1).gram, pictures, pictures).dtype == jnp.float32


def test_the_squared_exponential_kernel_is_its_formula_and_its_features_have_it():
    far = VECTORS + 1e3  # distances by inner products would lose these digits
    exact = np.exp(-np.sum((far[:, None].astype(float) - far[None]) ** 2, axis=-1) / (2 * 1.5**2))
    kernel = kernels.rbf(1.5)
    close(kernel.gram(far, far[:3]), exact[:, :3], 1e-4, 1e-6)
    close(kernel.diagonal(far), np.ones(5))
    keys = jax.random.split(KEY, 50)
    features = jax.vmap(lambda key: kernel.features(kernel.init(key, VECTORS[:1], 60), VECTORS))(keys)
    products = np.asarray(features) @ np.swapaxes(features, 1, 2)
    close(np.diagonal(products, axis1=1, axis2=2), np.ones((50, 5)), 1e-5)
    close(products.mean(axis=0), exact, 0, 0.06)
    assert kernel.unit is None


@pytest.mark.parametrize("task", OPTIONS)
def test_its_length_scale_is_that_of_the_labelled_inputs(task):
    kernel, seen = kernels.rbf(), INPUTS[LABELLED].astype(float)
    length = np.mean(np.sum((seen[:, None] - seen[None]) ** 2, axis=-1) / 2) ** 0.5
    moved, fits = 7 * INPUTS + 3, []
    for found, inputs in ((kernel, INPUTS), (kernel, moved), (kernels.rbf(length), INPUTS)):
        given = {"scale": 1.0, "noise": 0.5} if task == "regression" else {"scale": 1.0}  # well conditioned
        posterior = gaussian_process(found, num_features=WIDTH, **given, **OPTIONS[task])
        # What is not labelled is anywhere.
        data = baal.Dataset(np.where(LABELLED[:, None], inputs, 99 * inputs), TARGETS[task])
        state = posterior.fit(KEY, data, LABELLED)
        moments = gaussian_process_moments(found, state, jnp.asarray(inputs))
        fits.append((state.unit, moments, state.log_evidence))
        draws = baal.predict(jax.random.key(1), posterior, state, inputs, num_samples=3)
        assert np.isfinite(draws).all()
    np.testing.assert_allclose([fit[0] for fit in fits], [length, 7 * length, 1.0], rtol=1e-5)
    for fit in fits[1:]:
        close(fit[1], fits[0][1], 1e-3, 1e-3)
        np.testing.assert_allclose(fit[2], fits[0][2], rtol=1e-3)
    nothing = gaussian_process(kernel, num_features=8, **OPTIONS[task])
    assert float(nothing.fit(KEY, baal.Dataset(INPUTS, TARGETS[task]), NOTHING).unit) == np.float32(3**0.5)
