"""Gaussian weights for whole networks: exact where the posterior is known, and every random number as written down."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses
from baal_jax.posteriors import layers
from baal_jax.posteriors._bayes_by_backprop import (
    VariationalState,
    bayes_by_backprop,
    bayesian_layers,
    constant_raw_std,
    kl_divergence,
)
from baal_jax.typing import Model, TrainState, Variables
from tests.fixtures import classes_data, close, first, same, same_key, split, trainer
from tests.oracles import variational as oracle

NOISE_STD = 0.5


def correlated_data():
    """Two inputs that vary together, so that no factorised Gaussian is the exact posterior."""
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(12, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])).astype(np.float32)
    targets = (inputs @ np.array([0.8, -0.5]) + 0.3 + NOISE_STD * rng.normal(size=12)).astype(np.float32)
    return baal.Dataset(jnp.asarray(inputs), jnp.asarray(targets))


class BayesianLinear(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return layers.BayesianDense(1, initial_std=0.3)(x, deterministic=not train)


@pytest.mark.parametrize(("name", "kl_weight"), [("unedited", 0.2), ("layers", 1.0)])
def test_linear_regression_has_the_best_factorised_posterior(name, kl_weight):
    """With nothing labelled that is the prior, whatever the weight of the divergence."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000), b2=0.99)
    train = baal.trainer(
        optimizer, lambda outputs, targets: losses.squared_error(outputs, targets) / NOISE_STD**2, num_steps=3000,
        batch_size=8,
    )  # fmt: skip
    if name == "layers":
        posterior = bayesian_layers(baal.from_linen(BayesianLinear()), train, prior_std=0.8, kl_weight=kl_weight)
    else:
        model, options = baal.from_linen(nn.Dense(1)), {"prior_std": 0.8, "initial_std": 0.3}
        posterior = bayes_by_backprop(model, train, kl_weight=kl_weight, **options)

    def mean_and_std(labelled):
        """Kernel and bias in one vector."""
        state = posterior.fit(jax.random.key(0), data, labelled)
        tree = state.variables.params
        mean, raw_std = tree["BayesianDense_0"].values() if name == "layers" else (tree, state.raw_std)
        mean, raw_std = (np.append(np.ravel(part["kernel"]), part["bias"]) for part in (mean, raw_std))
        return mean, np.logaddexp(0, raw_std)

    data = correlated_data()
    seen = np.concatenate([data.inputs[:9], np.ones((9, 1))], axis=1)
    mean, std = oracle.linear_posterior(seen, data.targets[:9], NOISE_STD, 0.8, kl_weight)
    found = mean_and_std(first(9))
    np.testing.assert_allclose(found[0], mean, atol=0.25 * std.min())
    np.testing.assert_allclose(found[1], std, rtol=0.12)
    found = mean_and_std(first(0))
    np.testing.assert_allclose(found[0], 0, atol=1e-3)
    np.testing.assert_allclose(found[1], 0.8, rtol=1e-3)


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
    """A trainer that writes down what it is given and continues from the previous state without a step."""

    def bind(model, *, penalty=None, transform=None):
        def fit(key, dataset, labelled, previous=None):
            if previous is not None:
                return previous._replace(steps=previous.steps + 5)
            variables = model.init(key, dataset.inputs[:1])
            return TrainState(variables, {"moments": jnp.zeros(3)}, jnp.int32(5), jnp.float32(0.5))

        seen.update(model=model, penalty=penalty, transform=transform)
        return fit

    return bind


