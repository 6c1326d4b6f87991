"""Deep ensembles, whose draws are members, and chains of samplers of other packages, whose draws are positions."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.posteriors._adapters import ChainState, from_blackjax
from baal_jax.posteriors._deep_ensemble import EnsembleState, deep_ensemble
from baal_jax.training.batches import Stream
from tests.fixtures import close, first, linear, same, same_key, untrained

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(16, 2)).astype(np.float32)
VALUES = (INPUTS @ np.array([1.0, -0.5]) + 0.3 * GENERATOR.normal(size=16)).astype(np.float32)
DATA = baal.Dataset(INPUTS, VALUES)
LABELLED = np.arange(16) % 3 > 0  # 10 of them


@pytest.mark.parametrize("batch_size", [None, 2, 8])
def test_members_are_fits_with_keys_of_their_own(batch_size):
    """However many are trained at a time; a warm start goes on with every member."""
    posterior = deep_ensemble(linear(), untrained(), 3, batch_size=batch_size)
    once = posterior.fit(jax.random.key(0), DATA, first(9))
    same_key(once.members.opt_state[0], jax.random.split(jax.random.key(0), 3))
    weights = np.asarray(once.members.variables.params)
    assert np.ptp(weights, axis=0).min() > 1e-2
    twice = posterior.fit(jax.random.key(1), DATA, first(9), once)
    same(twice.members.variables.params, weights + 1)
    same_key(twice.members.opt_state[0], jax.random.split(jax.random.key(1), 3))
    same(twice.variables.params, weights[0] + 1)  # for what reads a single network
    assert (twice.steps.shape, twice.loss.shape) == ((3,), (3,))


def test_draws_are_members_at_rest_and_none_comes_again_before_all_have_come():
    members = baal.Variables(np.arange(3), {"twice": 2 * np.arange(3)})
    state = EnsembleState(baal.TrainState(members, (), np.zeros(3), np.zeros(3)))
    posterior = deep_ensemble(baal.Model(None, None, None, lambda *arguments: arguments), untrained(), 3)
    assert posterior.apply(None, "member", "inputs") == ("member", "inputs")
    keys = jax.random.split(jax.random.key(7), 40)
    drawn = jax.jit(jax.vmap(lambda key, state: posterior.sample(key, state, 8), (0, None)))(keys, state)
    order = np.asarray(drawn.params)
    same(np.sort(order[:, :3], axis=1), np.broadcast_to(np.arange(3), (40, 3)))
    same(order[:, 3:], order[:, [0, 1, 2, 0, 1]])
    same(drawn.collections["twice"], 2 * order)
    assert len({*map(tuple, order[:, :3])}) == 6  # any order


def test_members_at_a_time_bound_memory():
    """Every member needs 64 KiB to be trained, which no other needs after it."""

    def trainer(model):
        return lambda key, *rest: jnp.sum(jnp.sort(jax.random.normal(key, (2**14,)))[::7])

    def temporary(batch_size):
        fit = deep_ensemble(linear(), trainer, 16, batch_size=batch_size).fit
        return fit.lower(jax.random.key(0), None, None).compile().memory_analysis().temp_size_in_bytes

    all_at_once, two, one = (temporary(batch_size) for batch_size in (None, 2, 1))
    assert two < all_at_once / 4
    assert one < two / 1.5


START = np.float32([[0.3], [-0.2]])


def half_squares(outputs, targets):
    return 0.5 * (outputs[:, 0] - targets) ** 2


def langevin(gradient):
    """A sampler as blackjax has them, written for jax's defaults: types and ranks are mixed."""

    def step(key, position, batch, step_size, temperature):
        slope = gradient(position, batch) * jnp.ones(1, jnp.int32)
        return position + step_size * slope + temperature * jax.random.normal(key, position.shape)

    return SimpleNamespace(init=lambda position: position, step=step)


@jax.jit
def noise_and_batches(key, labelled):
    _, key_order, key_chain = jax.random.split(key, 3)
    ids = jnp.flatnonzero(labelled, size=16, fill_value=0)
    stream = Stream(key_order, lambda places: ids[places], jnp.sum(labelled, dtype=jnp.int32))
    steps = jnp.arange(11, dtype=jnp.int32)
    noise = jax.vmap(lambda index: jax.random.normal(jax.random.fold_in(key_chain, index), (2, 1)))(steps)
    return noise, jax.vmap(lambda index: stream.batch(index, 6, None)[0])(steps)


def test_a_chain_sees_the_log_posterior_through_batches_and_starts_at_the_network():
    """With nothing labelled it is that of the prior; a warm start is one of the network."""
    posterior = from_blackjax(
        linear(), untrained(START), langevin, half_squares, step_size=0.01, num_kept=4, burn_in=3, thinning=2,
        batch_size=6, prior_std=0.5, temperature=0.3,
    )  # fmt: skip
    state = None
    for number, labelled in enumerate((LABELLED, np.zeros(16, bool))):
        key = jax.random.key(number)
        state = posterior.fit(key, DATA, labelled, state)
        noise, batches = (np.asarray(array) for array in noise_and_batches(key, labelled))
        position, visited = np.float64(START) + number, []
        for index in range(11):
            x, y = INPUTS[batches[index]], VALUES[batches[index], None]
            slope = -labelled.sum() / 6 * x.T @ (x @ position - y) - position / 0.5**2
            position = position + 0.01 * slope + 0.3 * noise[index]
            visited.append(position)
        close(state.positions, np.stack(visited)[[4, 6, 8, 10]], atol=1e-5)
        same_key(state.network.opt_state[0], jax.random.split(key, 3)[0])


def test_draws_are_positions_and_repeat_after_all_of_them():
    model = baal.Model(None, None, None, lambda variables, inputs: (variables, inputs))
    posterior = from_blackjax(model, untrained(), langevin, half_squares, step_size=1e-3, num_kept=4)
    draws = jax.vmap(lambda key: posterior.sample(key, None, 6))(jax.random.split(jax.random.key(0), 30))
    same(np.sort(draws[:, :4], axis=1), np.broadcast_to(np.arange(4), (30, 4)))
    same(draws[:, 4:], draws[:, :2])
    assert {*np.asarray(draws[:, 0])} == {0, 1, 2, 3}
    network = baal.TrainState(baal.Variables(None, {"batch_stats": 5}), (), 0, 0.0)
    variables, inputs = posterior.apply(ChainState(network, {"w": np.arange(4) * 10}), 2, "inputs")
    assert (variables.params, variables.collections, inputs) == ({"w": 20}, {"batch_stats": 5}, "inputs")
