"""Fitting: which examples are seen and how often, what carries over, and what it computes."""

from collections import Counter
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax.training.batches import Stream
from tests.fixtures import classes_data, first, linear, regression_data
from tests.fixtures import same as assert_same

CLOSE = {"rtol": 2e-5, "atol": 1e-6}


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


def gradient_descent(inputs, targets, num_steps, learning_rate, start, momentum=0.0):
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    weights, velocity = np.full(inputs.shape[1], start), 0.0
    for _ in range(num_steps):
        velocity = momentum * velocity + inputs.T @ (inputs @ weights - targets) / len(targets)
        weights = weights - learning_rate * velocity
    return weights


def weights_of(state):
    return np.asarray(state.variables.params)[:, 0]


@pytest.fixture(scope="module")
def network():
    return baal.from_linen(Network())


@pytest.fixture(scope="module")
def fit_steps(network):
    return baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=6, batch_size=8)(network)


@pytest.fixture(scope="module")
def fit_epochs(network):
    return baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_epochs=3, batch_size=8)(network)


@pytest.mark.parametrize("length", ["fit_steps", "fit_epochs"])
def test_only_labelled_examples_are_seen(length, request, key):
    fit, data = request.getfixturevalue(length), classes_data()
    labelled = jnp.arange(20) % 3 == 1
    # NaN would spread even through a weight of zero.
    hidden = baal.Dataset(
        jnp.where(labelled[:, None], data.inputs, jnp.nan), jnp.where(labelled, data.targets, (data.targets + 1) % 3)
    )
    state = fit(key, data, labelled)
    assert_same(fit(key, hidden, labelled), state)
    one_more = fit(key, data, labelled.at[0].set(True))
    assert not np.array_equal(
        one_more.variables.params["Dense_0"]["kernel"], state.variables.params["Dense_0"]["kernel"]
    )
    assert np.isfinite(state.loss)


@partial(jax.jit, static_argnames="num_epochs")
def read_batch(stream, index, num_epochs):
    return stream.batch(index, 8, num_epochs)


def read_stream(ids, num_batches, num_epochs=3):
    """Batches of eight from forty examples, which are their own ids."""
    padded = jnp.concatenate([jnp.asarray(ids, jnp.int32), jnp.zeros(40 - len(ids), jnp.int32)])
    stream = Stream(jax.random.key(3), padded, jnp.int32(len(ids)))
    return [read_batch(stream, jnp.int32(i), num_epochs) for i in range(num_batches)]


