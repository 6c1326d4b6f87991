"""Optimizers that ask for more than a gradient, against the same steps by hand on the whole labelled set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses
from tests.fixtures import first, linear, regression_data, trainer

DATA = regression_data(12, 3)
LABELLED, KEY = 4, jax.random.key(0)


def objective(params):
    return jnp.mean(losses.squared_error(DATA.inputs[:LABELLED] @ params, DATA.targets[:LABELLED]))


def by_hand(optimizer, num_steps, params):
    """Weights after some steps, and the optimizer's state."""
    optimizer = optax.with_extra_args_support(optimizer)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(objective)(params)
        told = {"value": value, "grad": gradients, "value_fn": objective}
        updates, state = optimizer.update(gradients, state, params, **told)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        for _ in range(num_steps):
            params, state = step(params, state)
    return params, state


def fitted(optimizer, num_steps=7, **options):
    fit = trainer(optimizer, losses.squared_error, num_steps=num_steps, batch_size=LABELLED, **options)
    return fit(linear(0.5))


CASES = {
    "plateau": lambda: optax.chain(optax.sgd(0.3), optax.contrib.reduce_on_plateau(0.5, patience=0, rtol=0.2)),
    "polyak": lambda: optax.polyak_sgd(max_learning_rate=0.5),
    "line search": lambda: optax.lbfgs(),
}


@pytest.mark.parametrize("name", CASES)
def test_optimizers_that_ask_for_the_loss_are_given_it(name):
    optimizer = CASES[name]()
    state = fitted(optimizer)(KEY, DATA, first(LABELLED))
    expected, _ = by_hand(optimizer, 7, jnp.full((3, 1), 0.5))
    np.testing.assert_allclose(state.variables.params, expected, rtol=2e-3, atol=1e-4)


def test_schedule_free_weights_are_those_of_evaluation():
    optimizer = optax.contrib.schedule_free_sgd(0.1)
    state = fitted(optimizer)(KEY, DATA, first(LABELLED))
    params, opt_state = by_hand(optimizer, 7, jnp.full((3, 1), 0.5))
    with jax.numpy_dtype_promotion("standard"):
        expected = optax.contrib.schedule_free_eval_params(opt_state, params)
    np.testing.assert_allclose(state.variables.params, expected, rtol=1e-4)
    assert np.abs(np.asarray(params - expected)).max() > 1e-3


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_the_rest_of_gathered_gradients_is_an_update(mean, plain):
    several = optax.MultiSteps(optax.sgd(0.05), 4, use_grad_mean=mean)
    state = fitted(several.gradient_transformation() if plain else several)(KEY, DATA, first(LABELLED))
    params = jnp.full((3, 1), 0.5)
    for number in (4, 3):  # seven steps: the gradient is the same in each of a group
        params = params - 0.05 * (1 if mean else number) * jax.grad(objective)(params)
    np.testing.assert_allclose(state.variables.params, params, rtol=1e-4)
    assert int(state.opt_state.gradient_step) == 2
    assert int(state.opt_state.mini_step) == 0


def test_a_schedule_may_be_as_long_as_the_fit():
    def decaying(num_steps):
        return optax.sgd(lambda count: 0.1 * (1 - count / num_steps))

    fit = fitted(decaying, num_steps=None, num_epochs=3)
    for labelled, steps in ((4, 3), (8, 6)):
        state = fit(KEY, DATA, first(labelled))
        assert int(state.steps) == steps
    expected, _ = by_hand(decaying(3), 3, jnp.full((3, 1), 0.5))
    np.testing.assert_allclose(fit(KEY, DATA, first(4)).variables.params, expected, rtol=1e-4)


def test_a_warm_start_continues_weights_and_begins_the_optimizer_again():
    optimizer = optax.adam(lambda count: jnp.where(count < 7, 0.1, 0.0))
    fit = fitted(optimizer, warm_start=True)
    one = fit(KEY, DATA, first(LABELLED))
    two = fit(KEY, DATA, first(LABELLED), one)
    expected, state = by_hand(optimizer, 7, one.variables.params)
    np.testing.assert_allclose(two.variables.params, expected, rtol=1e-4)
    assert int(two.opt_state[0].count) == int(state[0].count) == int(two.steps) == 7


def test_fits_that_end_where_they_began_or_nowhere_are_counted():
    posteriors = {
        "still": (optax.sgd(0.0), 3),
        "diverged": (optax.sgd(1e30), 3),
        "sound": (optax.sgd(1e-2), 0),
    }
    for optimizer, failed in posteriors.values():
        fit = trainer(optimizer, losses.squared_error, num_steps=9, batch_size=LABELLED)
        ensemble = baal.posteriors.deep_ensemble(linear(), fit, 3)
        loop = baal.active_loop(ensemble, baal.selection.random(), query_size=1)
        _, infos = baal.run(loop, KEY, DATA, None, num_initial=3, num_rounds=1)
        assert infos.num_failed_fits.tolist() == [failed]
    _, infos = baal.run(loop, KEY, DATA, None, num_initial=0, num_rounds=1)
    assert infos.num_failed_fits.tolist() == [0]  # nothing is labelled
