"""Layers with Gaussian weights: their noise has the moments of sampled weights, their draws are functions."""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import features, heuristics, losses, selection
from baal_jax.posteriors import layers
from baal_jax.posteriors._bayes_by_backprop import bayesian_layers
from baal_jax.posteriors.layers import BayesianConv, BayesianDense
from tests.oracles import variational as oracle

RNG = np.random.default_rng(0)
DENSE = {"features": 3}
CONV = {"features": 3, "kernel_size": (3, 2), "strides": (2, 1), "padding": ((1, 0), (0, 1))}
INPUTS = {
    "dense": RNG.normal(size=(2, 4)),
    "tokens": RNG.normal(size=(2, 3, 4)),
    "conv": RNG.normal(size=(2, 4, 3, 2)),
}
NUM_SAMPLES = 20_000


class Net(nn.Module):
    kind: str
    estimator: str = "local_reparameterization"
    initial_std: float = 0.3
    options: tuple = ()

    @nn.compact
    def __call__(self, x, train: bool):
        cls, fields = (BayesianConv, CONV) if self.kind == "conv" else (BayesianDense, DENSE)
        layer = cls(**fields, estimator=self.estimator, initial_std=self.initial_std, **dict(self.options))
        return layer(x, deterministic=not train)


def unequal(tree):
    """Parameters with a mean and a spread of their own for every weight."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-2, 1, leaf.shape), leaf.dtype), tree)


def prepared(kind, estimator="local_reparameterization", **options):
    model = baal.from_linen(Net(kind, estimator, options=tuple(options.items())))
    inputs = jnp.asarray(INPUTS[kind], options.get("param_dtype", jnp.float32))
    variables = model.init(jax.random.key(0), inputs)
    return model, variables._replace(params=unequal(variables.params)), inputs


def expected_moments(kind, params):
    """Mean ``[B, P, F]`` and covariance ``[F, B, P, B, P]``."""
    (layer,) = params.values()
    mean, std = layer["mean"], jax.tree.map(lambda raw: np.logaddexp(0, np.asarray(raw, np.float64)), layer["raw_std"])
    seen = np.asarray(INPUTS[kind], np.float64).reshape(2, -1, 4)
    if kind == "conv":
        seen = oracle.patches(INPUTS[kind], CONV["kernel_size"], CONV["strides"], CONV["padding"])
    kernels = [np.asarray(part["kernel"]).reshape(seen.shape[-1], -1) for part in (mean, std)]
    return oracle.moments(seen, kernels[0], mean["bias"], kernels[1], std["bias"])


def found_moments(samples):
    samples = np.asarray(samples, np.float64)
    samples = samples.reshape(len(samples), 2, -1, samples.shape[-1])
    away = samples - samples.mean(axis=0)
    return samples.mean(axis=0), np.einsum("sapf,sbqf->fapbq", away, away) / len(samples)


def assert_close(found, expected, variances):
    """Within five standard errors of the found moments."""
    mean_error = np.sqrt(np.einsum("fapap->apf", variances) / NUM_SAMPLES)
    assert (np.abs(found[0] - expected[0]) < 5 * mean_error).all()
    size = np.sqrt(np.einsum("fapap->fap", variances))
    error = size[:, :, :, None, None] * size[:, None, None] * np.sqrt(2 / NUM_SAMPLES)
    assert (np.abs(found[1] - expected[1]) < 5 * error).all()


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout"])
@pytest.mark.parametrize("kind", [*INPUTS])
def test_training_noise_has_the_moments_of_sampled_weights_for_every_example(kind, estimator):
    model, variables, inputs = prepared(kind, estimator)
    keys = jax.random.split(jax.random.key(2), NUM_SAMPLES)
    samples = jax.jit(jax.vmap(lambda key: model.train(variables, inputs, key)[0]))(keys)
    mean, covariance = expected_moments(kind, variables.params)
    examples = np.eye(2)[None, :, None, :, None]  # examples have noise of their own
    positions = np.eye(covariance.shape[2])[None, None, :, None, :]
    together = examples if estimator == "flipout" else examples * positions
    assert_close(found_moments(samples), (mean, covariance * together), covariance)


@pytest.mark.parametrize("kind", [*INPUTS])
def test_draws_are_functions_with_the_moments_of_sampled_weights(kind):
    """Also across examples: this is what tells one set of weights from noise of their own."""
    model, variables, inputs = prepared(kind)
    posterior = bayesian_layers(model, baal.trainer(optax.adam(1e-2), losses.squared_error, num_steps=1))
    state = baal.TrainState(variables, (), jnp.zeros(()), jnp.zeros(()))
    options = {"num_samples": NUM_SAMPLES, "batch_size": None}
    samples = baal.predict(jax.random.key(2), posterior, state, inputs, **options)
    expected = expected_moments(kind, variables.params)
    assert np.abs(expected[1][:, 0, :, 1]).max() > 0.5
    assert_close(found_moments(samples), expected, expected[1])


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_without_randomness_a_layer_is_the_stock_one(kind):
    model, variables, inputs = prepared(kind)
    stock = nn.Conv(**CONV) if kind == "conv" else nn.Dense(**DENSE)
    (layer,) = variables.params.values()
    expected = stock.apply({"params": layer["mean"]}, inputs)
    np.testing.assert_allclose(model.deterministic(variables, inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_noise_vanishes_with_the_spread(kind, estimator):
    model = baal.from_linen(Net(kind, estimator, initial_std=1e-12))
    inputs = jnp.asarray(INPUTS[kind], jnp.float32)
    variables = model.init(jax.random.key(0), inputs)
    noisy, _ = model.train(variables, inputs, jax.random.key(1))
    np.testing.assert_allclose(noisy, model.deterministic(variables, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout"])
def test_gradients_at_zero_inputs_are_finite(estimator):
    model, variables, inputs = prepared("dense", estimator, use_bias=False)

    def total(variables, inputs):
        return jnp.sum(model.train(variables, inputs, jax.random.key(0))[0])

    gradients = jax.grad(total, argnums=(0, 1))(variables, jnp.zeros_like(inputs))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_another_convolution_can_be_given():
    def doubled(*args, **kwargs):
        return 2 * jax.lax.conv_general_dilated(*args, **kwargs)

    plain, variables, inputs = prepared("conv", use_bias=False)
    model, *_ = prepared("conv", use_bias=False, conv_general_dilated=doubled)
    mean, noisy = plain.deterministic(variables, inputs), plain.train(variables, inputs, jax.random.key(3))[0]
    outputs, _ = model.train(variables, inputs, jax.random.key(3))
    np.testing.assert_allclose(outputs, 2 * mean + 2**0.5 * (noisy - mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout"])
def test_half_precision_stays(estimator):
    model, variables, inputs = prepared("dense", estimator, param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.bfloat16.dtype}
    outputs, _ = model.train(variables, inputs, jax.random.key(0))
    assert outputs.dtype == jnp.bfloat16
    assert jnp.isfinite(outputs).all()
    assert layers.kl_divergence(variables.params).dtype == jnp.float32


def test_divergence_counts_gaussian_weights_alone():
    _, variables, _ = prepared("conv")
    (layer,) = variables.params.values()
    params = {"inside": {"deeper": variables.params}, "other": {"kernel": jnp.ones(3)}, "list": [layer]}
    std = {name: np.logaddexp(0, np.asarray(raw, np.float64)) for name, raw in layer["raw_std"].items()}
    expected = sum(oracle.kl_divergence(layer["mean"][name], std[name], 0.7) for name in std)
    np.testing.assert_allclose(layers.kl_divergence(params, 0.7), 2 * expected, rtol=1e-5)


def test_divergence_agrees_with_sampling():
    mean, std = np.array([0.3, -1.2, 0.0]), np.array([0.1, 0.9, 2.0])
    value, error = oracle.kl_by_sampling(mean, std, 0.7)
    assert abs(oracle.kl_divergence(mean, std, 0.7) - value) < 4 * error
    params = {"mean": jnp.asarray(mean, jnp.float32), "raw_std": jnp.log(jnp.expm1(jnp.asarray(std, jnp.float32)))}
    np.testing.assert_allclose(layers.kl_divergence(params, 0.7), oracle.kl_divergence(mean, std, 0.7), rtol=1e-5)


def test_parameters_without_gaussians_are_refused():
    with pytest.raises(ValueError, match="no Gaussian weights"):
        layers.kl_divergence({"kernel": jnp.ones(3)})


class Classifier(nn.Module):
    """Bayesian and ordinary layers, batch normalisation and dropout."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x)))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        x = nn.relu(BayesianDense(6, initial_std=0.2)(x, deterministic=not train))
        return BayesianDense(3, estimator="flipout", initial_std=0.2)(x, deterministic=not train)


