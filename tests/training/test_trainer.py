"""Fitting: which examples are seen and how often, what carries over, what it computes, and which weights it returns."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax._util import random
from baal_jax.training import averaging, semi_supervised
from baal_jax.training.batches import Stream
from baal_jax.typing import Model, Variables
from tests.fixtures import close, count_compilations, first, linear, regression_data, same


def line(start=0.5):
    """A linear function ``[D, 1]`` that counts its calls in training; in evaluation mode it is smaller."""

    def init(key, inputs):
        return Variables(jnp.full((inputs.shape[-1], 1), start), {"calls": jnp.int32(0)})

    def train(variables, inputs, key):
        return inputs @ variables.params, {"calls": variables.collections["calls"] + 1}

    return Model(init, None, train, lambda variables, inputs: 0.7 * inputs @ variables.params)


def trajectory(inputs, targets, num_steps, rate=0.1, start=0.5):
    """Weights before every step of full-batch gradient descent on half the mean squared error, and at the end."""
    inputs, targets = np.asarray(inputs, np.float64), np.asarray(targets, np.float64)
    seen = [np.broadcast_to(np.float64(start), inputs.shape[1:])]
    for _ in range(num_steps):
        seen.append(seen[-1] - rate * inputs.T @ (inputs @ seen[-1] - targets) / len(targets))
    return np.array(seen)


def weights_of(state):
    return np.asarray(state.variables.params)[:, 0]


def zeros_of(fit, *arguments):
    """What the loop passes before the first round: no state to continue from."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fit, *arguments))


def diary(num_steps):
    """Writes down the gradients of every step, and moves nothing."""

    def update(gradients, state, params=None):
        number, pages = state
        pages = jax.tree.map(lambda page, leaf: page.at[number].set(leaf), pages, gradients)
        return jax.tree.map(jnp.zeros_like, gradients), (number + 1, pages)

    def init(params):
        return jnp.int32(0), jax.tree.map(lambda leaf: jnp.zeros((num_steps, *leaf.shape)), params)

    return optax.GradientTransformation(init, update)


DATA = regression_data()
PLAIN = semi_supervised.Consistency(
    lambda one, other: one[:, 0] + other[:, 0], lambda steps: 2.0 + steps.astype(jnp.float32)
)


