"""Early stopping on validation examples, and what a posterior may add to training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses

RNG = np.random.default_rng(0)
TRAIN = baal.Dataset(jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32), jnp.asarray(RNG.normal(size=12), jnp.float32))
HELD_OUT = baal.Dataset(jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32), jnp.asarray(RNG.normal(size=9), jnp.float32))
LABELLED = jnp.arange(12) < 8


def line():
    return baal.from_functions(
        lambda key, inputs: jax.random.normal(key, (inputs.shape[-1], 1)), lambda params, inputs, key: inputs @ params
    )


def fit(key, steps=None, epochs=None, bind=None, **options):
    length = {"num_steps": steps} if steps else {"num_epochs": epochs}
    trainer = baal.trainer(optax.sgd(0.3), losses.squared_error, batch_size=4, **length, **options)
    return trainer(line(), **(bind or {}))(key, TRAIN, LABELLED)


def risk(state):
    predicted = np.asarray(HELD_OUT.inputs, np.float64) @ np.asarray(state.variables.params, np.float64)
    return np.mean((predicted[:, 0] - np.asarray(HELD_OUT.targets)) ** 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_the_weights_looked_at_is_returned(seed):
    key = jax.random.key(seed)
    looked_at = [fit(key, steps=steps) for steps in (3, 6, 9, 10)]  # a shorter run is the start of a longer one
    best = min(looked_at, key=risk)
    found = fit(key, steps=10, validation=HELD_OUT, validate_every=3)
    np.testing.assert_allclose(found.variables.params, best.variables.params, rtol=1e-5, atol=1e-6)
    assert int(found.steps) == 10


def test_it_works_with_epochs_too(key):
    looked_at = [fit(key, steps=steps) for steps in (2, 4, 6)]
    found = fit(key, epochs=3, validation=HELD_OUT, validate_every=2)  # eight examples: six steps
    best = min(looked_at, key=risk)
    np.testing.assert_allclose(found.variables.params, best.variables.params, rtol=1e-5, atol=1e-6)


def test_averaging_beside_validation_is_refused():
    with pytest.raises(ValueError, match=r"average_from=0\.5 beside validation"):
        fit(jax.random.key(0), steps=4, validation=HELD_OUT, average_from=0.5)


@pytest.mark.parametrize("value", [0, -1])
def test_bad_intervals_are_refused(value):
    with pytest.raises(ValueError, match="validate_every"):
        fit(jax.random.key(0), steps=4, validation=HELD_OUT, validate_every=value)


def test_a_penalty_sees_the_number_of_labels_and_counts_in_the_loss(key):
    plain = fit(key, steps=1)
    charged = fit(key, steps=1, bind={"penalty": lambda params, num_labelled: num_labelled.astype(jnp.float32)})
    np.testing.assert_allclose(charged.loss - plain.loss, 8.0, rtol=1e-5)
    pulled = fit(key, steps=1, bind={"penalty": lambda params, num_labelled: jnp.sum(params)})
    np.testing.assert_allclose(pulled.variables.params, plain.variables.params - 0.3, rtol=1e-5, atol=1e-6)


def test_a_transformation_sees_the_final_updates_and_the_length_of_the_fit(key):
    def update(updates, state, params, *, total_steps, **extra):
        return updates, (optax.apply_updates(params, updates), jnp.asarray(total_steps, jnp.int32))

    watch = optax.GradientTransformationExtraArgs(lambda params: (params, jnp.int32(0)), update)
    state = fit(key, steps=5, bind={"transform": watch})
    np.testing.assert_array_equal(state.opt_state[-1][0], state.variables.params)
    assert int(state.opt_state[-1][1]) == 5
    assert int(fit(key, epochs=3, bind={"transform": watch}).opt_state[-1][1]) == 6
