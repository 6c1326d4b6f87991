"""Deep ensembles: members are fits apart from one another, and draws are members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.posteriors._deep_ensemble import EnsembleState, deep_ensemble
from tests.fixtures import first, linear, regression_data, same, same_key, untrained

DATA = regression_data()


@pytest.mark.parametrize("batch_size", [None, 1, 2, 8])
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


def test_members_at_a_time_bound_memory(key):
    """Every member needs 64 KiB to be trained, which no other needs after it."""

    def trainer(model):
        def train(key, dataset, labelled, previous):
            return jnp.sum(jnp.sort(jax.random.normal(key, (2**14,)))[::7])

        return train

    def temporary(batch_size):
        posterior = deep_ensemble(linear(), trainer, 16, batch_size=batch_size)
        return posterior.fit.lower(key, DATA, first(9)).compile().memory_analysis().temp_size_in_bytes

    all_at_once, two, one = (temporary(batch_size) for batch_size in (None, 2, 1))
    assert two < all_at_once / 4
    assert one < two / 1.5


def test_no_member_comes_again_before_all_have_come():
    members = baal.Variables(np.arange(3), {"twice": 2 * np.arange(3)})
    state = EnsembleState(baal.TrainState(members, (), np.zeros(3), np.zeros(3)))
    posterior = deep_ensemble(linear(), untrained(), 3)
    keys = jax.random.split(jax.random.key(7), 40)
    drawn = jax.jit(jax.vmap(lambda key, state: posterior.sample(key, state, 8), (0, None)))(keys, state)
    order = np.asarray(drawn.params)
    same(np.sort(order[:, :3], axis=1), np.broadcast_to(np.arange(3), (40, 3)))
    same(order[:, 3:6], order[:, :3])
    same(order[:, 6:], order[:, :2])
    same(drawn.collections["twice"], 2 * order)
    assert len({*map(tuple, order[:, :3])}) == 6  # any order


def test_members_are_at_rest():
    model = baal.Model(None, None, None, lambda *arguments: arguments)
    assert deep_ensemble(model, untrained()).apply(None, "member", "inputs") == ("member", "inputs")


def test_wrong_options_are_refused():
    for options in ({"num_members": 0}, {"batch_size": 0}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            deep_ensemble(linear(), untrained(), **options)
