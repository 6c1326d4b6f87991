"""Estimates of a risk from few test labels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baal_jax import active_testing

EXPECTED = active_testing.Expected(jnp.array([0.4, 0.1, 0.2, 0.7, 0.05]), jnp.array([0.4, 0.1, 0.2, 0.7, 0.05]))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def predictions(num=40, classes=3):
    rng = np.random.default_rng(0)
    return [log_softmax(2 * rng.normal(size=(num, classes))) for _ in range(2)]


def planned(order, weights):
    """A plan that came out in this order, and the chance of its first ``M``."""
    left, chances = 1.0, []
    for index in order:
        chances.append(weights[index] / left)
        left -= weights[index]
    return active_testing.Plan(jnp.array(order), jnp.array(chances, jnp.float32)), chances


@settings(max_examples=10, deadline=None)
@given(losses=st.lists(st.floats(0, 3), min_size=5, max_size=5), count=st.integers(2, 5))
def test_over_all_orders_the_estimate_is_the_mean_loss(losses, count):
    """In expectation, whatever the losses and the surrogate; the interval is of zero width with all labels."""
    weights, losses, total = np.asarray(EXPECTED.mean) / np.sum(EXPECTED.mean), np.array(losses), 0.0
    for order in itertools.permutations(range(5)):
        plan, chances = planned(order, weights)
        estimate = active_testing.risk(plan, losses[list(order)[:count]], EXPECTED)
        total += np.prod(chances) * estimate.value
        if count == 5:
            np.testing.assert_allclose(estimate[:3], losses.mean(), atol=1e-6)
    np.testing.assert_allclose(total, losses.mean(), atol=1e-5)


def test_expectations_are_those_of_the_surrogate():
    model, surrogate = predictions()
    pi, best = np.exp(surrogate), model.argmax(axis=1)
    error = active_testing.expected_error(model, surrogate)
    np.testing.assert_allclose(error.mean, 1 - pi[np.arange(40), best], rtol=1e-4)
    np.testing.assert_array_equal(error.mean, error.square)
    nll = active_testing.expected_nll(model + 3.0, surrogate - 1.0)  # logits will do
    np.testing.assert_allclose(nll.mean, -(pi * model).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(nll.square, (pi * model**2).sum(axis=1), rtol=1e-4)


def test_a_plan_draws_in_proportion_and_knows_with_which_chance():
    weights = np.maximum(np.asarray(EXPECTED.mean), 0)
    firsts = [int(active_testing.plan(jax.random.key(seed), EXPECTED).indices[0]) for seed in range(600)]
    shares = np.bincount(firsts, minlength=5) / 600
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.06)
    plan = active_testing.plan(jax.random.key(1), EXPECTED)
    _, chances = planned(plan.indices.tolist(), weights / weights.sum())
    np.testing.assert_allclose(plan.probabilities, chances, rtol=1e-5)
    certain = active_testing.Expected(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, 1.0]))
    assert sorted(active_testing.plan(jax.random.key(0), certain).indices.tolist()) == [0, 1, 2]
    assert active_testing.plan(jax.random.key(0), jax.tree.map(jnp.zeros_like, EXPECTED)).probabilities[0] == 0.2


def test_it_takes_fewer_labels_than_plain_sampling_and_intervals_cover():
    rng = np.random.default_rng(0)
    wrong = rng.beta(0.2, 2.0, 400)
    expected = active_testing.Expected(jnp.asarray(wrong), jnp.asarray(wrong))
    losses = (rng.random(400) < wrong).astype(float)
    ours, plain, covered = [], [], []
    for seed in range(300):
        plan = active_testing.plan(jax.random.key(seed), expected)
        estimate = active_testing.risk(plan, losses[np.asarray(plan.indices[:40])], expected)
        ours.append(estimate.value - losses.mean())
        covered.append(estimate.low <= losses.mean() <= estimate.high)
        plain.append(losses[rng.choice(400, 40, replace=False)].mean() - losses.mean())
    assert np.mean(np.square(plain)) > 1.5 * np.mean(np.square(ours))
    assert abs(np.mean(ours)) < 4 * np.std(ours) / np.sqrt(300)
    assert np.mean(covered) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda plan: active_testing.risk(plan, [1.0], EXPECTED), "two at least"),
        (lambda plan: active_testing.risk(plan, np.ones(6), EXPECTED), "first of 5 examples"),
        (lambda plan: active_testing.risk(plan, [0.0, np.nan], EXPECTED), "must be finite"),
        (lambda plan: active_testing.plan(jax.random.key(0), active_testing.Expected(-jnp.ones(3), 0)), "at least 0"),
        (lambda plan: active_testing.expected_error(np.zeros((3, 2)), np.zeros((3, 3))), "give both as"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(active_testing.plan(jax.random.key(0), EXPECTED))


def test_a_loop_reports_what_few_test_labels_say():
    """The same in a compiled round, of the same draws; an average over seeds is the accuracy, and all labels are it."""
    model, _ = predictions(num=60)
    log_probs, targets = jnp.asarray(model, jnp.float32), jnp.asarray(np.random.default_rng(1).integers(0, 3, 60))
    accuracy, found = np.mean(model.argmax(axis=1) == targets), []
    for seed in range(200):
        compute = active_testing.estimates(12, seed=seed).compute
        found.append(compute(log_probs, targets)["tested_accuracy"])
    assert abs(np.mean(found) - accuracy) < 4 * np.std(found) / 200**0.5
    compute = active_testing.estimates(60).compute
    np.testing.assert_allclose(jax.jit(compute)(log_probs, targets)["tested_accuracy"], accuracy, rtol=1e-5)
    # Of the draws of a plan it is the same estimate and interval.
    expected = active_testing.expected_error(log_probs, log_probs)
    own = jax.lax.bitcast_convert_type(jnp.sum(log_probs), jnp.uint32)
    plan = active_testing.plan(jax.random.fold_in(jax.random.key(0), own), expected)
    wrong = model.argmax(axis=1)[plan.indices[:12]] != targets[plan.indices[:12]]
    theirs, ours = active_testing.risk(plan, wrong, expected), active_testing.estimates(12).compute(log_probs, targets)
    names = ("tested_accuracy", "tested_accuracy_high", "tested_accuracy_low")
    np.testing.assert_allclose(
        np.clip([1 - part for part in theirs[:3]], 0, 1), [ours[name] for name in names], rtol=1e-4
    )
    with pytest.raises(ValueError, match="num_labels=61"):
        active_testing.estimates(61).compute(log_probs, targets)
