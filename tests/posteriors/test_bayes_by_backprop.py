"""Gaussian weights for whole networks: exact where the posterior is known, and the same objective everywhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import checkpoint, features, heuristics, losses, selection
from baal_jax.posteriors import layers
from baal_jax.posteriors._bayes_by_backprop import bayes_by_backprop, bayesian_layers
from tests.oracles import variational as oracle

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(12, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])).astype(np.float32)  # correlated
Y = (X @ np.array([0.8, -0.5]) + 0.3 + 0.5 * RNG.normal(size=12)).astype(np.float32)
NOISE_STD = 0.5
REGRESSION = baal.Dataset(jnp.asarray(X), jnp.asarray(Y))


def gaussian_loss(outputs, targets):
    return losses.squared_error(outputs, targets) / NOISE_STD**2


class BayesianLinear(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return layers.BayesianDense(1, initial_std=0.3)(x, deterministic=not train)


def linear(name, **options):
    rates = optax.cosine_decay_schedule(0.05, 3000)
    trainer = baal.trainer(optax.adam(rates, b2=0.99), gaussian_loss, num_steps=3000, batch_size=8)
    if name == "layers":
        return bayesian_layers(baal.from_linen(BayesianLinear()), trainer, **options)
    if name == "linen":
        return bayes_by_backprop(baal.from_linen(nn.Dense(1)), trainer, initial_std=0.3, **options)
    model = baal.from_nnx(lambda rngs: nnx.Linear(2, 1, rngs=rngs))
    return bayes_by_backprop(model, trainer, initial_std=0.3, **options)


def mean_and_std(state):
    """Kernel and bias in one vector."""
    tree = state.variables.params
    if "BayesianDense_0" in tree:
        mean, raw_std = tree["BayesianDense_0"]["mean"], tree["BayesianDense_0"]["raw_std"]
    else:
        mean, raw_std = tree, state.raw_std
    both = [np.concatenate([np.ravel(part["kernel"]), np.ravel(part["bias"])]) for part in (mean, raw_std)]
    return both[0], np.logaddexp(0, both[1])


@pytest.mark.parametrize(("name", "kl_weight"), [("linen", 1.0), ("linen", 0.2), ("nnx", 1.0), ("layers", 1.0)])
def test_linear_regression_has_the_best_factorised_posterior(name, kl_weight):
    state = linear(name, prior_std=0.8, kl_weight=kl_weight).fit(jax.random.key(0), REGRESSION, jnp.arange(12) < 9)
    seen = np.concatenate([X[:9], np.ones((9, 1))], axis=1)
    mean, std = oracle.linear_posterior(seen, Y[:9], NOISE_STD, 0.8, kl_weight)
    found = mean_and_std(state)
    np.testing.assert_allclose(found[0], mean, atol=0.25 * std.min())
    np.testing.assert_allclose(found[1], std, rtol=0.12)


@pytest.mark.parametrize("name", ["linen", "layers"])
def test_with_nothing_labelled_draws_come_from_the_prior(name):
    posterior = linear(name, prior_std=0.8)
    state = posterior.fit(jax.random.key(0), REGRESSION, jnp.zeros(12, bool))
    mean, std = mean_and_std(state)
    np.testing.assert_allclose(mean, 0, atol=1e-3)
    np.testing.assert_allclose(std, 0.8, rtol=1e-3)
    outputs = baal.predict(jax.random.key(1), posterior, state, REGRESSION.inputs, num_samples=2000)
    expected = 0.8 * np.sqrt((X**2).sum(axis=1) + 1)
    np.testing.assert_allclose(outputs.std(axis=0)[:, 0], expected, rtol=5 * (2 * 2000) ** -0.5)


@pytest.mark.parametrize("build", [bayes_by_backprop, bayesian_layers])
def test_the_divergence_is_shared_among_the_labelled(build):
    seen = {}

    def trainer(model, *, penalty=None, transform=None):
        seen.update(model=model, penalty=penalty)
        return baal.trainer(optax.sgd(0.1), gaussian_loss, num_steps=1)(model, penalty=penalty, transform=transform)

    build(baal.from_linen(BayesianLinear() if build is bayesian_layers else nn.Dense(1)), trainer, prior_std=0.6,
          kl_weight=0.3)  # fmt: skip
    params = seen["model"].init(jax.random.key(0), X[:1]).params
    gaussian = params["BayesianDense_0"] if build is bayesian_layers else params
    std = np.logaddexp(0, np.asarray(gaussian["raw_std"]["kernel"]))
    total = oracle.kl_divergence(gaussian["mean"]["kernel"], std, 0.6)
    total += oracle.kl_divergence(gaussian["mean"]["bias"], std[0], 0.6)
    for num_labelled, share in ((0, 1), (1, 1), (7, 7)):
        value = seen["penalty"](params, jnp.int32(num_labelled))
        np.testing.assert_allclose(value, 0.3 * total / share, rtol=1e-5)


class Net(nn.Module):
    """Batch normalisation and dropout, which know nothing of random weights."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x)))
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(x))


DATA = baal.Dataset(jnp.asarray(RNG.normal(size=(30, 4)), jnp.float32), jnp.arange(30) % 3)
LABELLED = jnp.arange(30) < 12


def classifier(model=None, num_steps=4, warm_start=False, **options):
    model = baal.from_linen(Net()) if model is None else model
    trainer = baal.trainer(
        optax.adam(1e-2), losses.cross_entropy, num_steps=num_steps, batch_size=8, warm_start=warm_start
    )
    return bayes_by_backprop(model, trainer, **{"initial_std": 0.3, **options})


