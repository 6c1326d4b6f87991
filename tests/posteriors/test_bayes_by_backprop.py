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
    bayes_by_backprop,
    bayesian_layers,
    constant_raw_std,
)
from baal_jax.typing import Model, TrainState, Variables
from tests.fixtures import close, first, same, same_key, split
from tests.oracles import variational as oracle


class BayesianLinear(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return layers.BayesianDense(1, initial_std=0.3)(x, deterministic=not train)


@pytest.mark.parametrize(("name", "kl_weight"), [("unedited", 0.2), ("layers", 1.0)])
def test_linear_regression_has_the_best_factorised_posterior(name, kl_weight):
    """With nothing labelled that is the prior. The inputs vary together: no factorised Gaussian is exact."""
    rng = np.random.default_rng(0)
    inputs = (rng.normal(size=(12, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])).astype(np.float32)
    targets = (inputs @ np.array([0.8, -0.5]) + 0.3 + 0.5 * rng.normal(size=12)).astype(np.float32)
    train = baal.trainer(
        optax.adam(optax.cosine_decay_schedule(0.05, 3000), b2=0.99),
        lambda outputs, targets: losses.squared_error(outputs, targets) / 0.5**2, num_steps=3000, batch_size=8,
    )  # fmt: skip
    if name == "layers":
        posterior = bayesian_layers(baal.from_linen(BayesianLinear()), train, prior_std=0.8, kl_weight=kl_weight)
    else:
        options = {"prior_std": 0.8, "initial_std": 0.3, "kl_weight": kl_weight}
        posterior = bayes_by_backprop(baal.from_linen(nn.Dense(1)), train, **options)

    def mean_and_std(labelled):
        """Kernel and bias in one vector."""
        state = posterior.fit(jax.random.key(0), baal.Dataset(inputs, targets), labelled)
        tree = state.variables.params
        mean, raw_std = tree["BayesianDense_0"].values() if name == "layers" else (tree, state.raw_std)
        mean, raw_std = (np.append(np.ravel(part["kernel"]), part["bias"]) for part in (mean, raw_std))
        return mean, np.logaddexp(0, raw_std)

    mean, std = oracle.linear_posterior(np.column_stack([inputs, np.ones(12)])[:9], targets[:9], 0.5, 0.8, kl_weight)
    found = mean_and_std(first(9))
    np.testing.assert_allclose(found[0], mean, atol=0.25 * std.min())
    np.testing.assert_allclose(found[1], std, rtol=0.12)
    close(mean_and_std(first(0)), (np.zeros(3), np.full(3, 0.8)), 1e-3, 1e-3)


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


def drawn(key, means, raw_stds):
    """Of one generator, in the order of the leaves: ``mean + softplus(raw_std) · noise``."""
    noise = np.asarray(jax.random.normal(key, (sum(mean.size for mean in means),)))
    pieces = np.split(noise, np.cumsum([mean.size for mean in means])[:-1])
    return [
        np.asarray(mean, float) + np.logaddexp(0, np.asarray(raw, float)) * piece.reshape(mean.shape)
        for mean, raw, piece in zip(means, raw_stds, pieces, strict=True)
    ]


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
        (found, kept), inputs, used, method = called
        assert method == name
        same((inputs, kept), (INPUTS, variables.collections))
        same_key(used, key_model)
        close([found["a"], found["b"]["kernel"]], expected, 1e-6)
        same(found["count"], MEAN["count"])  # whole numbers are no weights
    assert collections is variables.collections
    found, _, method = model.deterministic(variables, INPUTS)
    assert method == "deterministic"
    same(found, Variables(MEAN, variables.collections))


def test_draws_take_a_key_each_and_share_what_is_not_random(rng):
    layer = {
        "mean": {"bias": jnp.ones(2), "kernel": 2.0 * jnp.ones((1, 2), jnp.bfloat16)},
        "raw_std": {"bias": jnp.float32(rng.normal(size=2)), "kernel": jnp.bfloat16(rng.normal(size=(1, 2)))},
    }
    params = {
        "deep": {"layer": layer},
        "plain": {"kernel": jnp.array([9.0]), "mean": jnp.zeros(1)},
        "some": {"mean": {"x": jnp.zeros(3), "y": jnp.ones(2)}, "raw_std": {"x": None, "y": jnp.zeros(2)}},
    }
    state = TrainState(Variables(params, {"statistics": jnp.ones(2)}), (), jnp.int32(1), jnp.float32(0.0))
    posterior, key = bayesian_layers(ECHO, spy({})), jax.random.key(3)
    draws = jax.jit(posterior.sample, static_argnums=2)(key, state, 4)
    assert jax.tree.map(jnp.shape, draws)["deep"] == {"layer": {"mean": {"bias": (4, 2), "kernel": (4, 1, 2)}}}
    means = [*layer["mean"].values(), jnp.ones(2)]
    for number, one in enumerate(split(key, state, 4)):
        expected = drawn(one, means, [*layer["raw_std"].values(), jnp.zeros(2)])
        draw = jax.tree.map(lambda leaf, number=number: leaf[number], draws)
        (params, collections), inputs, _ = posterior.apply(state, draw, INPUTS)
        assert {*params["deep"]["layer"]} == {*params["some"]} == {"mean"}  # no spread is left to sample from again
        found = params["deep"]["layer"]["mean"]
        close([found["bias"], params["some"]["mean"]["y"]], expected[::2], 1e-6)
        assert found["kernel"].dtype == jnp.bfloat16
        close(found["kernel"].astype(jnp.float32), expected[1], 0.03)
        same(params["some"]["mean"]["x"], jnp.zeros(3))
        same(
            (params["plain"], collections, inputs),
            (state.variables.params["plain"], state.variables.collections, INPUTS),
        )


def test_the_state_is_that_of_training_and_warm_starts_get_it_back():
    asked = []
    posterior = bayes_by_backprop(
        ECHO, spy({}), initial_std=0.3, select=lambda path, leaf: asked.append((path, leaf.shape)) or path == "b/kernel"
    )
    data = baal.Dataset(INPUTS, jnp.zeros(3))
    state = posterior.fit(jax.random.key(0), data, first(2, 3))
    assert {*asked} == {("a", (2, 3)), ("b/kernel", (2,))}
    same(state.variables, ECHO.init(None, None))
    assert (state.raw_std["a"], state.raw_std["count"]) == (None, None)
    for std in (1e-9, 0.01, 0.3, 5.0, 200.0):
        raw = state.raw_std["b"]["kernel"] if std == 0.3 else constant_raw_std(jnp.zeros(2), std)
        np.testing.assert_allclose(jax.nn.softplus(raw), std, rtol=2e-5)
    same(posterior.fit(jax.random.key(1), data, first(2, 3), state), state._replace(steps=jnp.int32(10)))
    draws = posterior.sample(jax.random.key(2), state, 2)
    kernel, key = draws["mean"]["b"]["kernel"][1], split(jax.random.key(2), None, 2)[1]
    close(kernel, drawn(key, [MEAN["b"]["kernel"]], [state.raw_std["b"]["kernel"]])[0])
    variables, _, method = posterior.apply(state, jax.tree.map(lambda leaf: leaf[1], draws), INPUTS)
    assert method == "deterministic"
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
    found = layers.kl_divergence(params, 0.6)
    close(found, expected, 1e-5)
    assert found.dtype == jnp.float32
    for num_labelled, share in ((0, 1), (1, 1), (7, 7)):
        close(seen["penalty"](params, jnp.int32(num_labelled)), 0.3 * expected / share, 1e-5)
    assert seen["transform"] is None