def test_what_every_step_reads_and_under_which_key(key_reuse):
    """Records are the gradients: outputs are the sum of what an example met times a parameter of its place."""
    num_known, num_unlabelled, num_steps = 5, 3, 5
    inputs = {"id": np.arange(9.0, dtype=np.float32), "more": np.arange(9.0, dtype=np.float32) * 10 + 1}
    data, labelled = baal.Dataset(inputs, np.full(9, 0.5, np.float32)), jnp.arange(9) > 0

    def init(key, inputs):
        assert jax.tree.map(jnp.shape, inputs) == {"id": (1,), "more": (1,)}
        zeros = {"rows": jnp.zeros((num_known + num_unlabelled, 4)), "second": jnp.zeros((num_unlabelled, 4))}
        return Variables({"start": jax.random.uniform(key), **zeros}, {"seen": jnp.zeros(num_known + num_unlabelled)})

    def met(inputs, *noise):
        noise = [jnp.broadcast_to(number, inputs["id"].shape) for number in noise]
        return jnp.stack([inputs["id"], inputs["more"], *noise], axis=1)

    def train(variables, inputs, key):
        rows = variables.params["second" if len(inputs["id"]) == num_unlabelled else "rows"]
        record = met(inputs, inputs["noise"], jax.random.uniform(key))
        return jnp.sum(rows * record, axis=1, keepdims=True), {"seen": inputs["id"]}

    def augment(shift):
        def change(key, batch):
            noise = jnp.broadcast_to(shift + jax.random.uniform(key), batch.inputs["id"].shape)
            targets = None if batch.targets is None else batch.targets + 1.0
            return baal.Dataset({**batch.inputs, "noise": noise}, targets)

        return change

    def half_and_half(outputs, targets):  # of two positions, of which the mean counts
        return jnp.mean(outputs * targets[:, None] * jnp.array([[0.5, 1.5]]), axis=1)

    fit = baal.trainer(
        diary(2 * num_steps), half_and_half, num_epochs=3, batch_size=num_known,
        augment=augment(0.0), unlabelled=PLAIN._replace(second=augment(1.0)), unlabelled_batch_size=num_unlabelled,
        warm_start=True,
    )(baal.Model(init, None, train))  # fmt: skip
    states = [fit(jax.random.key(7), data, labelled)]
    states.append(fit(jax.random.key(8), data, labelled, states[0]))

    @jax.jit
    def expected(key, before):
        key_init, key_order, key_steps, key_views = jax.random.split(key, 4)
        start = jax.random.uniform(key_init)
        stream = Stream(key_order, lambda places: places + 1, jnp.int32(8))
        key_inputs, key_augment = jax.random.split(key_views)
        everything = Stream(key_inputs, lambda places: places, jnp.int32(9))

        def step(number):
            def read(stream, size, shift, *keys):
                ids = stream.batch(number, size, None)[0]
                one, two = map(jax.random.uniform, keys)
                return met(jax.tree.map(lambda leaf: jnp.asarray(leaf)[ids], inputs), shift + one, two)

            one, two = jax.random.split(jax.random.fold_in(random.vectorised(key_steps), number))
            views = jax.random.fold_in(random.vectorised(key_augment), number)
            key_first, key_second, key_pass = jax.random.split(views, 3)
            known = read(stream, num_known, 0.0, one, two)
            # The first view is in the pass of the labelled examples, under its key and their augmentation.
            first = read(everything, num_unlabelled, 0.0, key_first, jax.random.clone(two))
            second = read(everything, num_unlabelled, 1.0, key_second, key_pass)
            # Three passes over eight examples leave four for the last batch, which count as if there were no more.
            shares = jnp.where(number < 4, jnp.full(5, 0.2), jnp.array([0.25, 0.25, 0.25, 0.25, 0.0]))[:, None]
            weight = (2.0 + before + number.astype(jnp.float32)) / num_unlabelled
            rows = jnp.concatenate([known * 1.5 * shares, first * weight])
            return rows, second * weight, jnp.append(known[:, 0], first[:, 0])

        return start, *jax.vmap(step)(jnp.arange(num_steps, dtype=jnp.int32))

    for number, state in enumerate(states):
        start, rows, second, seen = expected(jax.random.key(7 + number), np.float32(0))
        pages = jax.tree.map(lambda page: page[:5], state.opt_state[1])
        close(
            (pages["rows"], pages["second"], state.variables.collections["seen"]), (rows, second, seen[-1]), rtol=1e-5
        )
        assert number or float(state.variables.params["start"]) == pytest.approx(float(start))
        assert len(np.unique(rows[:, 0, 2:])) == 2 * num_steps
        assert int(state.steps) == 0  # nothing has moved


@partial(jax.jit, static_argnames="num_epochs")
def read_batches(key, ids, size, num_epochs):
    stream = Stream(key, lambda places: ids[places], size)
    return jax.vmap(lambda index: stream.batch(index, 8, num_epochs))(jnp.arange(16, dtype=jnp.int32))


def test_every_pass_shows_every_labelled_example_once():
    for size in (1, 3, 8, 10, 17, 40):
        ids = np.random.default_rng(size).permutation(40).astype(np.int32)
        padded, passes = np.where(np.arange(40) < size, ids, 0), []
        for seed in (3, 4):
            shown, weights = jax.device_get(read_batches(jax.random.key(seed), padded, np.int32(size), 3))
            same(weights.ravel(), np.arange(128) < 3 * size)  # nothing beyond the last pass
            passes += [*shown[weights == 1].reshape(3, size)]
        same(np.sort(passes), np.sort(ids[:size])[None].repeat(6, axis=0))
        assert size < 8 or len({tuple(row) for row in passes}) == 6
    shown, weights = read_batches(jax.random.key(3), np.append(np.int32([2, 5, 7, 1]), np.zeros(36, np.int32)), 4, None)
    assert np.all(weights == 1)  # without a last pass the stream goes on and stays even
    same(np.bincount(np.ravel(shown)), [0, 32, 32, 0, 0, 32, 0, 32])