@pytest.fixture(scope="module")
def fitted():
    data = baal.Dataset(jnp.asarray(RNG.normal(size=(30, 4)), jnp.float32), jnp.arange(30) % 3)
    model = baal.from_linen(Classifier())
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=4, batch_size=8)
    posterior = bayesian_layers(model, trainer)
    return model, posterior, posterior.fit(jax.random.key(0), data, jnp.arange(30) < 12), data


def test_draws_do_not_depend_on_batches_and_share_what_is_not_random(fitted):
    _, posterior, state, data = fitted
    predict = functools.partial(baal.predict, jax.random.key(1), posterior, state)
    logits = predict(data.inputs, num_samples=4, batch_size=None)
    np.testing.assert_allclose(predict(data.inputs[::-1], num_samples=2, batch_size=7), logits[:2, ::-1], rtol=1e-4)
    draws = posterior.sample(jax.random.key(1), state, 4)
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(draws)}
    assert shapes == {(4, 6, 6), (4, 6), (4, 6, 3), (4, 3)}


def test_features_read_the_means(fitted):
    model, _, state, data = fitted
    hidden = features.last_hidden(model)(state, data.inputs)
    assert hidden.shape == (30, 6)
    kernel = state.variables.params["BayesianDense_1"]["mean"]
    logits = hidden @ kernel["kernel"] + kernel["bias"][None]
    np.testing.assert_allclose(logits, model.deterministic(state.variables, data.inputs), rtol=1e-4, atol=1e-5)


