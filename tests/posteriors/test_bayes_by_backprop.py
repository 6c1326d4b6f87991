"""Gaussian weights for whole networks and in layers: every random number as written down, and exact without them."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.posteriors._bayes_by_backprop import bayes_by_backprop, bayesian_layers, constant_raw_std
from baal_jax.posteriors.layers import BayesianConv, BayesianDense, kl_divergence
from baal_jax.typing import Model, Variables
from tests.fixtures import close, first, same, same_key, split, untrained
from tests.oracles import variational as oracle

# A network that computes nothing: its outputs are what it was called with.
MEAN = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"kernel": jnp.array([-1.0, 5.0])}, "count": jnp.array([3])}
ECHO = Model(
    init=lambda key, inputs: Variables(MEAN, {"statistics": jnp.ones(2)}),
    apply=lambda variables, inputs, key: (variables, inputs, key, "apply"),
    train=lambda variables, inputs, key: ((variables, inputs, key, "train"), variables.collections),
    deterministic=lambda variables, inputs: (variables, inputs, "deterministic"),
)
INPUTS = jnp.arange(3.0)[:, None]


def spy(seen):
    return lambda model, **given: seen.update(model=model, **given) or untrained()(model)


def drawn(key, means, raw_stds):
    """Of one generator, in the order of the leaves: ``mean + softplus(raw_std) · noise``."""
    noise = np.split(
        jax.random.normal(key, (sum(mean.size for mean in means),)), np.cumsum([m.size for m in means])[:-1]
    )
    pieces = zip(means, raw_stds, noise, strict=True)
    return [np.float64(mean) + np.logaddexp(0, np.float64(raw)) * np.reshape(z, mean.shape) for mean, raw, z in pieces]


def test_every_step_has_weights_of_one_key_and_dropout_of_another(rng):
    seen = {}
    bayes_by_backprop(ECHO, spy(seen), initial_std=0.3)
    model, key = seen["model"], jax.random.key(7)
    raws = [rng.uniform(-2, 1, (2, 3)).astype(np.float32), rng.uniform(-2, 1, 2).astype(np.float32)]
    raw_std = {"a": raws[0], "b": {"kernel": raws[1]}, "count": None}
    variables = Variables({"mean": MEAN, "raw_std": raw_std}, {"statistics": jnp.ones(2)})
    key_weights, key_model = jax.random.split(key)
    expected = drawn(key_weights, [MEAN["a"], MEAN["b"]["kernel"]], raws)
    trained, collections = model.train(variables, INPUTS, key)
    for name, called in (("apply", model.apply(variables, INPUTS, key)), ("train", trained)):
        (found, kept, _), inputs, used, method = called
        assert method == name
        same((inputs, kept), (INPUTS, variables.collections))
        same_key(used, key_model)
        close([found["a"], found["b"]["kernel"]], expected, 1e-6)
        same(found["count"], MEAN["count"])  # whole numbers are no weights
    assert collections is variables.collections
    found, _, method = model.deterministic(variables, INPUTS)
    assert method == "deterministic"
    same(found, Variables(MEAN, variables.collections))

    def total(raw):
        spread = raw_std | {"a": raw}
        changed = variables._replace(params={"mean": MEAN, "raw_std": spread})
        return model.train(changed, INPUTS, key)[0][0].params["a"].sum()

    noise = (expected[0] - MEAN["a"]) / np.logaddexp(0, raws[0])
    close(jax.grad(total)(raws[0]), noise / (1 + np.exp(-raws[0])), 1e-4)


def test_the_state_is_that_of_training_and_warm_starts_get_it_back():
    asked = []
    posterior = bayes_by_backprop(
        ECHO, spy({}), initial_std=0.3, select=lambda path, leaf: asked.append((path, leaf.shape)) or path == "b/kernel"
    )
    data = baal.Dataset(INPUTS)
    state = posterior.fit(jax.random.key(0), data, first(2, 3))
    assert {*asked} == {("a", (2, 3)), ("b/kernel", (2,))}
    same(state.variables, ECHO.init(None, None))
    assert (state.raw_std["a"], state.raw_std["count"]) == (None, None)
    for std in (1e-9, 0.01, 0.3, 5.0, 200.0):
        raw = state.raw_std["b"]["kernel"] if std == 0.3 else constant_raw_std(jnp.zeros(2), std)
        np.testing.assert_allclose(jax.nn.softplus(raw), std, rtol=2e-5)
    again = posterior.fit(jax.random.key(1), data, first(2, 3), state)
    close((again.variables.params, again.raw_std), jax.tree.map(lambda leaf: leaf + 1, (MEAN, state.raw_std)))
    draws = posterior.sample(jax.random.key(2), state, 2)
    kernel, key = draws["mean"]["b"]["kernel"][1], split(jax.random.key(2), None, 2)[1]
    close(kernel, drawn(key, [MEAN["b"]["kernel"]], [state.raw_std["b"]["kernel"]])[0])
    variables, _, method = posterior.apply(state, jax.tree.map(lambda leaf: leaf[1], draws), INPUTS)
    assert method == "deterministic"
    assert {*variables.params} == {*MEAN}
    same((variables.params["a"], variables.collections), (MEAN["a"], state.variables.collections))
    same(variables.params["b"]["kernel"], kernel)


@pytest.mark.parametrize("build", [bayes_by_backprop, bayesian_layers])
def test_the_divergence_is_that_of_gaussian_weights_and_shared_among_the_labelled(build):
    seen = {}
    build(ECHO, spy(seen), prior_std=0.6, kl_weight=0.3)
    gaussian = {"mean": {"w": jnp.array([0.3, -1.2, 0.0])}, "raw_std": {"w": jnp.array([-1.0, 0.5, 2.0])}}
    half = {"mean": {"k": jnp.bfloat16([1.5]), "c": jnp.ones(1)}, "raw_std": {"k": jnp.bfloat16([0.5]), "c": None}}
    params = {"inside": {"deeper": gaussian}, "other": {"kernel": jnp.ones(3)}, "list": [gaussian, half]}
    expected = 2 * oracle.kl_divergence([0.3, -1.2, 0.0], np.logaddexp(0, [-1.0, 0.5, 2.0]), 0.6)
    expected += oracle.kl_divergence([1.5], np.logaddexp(0, [0.5]), 0.6)
    found = kl_divergence(params, 0.6)
    close(found, expected, 1e-5)
    assert found.dtype == jnp.float32
    for num_labelled, share in ((0, 1), (1, 1), (7, 7)):
        close(seen["penalty"](params, jnp.int32(num_labelled)), 0.3 * expected / share, 1e-5)
    assert "transform" not in seen


CONV = {"kernel_size": (3, 2), "strides": (2, 1), "padding": ((1, 0), (0, 1))}
KINDS = {  # two examples: of three tokens, and of pixels
    "dense": (BayesianDense, nn.Dense, {}, np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)),
    "conv": (BayesianConv, nn.Conv, CONV, np.random.default_rng(1).normal(size=(2, 4, 3, 2)).astype(np.float32)),
}


def variables_of(module, inputs):
    shapes = jax.eval_shape(lambda: module.init({"params": jax.random.key(0)}, inputs, deterministic=True))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-2, 1, leaf.shape), leaf.dtype), shapes)


class Stream(nn.Module):
    """The key that a layer takes."""

    @nn.compact
    def __call__(self):
        return self.make_rng("noise")


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_noise_is_that_of_the_papers_for_every_example(kind, estimator):
    """One normal number for each output of the variance that random weights give it, or a perturbation behind signs."""
    build, _, options, inputs = KINDS[kind]
    module = build(3, estimator=estimator, rng_collection="noise", deterministic=False, **options)
    variables, rngs = variables_of(build(3, **options), inputs), {"noise": jax.random.key(2)}
    mean, raw = variables["params"]["mean"], variables["params"]["raw_std"]
    std, key = jax.tree.map(lambda leaf: np.logaddexp(0, np.float64(leaf)), raw), Stream().apply({}, rngs=rngs)
    found = np.asarray(module.apply(variables, inputs, rngs=rngs))

    def linear(weights, inputs):
        seen = oracle.patches(inputs, *CONV.values()) if kind == "conv" else np.float64(inputs)
        kernel, bias = (np.asarray(weights[name], np.float64) for name in ("kernel", "bias"))
        return (seen @ kernel.reshape(-1, 3) + bias).reshape(found.shape)

    if estimator == "flipout":
        key_weights, key_signs = jax.random.split(key)
        bias, kernel = drawn(key_weights, jax.tree.leaves(jax.tree.map(jnp.zeros_like, mean)), jax.tree.leaves(raw))
        places = (1,) * (inputs.ndim - 2)  # the signs are the same at all of them
        signs = np.float64(jax.random.rademacher(key_signs, (2, *places, inputs.shape[-1] + 3)))
        before, after = signs[..., :-3], signs[..., -3:]
        noise = linear({"kernel": kernel, "bias": bias}, inputs * before) * after
    else:
        variance = linear(jax.tree.map(np.square, std), inputs**2)
        noise = np.sqrt(variance) * np.asarray(jax.random.normal(key, found.shape))
    close(found, linear(mean, inputs) + noise, 1e-4, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_randomness_a_layer_is_the_stock_one_at_its_means(kind):
    """With all fields of the stock layer, and also where there is no spread, as in a draw."""

    def doubled(*args, **kwargs):
        return 2 * jax.lax.conv_general_dilated(*args, **kwargs)

    build, stock, options, inputs = KINDS[kind]
    fields = options | ({"conv_general_dilated": doubled} if kind == "conv" else {})
    for use_bias in (True, False):
        own = fields | {"features": 3, "use_bias": use_bias, "bias_init": nn.initializers.ones}
        module = build(**own, initial_std=0.3)
        params = jax.jit(lambda module=module: module.init(jax.random.key(5), inputs, deterministic=True))()["params"]
        mean = params["mean"]
        assert {*mean} == ({"bias", "kernel"} if use_bias else {"kernel"})
        same(mean.get("bias", np.ones(3)), np.ones(3))
        close(params["raw_std"], jax.tree.map(lambda leaf: np.full(leaf.shape, np.log(np.expm1(0.3))), mean))
        expected = stock(**own).apply({"params": mean}, inputs)
        close(module.apply({"params": {"mean": mean}}, inputs, deterministic=True), expected, 1e-5)
    if kind == "conv":  # noise goes through the same convolution
        given, rngs = ({"params": params}, inputs, False), {"dropout": jax.random.key(3)}
        one, two = (each.apply(*given, rngs=rngs) for each in (BayesianConv(3, **CONV, use_bias=False), module))
        close(two - expected, 2**0.5 * (one - expected / 2), 1e-4, 1e-5)


def noisy(module, variables, inputs):
    return module.apply(variables, inputs, deterministic=False, rngs={"dropout": jax.random.key(0)})


def test_gradients_at_zero_inputs_are_those_of_the_mean():
    """Without a bias there is no noise at zero, whose root has no slope."""
    module, zeros = BayesianDense(3, use_bias=False), jnp.zeros((2, 3, 4))
    variables = variables_of(module, zeros)
    found = jax.jit(jax.grad(lambda *given: jnp.sum(noisy(module, *given)), (0, 1)))(variables, zeros)
    close(found[0], jax.tree.map(jnp.zeros_like, variables))
    close(found[1], np.broadcast_to(np.sum(variables["params"]["mean"]["kernel"], axis=1), (2, 3, 4)), 1e-5)


def test_half_precision_stays_and_bytes_are_numbers(rng):
    for estimator in ("local_reparameterization", "flipout"):
        for name, dtype in (("param_dtype", jnp.bfloat16), ("dtype", np.uint8)):
            module, inputs = BayesianDense(3, estimator=estimator, **{name: jnp.bfloat16}), np.zeros((2, 3, 4), dtype)
            variables = variables_of(module, inputs)
            assert {leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(variables)} == {name == "param_dtype"}
            assert jax.eval_shape(functools.partial(noisy, module), variables, inputs).dtype == jnp.bfloat16
    module, pixels = BayesianConv(3, (2, 2)), rng.integers(0, 256, (2, 4, 3, 2))
    variables = variables_of(module, np.float32(pixels))
    close(noisy(module, variables, np.uint8(pixels)), noisy(module, variables, np.float32(pixels)), 1e-6)
