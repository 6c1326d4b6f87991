"""Transitions between labelled sets against plain assignments, compiled and not. Mapped ones: test_loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import pool
from tests.fixtures import same

SIZE = 12
SLOTS = 5  # every list of ids is padded to one length, so that each transition compiles once

ids = st.lists(st.integers(0, SIZE - 1), max_size=SLOTS, unique=True)
padded_ids = ids.flatmap(lambda chosen: st.permutations(chosen + [-1] * (SLOTS - len(chosen))))
names = st.sampled_from(["label", "label with targets", "annotate", "unlabel", "exclude", "label randomly"])
operations = st.lists(st.tuples(names, padded_ids, st.integers(0, 99)), max_size=8)


def state_of(labelled=(), excluded=()):
    """A pool in round 1."""
    since = np.full(SIZE, -1, np.int32)
    since[list(labelled)], since[list(excluded)] = 0, -2
    return pool.PoolState(jnp.asarray(since), jnp.asarray(np.int32(1)))


def check(state, at, targets, number):
    same((state.labelled_at, state.targets, state.round), (at, targets, number))
    for last in (None, 1, 2, 5):
        same(pool.labelled(state, last), (at >= 0) & (last is None or at > at.max() - (last or 0)))
    same(pool.available(state), at == -1)
    assert [int(pool.num_labelled(state)), int(pool.num_available(state))] == [np.sum(at >= 0), np.sum(at == -1)]


@given(operations)  # Cases 42 and 43, with ids of the whole data set instead of pool-relative ones
def test_every_sequence_of_transitions_does_what_plain_assignments_do(steps):
    at, targets, number = np.full(SIZE, -1), np.full(SIZE, -1), 0
    state = pool.init(SIZE, targets=targets)
    check(state, at, targets, number)
    for name, padded, option in steps:
        before, snapshot = state, jax.tree.map(np.array, state)
        given, advance = [option + place for place in range(SLOTS)], option % 2 == 0
        if name == "label":
            state = pool.label(state, padded, advance=advance)
        elif name == "label with targets":
            state, advance = pool.label(state, padded, targets=given), True
        elif name == "annotate":
            state = pool.annotate(state, padded, given)
        elif name == "label randomly":
            count, advance = min(option % 4, int(np.sum(at == -1))), True
            padded = pool.random_query(jax.random.key(option), state, count).tolist()
            assert len({i for i in padded if at[i] == -1}) == count
            state = pool.label_randomly(jax.random.key(option), state, count)
        else:
            state = getattr(pool, name)(state, padded)
        for i, target in zip(padded, given, strict=False):
            if i >= 0:
                changed = {"unlabel": min(at[i], -1), "exclude": -2, "annotate": at[i]}
                at[i] = changed.get(name, number if at[i] == -1 else at[i])
                targets[i] = target if name in ("label with targets", "annotate") else targets[i]
        number += advance and name.startswith("label")
        check(state, at, targets, number)
        same(before, snapshot)


label_compiled, unlabel_compiled, exclude_compiled = map(jax.jit, (pool.label, pool.unlabel, pool.exclude))


@given(st.lists(st.integers(-3, SIZE + 2), min_size=SLOTS, max_size=SLOTS), ids)
def test_compiled_code_counts_repeated_ids_once_and_ignores_those_out_of_range(chosen, already):
    state = pool.label(pool.init(SIZE), already + [-1] * (SLOTS - len(already)))
    valid = {i for i in chosen if 0 <= i < SIZE}
    new = label_compiled(state, jnp.array(chosen))
    assert new.labelled_at.tolist() == [0 if i in already else 1 if i in valid else -1 for i in range(SIZE)]
    assert int(new.round) == 2
    kept = unlabel_compiled(new, jnp.array(chosen))
    assert set(np.flatnonzero(pool.labelled(kept))) == set(already) - valid
    assert set(np.flatnonzero(exclude_compiled(new, jnp.array(chosen)).labelled_at == -2)) == valid


def test_labels_from_people_of_any_shape_are_stored_and_can_be_corrected_while_old_states_stay():
    start = pool.init(SIZE, targets=jnp.full((SIZE, 2), -1.0))
    assert jnp.full(SIZE, -1.0).weak_type  # a weak dtype would change with the first label, and a compiled step with it
    assert not start.targets.weak_type
    early = pool.annotate(start, [3, 1], [[30, 31], [10, 11]])
    assert int(pool.num_labelled(early)) == 0
    fixed = pool.annotate(early, 3, [[32, 33]])
    for state, third in ((start, [-1, -1]), (early, [30, 31]), (fixed, [32, 33])):
        assert state.targets[2:4].tolist() == [[-1, -1], third]
    same(fixed.labelled_at, early.labelled_at)
    assert int(fixed.round) == 0
    assert pool.unlabel(pool.label(fixed, 3), 3).targets[3].tolist() == [32, 33]


def test_what_makes_no_sense_is_refused():
    # Cases 43 and 45.
    both, key, all_but_two = pool.init(SIZE, targets=np.full(SIZE, -1)), jax.random.key(0), state_of([0], [5])
    for chosen, message in (
        ([1, 1], "1 more than once"),
        ([0, SIZE], f"{SIZE}, outside of the {SIZE}"),
        ([-2, 0], "-2, outside"),
        ([0.0], "integer ids, not float"),
        (np.array([True, False]), "integer ids, not bool"),
    ):
        annotate = functools.partial(pool.annotate, targets=[1] * len(chosen))
        for change in (pool.label, pool.unlabel, pool.exclude, annotate):
            with pytest.raises(ValueError, match=message):
                change(both, chosen)
    for message, call in {
        "num_examples=0": lambda: pool.init(0),
        rf"targets has shape \(3,\), but .* num_examples={SIZE}": lambda: pool.init(SIZE, targets=np.zeros(3)),
        "stores none": lambda: pool.label(all_but_two, [1], targets=[2]),
        "2 labels for 1 indices": lambda: pool.annotate(both, [1], [2, 3]),
        "num=11 exceeds the 10 unlabelled": lambda: pool.label_randomly(key, all_but_two, 11),
        "num=13 exceeds the 12": lambda: jax.eval_shape(lambda state: pool.random_query(key, state, SIZE + 1), both),
        "num=-1": lambda: pool.random_query(key, both, -1),
        "last_rounds=0": lambda: pool.labelled(both, 0),
        "last_rounds=True": lambda: pool.labelled(both, True),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_random_labels_are_uniform_and_decided_by_the_key_and_end_where_the_pool_ends():
    state = state_of([2, 7], [3])
    keys = jax.random.split(jax.random.key(1), 3000)
    many = np.asarray(jax.jit(jax.vmap(lambda key: pool.labelled(pool.label_randomly(key, state, 3))))(keys))
    counts = many.sum(0)
    assert counts[[2, 7, 3]].tolist() == [3000, 3000, 0]
    others = np.delete(counts, [2, 7, 3])
    assert others.sum() == 3 * 3000
    np.testing.assert_allclose(others, 1000, atol=5 * np.sqrt(3000 * 2 / 9))  # five standard deviations
    same(pool.labelled(pool.label_randomly(keys[5], state, 3)), many[5])
    # Compiled code does not know how many are left.
    label = jax.jit(lambda key, state: (pool.random_query(key, state, SIZE), pool.label_randomly(key, state, SIZE)))
    drawn, full = label(jax.random.key(0), state)
    assert sorted(drawn[:-3].tolist()) == [0, 1, 4, 5, 6, *range(8, SIZE)]
    assert drawn[-3:].tolist() == [-1] * 3
    assert full.labelled_at.tolist() == [1, 1, 0, -2, 1, 1, 1, 0, *[1] * (SIZE - 8)]


def test_the_first_query_of_an_acquisition_has_the_key_and_the_pool():
    key, state, rows = jax.random.key(3), state_of([2, 7], [3]), np.arange(SIZE, dtype=np.float32)
    acquisition = baal.Acquisition(lambda p: (p.logits, p.features + 1), lambda *arguments: arguments)
    given_key, (logits, features), *rest = pool.first_query(key, state, 4, acquisition, rows)
    assert (given_key is key, logits) == (True, None)
    same((features, *rest), (rows + 1, pool.available(state), 4, pool.labelled(state)))