@pytest.fixture(scope="module")
def fitted():
    posterior = classifier()
    return posterior, posterior.fit(jax.random.key(0), DATA, LABELLED)


def predict(posterior, state, inputs, num_samples=5, batch_size=None):
    return baal.predict(jax.random.key(1), posterior, state, inputs, num_samples=num_samples, batch_size=batch_size)


def test_a_draw_is_one_function(fitted):
    posterior, state = fitted
    logits = predict(posterior, state, DATA.inputs)
    np.testing.assert_allclose(
        predict(posterior, state, DATA.inputs[::-1], 2, 7), logits[:2, ::-1], rtol=1e-4, atol=1e-5
    )
    assert logits.std(axis=0).min() > 1e-3


def test_the_state_tells_mean_spread_steps_and_loss(fitted):
    _, state = fitted
    model = baal.from_linen(Net())
    assert int(state.steps) == 4
    assert jnp.isfinite(state.loss)
    assert jax.tree.structure(state.raw_std) == jax.tree.structure(state.variables.params)
    assert jnp.abs(state.variables.collections["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0
    assert features.last_hidden(model)(state, DATA.inputs).shape == (30, 6)
    assert features.gradient(model, sketch_size=8)(state, DATA.inputs).shape == (30, 8)


def test_predictions_average_to_those_of_the_mean_as_the_spread_vanishes():
    model = baal.from_linen(Net())
    posterior = classifier(initial_std=1e-9)
    state = posterior.fit(jax.random.key(0), DATA, LABELLED)
    expected = model.deterministic(state.variables, DATA.inputs)
    np.testing.assert_allclose(predict(posterior, state, DATA.inputs, 2), jnp.stack([expected] * 2), atol=1e-5)


def test_selected_weights_are_random_and_the_rest_is_shared(tmp_path):
    posterior = classifier(select=lambda path, leaf: path == "Dense_1/kernel" and leaf.ndim == 2)
    state = posterior.fit(jax.random.key(0), DATA, LABELLED)
    assert [leaf.shape for leaf in jax.tree.leaves(state.raw_std)] == [(6, 3)]
    draws = posterior.sample(jax.random.key(1), state, 5)
    assert [leaf.shape for leaf in jax.tree.leaves(draws)] == [(5, 6, 3)]
    logits = predict(posterior, state, DATA.inputs)
    hidden = features.last_hidden(baal.from_linen(Net()))(state, DATA.inputs)
    bias = state.variables.params["Dense_1"]["bias"]
    (kernels,) = jax.tree.leaves(draws)
    np.testing.assert_allclose(
        logits, jnp.einsum("nh,shc->snc", hidden, kernels) + bias[None, None], rtol=1e-4, atol=1e-5
    )
    with checkpoint.checkpointer(tmp_path / "state", {}) as saved:
        saved.save(0, state)
        restored = saved.restore(state)
    np.testing.assert_array_equal(predict(posterior, restored, DATA.inputs), logits)


def test_rounds_of_active_learning_and_warm_starts():
    posterior = classifier(warm_start=True)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=3, num_samples=3)
    final, infos = baal.run(loop, jax.random.key(0), DATA, DATA, num_initial=6, num_rounds=2)
    np.testing.assert_array_equal(infos.num_labelled, [6, 9])
    assert (infos.scores > 0).all()
    assert jnp.isfinite(infos.metrics["nll"]).all()
    assert int(final.posterior.steps) == 8


def test_many_keys_at_once_and_one_after_the_other(fitted):
    posterior, first = fitted
    keys = jax.random.split(jax.random.key(4), 2)
    states = jax.jit(jax.vmap(lambda key: posterior.fit(key, DATA, LABELLED)))(keys)
    alone = posterior.fit(keys[1], DATA, LABELLED)
    jax.tree.map(lambda many, one: np.testing.assert_allclose(many[1], one, rtol=1e-3, atol=1e-4), states, alone)
    gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.variables.params, alone.variables.params)
    assert gap["Dense_0"]["kernel"] > 0.1


def test_half_precision_and_no_key_twice(key_reuse):
    model = baal.from_linen(nn.Dense(3, param_dtype=jnp.bfloat16))
    data = DATA._replace(inputs=DATA.inputs.astype(jnp.bfloat16))
    posterior = classifier(model, num_steps=2)
    state = posterior.fit(jax.random.key(0), data, LABELLED)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.variables, state.raw_std))} == {jnp.bfloat16.dtype}
    assert jnp.isfinite(predict(posterior, state, data.inputs)).all()


@pytest.mark.parametrize(
    "options", [{"prior_std": 0.0}, {"prior_std": -1.0}, {"initial_std": 0.0}, {"kl_weight": -0.1}]
)
def test_wrong_numbers_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}={options[name]}"):
        classifier(**options)
    if name != "initial_std":
        trainer = baal.trainer(optax.sgd(0.1), gaussian_loss, num_steps=1)
        with pytest.raises(ValueError, match=f"{name}={options[name]}"):
            bayesian_layers(baal.from_linen(BayesianLinear()), trainer, **options)


def test_networks_without_gaussian_weights_are_refused():
    with pytest.raises(ValueError, match="no Gaussian weights"):
        classifier(select=lambda path, leaf: False).fit(jax.random.key(0), DATA, LABELLED)
    trainer = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1)
    with pytest.raises(ValueError, match="no Gaussian weights"):
        bayesian_layers(baal.from_linen(nn.Dense(3)), trainer).fit(jax.random.key(0), DATA, LABELLED)
