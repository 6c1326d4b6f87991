"""Layers with Gaussian weights: their noise has the moments of sampled weights, and without it they are the stock ones.

The draws of a network of them are tested with ``bayesian_layers``, in ``test_bayes_by_backprop.py``.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import features
from baal_jax.posteriors import bayesian_layers
from baal_jax.posteriors.layers import BayesianConv, BayesianDense, _flipout
from tests.fixtures import classes_data, close, first, same, trainer
from tests.oracles import variational as oracle

DENSE = {"features": 3}
CONV = {"features": 3, "kernel_size": (3, 2), "strides": (2, 1), "padding": ((1, 0), (0, 1))}
INPUTS = {  # two examples: of three tokens, and of pixels
    "dense": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32),
    "conv": np.random.default_rng(1).normal(size=(2, 4, 3, 2)).astype(np.float32),
}
NUM_SAMPLES = 20_000


def layer(kind, **options):
    return BayesianConv(**CONV, **options) if kind == "conv" else BayesianDense(**DENSE, **options)


def variables_of(module, inputs):
    """Parameters with a mean and a spread of their own for every weight."""
    shapes = jax.eval_shape(lambda: module.init({"params": jax.random.key(0)}, inputs, deterministic=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-2, 1, leaf.shape), leaf.dtype), shapes)


def noisy(module, variables, inputs, key):
    return module.apply(variables, inputs, deterministic=False, rngs={"dropout": key})


def expected_moments(kind, params):
    """Mean ``[B, P, F]`` and covariance ``[F, B, P, B, P]`` under sampled weights."""
    mean, std = params["mean"], jax.tree.map(lambda raw: np.logaddexp(0, np.asarray(raw, float)), params["raw_std"])
    seen = np.asarray(INPUTS["dense"], np.float64)
    if kind == "conv":
        seen = oracle.patches(INPUTS[kind], CONV["kernel_size"], CONV["strides"], CONV["padding"])
    kernels = [np.asarray(part["kernel"]).reshape(seen.shape[-1], -1) for part in (mean, std)]
    return oracle.moments(seen, kernels[0], mean["bias"], kernels[1], std["bias"])


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [("dense", "local_reparameterization"), ("conv", "local_reparameterization"), ("conv", "flipout")],
)
def test_training_noise_has_the_moments_of_sampled_weights_for_every_example(kind, estimator):
    """Within five standard errors; noise of two examples is independent, with local noise that of positions, too."""
    module, inputs = layer(kind, estimator=estimator), INPUTS[kind]
    variables, keys = variables_of(module, inputs), jax.random.split(jax.random.key(2), NUM_SAMPLES)
    samples = jax.jit(jax.vmap(lambda key: noisy(module, variables, inputs, key)))(keys)
    samples = np.asarray(samples, np.float64).reshape(NUM_SAMPLES, 2, -1, 3)
    mean, covariance = expected_moments(kind, variables["params"])
    away = samples - samples.mean(axis=0)
    flat = np.moveaxis(away, 3, 0).reshape(3, NUM_SAMPLES, -1)
    found = (flat.transpose(0, 2, 1) @ flat / NUM_SAMPLES).reshape(covariance.shape)
    size = np.sqrt(np.einsum("fapap->fap", covariance))
    assert (np.abs(samples.mean(axis=0) - mean) < 5 * np.moveaxis(size, 0, 2) / NUM_SAMPLES**0.5).all()
    error = size[:, :, :, None, None] * size[:, None, None] * np.sqrt(2 / NUM_SAMPLES)
    examples = np.eye(2)[None, :, None, :, None]
    positions = np.eye(covariance.shape[2])[None, None, :, None, :]
    together = examples if estimator == "flipout" else examples * positions
    assert (np.abs(found - covariance * together) < 5 * error).all()
    # Output channels do not vary together.
    assert np.abs(np.mean(away[..., 0] * away[..., 1], axis=0)).max() < 0.05 * covariance.max()


def test_flipout_takes_weights_from_one_key_and_signs_from_another(rng):
    inputs, outputs = rng.normal(size=(5, 3, 4)), rng.normal(size=(5, 3, 2))
    std = {"bias": rng.uniform(0.1, 1, 2), "kernel": rng.uniform(0.1, 1, (4, 2))}
    inputs, outputs, std = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (inputs, outputs, std))

    def linear(weights, inputs):
        return inputs @ weights["kernel"] + weights["bias"][None, None]

    key = jax.random.key(3)
    found = _flipout(linear, key, std, inputs, outputs)
    key_weights, key_signs = jax.random.split(key)
    noise = np.asarray(jax.random.normal(key_weights, (10,)), float)  # of one generator, in the order of the leaves
    bias, kernel = noise[:2] * np.asarray(std["bias"]), noise[2:].reshape(4, 2) * np.asarray(std["kernel"])
    signs = np.asarray(jax.random.rademacher(key_signs, (5, 1, 6)), float)  # the same at all positions
    before, after = signs[..., :4], signs[..., 4:]
    close(found, np.asarray(outputs) + ((np.asarray(inputs) * before) @ kernel + bias) * after, 1e-5, 1e-5)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_without_randomness_a_layer_is_the_stock_one_at_its_means(kind):
    """With all fields of the stock layer, and also where there is no spread, as in a draw."""

    def doubled(*args, **kwargs):
        return 2 * jax.lax.conv_general_dilated(*args, **kwargs)

    stock, bayesian = (nn.Conv, BayesianConv) if kind == "conv" else (nn.Dense, BayesianDense)
    fields, inputs = CONV | {"conv_general_dilated": doubled} if kind == "conv" else DENSE, INPUTS[kind]
    for use_bias in (True, False):
        own = fields | {"use_bias": use_bias, "bias_init": nn.initializers.ones}
        module = bayesian(**own, initial_std=0.3)
        params = jax.jit(lambda module=module: module.init(jax.random.key(5), inputs, deterministic=True))()["params"]
        mean = params["mean"]
        assert jax.tree.map(jnp.shape, mean) == jax.tree.map(jnp.shape, params["raw_std"])
        assert {*mean} == ({"bias", "kernel"} if use_bias else {"kernel"})
        same(mean.get("bias", np.ones(3)), np.ones(3))
        close(params["raw_std"], jax.tree.map(lambda leaf: np.full(leaf.shape, np.log(np.expm1(0.3))), mean))
        expected = stock(**own).apply({"params": mean}, inputs)
        close(module.apply({"params": {"mean": mean}}, inputs, deterministic=True), expected, 1e-5)
    if kind == "conv":  # noise goes through the same convolution
        plain = BayesianConv(**CONV, use_bias=False)
        both = jax.jit(lambda key: [noisy(each, {"params": params}, inputs, key) for each in (plain, module)])
        one, two = both(jax.random.key(3))
        close(two - expected, 2**0.5 * (one - expected / 2), 1e-4, 1e-5)


def test_gradients_at_zero_inputs_are_those_of_the_mean():
    """Without a bias there is no noise at zero, whose root has no slope."""
    module = layer("dense", use_bias=False)
    variables = variables_of(module, INPUTS["dense"])

    def total(variables, inputs):
        return jnp.sum(noisy(module, variables, inputs, jax.random.key(0)))

    found = jax.jit(jax.grad(total, argnums=(0, 1)))(variables, jnp.zeros((2, 3, 4)))
    close(found[0], jax.tree.map(jnp.zeros_like, variables))
    sums = np.sum(variables["params"]["mean"]["kernel"], axis=1)
    close(found[1], np.broadcast_to(sums, (2, 3, 4)), 1e-5)


def test_half_precision_stays_and_bytes_are_numbers(rng):
    inputs = INPUTS["dense"]
    for estimator in ("local_reparameterization", "flipout"):
        for options, given in (
            ({"param_dtype": jnp.bfloat16}, inputs.astype(jnp.bfloat16)),
            ({"dtype": jnp.bfloat16}, np.zeros((2, 3, 4), np.uint8)),
        ):
            module = layer("dense", estimator=estimator, **options)
            variables = variables_of(module, given)
            assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
                jnp.dtype(options.get("param_dtype", "float32"))
            }
            outputs = jax.eval_shape(functools.partial(noisy, module), variables, given, jax.random.key(0))
            assert outputs.dtype == jnp.bfloat16
    module = layer("conv")
    variables, pixels = variables_of(module, INPUTS["conv"]), rng.integers(0, 256, INPUTS["conv"].shape)
    both = jax.jit(lambda *images: [noisy(module, variables, image, jax.random.key(1)) for image in images])
    found, expected = both(pixels.astype(np.uint8), pixels.astype(np.float32))
    close(found, expected, 1e-6)


class Classifier(nn.Module):
    """Bayesian and ordinary layers, batch normalisation and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x)))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return BayesianDense(3, estimator="flipout", initial_std=0.2)(x, deterministic=not train)


