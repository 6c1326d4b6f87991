"""Deep ensembles: members are fits apart from one another, and draws are members."""

import jax
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.posteriors._deep_ensemble import EnsembleState, deep_ensemble
from tests.fixtures import first, linear, regression_data, same, same_key, untrained

DATA = regression_data()


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