@pytest.mark.parametrize("num_labelled", [1, 3, 8, 10, 17, 40])
def test_every_pass_shows_every_labelled_example_once(num_labelled):
    ids = np.random.default_rng(num_labelled).permutation(40)[:num_labelled]
    batches = read_stream(ids, -(-num_labelled * 3 // 8) + 1)
    shown = np.concatenate([shown for shown, _ in batches])
    weights = np.concatenate([weights for _, weights in batches])
    assert set(np.unique(weights)) <= {0.0, 1.0}
    assert Counter(shown[weights == 1].tolist()) == dict.fromkeys(ids.tolist(), 3)
    passes = shown[weights == 1].reshape(3, num_labelled).tolist()
    assert all(sorted(row) == sorted(ids) for row in passes)
    if num_labelled >= 8:
        assert passes[0] != passes[1] != passes[2]
    assert not np.any(batches[-1][1])  # beyond the last pass nothing counts


def test_without_a_last_pass_the_stream_goes_on_and_stays_even():
    ids = np.array([2, 5, 7, 1, 39, 4])
    batches = read_stream(ids, 6, num_epochs=None)  # eight passes
    assert all(np.all(weights == 1) for _, weights in batches)
    shown = np.concatenate([shown for shown, _ in batches])
    assert Counter(shown.tolist()) == dict.fromkeys(ids.tolist(), 8)


def test_a_fit_visits_every_labelled_example_as_often_as_asked(key):
    # One parameter an example, whose gradient is its share of the batch: of 1/3 and 1/2 one visit, of 2/3 two.
    model = baal.from_functions(lambda key, ids: jnp.zeros(9), lambda params, ids, key: params[ids][:, None])
    count = optax.stateless(lambda grads, params: (grads > 0.1).astype(jnp.float32) + (grads > 0.6))
    data = baal.Dataset(jnp.arange(9), jnp.zeros(9))
    labelled = jnp.arange(9) > 1
    trainer = baal.trainer(count, lambda outputs, targets: outputs[:, 0], num_epochs=5, batch_size=3)
    state = trainer(model)(key, data, labelled)
    np.testing.assert_array_equal(state.variables.params, jnp.where(labelled, 5.0, 0.0))
    assert int(state.steps) == 12  # ceil(7 · 5 / 3)


def test_a_growing_labelled_set_compiles_once(fit_epochs, key):
    data = classes_data()
    state, steps, known = fit_epochs(key, data, first(1, 20)), [], fit_epochs._cache_size()
    for num in (1, 4, 9, 20):
        state = fit_epochs(key, data, first(num, 20), state)
        steps.append(int(state.steps))
    assert steps == [1, 2, 4, 8]  # ceil(3 n / 8)
    assert fit_epochs._cache_size() <= known + 1  # the first call with a previous state, unless a test came before


def test_every_fit_starts_afresh(fit_epochs, key):
    # Case 50, where Baal keeps the optimizer's moments.
    data = classes_data()
    before = fit_epochs(jax.random.key(8), data, first(15, 20))
    assert_same(fit_epochs(key, data, first(6, 20), before), fit_epochs(key, data, first(6, 20)))


def test_a_warm_start_continues_parameters_and_optimizer(key):
    # Case 50: two fits of five full-batch steps are one of ten, which momentum that starts again would not give.
    data, labelled = regression_data(), first(12)
    optimizer = optax.sgd(0.05, momentum=0.9)
    trainer = baal.trainer(optimizer, baal.losses.squared_error, num_steps=5, batch_size=12, warm_start=True)
    fit = trainer(linear(0.5))
    # Zeros, which the loop passes before the first round, are no state to continue from.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fit, key, data, labelled))
    once = fit(key, data, labelled, zeros)
    twice = fit(jax.random.key(1), data, labelled, once)
    for state, num_steps in ((once, 5), (twice, 10)):
        expected = gradient_descent(data.inputs, data.targets, num_steps, 0.05, 0.5, momentum=0.9)
        np.testing.assert_allclose(weights_of(state), expected, rtol=1e-4)
        assert int(state.steps) == num_steps
    forgetful = fit(
        jax.random.key(1), data, labelled, once._replace(opt_state=jax.tree.map(jnp.zeros_like, once.opt_state))
    )
    assert not np.allclose(weights_of(forgetful), weights_of(twice), rtol=1e-2)


def squared_error_map(outputs, targets):
    return 0.5 * (outputs - targets[:, None]) ** 2


@pytest.mark.parametrize(("num_labelled", "loss"), [(7, baal.losses.squared_error), (12, squared_error_map)])
def test_full_batches_are_gradient_descent(num_labelled, loss, key):
    data, labelled = regression_data(), first(num_labelled)
    trainer = baal.trainer(optax.sgd(0.1), loss, num_steps=20, batch_size=num_labelled)
    state = trainer(linear(0.5))(key, data, labelled)
    expected = gradient_descent(data.inputs[:num_labelled], data.targets[:num_labelled], 20, 0.1, 0.5)
    np.testing.assert_allclose(weights_of(state), expected, rtol=1e-5)


def test_the_last_batch_counts_only_its_share(key):
    # Five examples in batches of four: the second step is the gradient of the one example that was left.
    data, labelled = regression_data(5), first(5, 5)
    trainer = baal.trainer(optax.sgd(0.1), baal.losses.squared_error, num_epochs=1, batch_size=4)
    found = weights_of(trainer(linear(0.5))(key, data, labelled))
    inputs, targets = np.asarray(data.inputs, np.float64), np.asarray(data.targets, np.float64)
    possible = []
    for last in range(5):
        rest = np.delete(np.arange(5), last)
        after = gradient_descent(inputs[rest], targets[rest], 1, 0.1, 0.5)
        possible.append(after - 0.1 * inputs[last] * (inputs[last] @ after - targets[last]))
    assert min(np.abs(found - weights).max() for weights in possible) < 1e-5


def test_regularizer_and_weight_decay_act_beside_the_loss(key):
    # The loss itself is constant, so the weights shrink by what the two take away, and the mean loss is known.
    trainer = baal.trainer(
        optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)),
        lambda outputs, targets: 3.0 + 0.0 * outputs[:, 0],
        num_steps=5,
        batch_size=4,
        regularizer=lambda params: 0.5 * jnp.sum(params**2),
    )
    state = trainer(linear(2.0))(key, regression_data(), first(4))
    np.testing.assert_allclose(weights_of(state), 2.0 * 0.85**5, rtol=1e-5)
    np.testing.assert_allclose(state.loss, np.mean([3 + 1.5 * (2.0 * 0.85**i) ** 2 for i in range(5)]), rtol=1e-5)


def test_augmentation_gets_a_fresh_key_every_step_and_is_compiled_in(key):
    seen = []

    def augment(key, batch):
        seen.append((batch.inputs.shape, batch.targets.shape))
        return batch._replace(inputs=jax.random.normal(key, batch.inputs.shape))

    # The gradient is the mean of the noise; the optimizer writes down that of every step.
    diary = optax.GradientTransformation(
        lambda params: (jnp.int32(0), jnp.zeros((4, *params.shape))),
        lambda grads, state, params=None: (grads, (state[0] + 1, state[1].at[state[0]].set(grads))),
    )
    trainer = baal.trainer(diary, lambda outputs, targets: outputs[:, 0], num_steps=4, batch_size=4, augment=augment)
    fit = trainer(linear(0.0))
    drawn = fit(key, regression_data(), first(6)).opt_state[1]
    traced = len(seen)
    other = fit(jax.random.key(1), regression_data(), first(7)).opt_state[1]
    assert len(seen) == traced
    assert set(seen) == {((4, 3), (4,))}
    assert np.abs(drawn).max() < 3
    assert len(np.unique(np.round(np.stack([drawn, other]), 5))) == 2 * 4 * 3