def test_neither_the_memory_of_a_fit_nor_what_it_reads_depends_on_how_its_steps_are_planned(key):
    def fit(num_steps):
        return baal.trainer(diary(300), baal.losses.squared_error, num_steps=num_steps, batch_size=12)(line())

    lowered = (fit(num_steps).lower(key, DATA, first(12)) for num_steps in (100, 100_000))
    few, many = (program.compile().memory_analysis().temp_size_in_bytes for program in lowered)
    assert few == many
    # Whole parts alone, and with a rest, of which each step is that of a single part.
    pages = [fit(num_steps)(key, DATA, first(5)).opt_state[1] for num_steps in (60, 128, 131)]
    for page, length in zip(pages, (60, 128, 131), strict=True):
        same(page[:length], pages[2][:length])
        assert [bool(np.any(page[number])) for number in (length - 1, length)] == [True, False]


@pytest.mark.parametrize("length", [{"num_steps": 6}, {"num_epochs": 3}], ids=["steps", "epochs"])
def test_only_labelled_examples_are_seen_and_a_growing_set_compiles_once(length, key):
    fit = baal.trainer(optax.adam(1e-2), baal.losses.squared_error, batch_size=8, **length)(linear())
    data, labelled = regression_data(20), np.arange(20) % 3 == 1
    state = fit(key, data, labelled)
    # NaN would spread even through a weight of zero.
    hidden = baal.Dataset(np.where(labelled[:, None], data.inputs, np.nan), np.where(labelled, data.targets, np.nan))
    same(fit(key, hidden, labelled), state)
    assert np.isfinite(state.loss)
    with count_compilations() as compiled:
        one_more = fit(key, data, labelled | (np.arange(20) == 0))
        nothing = fit(key, data, np.zeros(20, bool))
        sizes = [int(fit(key, data, np.arange(20) < num).steps) for num in (1, 4, 9, 20)]
    assert not compiled
    assert sizes == ([6] * 4 if "num_steps" in length else [1, 2, 4, 8])  # ceil(3 n / 8)
    assert not np.array_equal(one_more.variables.params, state.variables.params)
    start = jax.random.normal(jax.random.split(key, 3)[0], (3, 1))
    close((nothing.variables.params, nothing.loss), (start, 0.0))
    assert int(nothing.steps) == 0  # it ended where it began
    # Case 50, where Baal keeps the optimizer's moments: every fit starts afresh, unless it is told otherwise.
    same(fit(key, data, labelled, one_more), state)


def test_regularizer_weight_decay_and_penalty_act_beside_the_loss_whose_running_mean_is_reported(key):
    """The loss itself is constant, so that the weights shrink by what the three take away, in two fits as in one."""
    optimizer = optax.chain(optax.add_decayed_weights(0.05), optax.sgd(0.1))
    options = {"regularizer": lambda params: 0.05 * jnp.sum(params**2), "warm_start": True}
    trainer = baal.trainer(optimizer, lambda outputs, _: 3.0 + 0.0 * outputs[:, 0], num_steps=60, **options)

    def penalty(params, num_labelled):
        return 0.01 * num_labelled.astype(jnp.float32) * jnp.sum(params**2)

    fit = trainer(linear(2.0), penalty=penalty)
    state = fit(key, DATA, first(7), fit(key, DATA, first(7)))
    weights = 2.0 * (1 - 0.1 * (0.05 + 2 * 0.05 + 2 * 0.07)) ** np.arange(121)
    close(weights_of(state), np.full(3, weights[-1]))
    loss = 0.0
    for step, value in enumerate(3 + 3 * 0.12 * weights[60:-1] ** 2, start=1):
        loss += max(1 / step, 0.02) * (value - loss)
    close(state.loss, loss, rtol=1e-5)


