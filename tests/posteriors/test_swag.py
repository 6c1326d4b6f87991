"""SWAG: moments of the iterates, the Gaussian that is drawn from, and batch statistics of every draw."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses
from baal_jax.posteriors import _swag
from baal_jax.posteriors._swag import swag
from tests.fixtures import NormedNet, close, first, regression_data, same, same_key, untrained
from tests.oracles import swag as oracle
from tests.training.test_trainer import trajectory, zeros_of

STEPS, RATE, START = 12, 0.2, 1.5
DATA = regression_data()
ITERATES = trajectory(DATA.inputs, DATA.targets, 2 * STEPS, RATE, START)[1:]


def two_leaves():

    def init(key, inputs):
        return {"a": jnp.full((1, 1), START), "b": jnp.full((2, 1), START)}

    return baal.from_functions(init, lambda params, inputs, key: inputs @ flat(params)[:, None])


def flat(params):
    return jnp.concatenate([params["a"], params["b"]], axis=-2)[..., 0]


def trainer(num_steps=STEPS):
    options = {"num_steps": num_steps, "batch_size": 12, "warm_start": True}
    return baal.trainer(optax.sgd(RATE), losses.squared_error, **options)


@functools.cache
def fitted(rank, start, every):
    """From the zeros of a loop, and twice as long."""
    posterior = swag(two_leaves(), trainer(), rank, start=start, every=every)
    given = jax.random.key(0), DATA, first(12)
    once = posterior.fit(*given, zeros_of(posterior.fit, *given))
    return posterior, once, posterior.fit(*given, once)


@pytest.mark.parametrize(
    ("rank", "start", "every", "count"),
    [(4, 0.5, 1, 6), (3, 0.0, 1, 12), (2, 0.0, 5, 3), (0, 0.25, 4, 3), (8, 0.75, None, 3)],
)
def test_moments_are_those_of_the_iterates_and_a_warm_start_gathers_anew(rank, start, every, count):
    for number, state in enumerate(fitted(rank, start, every)[1:]):
        iterates, moments = ITERATES[number * STEPS :][:STEPS], state.moments
        mean, variance, deviations = oracle.moments(oracle.snapshots(iterates, start, every or 1), rank)
        assert (int(moments.step), int(moments.num_snapshots)) == (STEPS, count)
        assert (int(state.steps), state.inputs) == (STEPS, None)  # which batch statistics alone need
        close(flat(state.variables.params), mean, rtol=1e-4)
        close(flat(state.train.variables.params), iterates[-1], rtol=1e-5)
        close(flat(moments.mean), mean, rtol=1e-4)
        close(flat(moments.squares) / count, variance, rtol=2e-3, atol=1e-9)
        if rank == 0:
            assert moments.deviations is None
            continue
        ring = np.zeros((rank, 3))
        for i, deviation in enumerate(deviations, start=count - len(deviations)):
            ring[i % rank] = deviation
        close(flat(moments.deviations), ring, rtol=2e-3, atol=1e-4 * np.abs(ring).max())


def test_under_vmap_fits_of_different_lengths_are_those_alone_and_no_ring_is_copied():
    trainer = baal.trainer(optax.sgd(RATE), losses.squared_error, num_epochs=4, batch_size=4, warm_start=True)
    posterior, keys = swag(two_leaves(), trainer, 500, start=0.0), jax.random.split(jax.random.key(0), 3)
    labelled, given = jnp.stack([first(num) for num in (0, 5, 12)]), (keys[0], DATA, first(12))
    before = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), posterior.fit(*given))
    fit = jax.jit(jax.vmap(lambda *one: posterior.fit(one[0], DATA, *one[1:])))
    program = fit.lower(keys, labelled, before).compile()
    states = program(keys, labelled, before)
    assert states.steps.tolist() == states.moments.num_snapshots.tolist() == [0, 5, 12]
    for i in range(3):
        state, one = (jax.tree.map(lambda leaf, i=i: leaf[i], tree) for tree in (states, before))
        close(state, posterior.fit(keys[i], DATA, labelled[i], one))
    assert program.memory_analysis().temp_size_in_bytes < flat(states.moments.deviations).nbytes


@pytest.mark.parametrize(("rank", "total", "count"), [(8, 400, 20), (8, 236, 30), (30, 400, 34)])
def test_at_least_twenty_snapshots_and_the_rank_by_default(rank, total, count):
    state = swag(two_leaves(), trainer(total), rank).fit(jax.random.key(0), DATA, first(12))
    assert int(state.moments.num_snapshots) == count


def test_draws_have_mean_and_covariance_of_the_gaussian():
    posterior, state, _ = fitted(4, 0.5, 1)
    sample = jax.jit(posterior.sample, static_argnums=2)
    drawn = {(4, 1.0): flat(sample(jax.random.key(1), state, 40_000).params) - flat(state.moments.mean)[None]}
    of_one = jax.random.split(jax.random.split(jax.random.key(1), 40_000)[3])[0]  # the other one is for statistics
    alone = jax.jit(lambda key, moments: _swag._noise(key, moments, 1.0))(of_one, state.moments)
    close(drawn[4, 1.0][3], flat(alone), rtol=1e-3)
    keys = jax.random.split(jax.random.key(2), 40_000)
    for rank, scale in ((8, 0.5), (0, 0.5)):  # a ring that is not full, and none
        noise = jax.jit(jax.vmap(lambda key, moments, scale=scale: _swag._noise(key, moments, scale), (0, None)))
        drawn[rank, scale] = flat(noise(keys, fitted(rank, 0.5, 1)[1].moments))
    for (rank, scale), noise in drawn.items():
        expected = oracle.covariance(oracle.snapshots(ITERATES[:STEPS], 0.5, 1), rank, scale)
        unit = np.sqrt(np.diag(expected))
        expected, noise = expected / np.outer(unit, unit), np.float64(noise) / unit
        np.testing.assert_allclose(np.cov(noise.T), expected, atol=0.03)  # four standard errors
        np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.02)
        assert not rank or np.abs(expected[0, 1:]).max() > 0.2  # the two arrays go together
    # Without scale every draw is the mean, and all are in evaluation mode.
    posterior = swag(baal.Model(None, None, None, lambda *arguments: arguments), untrained(), rank=4, scale=0)
    drawn = flat(jax.jit(posterior.sample, static_argnums=2)(jax.random.key(0), state, 3).params)
    same(drawn, np.tile(flat(state.moments.mean), (3, 1)))
    assert posterior.apply(state, state.variables, "inputs") == (state.variables, "inputs")

    # A weight that never moved has a gradient.
    def total(squares):
        return jnp.sum(flat(_swag._noise(jax.random.key(0), state.moments._replace(squares=squares), 1.0)))

    assert np.isfinite(flat(jax.jit(jax.grad(total))(jax.tree.map(jnp.zeros_like, state.moments.squares)))).all()


def test_moments_are_float32_and_draws_as_the_parameters(key):
    model = baal.from_linen(nn.Dense(1, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    posterior = swag(model, trainer(), rank=3, start=0.5)
    state = jax.eval_shape(posterior.fit, key, DATA, first(12))
    drawn = jax.eval_shape(lambda state: posterior.sample(key, state, 2), state)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.moments)[2:]} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves((drawn, state.variables))} == {jnp.dtype(jnp.bfloat16)}


def test_every_draw_has_its_own_batch_statistics():
    """Those of the labelled inputs under its weights, not under the last ones of training."""
    data = baal.Dataset(np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32), np.arange(24) % 3)
    posterior = swag(baal.from_linen(NormedNet()), untrained(), rank=2, scale=4.0)
    state = posterior.fit(jax.random.key(0), data, first(16, 24))  # as after a fit that saw no example
    key_train, key_inputs, _ = jax.random.split(jax.random.key(0), 3)
    same_key(state.train.opt_state[0], key_train)
    assert int(state.moments.num_snapshots) == 0
    same(state.variables.params, state.train.variables.params)  # which is the mean of nothing
    same(state.inputs, jax.jit(_swag._some_inputs)(key_inputs, data.inputs, first(16, 24)))
    assert state.inputs.shape == (8, 64, 4)
    rows, times = np.unique(np.asarray(state.inputs).reshape(-1, 4), axis=0, return_counts=True)
    same((rows, times), (np.unique(data.inputs[:16], axis=0), np.full(16, 32)))

    last = state.variables.params
    mean = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, last)
    sample = jax.jit(posterior.sample, static_argnums=2)

    def draws(number, squares):
        spread = jax.tree.map(lambda leaf: np.full_like(leaf, squares), mean)
        moments = state.moments._replace(num_snapshots=np.int32(number), mean=mean, squares=spread)
        trained = state.train._replace(opt_state=(*state.train.opt_state[:-1], moments))
        return jax.device_get(sample(jax.random.key(1), state._replace(train=trained), 3))

    for number, expected in enumerate((last, mean)):  # too few for a spread, after epochs of hardly any examples
        close(jax.tree.map(lambda leaf: leaf[1], draws(number, 0.0).params), expected)
    drawn = draws(2, 1.0)
    for variables in (state.variables, *(jax.tree.map(lambda leaf, i=i: leaf[i], drawn) for i in range(3))):
        kernel, bias = (np.asarray(variables.params["Dense_0"][name], np.float64) for name in ("kernel", "bias"))
        hidden, found = data.inputs[:16] @ kernel + bias, variables.collections["batch_stats"]["BatchNorm_0"]
        close(found, {"mean": hidden.mean(axis=0), "var": hidden.var(axis=0)}, rtol=1e-3, atol=1e-4)
    means = drawn.collections["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(means[0] - means[1]).max() > 1e-2