def test_rounds_of_active_learning(fitted):
    _, posterior, _, data = fitted
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=3, num_samples=3)
    _, infos = baal.run(loop, jax.random.key(0), data, data, num_initial=6, num_rounds=2)
    np.testing.assert_array_equal(infos.num_labelled, [6, 9])
    assert (infos.scores > 0).all()
    assert jnp.isfinite(infos.metrics["nll"]).all()


def test_a_flag_in_the_constructor_is_found_by_class():
    net = nn.Sequential([BayesianDense(2, deterministic=False)])
    model = baal.from_linen(net, stochastic=(BayesianDense,))
    variables = model.init(jax.random.key(0), jnp.ones((1, 4)))
    assert model.deterministic(variables, jnp.ones((2, 4))).shape == (2, 2)
    with pytest.raises(ValueError, match="stochastic="):
        baal.from_linen(net).deterministic(variables, jnp.ones((2, 4)))


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_bytes_are_numbers(kind, estimator):
    model, variables, inputs = prepared(kind, estimator)
    pixels = jnp.asarray(RNG.integers(0, 256, inputs.shape), jnp.uint8)
    found = model.train(variables, pixels, jax.random.key(1))[0]
    expected = model.train(variables, pixels.astype(jnp.float32), jax.random.key(1))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("options", [{"estimator": "rank_one"}, {"initial_std": 0.0}, {"initial_std": -1.0}])
@pytest.mark.parametrize("cls", [BayesianDense, functools.partial(BayesianConv, kernel_size=(3, 3))])
def test_wrong_fields_are_refused(cls, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}={next(iter(options.values()))!r}"):
        cls(4, **options)


@pytest.mark.parametrize(("kind", "shape"), [("dense", (4,)), ("conv", (4, 3, 2))])
def test_inputs_without_examples_are_refused(kind, shape):
    with pytest.raises(ValueError, match="leading axis of examples"):
        Net(kind).init(jax.random.key(0), jnp.ones(shape), train=False)


import bayesian_lenet_cifar10 as experiment  # noqa: E402


def test_uncertainty_splits_into_two_parts():
    """As covariance matrices, one example after the other."""
    logits = RNG.normal(size=(6, 5, 3)) * 2
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    aleatoric, epistemic = experiment.uncertainties(jnp.asarray(logits, jnp.float32))
    for n in range(5):
        inside = np.mean([np.diag(p) - np.outer(p, p) for p in probs[:, n]], axis=0)
        between = np.mean([np.outer(p, p) for p in probs[:, n] - probs[:, n].mean(axis=0)], axis=0)
        np.testing.assert_allclose(aleatoric[n], np.trace(inside), rtol=1e-5)
        np.testing.assert_allclose(epistemic[n], np.trace(between), rtol=1e-5)
    np.testing.assert_allclose(aleatoric + epistemic, 1 - (probs.mean(axis=0) ** 2).sum(axis=-1), rtol=1e-5)


def test_the_lenet_experiment_writes_what_it_reports(tmp_path, capsys):
    config = experiment.Config(
        methods=("local_reparameterization",), dataset="digits", subset=60, num_test=30, epochs=1, batch_size=30,
        num_samples=3, initial_std=0.1, out=tmp_path,
    )  # fmt: skip
    results = experiment.main(config)
    assert json.loads((tmp_path / "results.json").read_text())["methods"] == results
    assert results["local_reparameterization"]["epistemic"][0] > 1e-4
    assert "local_reparameterization" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--subset 0"):
        experiment.load(dataclasses.replace(config, subset=0))


@pytest.mark.parametrize("name", ["flipout", "bayes_by_backprop", "point"])
def test_every_method_of_the_lenet_experiment_predicts_classes(name):
    config = experiment.Config(dataset="digits", subset=6, epochs=1, batch_size=3)
    train, _ = experiment.load(config)
    posterior = experiment.make_posterior(name, config, 6)

    def predicted(key):
        state = posterior.fit(key, train, jnp.ones(6, bool))
        return baal.predict(key, posterior, state, train.inputs, num_samples=2)

    assert jax.eval_shape(predicted, jax.random.key(0)).shape == (2, 6, 10)
