"""Kernels against closed formulas in float64, against wide random networks, and their features against them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax.posteriors import kernels
from tests.oracles import gaussian_process as oracle

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(5, 6)).astype(np.float32)
IMAGES = RNG.normal(size=(4, 5, 4, 2)).astype(np.float32)
SCALES = {"weight_std": 1.3, "bias_std": 0.4}
# A covariance may be a small difference of large parts: errors count against the variances, which are about one.
CLOSE = {"rtol": 3e-6, "atol": 3e-7}
ACTIVATIONS = ["relu", "erf"]
FUNCTIONS = {"relu": lambda x: np.maximum(x, 0), "erf": lambda x: np.asarray(jax.scipy.special.erf(x))}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_dense_kernels_are_those_of_the_papers(depth, activation):
    kernel = kernels.dense(depth, activation=activation, **SCALES)
    expected = oracle.gram(oracle.dense_kernel, VECTORS, VECTORS[:3], depth, activation, *SCALES.values())
    np.testing.assert_allclose(kernel.gram(VECTORS, VECTORS[:3]), expected, **CLOSE)
    np.testing.assert_allclose(kernel.diagonal(VECTORS[:3]), np.diag(expected), **CLOSE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("depth", "sides"), [(1, (3, 3)), (3, (3, 3)), (2, (2, 3))])
def test_convolutional_kernels_are_those_of_the_papers(depth, sides, activation):
    kernel = kernels.convolutional(depth, sides, activation=activation, **SCALES)
    expected = oracle.gram(oracle.conv_kernel, IMAGES, IMAGES[:2], depth, sides, activation, *SCALES.values())
    np.testing.assert_allclose(kernel.gram(IMAGES, IMAGES[:2]), expected, **CLOSE)
    np.testing.assert_allclose(kernel.diagonal(IMAGES[:2]), np.diag(expected), **CLOSE)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_wide_networks_have_this_covariance(activation):
    width, rng = 3000, np.random.default_rng(1)
    found = []
    for _ in range(4):
        hidden = VECTORS
        for _ in range(2):
            weights = rng.normal(size=(hidden.shape[1], width)) * SCALES["weight_std"] / np.sqrt(hidden.shape[1])
            hidden = FUNCTIONS[activation](hidden @ weights + SCALES["bias_std"] * rng.normal(size=width))
        found.append(SCALES["bias_std"] ** 2 + SCALES["weight_std"] ** 2 * hidden @ hidden.T / width)
    expected = kernels.dense(2, activation=activation, **SCALES).gram(VECTORS, VECTORS)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks_of_many_channels_have_this_covariance(activation):
    channels, length, rng, found = 800, 5, np.random.default_rng(2), []
    signals = rng.normal(size=(3, length, 2)).astype(np.float32)
    for _ in range(6):
        hidden = signals
        for _ in range(2):
            fan_in = 3 * hidden.shape[-1]
            weights = rng.normal(size=(3, hidden.shape[-1], channels)) * SCALES["weight_std"] / np.sqrt(fan_in)
            padded = np.pad(hidden, ((0, 0), (1, 1), (0, 0)))
            hidden = sum(padded[:, i : i + length] @ weights[i] for i in range(3))
            hidden = FUNCTIONS[activation](hidden + SCALES["bias_std"] * rng.normal(size=channels))
        flat = hidden.reshape(3, -1)
        found.append(SCALES["bias_std"] ** 2 + SCALES["weight_std"] ** 2 * flat @ flat.T / flat.shape[1])
    expected = kernels.convolutional(2, 3, activation=activation, **SCALES).gram(signals, signals)
    np.testing.assert_allclose(np.mean(found, axis=0), expected, atol=0.05 * np.abs(expected).max())


BUILDERS = {
    "dense": (lambda **options: kernels.dense(2, **options), VECTORS),
    "convolutional": (lambda **options: kernels.convolutional(2, 3, **options), IMAGES),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", BUILDERS)
def test_features_have_exact_variances_and_nearly_the_covariances(name, activation):
    build, inputs = BUILDERS[name]
    kernel = build(activation=activation, **SCALES)
    expected = np.asarray(kernel.gram(inputs, inputs))

    def products(key):
        found = kernel.features(kernel.init(key, inputs[:1], 100), inputs)
        return found @ found.T

    grams = np.asarray(jax.jit(jax.vmap(products))(jax.random.split(jax.random.key(0), 60)))
    variances = np.diagonal(grams, axis1=1, axis2=2)
    np.testing.assert_allclose(variances, np.broadcast_to(np.diag(expected), variances.shape), rtol=1e-5)
    np.testing.assert_allclose(grams.mean(axis=0), expected, atol=0.03 * expected.max())
    error = np.sqrt(np.mean((grams - expected) ** 2, axis=0)) / expected.max()
    assert 0.005 < error.max() < 0.2  # about 1/√100


@pytest.mark.parametrize("name", BUILDERS)
def test_features_of_a_linear_model_or_of_more_units_are_closer(name):
    build, inputs = BUILDERS[name]
    kernel = build(**SCALES)
    expected = kernel.gram(inputs, inputs)

    def error(size):
        found = kernel.features(kernel.init(jax.random.key(3), inputs[:1], size), inputs)
        return np.abs(found @ found.T - expected).mean()

    assert error(600) < 0.6 * error(10)


def test_features_of_a_linear_model_are_exact():
    kernel = kernels.dense(0, **SCALES)
    found = kernel.features(kernel.init(jax.random.key(0), VECTORS[:1], 3), VECTORS)
    np.testing.assert_allclose(found @ found.T, kernel.gram(VECTORS, VECTORS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equal_inputs_have_their_variance_and_a_slope(name, activation):
    build, inputs = BUILDERS[name]
    kernel = build(activation=activation)
    many = np.concatenate([inputs, 1e-3 * inputs, 1e3 * inputs])
    gram = np.asarray(kernel.gram(many, many))
    np.testing.assert_allclose(np.diag(gram), kernel.diagonal(many), rtol=2e-6)
    np.testing.assert_allclose(gram, gram.T, rtol=2e-6)
    assert np.linalg.eigvalsh(gram.astype(np.float64) / gram.max()).min() > -1e-6
    x = inputs[:1]
    slope = jax.grad(lambda a: kernel.gram(a, x)[0, 0])(x)
    # A symmetric function: its slope in one argument is half that of the diagonal.
    np.testing.assert_allclose(slope, jax.grad(lambda a: kernel.diagonal(a)[0])(x) / 2, rtol=1e-3, atol=1e-4)


def test_an_input_of_zeros_without_biases_is_harmless():
    kernel = kernels.dense(3, bias_std=0.0)
    x = np.stack([np.zeros(6, np.float32), VECTORS[0]])
    gram = np.asarray(kernel.gram(x, x))
    assert np.isfinite(gram).all()
    assert np.abs(gram[0]).max() < 1e-6
    assert np.isfinite(kernel.features(kernel.init(jax.random.key(0), x[:1], 16), x)).all()


def test_rows_at_a_time_change_nothing(monkeypatch):
    kernel = kernels.convolutional(2, 3)
    expected = kernel.gram(IMAGES, IMAGES[:3])
    monkeypatch.setattr(kernels, "_MAX_ELEMENTS", 2 * IMAGES[:3].size)
    np.testing.assert_allclose(kernel.gram(IMAGES, IMAGES[:3]), expected, rtol=1e-6)


def test_memory_of_a_convolutional_gram_matrix_is_bounded(monkeypatch):
    shape = jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.float32)

    def temporary(limit):
        monkeypatch.setattr(kernels, "_MAX_ELEMENTS", limit)
        lowered = jax.jit(kernels.convolutional(2, 3).gram).lower(shape, shape)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one_row = 64 * 64 * 4
    assert temporary(64 * 64) < 10 * one_row
    assert temporary(64 * 64 * 64) > 60 * one_row


def test_integers_are_inputs_and_images_are_flattened():
    images = np.arange(24).reshape(2, 3, 4).astype(np.uint8)
    kernel = kernels.dense(1)
    np.testing.assert_allclose(
        kernel.gram(images, images), kernel.gram(*2 * [images.reshape(2, 12).astype(np.float32)]), rtol=1e-6
    )
    assert kernel.gram(images, images).dtype == jnp.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: kernels.dense(-1), "depth=-1"),
        (lambda: kernels.convolutional(0), "depth=0"),
        (lambda: kernels.convolutional(1, 0), "filter_size=0"),
        (lambda: kernels.dense(1, activation="tanh"), "activation='tanh' must be one of 'relu', 'erf'"),
        (lambda: kernels.dense(1, weight_std=-1.0), "weight_std=-1"),
        (lambda: kernels.dense(1, bias_std=float("nan")), "bias_std=nan"),
        (lambda: kernels.convolutional(1, (3, 3)).gram(IMAGES[:, 0], IMAGES[:, 0]), "filter_size="),
        (lambda: kernels.convolutional(1).diagonal(VECTORS), r"inputs have shape \(5, 6\)"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
