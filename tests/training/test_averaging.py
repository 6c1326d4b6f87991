"""Which weights a fit returns: the mean over the last steps, or those that validation likes best."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax._util import random
from baal_jax.training import averaging
from baal_jax.training.batches import Stream
from baal_jax.typing import Model, Variables
from tests.fixtures import close, first, regression_data, same, same_key
from tests.training.by_hand import line, trajectory, weights_of, zeros_of

DATA = regression_data()


def full_batch(share=None, **options):
    options = {"batch_size": 12, "average_from": share, **options}
    return baal.trainer(optax.sgd(0.1), baal.losses.squared_error, **options)(line())


@pytest.mark.parametrize(
    ("share", "length", "counted"), [(0.75, "num_steps", 7), (0.0, "num_epochs", 0), (1 - 1e-9, "num_epochs", 9)]
)
def test_the_fit_is_the_mean_over_the_last_steps_from_which_a_warm_start_goes_on(share, length, counted, key):
    fit = full_batch(share, warm_start=True, **{length: 10})
    state = fit(key, DATA, first(12), zeros_of(fit, key, DATA, first(12)))
    mean = trajectory(DATA.inputs, DATA.targets, 10)[1 + counted :].mean(axis=0)
    close(weights_of(state), mean)
    assert int(state.steps) == 10
    again = trajectory(DATA.inputs, DATA.targets, 10, start=mean)[1 + counted :].mean(axis=0)
    close(weights_of(fit(key, DATA, first(12), state)), again)


def test_new_statistics_are_those_of_a_hundred_batches_whatever_the_momentum():
    momentum = np.float32([0.0, 0.9, 0.99, 0.999, 1.0])  # 0.99¹⁰⁰ is 37 %; and one that no batch changes

    def train(variables, inputs, key):
        kept = variables.collections
        mean = momentum * kept["mean"] + (1 - momentum) * (inputs * variables.params)
        return None, {"mean": mean, "calls": kept["calls"] + 1}

    start = Variables(np.float32(2.0), {"mean": np.float32([5, 5, 5, 5, 5]), "calls": np.int32(7)})
    model = Model(None, None, train)

    def inputs_of(index):
        return None, jnp.sin(index.astype(jnp.float32)) * jnp.ones(5) + 1.0

    new = jax.jit(lambda: averaging.with_new_statistics(model, start, inputs_of))()
    seen = 2.0 * (np.sin(np.arange(100.0)) + 1.0)
    weights = np.float64(momentum[1:4, None]) ** np.arange(99, -1, -1)
    expected = [seen[-1], *(weights @ seen / weights.sum(axis=1)), 5.0]
    close(new.collections, {"mean": np.array(expected), "calls": 107}, rtol=1e-3)
    assert (float(new.params), new.collections["calls"].dtype) == (2.0, jnp.int32)


def test_statistics_of_averaged_weights_are_made_from_the_batches_that_would_come_next(key):
    def train(variables, inputs, key):
        return inputs[:, None] + variables.params, {"ids": inputs + variables.params, "noise": jax.random.uniform(key)}

    def init(key, inputs):
        return Variables(jnp.float32(0.0), {"ids": jnp.zeros(4), "noise": jnp.float32(0.0)})

    data = baal.Dataset(np.arange(9, dtype=np.float32), np.zeros(9, np.float32))
    climb = optax.stateless(lambda gradients, params: jnp.ones_like(params))
    options = {"num_steps": 6, "batch_size": 4, "average_from": 0.5}
    fit = baal.trainer(climb, baal.losses.squared_error, **options)(Model(init, None, train))
    variables = fit(key, data, np.ones(9, bool)).variables

    @jax.jit
    def expected(key):
        _, key_order, key_steps = jax.random.split(key, 3)
        ids = Stream(key_order, jnp.arange(9, dtype=jnp.int32), jnp.int32(9)).batch(jnp.int32(6 + 99), 4, None)[0]
        noise = jax.random.uniform(jax.random.split(jax.random.fold_in(random.vectorised(key_steps), 6 + 99))[1])
        return Variables(jnp.float32(5.0), {"ids": ids.astype(jnp.float32) + 5.0, "noise": noise})

    close(variables, expected(key))  # the mean of 4, 5 and 6


def test_a_cast_leaves_keys_alone_and_no_type_weak(key):
    like = {"key": key, "half": jnp.zeros(2, jnp.bfloat16), "weak": jnp.asarray(0.0)}
    given = {"key": jax.random.key(1), "half": np.ones(2, np.float32), "weak": jnp.asarray(2.0)}
    new = averaging.cast_like(given, like)
    same_key(new["key"], jax.random.key(1))
    assert (new["half"].dtype, new["weak"].dtype, new["weak"].weak_type) == (jnp.bfloat16, jnp.float32, False)


@pytest.mark.parametrize("length", ["num_steps", "num_epochs"])
def test_the_best_of_the_weights_looked_at_is_returned(length, key):
    held_out = regression_data(9, seed=1)
    fit = full_batch(**{length: 10}, validation=held_out, validate_every=3)
    chosen = []
    for scale in (3.0, 2.5, 1.5, -1.0):
        targets = scale * DATA.targets
        state = fit(key, DATA._replace(targets=targets), first(12))
        weights = trajectory(DATA.inputs, targets, 10)
        looked_at = [3, 6, 9, 10]
        errors = 0.7 * np.float64(held_out.inputs) @ weights[looked_at].T - np.float64(held_out.targets)[:, None]
        best = looked_at[np.mean(errors**2, axis=0).argmin()]
        close(weights_of(state), weights[best])
        assert int(state.variables.collections["calls"]) == best  # statistics belong to the weights
        assert int(state.steps) == 10
        chosen.append(best)
    assert chosen == [6, 9, 10, 3]


def test_of_equally_good_weights_the_first_are_kept(key):
    held_out = baal.Dataset(jnp.zeros((2, 3)), jnp.ones(2))  # of which no weights know anything
    state = full_batch(num_steps=4, validation=held_out, validate_every=1)(key, DATA, first(12))
    close(weights_of(state), trajectory(DATA.inputs, DATA.targets, 4)[1])


def test_a_penalty_sees_the_number_of_labels_and_counts_in_the_loss(key):
    trainer = baal.trainer(optax.sgd(0.3), baal.losses.squared_error, num_steps=1, batch_size=8)
    bound = trainer(line(), penalty=lambda params, num_labelled: num_labelled.astype(jnp.float32) * jnp.sum(params))
    charged = bound(key, DATA, first(8))
    inputs, targets = np.float64(DATA.inputs[:8]), np.float64(DATA.targets[:8])
    close(weights_of(charged), trajectory(inputs, targets, 1, rate=0.3)[-1] - 0.3 * 8)
    close(charged.loss, 0.5 * np.mean((inputs @ np.full(3, 0.5) - targets) ** 2) + 8 * 1.5)


@pytest.mark.parametrize("length", [{"num_steps": 5}, {"num_epochs": 3}], ids=["steps", "epochs"])
def test_a_transformation_sees_the_final_updates_and_the_length_of_the_fit(length, key):
    def update(updates, state, params, *, total_steps, **extra):
        return updates, (optax.apply_updates(params, updates), jnp.asarray(total_steps, jnp.int32))

    watch = optax.GradientTransformationExtraArgs(lambda params: (params, jnp.int32(0)), update)
    trainer = baal.trainer(optax.sgd(0.3), baal.losses.squared_error, batch_size=4, **length)
    state = trainer(line(), transform=watch)(key, DATA, first(7))
    same(state.opt_state[-1][0], state.variables.params)
    assert int(state.opt_state[-1][1]) == int(state.steps) == (5 if "num_steps" in length else 6)  # ceil(3 · 7 / 4)