def test_a_trained_network_is_random_where_its_layers_are():
    """And features are read at the means."""
    data, model = classes_data(), baal.from_linen(Classifier())
    posterior = bayesian_layers(model, trainer())
    state = posterior.fit(jax.random.key(0), data, first(12, 20))
    hidden = np.asarray(features.last_hidden(model)(state, data.inputs))
    mean = state.variables.params["BayesianDense_0"]["mean"]
    at_means = hidden @ np.asarray(mean["kernel"]) + np.asarray(mean["bias"])
    close(model.deterministic(state.variables, data.inputs), at_means, atol=1e-5)
    drawn = posterior.sample(jax.random.key(1), state, 4)["BayesianDense_0"]["mean"]
    expected = np.einsum("nh,shc->snc", hidden, drawn["kernel"]) + np.asarray(drawn["bias"])[:, None]
    close(baal.predict(jax.random.key(1), posterior, state, data.inputs, num_samples=4), expected, atol=1e-5)
    assert np.abs(expected - at_means).max() > 0.05


def test_a_flag_in_the_constructor_is_found_by_class_and_noise_has_a_stream_of_its_own():
    net = nn.Sequential([BayesianDense(2, deterministic=False, rng_collection="noise")])
    model = baal.from_linen(net, stochastic=(BayesianDense,), rng_collections=("noise",))
    inputs = jnp.ones((2, 4))
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert jax.eval_shape(model.deterministic, variables, inputs).shape == (2, 2)
    assert jax.eval_shape(model.train, variables, inputs, jax.random.key(0))[0].shape == (2, 2)
    with pytest.raises(ValueError, match="stochastic="):
        jax.eval_shape(baal.from_linen(net, rng_collections=("noise",)).deterministic, variables, inputs)
