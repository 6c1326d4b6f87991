"""Transitions between labelled sets against a plain Python model, and what makes them safe to keep and to compile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import checkpoint, pool

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


@given(operations)
def test_every_sequence_of_transitions_does_what_the_plain_model_does(steps):
    model, state = Model(), pool.init(SIZE, targets=jnp.full(SIZE, -1))
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
        jax.tree.map(np.testing.assert_array_equal, before, snapshot)


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


def test_one_of_a_hundred_then_the_rest_and_nothing_twice():
    # Case 42, with ids of the whole data set instead of pool-relative ones: labelling 0 twice is labelling 0.
    state = pool.label(pool.init(100), 0)
    assert (int(pool.num_labelled(state)), int(pool.num_available(state))) == (1, 99)
    again = pool.label(state, [0])
    assert int(pool.num_labelled(again)) == 1
    assert int(again.labelled_at[0]) == 0
    full = pool.label(again, range(1, 100))
    assert (int(pool.num_labelled(full)), int(pool.num_available(full))) == (100, 0)


def test_rounds_are_counted_and_the_latest_can_be_asked_for():
    # Case 43.
    state = pool.init(10)
    for chosen in ([1], [2, 3], [4]):
        state = pool.label(state, chosen)
    assert int(state.round) == 3
    assert int(state.labelled_at.max()) + 1 == 3
    found = [np.flatnonzero(pool.labelled(state, last)).tolist() for last in (1, 2, 3, None)]
    assert found == [[4], [2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]


@pytest.mark.parametrize("last_rounds", [0, -2, 1.5, True])
def test_last_rounds_must_be_a_positive_integer(last_rounds):
    # Case 43.
    with pytest.raises(ValueError, match="last_rounds"):
        pool.labelled(pool.init(3), last_rounds)


def test_labels_that_arrive_one_by_one_are_one_round():
    state = pool.init(6)
    for i in (4, 0):
        state = pool.label(state, i, advance=False)
    state = pool.label(state, 2)
    assert state.labelled_at.tolist() == [0, -1, 0, -1, 0, -1]
    assert int(state.round) == 1
    assert pool.label(state, 5).labelled_at.tolist() == [0, -1, 0, -1, 0, 1]


def test_padding_never_touches_the_last_example():
    state = pool.init(4, targets=jnp.full(4, -1))
    state = pool.label(state, [-1, -1], targets=[7, 8])
    assert state.labelled_at.tolist() == [-1] * 4
    assert state.targets.tolist() == [-1] * 4
    state = pool.unlabel(pool.label(state, 3), [-1])
    assert state.labelled_at.tolist() == [-1, -1, -1, 1]


def test_labels_from_people_are_stored_and_can_be_corrected_while_old_states_stay():
    start = pool.init(5, targets=jnp.full((5, 2), -1))
    first = pool.label(start, [3, 1], targets=[[30, 31], [10, 11]])
    fixed = pool.annotate(first, 3, [[32, 33]])
    assert start.targets.tolist() == [[-1, -1]] * 5
    assert first.targets.tolist() == [[-1, -1], [10, 11], [-1, -1], [30, 31], [-1, -1]]
    assert fixed.targets.tolist() == [[-1, -1], [10, 11], [-1, -1], [32, 33], [-1, -1]]
    np.testing.assert_array_equal(fixed.labelled_at, first.labelled_at)
    assert int(fixed.round) == int(first.round)


def test_a_label_can_be_stored_before_its_example_counts_as_labelled():
    state = pool.annotate(pool.init(3, targets=jnp.full(3, -1)), [2], [5])
    assert state.targets.tolist() == [-1, -1, 5]
    assert int(pool.num_labelled(state)) == 0
    assert pool.unlabel(pool.label(state, 2), 2).targets.tolist() == [-1, -1, 5]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([1, 1], "1 more than once"),
        ([0, 10], "10, outside of the 10"),
        ([-2], "-2, outside"),
        ([0.0], "integer ids, not float"),
        (np.array([True, False]), "integer ids, not bool"),
    ],
)
def test_ids_that_make_no_sense_are_refused(chosen, message):
    # Case 45.
    state = pool.init(10, targets=jnp.full(10, -1))
    with pytest.raises(ValueError, match=message):
        pool.label(state, chosen)
    with pytest.raises(ValueError, match=message):
        pool.unlabel(state, chosen)
    with pytest.raises(ValueError, match=message):
        pool.exclude(state, chosen)
    with pytest.raises(ValueError, match=message):
        pool.annotate(state, chosen, [1] * len(chosen))


def test_other_errors_name_the_argument():
    state = pool.label(pool.init(4), [0])
    with pytest.raises(ValueError, match="num_examples=0"):
        pool.init(0)
    with pytest.raises(ValueError, match=r"targets has shape \(3,\)"):
        pool.init(4, targets=jnp.zeros(3))
    with pytest.raises(ValueError, match="stores none"):
        pool.label(state, [1], targets=[2])
    with pytest.raises(ValueError, match="2 labels for 1 indices"):
        pool.label(pool.init(4, targets=jnp.full(4, -1)), [1], targets=[2, 3])
    with pytest.raises(ValueError, match="num=4 exceeds the 3 unlabelled"):
        pool.label_randomly(jax.random.key(0), state, 4)
    with pytest.raises(ValueError, match="num=-1"):
        pool.label_randomly(jax.random.key(0), state, -1)


def test_excluded_examples_count_neither_as_labelled_nor_as_left():
    state = pool.exclude(pool.label(pool.label(pool.init(6), [1]), [4]), [4, 0])
    assert state.labelled_at.tolist() == [-2, 0, -1, -1, -2, -1]
    assert pool.labelled(state, last_rounds=1).tolist() == [False, True, False, False, False, False]
    assert sorted(pool.random_query(jax.random.key(0), state, 3).tolist()) == [2, 3, 5]
    with pytest.raises(ValueError, match="num=4 exceeds the 3 unlabelled"):
        pool.random_query(jax.random.key(0), state, 4)
    all_labelled = jax.jit(lambda state: pool.label_randomly(jax.random.key(0), state, 6))(state)
    assert all_labelled.labelled_at.tolist() == [-2, 0, 2, 2, -2, 2]


def test_compiled_random_labels_end_where_the_pool_ends():
    state = pool.label(pool.init(6), [1, 4])
    full = jax.jit(lambda key, state: pool.label_randomly(key, state, 5))(jax.random.key(0), state)
    assert full.labelled_at.tolist() == [1, 0, 1, 1, 0, 1]


def test_random_labels_are_uniform_and_decided_by_the_key():
    state = pool.label(pool.init(8), [2, 7])
    keys = jax.random.split(jax.random.key(1), 3000)
    many = jax.jit(jax.vmap(lambda key: pool.labelled(pool.label_randomly(key, state, 2))))(keys)
    counts = np.asarray(many).sum(0)
    assert counts[2] == counts[7] == 3000
    others = np.delete(counts, [2, 7])
    assert others.sum() == 2 * 3000
    np.testing.assert_allclose(others, 1000, atol=5 * np.sqrt(3000 * 2 / 9))  # five standard deviations
    again = pool.label_randomly(keys[5], state, 2)
    np.testing.assert_array_equal(pool.labelled(again), many[5])


def test_transitions_map_and_scan():
    states = jax.vmap(lambda i: pool.label(pool.init(6), i[None]))(jnp.arange(3))
    mapped = jax.vmap(pool.label)(states, jnp.array([[5, 0], [5, -1], [2, 3]]))
    assert mapped.labelled_at.tolist() == [
        [0, -1, -1, -1, -1, 1],
        [-1, 0, -1, -1, -1, 1],
        [-1, -1, 0, 1, -1, -1],
    ]
    keys = jax.random.split(jax.random.key(0), 3)
    scanned = jax.lax.scan(lambda state, key: (pool.label_randomly(key, state, 2), None), pool.init(6), keys)[0]
    assert sorted(scanned.labelled_at.tolist()) == [0, 0, 1, 1, 2, 2]
    looped = pool.init(6)
    for key in keys:
        looped = pool.label_randomly(key, looped, 2)
    np.testing.assert_array_equal(scanned.labelled_at, looped.labelled_at)


def test_nothing_compiled_goes_back_to_the_host():
    def everything(key, state, chosen, targets):
        state = pool.label(state, chosen, targets=targets)
        state = pool.annotate(state, chosen, targets)
        state = pool.label_randomly(key, state, 2)
        state = pool.unlabel(state, chosen)
        masks = pool.labelled(state), pool.labelled(state, 2), pool.available(state)
        return state, masks, pool.num_labelled(state), pool.num_available(state)

    state = pool.init(6, targets=jnp.full(6, -1))
    program = jax.make_jaxpr(everything)(jax.random.key(0), state, jnp.array([1, 2]), jnp.array([3, 4]))
    assert "scatter" in str(program)
    assert "callback" not in str(program)


def test_ten_million_examples_take_ten_thousand_labels_in_one_call():
    size, number = 10**7, 10**4
    state = pool.init(size)
    chosen = jnp.arange(number, dtype=jnp.int32) * 997
    label = jax.jit(pool.label).lower(state, chosen).compile()
    state = label(state, chosen)
    assert int(pool.num_labelled(state)) == number
    assert bool(jnp.all(state.labelled_at[chosen] == 0))
    state = pool.label_randomly(jax.random.key(0), state, number)
    assert int(pool.num_labelled(state)) == 2 * number
    assert int(jnp.sum(state.labelled_at == 1)) == number


def test_a_saved_pool_continues_as_if_it_had_never_been_away(tmp_path):
    # Case 44: the saved state holds the labels of people and is not changed by later ones.
    state = pool.label(pool.init(20, targets=jnp.full(20, -1)), [3, 8], targets=[1, 0])
    state = pool.label_randomly(jax.random.key(0), state, 4)
    snapshot = jax.tree.map(np.array, state)
    with checkpoint.checkpointer(tmp_path, {}) as saved:
        saved.save(0, state)
        later = pool.label(state, [int(jnp.argmin(state.labelled_at))], targets=[9])
        restored = saved.restore(jax.eval_shape(lambda: state))
    assert isinstance(restored, pool.PoolState)
    jax.tree.map(np.testing.assert_array_equal, restored, snapshot)
    assert not np.array_equal(later.targets, restored.targets)
    key = jax.random.key(5)
    expected, found = (pool.label_randomly(key, kept, 6) for kept in (state, restored))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_loop_saved_as_plain_arrays_continues_index_for_index(tmp_path):
    # Case 44; no library and no pickle needed, the key travels as its words.
    posterior = baal.Posterior(
        fit=lambda key, dataset, labelled, previous=None: {"weights": jax.random.normal(key, (2, 3))},
        sample=lambda key, state, num_samples: jax.random.split(key, num_samples),
        apply=lambda state, draw, inputs: inputs @ (state["weights"] + jax.random.normal(draw, (2, 3))),
    )
    loop = baal.active_loop(posterior, baal.selection.power(baal.heuristics.bald), query_size=2, num_samples=3)
    data = baal.Dataset(jax.random.normal(jax.random.key(0), (20, 2)), jnp.zeros(20, int))
    state, _ = loop.step(loop.init(jax.random.key(1), data, num_initial=3), data)

    def to_words(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    leaves, structure = jax.tree.flatten(state)
    np.savez(tmp_path / "loop.npz", *[to_words(leaf) for leaf in leaves])
    with np.load(tmp_path / "loop.npz", allow_pickle=False) as saved:
        words = [jnp.asarray(saved[name]) for name in saved.files]
    back = [
        jax.random.wrap_key_data(word) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else word
        for word, leaf in zip(words, leaves, strict=True)
    ]
    restored = jax.tree.unflatten(structure, back)
    for _ in range(3):
        state, info = loop.step(state, data)
        restored, info_restored = loop.step(restored, data)
        np.testing.assert_array_equal(info_restored.indices, info.indices)
        np.testing.assert_array_equal(info_restored.scores, info.scores)
    np.testing.assert_array_equal(restored.pool.labelled_at, state.pool.labelled_at)