def test_augmentation_may_change_targets(key):
    def negate(key, batch):
        return batch._replace(targets=-batch.targets)

    data = regression_data()
    trainer = baal.trainer(optax.sgd(0.1), baal.losses.squared_error, num_steps=10, batch_size=12, augment=negate)
    state = trainer(linear(0.5))(key, data, first(12))
    np.testing.assert_allclose(weights_of(state), gradient_descent(data.inputs, -data.targets, 10, 0.1, 0.5), rtol=1e-5)


def test_batch_statistics_are_carried_from_step_to_step(fit_steps, key):
    # All labelled inputs in every batch: the running mean is known without the network.
    data, labelled = classes_data(), first(8, 20)
    statistics = fit_steps(key, data, labelled).variables.collections["batch_stats"]["BatchNorm_0"]
    inputs = np.asarray(data.inputs[:8], np.float64)
    np.testing.assert_allclose(statistics["mean"], (1 - 0.9**6) * inputs.mean(0), **CLOSE)
    np.testing.assert_allclose(statistics["var"], 0.9**6 + (1 - 0.9**6) * inputs.var(0), **CLOSE)


def test_with_nothing_labelled_nothing_is_learnt(fit_steps, fit_epochs, key):
    data, nothing = classes_data(), first(0, 20)
    by_steps, by_epochs = fit_steps(key, data, nothing), fit_epochs(key, data, nothing)
    assert float(by_steps.loss) == float(by_epochs.loss) == 0
    assert (int(by_steps.steps), int(by_epochs.steps)) == (6, 0)
    assert_same(by_steps.variables.params, by_epochs.variables.params)  # the initial ones
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(by_steps.variables))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(by_epochs.variables.params))


def test_keys_decide_and_vmap_over_them_is_a_loop(fit_steps, key):
    data, labelled = classes_data(), first(10, 20)
    keys = jax.random.split(key, 3)
    mapped = jax.vmap(lambda key: fit_steps(key, data, labelled))(keys)
    looped = [fit_steps(key, data, labelled) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), mapped, stacked)
    kernels = stacked.variables.params["Dense_0"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1], atol=1e-2)


def test_a_fit_can_be_differentiated_by_learning_rate_and_by_data(key):
    data, labelled = regression_data(), first(12)

    def total(learning_rate, inputs):
        trainer = baal.trainer(optax.sgd(learning_rate), baal.losses.squared_error, num_steps=4, batch_size=12)
        return jnp.sum(trainer(linear(0.5))(key, data._replace(inputs=inputs), labelled).variables.params)

    by_rate, by_inputs = jax.grad(total, argnums=(0, 1))(0.1, data.inputs)

    def oracle(learning_rate, inputs):
        return gradient_descent(inputs, data.targets, 4, learning_rate, 0.5).sum()

    inputs, step = np.asarray(data.inputs, np.float64), 1e-6
    np.testing.assert_allclose(
        by_rate, (oracle(0.1 + step, inputs) - oracle(0.1 - step, inputs)) / (2 * step), rtol=1e-4
    )
    for place in ((0, 0), (7, 2)):
        shift = np.zeros_like(inputs)
        shift[place] = step
        expected = (oracle(0.1, inputs + shift) - oracle(0.1, inputs - shift)) / (2 * step)
        np.testing.assert_allclose(by_inputs[place], expected, rtol=1e-3, atol=1e-5)


def test_a_loss_without_one_number_an_example_is_refused(key):
    trainer = baal.trainer(optax.sgd(0.1), lambda outputs, targets: jnp.mean(outputs), num_steps=1, batch_size=4)
    with pytest.raises(ValueError, match="leave out the mean"):
        trainer(linear(0.0))(key, regression_data(), first(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"num_steps": 1, "num_epochs": 1}, "exactly one"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_epochs": -1}, "num_epochs=-1"),
        ({"num_steps": 2.5}, "num_steps=2.5"),
        ({"num_epochs": True}, "num_epochs=True"),
        ({"num_steps": 1, "batch_size": 0}, "batch_size=0"),
    ],
)
def test_lengths_are_checked_when_the_trainer_is_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        baal.trainer(optax.sgd(0.1), baal.losses.squared_error, **arguments)


def test_a_mask_of_another_length_is_refused(fit_steps, key):
    with pytest.raises(ValueError, match=r"labelled has shape \(5,\), but the data set 20"):
        fit_steps(key, classes_data(), first(5, 5))
    with pytest.raises(ValueError, match="one common leading axis"):
        fit_steps(key, baal.Dataset(jnp.ones((20, 4)), jnp.zeros(19, int)), first(5, 20))