def spreads(params, seed=1):
    """A spread of its own for every weight."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-2, 1, leaf.shape), leaf.dtype), params)


def drawn(key, means, raw_stds):
    """Of one generator, in the order of the leaves: ``mean + softplus(raw_std) · noise``."""
    noise = np.asarray(jax.random.normal(key, (sum(mean.size for mean in means),)))
    pieces = np.split(noise, np.cumsum([mean.size for mean in means])[:-1])
    return [
        np.asarray(mean, float) + np.logaddexp(0, np.asarray(raw, float)) * piece.reshape(mean.shape)
        for mean, raw, piece in zip(means, raw_stds, pieces, strict=True)
    ]


def test_every_step_has_weights_of_one_key_and_dropout_of_another():
    seen = {}
    bayes_by_backprop(ECHO, spy(seen), initial_std=0.3)
    model, key, raw = seen["model"], jax.random.key(7), spreads({"a": MEAN["a"], "b": MEAN["b"]})
    variables = Variables({"mean": MEAN, "raw_std": raw | {"count": None}}, {"statistics": jnp.ones(2)})
    key_weights, key_model = jax.random.split(key)
    means, raws = [MEAN["a"], MEAN["b"]["kernel"]], jax.tree.leaves(raw)
    expected = drawn(key_weights, means, raws)
    for method in ("apply", "train"):
        called = getattr(model, method)(variables, INPUTS, key)
        called = called[0] if method == "train" else called
        assert called[3] == method
        same(called[1], INPUTS)
        same_key(called[2], key_model)
        same(called[0].collections, variables.collections)
        found = called[0].params
        close([found["a"], found["b"]["kernel"]], expected, 1e-6)
        same(found["count"], MEAN["count"])  # whole numbers are no weights
    assert model.train(variables, INPUTS, key)[1] is variables.collections
    found, _, method = model.deterministic(variables, INPUTS)
    assert method == "deterministic"
    same(found, Variables(MEAN, variables.collections))


def test_draws_take_a_key_each_and_share_what_is_not_random():
    state = TrainState(
        Variables(
            {
                "deep": {"layer": {"mean": {"bias": jnp.ones(2), "kernel": 2.0 * jnp.ones((1, 2), jnp.bfloat16)}}},
                "plain": {"kernel": jnp.array([9.0]), "mean": jnp.zeros(1)},
                "some": {"mean": {"x": jnp.zeros(3), "y": jnp.ones(2)}, "raw_std": {"x": None, "y": jnp.zeros(2)}},
            },
            {"statistics": jnp.ones(2)},
        ),
        (), jnp.int32(1), jnp.float32(0.0),
    )  # fmt: skip
    layer = state.variables.params["deep"]["layer"]
    layer["raw_std"] = spreads(layer["mean"])
    posterior, key = bayesian_layers(ECHO, spy({})), jax.random.key(3)
    draws = jax.jit(posterior.sample, static_argnums=2)(key, state, 4)
    assert jax.tree.map(jnp.shape, draws)["deep"] == {"layer": {"mean": {"bias": (4, 2), "kernel": (4, 1, 2)}}}
    means = [layer["mean"]["bias"], layer["mean"]["kernel"], jnp.ones(2)]
    for number, one in enumerate(split(key, state, 4)):
        expected = drawn(one, means, [layer["raw_std"]["bias"], layer["raw_std"]["kernel"], jnp.zeros(2)])
        draw = jax.tree.map(lambda leaf, number=number: leaf[number], draws)
        (params, collections), inputs, _ = posterior.apply(state, draw, INPUTS)
        assert {*params["deep"]["layer"]} == {*params["some"]} == {"mean"}  # no spread is left to sample from again
        found = params["deep"]["layer"]["mean"]
        close([found["bias"], params["some"]["mean"]["y"]], expected[::2], 1e-6)
        assert found["kernel"].dtype == jnp.bfloat16
        close(found["kernel"].astype(jnp.float32), expected[1], 0.03)
        same(params["some"]["mean"]["x"], jnp.zeros(3))
        same(params["plain"], state.variables.params["plain"])
        same((collections, inputs), (state.variables.collections, INPUTS))


def test_the_state_is_that_of_training_and_warm_starts_get_it_back():
    asked = []
    posterior = bayes_by_backprop(
        ECHO, spy({}), initial_std=0.3, select=lambda path, leaf: asked.append((path, leaf.shape)) or path == "b/kernel"
    )
    data = baal.Dataset(INPUTS, jnp.zeros(3))
    state = posterior.fit(jax.random.key(0), data, first(2, 3))
    assert {*asked} == {("a", (2, 3)), ("b/kernel", (2,))}
    assert isinstance(state, VariationalState)
    same(state.variables, ECHO.init(None, None))
    assert jax.tree.leaves(state.raw_std, is_leaf=lambda leaf: leaf is None)[::2] == [None, None]
    np.testing.assert_allclose(jax.nn.softplus(state.raw_std["b"]["kernel"]), 0.3, rtol=1e-6)
    again = posterior.fit(jax.random.key(1), data, first(2, 3), state)
    same(again, state._replace(steps=jnp.int32(10)))
    draws = posterior.sample(jax.random.key(2), state, 2)
    close(draws["mean"]["b"]["kernel"][1], drawn(split(jax.random.key(2), None, 2)[1],
          [MEAN["b"]["kernel"]], [state.raw_std["b"]["kernel"]])[0])  # fmt: skip
    variables, _, method = posterior.apply(state, jax.tree.map(lambda leaf: leaf[1], draws), INPUTS)
    assert method == "deterministic"
    same((variables.params["a"], variables.collections), (MEAN["a"], state.variables.collections))
    same(variables.params["b"]["kernel"], draws["mean"]["b"]["kernel"][1])


def test_the_start_has_the_spread_that_was_asked_for():
    for std in (1e-9, 0.01, 0.3, 5.0, 200.0):
        raw = constant_raw_std(jnp.zeros(2), std)
        np.testing.assert_allclose(jax.nn.softplus(raw), std, rtol=2e-5)


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
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == jnp.float32
    for num_labelled, share in ((0, 1), (1, 1), (7, 7)):
        np.testing.assert_allclose(seen["penalty"](params, jnp.int32(num_labelled)), 0.3 * expected / share, rtol=1e-5)
    assert seen["transform"] is None


def test_what_cannot_be_is_refused():
    for options in ({"prior_std": 0.0}, {"prior_std": -1.0}, {"initial_std": 0.0}, {"kl_weight": -0.1}):
        ((name, value),) = options.items()
        for build in (bayes_by_backprop, bayesian_layers)[: 1 if name == "initial_std" else 2]:
            with pytest.raises(ValueError, match=f"{name}={value}"):
                build(ECHO, spy({}), **options)
    bayes_by_backprop(ECHO, spy({}), kl_weight=0.0)
    data, plain = classes_data(), baal.from_linen(nn.Dense(3))
    nothing = bayes_by_backprop(plain, trainer(), select=lambda path, leaf: False)
    for posterior in (nothing, bayesian_layers(plain, trainer())):
        with pytest.raises(ValueError, match="no Gaussian weights"):
            posterior.fit(jax.random.key(0), data, first(12, 20))
