"""Deep ensembles: members are fits apart from one another, and draws are members."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import heuristics, losses, selection
from baal_jax.posteriors._deep_ensemble import deep_ensemble
from tests.networks import LinenKeyword
from tests.fixtures import first, linear, regression_data

DATA = regression_data()
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def trainer(**options):
    options = {"num_steps": 6, "batch_size": 4} | options
    return baal.trainer(optax.adam(0.1), losses.squared_error, **options)


def close(found, expected):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, **CLOSE), found, expected)


def weights(variables):
    return np.asarray(variables.params)[..., 0]


@pytest.fixture(scope="module")
def fitted():
    posterior = deep_ensemble(linear(), trainer(), num_members=3)
    return posterior, posterior.fit(jax.random.key(0), DATA, first(9))


def test_members_are_fits_with_keys_of_their_own(fitted, key):
    train = trainer()(linear())
    alone = [train(member, DATA, first(9)) for member in jax.random.split(key, 3)]
    close(fitted[1].members, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))
    np.testing.assert_array_equal(fitted[1].steps, [6, 6, 6])
    assert fitted[1].loss.shape == (3,)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_members_at_a_time_change_nothing(batch_size, fitted, key):
    close(deep_ensemble(linear(), trainer(), 3, batch_size=batch_size).fit(key, DATA, first(9)), fitted[1])


def test_members_at_a_time_bound_memory(key):
    data = baal.Dataset(jnp.zeros((64, 8)), jnp.zeros((64, 1)))

    def temporary(batch_size):
        posterior = deep_ensemble(
            baal.from_linen(nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(1)])),
            trainer(batch_size=64, num_steps=2),
            16,
            batch_size=batch_size,
        )
        return posterior.fit.lower(key, data, jnp.ones(64, bool)).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2) < temporary(None) / 4


def test_members_differ_in_initial_weights(fitted):
    assert np.ptp(weights(fitted[1].members.variables), axis=0).min() > 1e-2


def test_members_differ_in_the_order_of_batches(key):
    state = deep_ensemble(linear(0.5), trainer(), 3).fit(key, DATA, first(9))
    found = weights(state.members.variables)
    assert all(np.abs(found[i] - found[j]).max() > 1e-4 for i, j in [(0, 1), (0, 2), (1, 2)])


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 6, 8])
def test_no_member_comes_again_before_all_have_come(num_samples, fitted):
    posterior, state = fitted
    members = weights(state.members.variables)
    drawn = weights(posterior.sample(jax.random.key(7), state, num_samples))
    which = (drawn[:, None] == members[None]).all(axis=-1)
    assert (which.sum(axis=1) == 1).all()
    times = which.sum(axis=0)
    assert times.max() - times.min() <= 1
    np.testing.assert_array_equal(drawn, weights(posterior.sample(jax.random.key(7), state, 9))[:num_samples])


def test_the_first_draw_is_any_member(fitted):
    posterior, state = fitted
    drawn = {float(weights(posterior.sample(jax.random.key(i), state, 1))[0, 0]) for i in range(20)}
    assert len(drawn) == 3


def test_members_are_at_rest(key):
    model = baal.from_linen(LinenKeyword())
    data = baal.Dataset(DATA.inputs, jnp.arange(12) % 3)
    posterior = deep_ensemble(
        model, baal.trainer(optax.adam(0.1), losses.cross_entropy, num_steps=3, batch_size=4), num_members=2
    )
    state = posterior.fit(key, data, first(9))
    predicted = baal.predict(key, posterior, state, data.inputs, num_samples=2)
    draws = posterior.sample(key, state, 2)
    for i in range(2):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], draws)
        np.testing.assert_allclose(predicted[i], model.deterministic(member, data.inputs), **CLOSE)
    hidden = baal.features.last_hidden(model)(state, data.inputs)
    first_member = jax.tree.map(lambda leaf: leaf[0], state.members.variables)
    np.testing.assert_allclose(
        hidden, baal.features.last_hidden(model, variables=lambda state: state)(first_member, data.inputs), **CLOSE
    )


def test_a_warm_start_goes_on_with_every_member(key):
    posterior = deep_ensemble(linear(), trainer(warm_start=True), 3, batch_size=2)
    shapes = jax.eval_shape(posterior.fit, key, DATA, first(9))
    once = posterior.fit(key, DATA, first(9), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    twice = posterior.fit(jax.random.key(1), DATA, first(9), once)
    np.testing.assert_array_equal(twice.steps, [12, 12, 12])
    train = trainer(warm_start=True)(linear())
    member = jax.tree.map(lambda leaf: leaf[2], once.members)
    close(
        jax.tree.map(lambda leaf: leaf[2], twice.members),
        train(jax.random.split(jax.random.key(1), 3)[2], DATA, first(9), member),
    )


def test_fits_map_over_keys(fitted, key):
    posterior, state = fitted
    mapped = jax.jit(jax.vmap(lambda key: posterior.fit(key, DATA, first(9))))(jnp.stack([jax.random.key(5), key]))
    close(jax.tree.map(lambda leaf: leaf[1], mapped), state)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_it_runs_in_the_loop(batch_size, key):
    posterior = deep_ensemble(baal.from_linen(nn.Dense(1)), trainer(), 3, batch_size=batch_size)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.variance), query_size=2, num_samples=3)
    final, infos = baal.run(loop, key, DATA, DATA, num_initial=4, num_rounds=2)
    assert int(baal.pool.num_labelled(final.pool)) == 8
    assert all(np.isfinite(values).all() for values in infos.metrics.values())


@pytest.mark.parametrize("options", [{"num_members": 0}, {"batch_size": 0}, {"batch_size": 1.5}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        deep_ensemble(linear(), trainer(), **options)