def test_a_fit_can_be_differentiated(key):
    def total(rate):
        options = {"num_steps": 4, "batch_size": 12, "average_from": 0.5}
        trainer = baal.trainer(optax.sgd(rate), baal.losses.squared_error, **options)
        return jnp.sum(trainer(line())(key, DATA, first(12)).variables.params)

    low, high = (trajectory(DATA.inputs, DATA.targets, 4, rate)[3:].mean(axis=0).sum() for rate in (0.0999, 0.1001))
    close(jax.jit(jax.grad(total))(0.1), (high - low) / 0.0002)


NO_AXIS = baal.Dataset(np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"num_steps": 1, "num_epochs": 1}, "exactly one"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_epochs": -1}, "num_epochs=-1"),
        ({"num_steps": 2.5}, "num_steps=2.5"),
        ({"num_steps": 1, "batch_size": 0}, "batch_size=0"),
        ({"num_steps": 1, "average_from": -0.1}, "average_from=-0.1"),
        ({"num_steps": 1, "average_from": 1.0}, r"average_from=1\.0"),
        ({"num_steps": 1, "average_from": 0.5, "validation": DATA}, "average_from=0.5 beside validation"),
        ({"num_steps": 1, "validate_every": 0}, "validate_every=0"),
        ({"num_steps": 1, "validation": NO_AXIS}, "validation has 3 inputs"),
        ({"num_steps": 1, "unlabelled": True}, "unlabelled=True must be made by"),
        ({"num_steps": 1, "unlabelled_batch_size": 4}, "unlabelled_batch_size=4 without unlabelled"),
        ({"num_steps": 1, "unlabelled": PLAIN, "unlabelled_batch_size": 0}, "unlabelled_batch_size=0"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_trainer_is_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        baal.trainer(optax.sgd(0.1), baal.losses.squared_error, **arguments)


def test_data_and_losses_that_do_not_fit_are_refused(key):
    trainer = baal.trainer(optax.sgd(0.1), lambda outputs, targets: jnp.mean(outputs), num_steps=1, batch_size=4)
    for labelled, given, message in (
        (first(4), DATA, r"loss returned shape \(\), but one number for each of the 4 .*leave out the mean"),
        (first(5, 5), DATA, r"labelled has shape \(5,\), but the data set 12"),
        (first(5), DATA._replace(targets=np.zeros(11)), "one common leading axis"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(line())(key, given, labelled)


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
    state = fit(key, DATA, first(12), state)
    close(weights_of(state), again)
    assert int(state.variables.collections["calls"]) == 2 * (10 + 100)  # those of training, and of new statistics


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


@pytest.mark.parametrize("variance", [1e-8, 9.2e5, 1e12])
def test_new_statistics_keep_their_digits_whatever_their_size(variance):
    scales, momentum = np.sqrt(np.float64([variance, variance])), np.float32([0.9, 0.99])
    rows = (np.random.default_rng(0).normal(size=(8, 64, 2)) * scales).astype(np.float32)

    def train(variables, inputs, key):
        running = momentum * variables.collections + (1 - momentum) * jnp.var(inputs, axis=0)
        return None, running

    model, weights = Model(None, None, train), np.float64(momentum[:, None]) ** np.arange(7, -1, -1)
    seen = np.sum(weights * np.float64(rows).var(axis=1).T, axis=1) / weights.sum(axis=1)
    for start in (np.ones(2), np.float64([2, 0.5]) * seen):
        given = Variables((), jnp.asarray(start, jnp.float32))
        new = jax.jit(lambda v: averaging.with_new_statistics(model, v, lambda i: (None, jnp.asarray(rows)[i]), 8))(
            given
        )
        close(new.collections, seen, rtol=1e-5, atol=0)


def test_a_mean_of_half_precision_weights_does_not_stand_still(key):
    """Weights that are one for the first half of the steps and two then: a step more is less than bfloat16 tells."""

    def update(gradients, count, params=None):
        return jax.tree.map(lambda leaf: jnp.where(count == 299, 1, 0).astype(leaf.dtype), gradients), count + 1

    jump = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    model = baal.from_functions(
        lambda key, inputs: jnp.ones((3, 1), jnp.bfloat16), lambda params, x, key: x.astype(jnp.bfloat16) @ params
    )
    options = {"num_steps": 600, "batch_size": 2, "average_from": 0.0}
    state = baal.trainer(jump, lambda outputs, targets: outputs[:, 0], **options)(model)(key, DATA, first(12))
    assert state.variables.params.dtype == jnp.bfloat16
    assert weights_of(state).tolist() == [1.5] * 3


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
        ids = Stream(key_order, lambda places: places, jnp.int32(9)).batch(jnp.int32(6 + 99), 4, None)[0]
        noise = jax.random.uniform(jax.random.split(jax.random.fold_in(random.vectorised(key_steps), 6 + 99))[1])
        return Variables(jnp.float32(5.0), {"ids": ids.astype(jnp.float32) + 5.0, "noise": noise})

    close(variables, expected(key))  # the mean of 4, 5 and 6


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


def test_a_large_validation_set_is_judged_in_batches_by_the_same_loss(key):
    rows = np.resize(np.asarray(DATA.inputs), (2004, 3))  # the same twelve again and again
    many, few = (baal.Dataset(rows[:n], rows[:n] @ np.float32([1, 2, 3])) for n in (2004, 12))
    wide = baal.from_functions(
        lambda key, inputs: 0.1 * jax.random.normal(key, (3, 1000)),
        lambda params, inputs, key: (jnp.tanh(inputs @ params) @ params.T)[:, :1],
    )

    def fit(validation):
        options = {"num_steps": 4, "batch_size": 12, "validate_every": 1}
        return baal.trainer(optax.sgd(1e-3), baal.losses.squared_error, validation=validation, **options)(wide)

    given = key, DATA, first(12)
    assert fit(many).lower(*given).compile().memory_analysis().temp_size_in_bytes < 2e6  # 8 MB would be all at once
    close(fit(many)(*given), fit(few)(*given))


def test_of_equally_good_weights_the_first_are_kept(key):
    held_out = baal.Dataset(jnp.zeros((2, 3)), jnp.ones(2))  # of which no weights know anything
    state = full_batch(num_steps=4, validation=held_out, validate_every=1)(key, DATA, first(12))
    close(weights_of(state), trajectory(DATA.inputs, DATA.targets, 4)[1])


def test_balanced_classes_weigh_as_much_whatever_their_number(key):
    inputs, classes = jax.random.normal(key, (12, 3)), np.array([0] * 7 + [1] * 3 + [2, -1])
    network, known = baal.from_linen(nn.Dense(4)), np.arange(12) != 1  # of class 3 there is none
    options = {"num_steps": 6, "batch_size": 11}
    counts = np.bincount(classes[known & (classes >= 0)], minlength=4)
    weights = 10 / (3 * np.maximum(counts, 1))

    def weighted(outputs, targets):
        return baal.losses.cross_entropy(outputs, targets) * jnp.asarray(weights, jnp.float32)[targets]

    def fit(loss, **more):
        trainer = baal.trainer(optax.sgd(0.5), loss, **options, **more)
        return trainer(network)(key, baal.Dataset(inputs, jnp.asarray(classes, jnp.int32)), jnp.asarray(known))

    found = fit(baal.losses.cross_entropy, class_weights="balanced").variables.params
    jax.tree.map(close, found, fit(weighted).variables.params)
    options["class_weights"] = "balanced"
    nothing = baal.trainer(optax.sgd(0.5), baal.losses.cross_entropy, **options)
    state = nothing(network)(key, baal.Dataset(inputs, jnp.asarray(classes, jnp.int32)), jnp.zeros(12, bool))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state.variables.params))
    with pytest.raises(ValueError, match="class_weights='even' must be"):
        baal.trainer(optax.sgd(0.5), baal.losses.cross_entropy, **options | {"class_weights": "even"})
    trainer = baal.trainer(optax.sgd(0.5), baal.losses.squared_error, **options)
    with pytest.raises(ValueError, match="needs outputs and targets of one class an example"):
        trainer(network)(key, baal.Dataset(inputs, jnp.ones((12, 4))), jnp.asarray(known))
