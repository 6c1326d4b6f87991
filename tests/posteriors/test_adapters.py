"""Samplers of other packages, where they are installed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import heuristics, losses, selection
from baal_jax.posteriors._adapters import from_blackjax

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(16, 2)).astype(np.float32)
VALUES = (INPUTS @ np.array([1.0, -0.5]) + 0.3 * RNG.normal(size=16)).astype(np.float32)
PLANE = baal.from_functions(lambda key, x: jnp.zeros((2, 1)), lambda params, x, key: x @ params)
LABELLED = np.arange(16) < 10


def trainer(loss=losses.squared_error):
    return baal.trainer(optax.sgd(0.1), loss, num_steps=20, batch_size=8)


@pytest.fixture(scope="module")
def samplers():
    blackjax = pytest.importorskip("blackjax")
    return {"sgld": blackjax.sgld, "sghmc": lambda grad: blackjax.sghmc(grad, num_integration_steps=5)}


@pytest.mark.parametrize(("name", "step_size"), [("sgld", 5e-3), ("sghmc", 0.05)])  # of a position, of a momentum
def test_a_chain_visits_the_posterior_of_a_linear_model(samplers, name, step_size):
    posterior = from_blackjax(
        PLANE, trainer(), samplers[name], losses.squared_error, step_size=step_size, num_kept=1500, thinning=8,
        batch_size=10, prior_std=2.0,
    )  # fmt: skip
    data = baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(VALUES))
    state = posterior.fit(jax.random.key(0), data, jnp.asarray(LABELLED))
    x, y = INPUTS[LABELLED].astype(np.float64), VALUES[LABELLED]
    covariance = np.linalg.inv(x.T @ x + np.eye(2) / 4)  # half squares are Gaussian noise of variance one
    found = np.asarray(state.positions)[..., 0]
    np.testing.assert_allclose(found.mean(axis=0), covariance @ x.T @ y, atol=0.25 * np.sqrt(np.diag(covariance)).min())
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=0.3 * covariance.max())


@pytest.fixture(scope="module")
def fitted(samplers):
    net = nn.Sequential([nn.Dense(6), nn.relu, nn.BatchNorm(use_running_average=False), nn.Dense(2)])
    posterior = from_blackjax(
        baal.from_linen(net), trainer(losses.cross_entropy), samplers["sgld"], losses.cross_entropy, step_size=1e-3,
        num_kept=4, burn_in=3, thinning=2,
    )  # fmt: skip
    data = baal.Dataset(jnp.asarray(INPUTS), jnp.asarray((VALUES > 0).astype(np.int32)))
    return posterior, data, posterior.fit(jax.random.key(0), data, jnp.asarray(LABELLED))


def test_draws_are_the_positions(fitted):
    posterior, _, state = fitted
    draws = posterior.sample(jax.random.key(0), state, 6)
    assert sorted(draws[:4].tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(posterior.sample(jax.random.key(0), state, 2), draws[:2])
    logits = np.asarray(baal.predict(jax.random.key(0), posterior, state, INPUTS, num_samples=6, batch_size=5))
    np.testing.assert_allclose(logits[4:], logits[:2], rtol=1e-5)
    gaps = np.abs(logits[:4, None] - logits[None, :4]).max(axis=(2, 3))
    assert (gaps[~np.eye(4, dtype=bool)] > 1e-4).all()


def test_it_runs_in_the_loop(fitted):
    posterior, data, _ = fitted
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=2, num_samples=4)
    final, infos = baal.run(loop, jax.random.key(0), data, data, num_initial=4, num_rounds=2)
    assert int(baal.pool.num_labelled(final.pool)) == 8
    assert np.isfinite(infos.metrics["nll"]).all()


def test_with_nothing_labelled_it_samples_the_prior(fitted):
    posterior, data, _ = fitted
    state = posterior.fit(jax.random.key(0), data, jnp.zeros(16, bool))
    assert np.isfinite(baal.predict(jax.random.key(0), posterior, state, INPUTS, num_samples=3)).all()


def test_a_loss_has_one_number_for_each_example(samplers):
    posterior = from_blackjax(PLANE, trainer(), samplers["sgld"], lambda o, y: (o - y[:, None]) ** 2, step_size=1e-3)
    data = baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(VALUES))
    with pytest.raises(ValueError, match="sum over the other axes"):
        posterior.fit(jax.random.key(0), data, jnp.asarray(LABELLED))


@pytest.mark.parametrize(
    "options", [{"step_size": 0.0}, {"prior_std": -1.0}, {"num_kept": 0}, {"thinning": 0}, {"temperature": -1.0}]
)
def test_what_cannot_be_is_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        from_blackjax(PLANE, trainer(), lambda grad: None, losses.squared_error, **{"step_size": 1e-3} | options)
