"""Kernels against closed formulas in float64, features against random networks, and each against the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from baal_jax.posteriors import kernels
from tests.fixtures import close
from tests.oracles import gaussian_process as oracle

VECTORS = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(5, 4, 3, 2)).astype(np.float32)
SCALES = {"weight_std": 1.3, "bias_std": 0.4}
# A covariance may be a small difference of large parts: errors count against the variances, which are about one.
CLOSE = {"rtol": 3e-6, "atol": 3e-7}


@pytest.mark.parametrize(
    ("depth", "sides", "activation"),
    [(0, None, "relu"), (3, None, "relu"), (2, None, "erf"), (1, (3, 3), "relu"), (3, (2, 3), "erf")],
    ids=["linear", "dense relu", "dense erf", "one convolution", "three convolutions"],
)
def test_kernels_are_those_of_the_papers(depth, sides, activation):
    inputs, build = (IMAGES, kernels.convolutional) if sides else (VECTORS, kernels.dense)
    kernel = build(*(depth, sides)[: 2 if sides else 1], activation=activation, **SCALES)
    expected = oracle.gram(inputs, inputs[:3], depth, sides, activation, *SCALES.values())
    gram, diagonal = jax.jit(lambda x: (kernel.gram(x, x[:3]), kernel.diagonal(x)))(inputs)
    close(gram, expected, **CLOSE)
    close(diagonal[:3], np.diag(expected), **CLOSE)


def scaled_normals(key, *shape):
    """Weights ``[…, inputs, outputs]`` and biases of a layer, from a key each."""
    key_weights, key_bias = jax.random.split(key)
    weights = SCALES["weight_std"] * jax.random.normal(key_weights, shape) / np.prod(shape[:-1]) ** 0.5
    return weights, SCALES["bias_std"] * jax.random.normal(key_bias, shape[-1:])


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_features_are_activations_of_a_random_network_which_has_the_covariances_of_the_kernel(name):
    """Each layer with a key of its own, split for weights and biases; all are scaled to the variances."""
    width, key, is_dense = 60, jax.random.key(0), name == "dense"
    inputs = VECTORS if is_dense else IMAGES
    kernel = kernels.dense(2, **SCALES) if is_dense else kernels.convolutional(2, (3, 2), activation="erf", **SCALES)

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
    expected = np.append(SCALES["weight_std"] * hidden / terms**0.5, np.full((5, 1), SCALES["bias_std"]), axis=1)
    expected *= np.sqrt(variances / np.sum(expected**2, axis=1))[:, None]  # as long as the kernel says
    close(networks[0], expected, 2e-4, 2e-5)
    products = np.asarray(networks) @ np.swapaxes(networks, 1, 2)
    close(np.diagonal(products, axis1=1, axis2=2), np.broadcast_to(variances, (100, 5)), 1e-5)
    close(products.mean(axis=0), gram, 0, 0.03 * variances.max())  # of one network it is about 1/√60


def test_features_of_a_linear_model_are_exact():
    kernel = kernels.dense(0, **SCALES)
    found = kernel.features(kernel.init(jax.random.key(0), VECTORS[:1], 3), VECTORS)
    assert found.shape == (5, 7)
    close(found @ found.T, kernel.gram(VECTORS, VECTORS), 1e-5)


@pytest.mark.parametrize(
    ("kernel", "inputs"),
    [
        (kernels.dense(2), VECTORS),
        (kernels.dense(2, activation="erf"), VECTORS),
        (kernels.convolutional(2, 3), IMAGES),
    ],
    ids=["relu", "erf", "convolutional"],
)
def test_equal_inputs_have_their_variance_and_a_slope(kernel, inputs):
    @jax.jit
    def everything(many, x):
        slope = jax.grad(lambda a: kernel.gram(a, x)[0, 0])(x)
        return kernel.gram(many, many), kernel.diagonal(many), slope, jax.grad(lambda a: kernel.diagonal(a)[0])(x)

    gram, diagonal, slope, twice = everything(np.concatenate([inputs, 1e-3 * inputs, 1e3 * inputs]), inputs[:1])
    gram = np.asarray(gram)
    close(np.diag(gram), diagonal, 2e-6)
    close(gram, gram.T, 2e-6)
    assert np.linalg.eigvalsh(gram.astype(np.float64) / gram.max()).min() > -1e-6
    close(slope, twice / 2, 1e-3, 1e-4)  # a symmetric function: its slope in one argument is half that of the diagonal


def test_an_input_of_zeros_without_biases_has_no_covariance_and_no_features():
    kernel = kernels.dense(3, bias_std=0.0)
    x = np.stack([np.zeros(6, np.float32), VECTORS[0]])
    both = jax.jit(lambda: (kernel.gram(x, x), kernel.features(kernel.init(jax.random.key(0), x[:1], 16), x)))
    gram, features = both()
    assert np.abs(gram[0]).max() < 1e-6
    np.testing.assert_array_equal(features[0], 0)
    close(np.sum(features[1] ** 2), gram[1, 1], 1e-5)


def test_gram_matrices_of_images_are_computed_some_rows_at_a_time(monkeypatch):
    images = np.random.default_rng(3).normal(size=(33, 6, 6, 1)).astype(np.float32)

    def compiled(limit):
        monkeypatch.setattr(kernels, "_MAX_ELEMENTS", limit)
        return jax.jit(kernels.convolutional(2, 3).gram).lower(images, images).compile()

    together, apart = compiled(images.size * 33), compiled(images.size * 2)
    close(apart(images, images), together(images, images), 1e-6)
    assert apart.memory_analysis().temp_size_in_bytes < 20 * images.size * 4


def test_integers_are_inputs_and_images_are_flattened():
    images, kernel = np.arange(24).reshape(2, 3, 4).astype(np.uint8), kernels.dense(1)
    both = jax.jit(lambda x, flat: ((kernel.gram(x, x), kernel.diagonal(x)), kernel.gram(flat, flat)))
    found, expected = both(images, images.reshape(2, 12).astype(np.float32))
    close(found, (expected, np.diag(expected)), 1e-6)
    pictures = jax.ShapeDtypeStruct((2, 4, 4, 1), jnp.uint8)
    assert jax.eval_shape(kernels.convolutional(1).gram, pictures, pictures).dtype == jnp.float32
