"""Transitions between labelled sets against a plain Python model, and what makes them safe to keep and to compile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import heuristics, pool, selection
from tests.fixtures import random_network, same

SIZE = 12
SLOTS = 5  # every list of ids is padded to one length, so that each transition compiles once

ids = st.lists(st.integers(0, SIZE - 1), max_size=SLOTS, unique=True)
padded_ids = ids.flatmap(lambda chosen: st.permutations(chosen + [-1] * (SLOTS - len(chosen))))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("label"), padded_ids, st.booleans()),
        st.tuples(st.just("label with targets"), padded_ids, st.integers(0, 99)),
        st.tuples(st.just("annotate"), padded_ids, st.integers(0, 99)),
        st.tuples(st.just("unlabel"), padded_ids, st.none()),
        st.tuples(st.just("exclude"), padded_ids, st.none()),
        st.tuples(st.just("label randomly"), st.integers(0, 3), st.integers(0, 2**31 - 1)),
    ),
    max_size=8,
)


def stored(shape=()):
    return pool.init(SIZE, targets=np.full((SIZE, *shape), -1, np.int32))


def state_of(labelled=(), excluded=()):
    """A pool in round 1."""
    since = np.full(SIZE, -1, np.int32)
    since[list(labelled)], since[list(excluded)] = 0, -2
    return pool.PoolState(jnp.asarray(since), jnp.asarray(np.int32(1)))


class Model:
    """What a pool is, in plain Python."""

    def __init__(self):
        self.labelled_at, self.targets, self.round, self.excluded = {}, {}, 0, set()

    def label(self, chosen, advance=True):
        for i in set(chosen) - self.excluded:
            self.labelled_at.setdefault(i, self.round)
        self.round += advance

    def unlabel(self, chosen):
        for i in chosen:
            self.labelled_at.pop(i, None)

    def available(self):
        return set(range(SIZE)) - set(self.labelled_at) - self.excluded

    def check(self, state):
        assert int(state.round) == self.round
        otherwise = [-2 if i in self.excluded else -1 for i in range(SIZE)]
        assert state.labelled_at.tolist() == [self.labelled_at.get(i, otherwise[i]) for i in range(SIZE)]
        assert state.targets.tolist() == [self.targets.get(i, -1) for i in range(SIZE)]
        assert set(np.flatnonzero(pool.labelled(state))) == set(self.labelled_at)
        assert set(np.flatnonzero(pool.available(state))) == self.available()
        assert int(pool.num_labelled(state)) == len(self.labelled_at)
        assert int(pool.num_available(state)) == len(self.available())
        latest = max(self.labelled_at.values(), default=0)
        for last in (1, 2, 5):
            recent = {i for i, at in self.labelled_at.items() if at > latest - last}
            assert set(np.flatnonzero(pool.labelled(state, last))) == recent


@given(operations)  # Cases 42 and 43, with ids of the whole data set instead of pool-relative ones
def test_every_sequence_of_transitions_does_what_the_plain_model_does(steps):
    model, state = Model(), stored()
    model.check(state)
    for name, argument, option in steps:
        before, snapshot = state, jax.tree.map(np.array, state)
        chosen = [i for i in argument if i >= 0] if isinstance(argument, list) else []
        if name == "label":
            state = pool.label(state, argument, advance=option)
            model.label(chosen, option)
        elif name == "unlabel":
            state = pool.unlabel(state, argument)
            model.unlabel(chosen)
        elif name == "exclude":
            state = pool.exclude(state, argument)
            model.unlabel(chosen)
            model.excluded.update(chosen)
        elif name == "label randomly":
            number = min(argument, len(model.available()))
            drawn = pool.random_query(jax.random.key(option), state, number)
            assert len(set(drawn.tolist()) & model.available()) == number
            state = pool.label_randomly(jax.random.key(option), state, number)
            model.label(drawn.tolist())
        else:
            given_targets = [option + place for place in range(SLOTS)]
            model.targets.update({i: t for i, t in zip(argument, given_targets, strict=True) if i >= 0})
            if name == "annotate":
                state = pool.annotate(state, argument, given_targets)
            else:
                state = pool.label(state, argument, targets=given_targets)
                model.label(chosen)
        model.check(state)
        same(before, snapshot)


@given(st.lists(st.integers(-3, SIZE + 2), min_size=SLOTS, max_size=SLOTS), ids)
def test_compiled_code_counts_repeated_ids_once_and_ignores_those_out_of_range(chosen, already):
    state = pool.label(pool.init(SIZE), already + [-1] * (SLOTS - len(already)))
    valid = {i for i in chosen if 0 <= i < SIZE}
    new = label_compiled(state, jnp.array(chosen))
    assert set(np.flatnonzero(pool.labelled(new))) == valid | set(already)
    assert {i: int(new.labelled_at[i]) for i in already} == dict.fromkeys(already, 0)
    assert int(pool.num_labelled(new)) == len(valid | set(already))
    assert int(new.round) == 2
    kept = unlabel_compiled(new, jnp.array(chosen))
    assert set(np.flatnonzero(pool.labelled(kept))) == set(already) - valid
    assert set(np.flatnonzero(exclude_compiled(new, jnp.array(chosen)).labelled_at == -2)) == valid


label_compiled = jax.jit(pool.label)
unlabel_compiled = jax.jit(pool.unlabel)
exclude_compiled = jax.jit(pool.exclude)


def test_labels_from_people_are_stored_and_can_be_corrected_while_old_states_stay():
    """Whatever shape a label has; and it can be stored before its example counts as labelled."""
    start = stored((2,))
    early = pool.annotate(start, [3, 1], [[30, 31], [10, 11]])
    assert int(pool.num_labelled(early)) == 0
    fixed = pool.annotate(early, 3, [[32, 33]])
    for state, third in ((start, [-1, -1]), (early, [30, 31]), (fixed, [32, 33])):
        assert state.targets.tolist()[:4] == [[-1, -1], state.targets[1].tolist(), [-1, -1], third]
    same(fixed.labelled_at, early.labelled_at)
    assert int(fixed.round) == 0
    assert pool.unlabel(pool.label(fixed, 3), 3).targets[3].tolist() == [32, 33]


def test_stored_targets_have_a_dtype_of_their_own():
    """A weak one would change with the first label, and a compiled step with it."""
    given = jnp.full(SIZE, 0.5)
    assert given.weak_type
    state = pool.init(SIZE, targets=given)
    assert not state.targets.weak_type
    assert pool.annotate(state, [1, -1], [2, 2]).targets.tolist()[:3] == [0.5, 2.0, 0.5]


def test_what_makes_no_sense_is_refused():
    # Cases 43 and 45.
    both, key, all_but_two = stored(), jax.random.key(0), state_of([0], [5])
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


# At random


def test_compiled_random_labels_end_where_the_pool_ends():
    state = state_of([1, 4], [0])
    label = jax.jit(lambda key, state: (pool.random_query(key, state, SIZE), pool.label_randomly(key, state, SIZE)))
    drawn, full = label(jax.random.key(0), state)
    assert sorted(drawn.tolist()) == [-1] * 3 + [2, 3, *range(5, SIZE)]
    assert drawn.tolist()[-3:] == [-1] * 3
    assert full.labelled_at.tolist() == [-2, 0, 1, 1, 0, *[1] * (SIZE - 5)]


def test_random_labels_are_uniform_and_decided_by_the_key():
    state = state_of([2, 7], [3])
    keys = jax.random.split(jax.random.key(1), 3000)
    many = np.asarray(jax.jit(jax.vmap(lambda key: pool.labelled(pool.label_randomly(key, state, 3))))(keys))
    counts = many.sum(0)
    assert counts[[2, 7, 3]].tolist() == [3000, 3000, 0]
    others = np.delete(counts, [2, 7, 3])
    assert others.sum() == 3 * 3000
    np.testing.assert_allclose(others, 1000, atol=5 * np.sqrt(3000 * 2 / 9))  # five standard deviations
    same(pool.labelled(pool.label_randomly(keys[5], state, 3)), many[5])


def test_the_first_query_of_an_acquisition_has_the_key_and_the_pool():
    """More of it: selection/test_cold_starts."""
    key, state = jax.random.key(3), state_of([2, 7], [3])

    def select(*arguments):
        return arguments

    rows = np.arange(SIZE, dtype=np.float32)
    given = pool.first_query(key, state, 4, baal.Acquisition(lambda p: (p.logits, p.features + 1), select), rows)
    assert given[0] is key
    assert given[1][0] is None
    same((given[1][1], *given[2:]), (rows + 1, pool.available(state), 4, pool.labelled(state)))


# Compiled


def test_transitions_map_and_scan():
    states = jax.vmap(lambda i: pool.label(pool.init(SIZE), i[None]))(np.arange(3))
    mapped = np.asarray(jax.vmap(pool.label)(states, np.array([[5, 0], [5, -1], [2, 3]])).labelled_at)
    expected = [[0, -1, -1, -1, -1, 1], [-1, 0, -1, -1, -1, 1], [-1, -1, 0, 1, -1, -1]]
    assert mapped[:, :6].tolist() == expected
    keys = jax.random.split(jax.random.key(0), 3)
    scan = jax.jit(
        lambda keys: jax.lax.scan(lambda s, key: (pool.label_randomly(key, s, 2), None), pool.init(SIZE), keys)
    )
    looped = pool.init(SIZE)
    for key in keys:
        looped = pool.label_randomly(key, looped, 2)
    assert sorted(looped.labelled_at.tolist()) == [-1] * 6 + [0, 0, 1, 1, 2, 2]
    same(scan(keys)[0], looped)


def test_ten_million_examples_take_ten_thousand_labels_in_one_call():
    size, number = 10**7, 10**4
    state, chosen = jax.jit(lambda: (pool.init(size), jnp.arange(number, dtype=jnp.int32) * 997))()
    state = label_compiled(state, chosen)
    assert state.labelled_at.nbytes == 4 * size
    since = np.asarray(state.labelled_at)
    assert np.count_nonzero(since >= 0) == np.count_nonzero(since[np.asarray(chosen)] == 0) == number


# Kept


def test_a_loop_saved_as_plain_arrays_continues_index_for_index(tmp_path):
    # Case 44; no library and no pickle needed, the key travels as its words.
    loop = baal.active_loop(random_network(), selection.power(heuristics.bald), query_size=2, num_samples=3)
    data = baal.Dataset(np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32), np.zeros(20, np.int32))
    state, _ = loop.step(loop.init(jax.random.key(1), data, num_initial=3), data)
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    leaves, structure = jax.tree.flatten(state)
    np.savez(tmp_path / "loop.npz", *[jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in leaves])
    with np.load(tmp_path / "loop.npz", allow_pickle=False) as saved:
        words = [saved[name] for name in saved.files]
    back = [jax.random.wrap_key_data(word) if is_key(leaf) else word for word, leaf in zip(words, leaves, strict=True)]
    restored = jax.tree.unflatten(structure, back)
    for _ in range(2):
        state, info = loop.step(state, data)
        restored, info_restored = loop.step(restored, data)
        same(info_restored, info)
    same(restored.pool, state.pool)
