"""The Gaussian process of dropout passes against function space in float64, and what conditioning leaves alone."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import heuristics, losses, selection
from baal_jax.posteriors._dropout_gp import dropout_gp
from tests.oracles import gaussian_process as oracle

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 3)).astype(np.float32)
VALUES = np.stack([np.sin(INPUTS[:, 0]), INPUTS[:, 1]], axis=1).astype(np.float32)
CLASSES = (INPUTS[:, 0] > 0).astype(np.int32)
LABELLED = np.isin(np.arange(12), [0, 3, 4, 9, 10])
NOISE = 0.3


class Net(nn.Module):
    outputs: int = 2

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.4, deterministic=not train)(nn.relu(nn.Dense(12)(x)))
        return nn.Dense(self.outputs)(x)


MODEL = baal.from_linen(Net())


def make(task, **options):
    loss = losses.squared_error if task == "regression" else losses.cross_entropy
    trainer = baal.trainer(optax.adam(3e-2), loss, num_steps=8, batch_size=4)
    return dropout_gp(MODEL, trainer, **{"num_passes": 20, "noise": NOISE, "batch_size": 2} | options)


def data(task, targets=None):
    default = VALUES if task == "regression" else CLASSES
    return baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(default if targets is None else targets))


@pytest.fixture(scope="module", params=["regression", "classification"])
def fitted(request):
    posterior = make(request.param)
    return request.param, posterior, posterior.fit(jax.random.key(0), data(request.param), jnp.asarray(LABELLED))


def exact(task, state, labelled):
    """Mean and covariance over examples and outputs, ``[N·C]``, by inverting the covariance of what was seen."""
    keys = jax.random.split(state.key, state.mean.shape[0])
    passes = np.stack([np.asarray(MODEL.apply(state.variables, INPUTS, key), np.float64) for key in keys])
    centre = passes.mean(axis=0)
    flat = (passes - centre).reshape(len(passes), -1)
    prior, seen = flat.T @ flat / len(passes), np.repeat(labelled, 2)
    residual = (VALUES - centre).ravel() if task == "regression" else np.zeros(24)
    mean, covariance = oracle.moments(
        prior, prior[:, seen], prior[np.ix_(seen, seen)], np.full(seen.sum(), NOISE**2), residual[seen]
    )
    return centre.ravel() + mean, covariance, prior


def moments(posterior, state, inputs=INPUTS):
    """Of all draws, exactly: ``apply`` is affine in the weights."""
    size = state.mean.shape[0]
    mean = np.asarray(posterior.apply(state, state.mean, inputs), np.float64)
    start = np.asarray(posterior.apply(state, jnp.zeros(size), inputs), np.float64)
    slopes = np.asarray(jax.vmap(lambda w: posterior.apply(state, w, inputs))(state.root)) - start
    slopes = slopes.reshape(size, -1)
    return mean.ravel(), slopes.T @ slopes


def close(found, expected, tolerance=2e-4):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_moments_are_those_of_the_process(fitted):
    task, posterior, state = fitted
    mean, covariance, prior = exact(task, state, LABELLED)
    close(moments(posterior, state), (mean, covariance))
    variance = np.diag(covariance).reshape(12, 2).sum(axis=1) / np.diag(prior).reshape(12, 2).sum(axis=1)
    assert variance[LABELLED].max() < 0.9


def test_draws_have_these_moments(fitted):
    task, posterior, state = fitted
    draws = np.asarray(baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=4000), np.float64)
    mean, covariance, _ = exact(task, state, LABELLED)
    flat = draws.reshape(len(draws), -1)
    assert (np.abs(flat.mean(axis=0) - mean) < 5 * np.sqrt(np.diag(covariance) / len(draws)) + 1e-5).all()
    np.testing.assert_allclose(np.cov(flat.T), covariance, atol=0.08 * covariance.max())  # 5 standard errors


def test_for_classes_the_mean_is_that_of_the_passes(fitted):
    task, posterior, state = fitted
    gap = np.abs(posterior.apply(state, state.mean, INPUTS) - posterior.apply(state, 0 * state.mean, INPUTS)).max()
    assert gap == 0 if task == "classification" else gap > 0.01


def test_with_nothing_labelled_it_is_the_prior(fitted):
    task, posterior, _ = fitted
    state = posterior.fit(jax.random.key(0), data(task), jnp.zeros(12, bool))
    mean, _, prior = exact(task, state, np.zeros(12, bool))
    close(moments(posterior, state), (mean, prior))


def test_between_trainings_only_the_labels_grow():
    posterior, more = make("regression", retrain_every=3), LABELLED | (np.arange(12) < 3)
    first = posterior.fit(jax.random.key(0), data("regression"), jnp.asarray(LABELLED))
    second = posterior.fit(jax.random.key(1), data("regression"), jnp.asarray(more), first)
    jax.tree.map(np.testing.assert_array_equal, second.network, first.network)
    mean, covariance, _ = exact("regression", first, more)  # the same network, conditioned from scratch
    close(moments(posterior, second), (mean, covariance))
    assert (np.diag(moments(posterior, second)[1]) < np.diag(moments(posterior, first)[1]) + 1e-6).all()
    third = posterior.fit(jax.random.key(2), data("regression"), jnp.asarray(more), second)
    fourth = posterior.fit(jax.random.key(3), data("regression"), jnp.asarray(more), third)
    assert [int(state.age) for state in (first, second, third, fourth)] == [0, 1, 2, 0]
    assert not np.array_equal(fourth.variables.params["Dense_0"]["kernel"], first.variables.params["Dense_0"]["kernel"])


def test_the_loop_trains_when_it_is_due():
    acquire = selection.top_k(heuristics.bald)
    rounds = {}
    for every in (1, 2):
        loop = baal.active_loop(make("classification", retrain_every=every), acquire, query_size=1, num_samples=4)
        state, kernels = loop.init(jax.random.key(0), data("classification"), num_initial=3), []
        for _ in range(3):
            state, _ = loop.step(state, data("classification"))
            kernels.append(np.asarray(state.posterior.variables.params["Dense_0"]["kernel"]))
        rounds[every] = [np.array_equal(a, b) for a, b in itertools.pairwise(kernels)]
    assert rounds == {1: [False, False], 2: [True, False]}


def test_unknown_targets_do_not_count(fitted):
    task, posterior, _ = fitted
    targets = np.array(VALUES if task == "regression" else CLASSES)
    if task == "regression":
        targets[3, 0] = np.nan  # one output of one example
        found = posterior.fit(jax.random.key(0), data(task, targets), jnp.asarray(LABELLED))
        seen = np.repeat(LABELLED, 2)
        seen[6] = False
        mean, _, prior = exact(task, found, np.zeros(12, bool))
        residual, inner = (VALUES.ravel() - mean)[seen], prior[np.ix_(seen, seen)]
        move, _ = oracle.moments(prior, prior[:, seen], inner, np.full(9, NOISE**2), residual)
        close([moments(posterior, found)[0]], [mean + move])
    else:
        targets[3] = -1
        found = posterior.fit(jax.random.key(0), data(task, targets), jnp.asarray(LABELLED))
        close(moments(posterior, found), exact(task, found, LABELLED & (np.arange(12) != 3))[:2])


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_any_noise_is_finite(scale):
    posterior = make("regression", noise=scale, num_passes=40)
    state = posterior.fit(jax.random.key(0), data("regression"), jnp.ones(12, bool))
    assert np.isfinite(baal.predict(jax.random.key(1), posterior, state, INPUTS, num_samples=3)).all()


def test_draws_share_the_passes():
    posterior, batch, passes = make("classification"), 32, 20
    state = posterior.fit(jax.random.key(0), data("classification"), jnp.asarray(LABELLED))
    inputs = jax.ShapeDtypeStruct((batch, 3), jnp.float32)

    def flops(num_samples):
        weights = jnp.ones((num_samples, passes))
        apply = jax.jit(lambda weights, x: jax.vmap(lambda w: posterior.apply(state, w, x))(weights))
        return apply.lower(weights, inputs).compile().cost_analysis()["flops"]

    head = 2 * batch * passes * 12 * 2
    assert flops(1) > head
    assert flops(101) - flops(1) < 1.1 * 100 * 2 * batch * passes * 2
    assert flops(101) < 10 * flops(1)


def test_scalar_outputs_take_scalar_targets():
    model = baal.from_linen(Net(1))
    posterior = dropout_gp(model, baal.trainer(optax.sgd(0.1), losses.squared_error, num_steps=2), num_passes=4)
    state = posterior.fit(jax.random.key(0), data("regression", VALUES[:, 0]), jnp.asarray(LABELLED))
    assert posterior.apply(state, state.mean, INPUTS).shape == (12, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_passes": 1}, "num_passes=1"),
        ({"noise": 0.0}, "noise=0"),
        ({"noise": -1.0}, "noise=-1"),
        ({"retrain_every": 0}, "retrain_every=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make("regression", **options)


def test_a_network_without_randomness_is_refused():
    posterior = dropout_gp(
        baal.from_linen(nn.Dense(2)), baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1)
    )
    with pytest.raises(ValueError, match="does not depend on the key"):
        posterior.fit(jax.random.key(0), data("classification"), jnp.asarray(LABELLED))


def test_values_that_do_not_fit_the_outputs_are_refused():
    trainer = baal.trainer(optax.sgd(0.1), lambda outputs, targets: jnp.sum(outputs**2, axis=1), num_steps=1)
    with pytest.raises(ValueError, match=r"targets have shape \(12,\), but the outputs \(12, 2\)"):
        dropout_gp(MODEL, trainer, num_passes=4).fit(
            jax.random.key(0), data("regression", VALUES[:, 0]), jnp.asarray(LABELLED)
        )


def test_whole_numbers_are_no_values_to_regress():
    with pytest.raises(ValueError, match="make real values float32"):
        make("regression").fit(
            jax.random.key(0), data("regression", CLASSES[:, None] + 0 * VALUES.astype(int)), LABELLED
        )
