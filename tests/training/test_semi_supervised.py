"""Semi-supervised fits: the papers' equations, and what is read and what is not.

Which inputs a step reads, and under which keys, is in ``test_trainer``.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax.training import semi_supervised
from baal_jax.typing import Model, Variables
from tests.fixtures import classes_data, close, first, regression_data, same
from tests.oracles import semi_supervised as oracle
from tests.training.by_hand import dropped, running_mean, zeros_of

ALL = 20  # examples of classes_data


def times(factor):
    def augment(key, batch):
        assert batch.targets is None or batch.targets.shape == (6,)  # those of unlabelled inputs are not there
        return batch._replace(inputs=batch.inputs * factor)

    return augment


def plus(offset):
    return lambda key, batch: batch._replace(inputs=batch.inputs + offset)


def linear(start):
    return baal.from_functions(lambda key, inputs: jnp.asarray(start), lambda params, inputs, key: inputs @ params)


PI = semi_supervised.pi_model(ramp_up=3, weight=10.0)
MATCH = semi_supervised.fix_match(plus(0.5), weight=2.0, threshold=0.3)
LOSSES = {
    "pi": (PI.loss, oracle.probability_difference),
    "pi, regression": (semi_supervised.squared_difference, oracle.squared_difference),
    "fix_match": (MATCH.loss, lambda first, second: oracle.fix_match(first, second, 0.3)),
    "fix_match, sure": (
        semi_supervised.fix_match(plus(0.5), threshold=0.8).loss,
        lambda first, second: oracle.fix_match(first, second, 0.8),
    ),
}


# The losses


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_follow_the_equations(name):
    loss, expected = LOSSES[name]
    views = np.random.default_rng(1).normal(size=(2, 9, 2, 4)) * 1.5
    rows = views.reshape(2, 18, 4)

    @jax.jit
    def both(one, other):
        return loss(one, other), jax.grad(lambda *views: loss(*views).sum(), argnums=(0, 1))(one, other)

    values, slopes = jax.device_get(both(*views.astype(np.float32)))
    close(values, np.reshape([expected(one, other) for one, other in zip(*rows, strict=True)], (9, 2)))
    for place in range(2):
        if place == 0 and name.startswith("fix_match"):  # no gradient goes through the pseudo-label
            np.testing.assert_array_equal(slopes[0], 0.0)
            assert 0 < np.count_nonzero(values) <= 18 - (name != "fix_match")  # both sides of the threshold were there
            continue
        for c in range(4):
            moved = rows.copy()
            moved[place, :, c] += 1e-6
            ends = [np.array([expected(*pair) for pair in zip(*end, strict=True)]) for end in (moved, rows)]
            close(slopes[place].reshape(18, 4)[:, c], (ends[0] - ends[1]) / 1e-6, rtol=1e-3, atol=1e-4)


def test_certain_and_undecided_rows():
    certain = np.array([[0.0, -np.inf, -np.inf]], np.float32)
    for loss in (PI.loss, MATCH.loss):
        step = jax.jit(jax.value_and_grad(lambda second, loss=loss: jnp.sum(loss(certain, second))))
        value, slope = step(np.zeros((1, 3), np.float32))
        expected = 2 / 9 if loss is PI.loss else np.log(3)
        close(value, expected)
        assert np.isfinite(slope).all()
    # A probability of exactly the threshold counts.
    loss = semi_supervised.fix_match(plus(0.5), threshold=0.5).loss
    close(loss(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)), np.log([2.0]))


def test_the_ramp_is_the_papers_curve():
    steps = np.array([0, 1, 7, 19, 20, 21, 1000], np.int32)
    found = jax.jit(semi_supervised.gaussian_ramp(3.0, 20))(steps)
    close(found, [oracle.ramp(step, 20, 3.0) for step in steps], rtol=1e-5)
    assert float(semi_supervised.gaussian_ramp(3.0, 0)(np.int32(0))) == 3.0
    close(PI.weight(np.int32(1)), oracle.ramp(1, 3, 10.0))
    assert float(MATCH.weight(np.int32(0))) == 2.0


# Whole fits


def pi_regression(num_steps, weight=2.0, **options):
    consistency = semi_supervised.pi_model(ramp_up=6, distance=semi_supervised.squared_difference)._replace(
        weight=semi_supervised.gaussian_ramp(weight, 6), first=times(0.5), second=times(2.0)
    )
    return baal.trainer(
        optax.sgd(0.05), baal.losses.squared_error, batch_size=5, unlabelled=consistency, unlabelled_batch_size=12,
        num_steps=num_steps, **options,
    )(linear(np.full((3, 1), 0.5, np.float32)))  # fmt: skip


def test_a_pi_model_fit_is_gradient_descent_on_the_papers_loss_and_a_warm_start_does_not_begin_the_ramp_again(key):
    data, labelled = regression_data(), first(5)
    fit = pi_regression(4, warm_start=True)
    hidden = data._replace(targets=np.where(labelled, data.targets, np.nan))  # unknown targets may be anything
    state = fit(key, hidden, labelled, zeros_of(fit, key, hidden, labelled))
    for num_steps in (4, 8):
        weights, losses = oracle.pi_regression(
            data.inputs, data.targets, labelled, num_steps, 0.05, 0.5, length=6, weight=2.0, factors=(0.5, 2.0)
        )
        close((state.variables.params[:, 0], state.loss), (weights, running_mean(losses)))
        assert int(state.steps) == num_steps
        state = fit(jax.random.key(1), hidden, labelled, state)


def test_a_fix_match_fit_is_gradient_descent_on_the_papers_loss(key):
    data, labelled = classes_data(), first(6, ALL)
    start = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
    # The view of the pseudo-label is the trainer's own.
    consistency = semi_supervised.fix_match(times(0.7), weight=0.5, threshold=0.8)
    trainer = baal.trainer(
        optax.sgd(0.1), baal.losses.cross_entropy, num_steps=6, batch_size=6, unlabelled=consistency,
        unlabelled_batch_size=ALL, augment=times(1.5),
    )  # fmt: skip
    state = trainer(linear(start))(key, data, labelled)
    expected, sure = oracle.fix_match_classifier(
        data.inputs, data.targets, labelled, 6, 0.1, start, weight=0.5, threshold=0.8, factors=(1.5, 0.7)
    )
    assert 0 < min(sure) <= max(sure) < ALL  # the threshold decides something
    close(state.variables.params, expected, atol=1e-5)


def test_a_fit_can_be_differentiated_by_unlabelled_inputs_and_by_the_weight(key):
    data, labelled = regression_data(), first(5)

    def total(weight, scale):
        inputs = jnp.where(labelled[:, None], data.inputs, data.inputs * scale)
        return jnp.sum(pi_regression(3, weight)(key, data._replace(inputs=inputs), labelled).variables.params)

    def expected(weight, scale):
        inputs = np.where(labelled[:, None], data.inputs, np.float64(data.inputs) * scale)
        return oracle.pi_regression(inputs, data.targets, labelled, 3, 0.05, 0.5, 6, weight, (0.5, 2.0))[0].sum()

    slopes, step = jax.jit(jax.grad(total, argnums=(0, 1)))(2.0, 1.0), 1e-5
    by_weight = (expected(2.0 + step, 1.0) - expected(2.0 - step, 1.0)) / (2 * step)
    by_scale = (expected(2.0, 1.0 + step) - expected(2.0, 1.0 - step)) / (2 * step)
    close(slopes, (by_weight, by_scale), rtol=1e-3)


@cache
def fit_of(unlabelled=None):
    trainer = baal.trainer(
        optax.adam(1e-2), baal.losses.cross_entropy, unlabelled=unlabelled, num_steps=5, batch_size=8
    )
    return trainer(dropped())


def test_with_a_weight_of_zero_nothing_is_learnt_from_the_unlabelled(key):
    # The dropout masks of the labelled rows are the first ones of a larger batch, so the fit is the supervised one.
    data, labelled = classes_data(), first(9, ALL)
    supervised = fit_of()(key, data, labelled)
    close(fit_of(semi_supervised.pi_model(ramp_up=0, weight=0.0))(key, data, labelled), supervised)
    used = fit_of(PI)(key, data, labelled).variables.params  # U is the batch size, where it is not given
    assert np.abs(used - supervised.variables.params).max() > 1e-3


@pytest.mark.parametrize("unlabelled", [PI, MATCH], ids=["pi_model", "fix_match"])
def test_targets_of_the_unlabelled_are_never_read_and_their_inputs_are(unlabelled, key):
    data, labelled, fit = classes_data(), np.arange(ALL) % 3 == 1, fit_of(unlabelled)
    state = fit(key, data, labelled)
    for poison in (-7, 10**6):
        same(fit(key, data._replace(targets=np.where(labelled, data.targets, poison)), labelled), state)
    moved = data._replace(inputs=np.where(labelled[:, None], data.inputs, -data.inputs))
    assert np.abs(fit(key, moved, labelled).variables.params - state.variables.params).max() > 1e-4
    everything, nothing = fit(key, data, np.ones(ALL, bool)), fit(key, data, np.zeros(ALL, bool))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything))
    assert (float(everything.loss) > 0, float(nothing.loss)) == (True, 0.0)  # with nothing labelled nothing is learnt
    close(nothing.variables.params, jax.random.normal(jax.random.split(key, 4)[0], (4, 3)))


def test_batch_statistics_come_from_the_labelled_and_from_the_first_view(key):
    def train(variables, inputs, key):
        return inputs @ variables.params, {"mean": inputs.mean(axis=0), "var": inputs.var(axis=0)}

    def init(key, inputs):
        return Variables(jnp.ones((4, 3)), {"mean": jnp.zeros(4), "var": jnp.zeros(4)})

    data = classes_data()
    trainer = baal.trainer(
        optax.sgd(0.1), baal.losses.cross_entropy, num_steps=2, batch_size=8, unlabelled_batch_size=ALL,
        unlabelled=PI._replace(first=plus(1.0), second=plus(50.0)), augment=plus(-2.0),
    )  # fmt: skip
    found = trainer(Model(init, None, train))(key, data, first(8, ALL)).variables.collections
    inputs = np.float64(data.inputs)
    rows = np.concatenate([inputs[:8] - 2.0, inputs + 1.0])
    close(found, {"mean": rows.mean(axis=0), "var": rows.var(axis=0)})


# Refusals


def test_bad_arguments_are_refused_where_they_are_given():
    for build, message in (
        (lambda: semi_supervised.pi_model(ramp_up=-1), "ramp_up=-1"),
        (lambda: semi_supervised.pi_model(ramp_up=2.5), "ramp_up=2.5"),
        (lambda: semi_supervised.pi_model(ramp_up=1, weight=-1.0), "weight=-1.0"),
        (lambda: semi_supervised.pi_model(ramp_up=1, weight=float("nan")), "weight=nan"),
        (lambda: semi_supervised.fix_match(plus(1), threshold=1.5), "threshold=1.5"),
        (lambda: semi_supervised.fix_match(plus(1), threshold=-0.5), "threshold=-0.5"),
        (lambda: semi_supervised.fix_match(plus(1), weight=float("inf")), "weight=inf"),
        (lambda: semi_supervised.fix_match(0.5), "strong=0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_what_cannot_work_is_refused_when_the_fit_is_traced(key):
    to_bool = lambda key, batch: batch._replace(inputs=batch.inputs > 0)  # noqa: E731
    for unlabelled, outputs, message in (
        (PI, (3,), "does not depend on the key and nothing is augmented"),
        (
            PI._replace(second=plus(1), loss=lambda a, b: jnp.mean(a)),
            (3,),
            "the loss of unlabelled.*32.*leave out the mean",
        ),
        (PI._replace(first=to_bool), (3,), "let both return the same"),
        (PI._replace(second=plus(1)), (1,), "single class.*squared_difference"),
        (semi_supervised.fix_match(plus(1)), (1,), "single class.*binary_logits"),
        (PI._replace(second=plus(1)), (), r"first outputs are no array \[U, …, C\] but \(32,\)"),
    ):
        trainer = baal.trainer(
            optax.sgd(0.1), lambda out, targets: out.reshape(32, -1)[:, 0], num_steps=1, unlabelled=unlabelled
        )
        with pytest.raises(ValueError, match=message):
            trainer(linear(np.ones((4, *outputs), np.float32)))(key, classes_data(), first(9, ALL))
