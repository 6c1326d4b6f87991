"""When to stop, in numbers that can be checked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import pool, stopping

# All of this file is conformance case 48.


def test_a_budget_counts_every_label_whenever_it_was_given():
    # Baal counts only what its data set shows, so with last_active_steps its budget is never reached.
    state = pool.init(10)
    found = []
    for i in range(4):
        state = pool.label(state, [i])
        found.append(bool(stopping.labelling_budget(state, 3)))
    assert int(pool.labelled(state, last_rounds=1).sum()) == 1
    assert found == [False, False, True, True]


def test_a_budget_is_not_spent_by_padding_nor_by_labels_taken_back():
    state = pool.label(pool.init(5), [0, 1, -1])
    assert not stopping.labelling_budget(state, 3)
    assert stopping.labelling_budget(pool.label(state, [2]), 3)
    assert not stopping.labelling_budget(pool.unlabel(pool.label(state, [2]), [0]), 3)


@pytest.mark.parametrize(("score", "expected"), [(0.1, True), (0.25, False), (0.3, False), (np.nan, False)])
def test_low_uncertainty_is_strict(score, expected):
    assert bool(stopping.low_uncertainty(jnp.float32(score), 0.25)) == expected


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([1.0, 1.0], False),
        ([1.0, 1.0, 1.0], True),  # as Baal: the third value of three stops
        ([1.0, 1.0, 1.0, 0.5], False),
        ([1.0, 1.0, 1.0, 0.5, 0.5], False),
        ([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], False),
        ([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5], True),  # and the fourth after a change
        ([0.5, 0.6, 0.7, 0.8], False),  # not a plateau, although it improves
        ([0.9, 0.50005, 0.5, 0.5, 0.49995], True),
        ([0.9, 0.5002, 0.5, 0.5], False),
        ([0.5, np.nan, 0.5], False),
        ([0.5, 0.5, np.nan], False),
    ],
)
def test_a_plateau_is_the_latest_value_and_patience_before_it(history, expected):
    assert bool(stopping.plateau(jnp.array(history), patience=3)) == expected


def test_a_plateau_is_measured_as_numpy_measures_closeness():
    rng = np.random.default_rng(0)
    found, expected = [], []
    for _ in range(100):
        history = (100 * (1 + rng.choice([1e-4, 1e-3, 1e-2]) * rng.normal(size=4))).astype(np.float32)
        found.append(bool(stopping.plateau(jnp.asarray(history), patience=4, atol=0.01, rtol=1e-3)))
        expected.append(np.allclose(history, history[-1], atol=0.01, rtol=1e-3))
    assert found == expected
    assert 0 < sum(expected) < 100


def test_patience_has_the_documented_default():
    flat = jnp.full(10, 0.7)
    assert stopping.plateau(flat)
    assert not stopping.plateau(flat[:9])
    assert not stopping.plateau(flat.at[0].set(0.8))


def test_the_rules_compile_and_map():
    histories = jnp.array([[0.1, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    assert jax.jit(jax.vmap(lambda h: stopping.plateau(h, patience=3)))(histories).tolist() == [False, True]
    states = jax.vmap(lambda i: pool.label(pool.init(4), i))(jnp.array([[0, -1], [1, 2]]))
    assert jax.jit(jax.vmap(lambda s: stopping.labelling_budget(s, 2)))(states).tolist() == [False, True]
    scores = jnp.array([0.1, 0.3])
    assert jax.jit(lambda s: stopping.low_uncertainty(s, 0.2))(scores).tolist() == [True, False]


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_counts_must_be_positive_integers(value):
    with pytest.raises(ValueError, match="budget"):
        stopping.labelling_budget(pool.init(3), value)
    with pytest.raises(ValueError, match="patience"):
        stopping.plateau(jnp.ones(3), patience=value)
