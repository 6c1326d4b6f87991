"""The contract of every rule for stopping, then each in numbers checked by hand, and in the compiled run."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

import baal_jax as baal
from baal_jax import heuristics, metrics, pool, selection, stopping
from tests.contracts import members
from tests.fixtures import centroids, clouds, same

# The rules of Baal are conformance case 48.

RULES = {
    "labelling_budget": stopping.labelling_budget(5),
    "low_uncertainty": stopping.low_uncertainty(0.3),
    "plateau": stopping.plateau("nll", patience=3, atol=0.1),
    "stabilising_predictions": stopping.stabilising_predictions(0.7, window=2),
    "any_of": stopping.any_of(stopping.low_uncertainty(0.2), stopping.plateau("nll", patience=2, atol=0.1)),
    "all_of": stopping.all_of(stopping.labelling_budget(3), stopping.plateau("nll", patience=2, atol=0.1)),
}
# The first round in which a rule with a memory may say anything.
LEAST = {"plateau": 3, "stabilising_predictions": 3, "any_of": 2, "all_of": 2}
CRITERIA = members("stopping", RULES)
every_rule = pytest.mark.parametrize("name", CRITERIA)
ROUNDS, SEEDS, SIZE, INPUTS, CLASSES = 9, 6, 12, 30, 3


def outcome(labelled=0, value=np.nan, predicted=0):
    """What a rule may look at, with as many labels, one value for all that is measured, and classes predicted."""
    since = np.where(np.arange(SIZE) < labelled, np.arange(SIZE) % 2, -1).astype(np.int32)
    info = types.SimpleNamespace(metrics={"nll": np.float32(value)}, mean_score=np.float32(value))
    log_probs = np.log(np.eye(CLASSES)[np.broadcast_to(predicted, INPUTS)] + 0.1).astype(np.float32)
    return stopping.Outcome(pool.PoolState(since, np.int32(2)), info, log_probs)


jax.tree_util.register_pytree_node(
    types.SimpleNamespace,
    lambda info: ((info.metrics, info.mean_score), None),
    lambda _, leaves: types.SimpleNamespace(metrics=leaves[0], mean_score=leaves[1]),
)


def answers(criterion, rounds):
    """What a rule says after each of some rounds, asked in a loop in Python."""
    memory, said = criterion.init(rounds[0]), []
    for seen in rounds:
        with jax.debug_nans(True):
            memory, stop = criterion.update(memory, seen)
        said.append(bool(stop))
    return said


def in_a_scan(criterion, rounds):
    memory = criterion.init(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rounds))
    return jax.lax.scan(criterion.update, memory, rounds)[1]


@functools.cache
def histories():
    """Rounds of several seeds that calm down: more labels, values that settle, predictions that agree."""
    rng = np.random.default_rng(0)
    seeds = []
    for seed in range(SEEDS):
        predicted, rounds = rng.integers(CLASSES, size=INPUTS), []
        for number in range(ROUNDS):
            predicted = np.where(rng.random(INPUTS) < 0.7 / (1 + number), rng.integers(CLASSES, size=INPUTS), predicted)
            value = np.nan if number == seed else 0.1 + rng.random() / (1 + number) ** 1.5
            rounds.append(outcome(min(SIZE, 1 + number + rng.integers(2)), value, predicted))
        seeds.append(rounds)
    return seeds


# What every rule does


@every_rule
def test_seeds_that_are_mapped_in_a_scan_stop_where_a_loop_in_python_does(name):
    criterion, seeds = CRITERIA[name], histories()
    expected = [answers(criterion, rounds) for rounds in seeds]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *itertools.chain(*seeds))
    stacked = jax.tree.map(lambda leaf: leaf.reshape(SEEDS, ROUNDS, *leaf.shape[1:]), stacked)
    same(jax.jit(jax.vmap(lambda rounds: in_a_scan(criterion, rounds)))(stacked), np.array(expected))
    assert 0 < np.sum(expected) < SEEDS * ROUNDS


@every_rule
def test_a_memory_keeps_its_shapes_and_is_not_changed(name):
    """So that it can be carried by a scan; and what it holds before the first round are no values of a round."""
    criterion, rounds = CRITERIA[name], histories()[0]
    memory = criterion.init(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), rounds[0]))
    same(memory, criterion.init(rounds[3]))
    for seen in rounds[:3]:
        before = jax.tree.map(np.array, memory)
        after, stop = criterion.update(memory, seen)
        same(memory, before)
        assert (jnp.shape(stop), jnp.result_type(stop)) == ((), jnp.bool)
        kinds = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree) for tree in (memory, after)]
        assert kinds[0] == kinds[1]
        memory = after


@every_rule
def test_nothing_is_decided_before_the_least_number_of_rounds(name):
    said = answers(CRITERIA[name], [outcome(SIZE, 0.25)] * 4)  # nothing changes at all
    assert said == [number >= LEAST.get(name, 1) for number in range(1, 5)]


@every_rule
def test_values_that_are_nan_never_stop(name):
    assert not any(answers(CRITERIA[name], [outcome(2, np.nan, np.roll(np.arange(INPUTS) % 3, r)) for r in range(5)]))


def test_equal_configurations_are_one_object_so_that_runs_compile_once():
    assert stopping.labelling_budget(5) is RULES["labelling_budget"]
    assert stopping.low_uncertainty(0.3) is RULES["low_uncertainty"]
    assert stopping.plateau("nll", patience=3, atol=0.1) is RULES["plateau"]
    assert stopping.stabilising_predictions(0.7, window=2) is RULES["stabilising_predictions"]
    rules = stopping.labelling_budget(3), stopping.low_uncertainty(0.1)
    assert stopping.any_of(*rules) is stopping.any_of(*rules)
    assert stopping.all_of(*rules) is stopping.all_of(*rules)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_counts_must_be_positive_integers(value):
    for name, make in {
        "budget": lambda: stopping.labelling_budget(value),
        "patience": lambda: stopping.plateau("nll", patience=value),
        "window": lambda: stopping.stabilising_predictions(window=value),
    }.items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            make()


# Each in numbers


def test_a_budget_counts_every_label_whenever_it_was_given_and_no_longer_one_that_is_taken_back():
    # Baal counts only what its data set shows, so with last_active_steps its budget is never reached.
    rounds = [outcome(count) for count in (4, 5, 6, 4)]  # half of them of round 0, half of round 1
    assert answers(stopping.labelling_budget(5), rounds) == [False, True, True, False]
    excluded = rounds[1]._replace(pool=pool.exclude(rounds[1].pool, [2]))
    assert answers(stopping.labelling_budget(5), [excluded]) == [False]


def test_low_uncertainty_is_strict():
    rounds = [outcome(value=value) for value in (0.1, 0.25, 0.3, -1.0)]
    assert answers(stopping.low_uncertainty(0.25), rounds) == [True, False, False, True]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (
            [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5],
            [0, 0, 1, 0, 0, 0, 1],
        ),  # as Baal: the third, the fourth after a change
        ([0.5, 0.6, 0.7, 0.8], [0, 0, 0, 0]),  # not a plateau, although it improves
        ([0.9, 0.50005, 0.5, 0.5, 0.49995], [0, 0, 0, 0, 1]),
        ([0.9, 0.5002, 0.5, 0.5], [0, 0, 0, 0]),
        ([0.5, np.nan, 0.5], [0, 0, 0]),
        ([0.5, 0.5, np.nan], [0, 0, 0]),
    ],
)
def test_a_plateau_is_the_latest_value_and_patience_before_it(history, expected):
    assert answers(stopping.plateau("nll", patience=3), [outcome(value=value) for value in history]) == expected


def test_a_plateau_is_measured_as_numpy_measures_closeness():
    rng = np.random.default_rng(0)
    history = np.float32(1 + rng.choice([0.1, 0.6], size=200) * rng.normal(size=200))
    info = types.SimpleNamespace(metrics={"nll": history, "other": -history}, mean_score=history)
    criterion = stopping.plateau("nll", patience=2, atol=0.1, rtol=0.3)
    said = jax.jit(lambda info: in_a_scan(criterion, stopping.Outcome(None, info)))(info)
    windows = [history[max(0, t - 2) : t + 1] for t in range(200)]
    assert said.tolist() == [len(w) >= 2 and np.allclose(w, w[-1], atol=0.1, rtol=0.3) for w in windows]
    assert 10 < said.sum() < 190


def test_stabilising_predictions_is_the_mean_kappa_of_a_window():
    """Of predictors with unlike class frequencies, so that the agreement by chance needs those of both."""
    rng = np.random.default_rng(1)
    rounds = [rng.choice(3, p=[0.7, 0.2, 0.1], size=INPUTS)]
    for changed in (15, 12, 6, 3, 2, 2, 1, 0, 0):
        rounds.append(rounds[-1].copy())
        rounds[-1][rng.choice(INPUTS, changed, replace=False)] = rng.choice(3, p=[0.1, 0.1, 0.8], size=changed)
    kappas = [cohen_kappa_score(a, b) for a, b in itertools.pairwise(rounds)]
    memory = stopping.stabilising_predictions(window=2).init(outcome())
    update = jax.jit(stopping.stabilising_predictions(window=2).update)
    for number, predicted in enumerate(rounds):
        memory, _ = update(memory, outcome(predicted=predicted))
        expected = [0.0, 0.0, *kappas[:number]][-2:]
        np.testing.assert_allclose(memory.kappas, expected, rtol=1e-5, atol=1e-6)
    means = np.convolve(kappas, [0.5, 0.5], "valid")
    threshold = float(np.sort(means)[len(means) // 2] - 1e-6)
    said = answers(stopping.stabilising_predictions(threshold, window=2), [outcome(predicted=p) for p in rounds])
    assert said == [False, False, *(means >= threshold).tolist()]
    assert 1 < sum(said) < len(means)
    # A network that predicts one class everywhere agrees with itself, by chance or not.
    assert answers(stopping.stabilising_predictions(window=1), [outcome(predicted=1)] * 2) == [False, True]


def test_criteria_combine():
    rounds = [outcome(labelled, value) for labelled, value in ((1, 0.1), (1, 0.9), (2, 0.9), (2, 0.1))]
    rules = stopping.labelling_budget(2), stopping.low_uncertainty(0.5)
    assert answers(stopping.any_of(*rules), rounds) == [True, False, True, True]
    assert answers(stopping.all_of(*rules), rounds) == [False, False, False, True]


# In the compiled run


TRAIN, TEST = clouds()
LOOP = baal.active_loop(centroids(), selection.top_k(heuristics.bald), query_size=2, num_samples=5)
ANY = stopping.any_of(
    stopping.plateau("accuracy", patience=2, atol=0.04), stopping.stabilising_predictions(0.85, window=1)
)


def by_hand(key):
    """The run as a loop in Python: rounds until the criterion stops."""
    state, memory, picks = LOOP.init(key, TRAIN, num_initial=4), None, []
    for _ in range(ROUNDS):
        state, info = LOOP.step(state, TRAIN)
        info = info._replace(metrics=LOOP.evaluate(state, TEST))
        seen = stopping.Outcome(state.pool, info, average(LOOP.predict(state, TEST.inputs)))
        memory, stop = ANY.update(ANY.init(seen) if memory is None else memory, seen)
        picks.append(info.indices)
        if stop:
            break
    return len(picks), np.stack(picks)


average = jax.jit(metrics.model_average)


def test_every_seed_of_many_stops_where_its_loop_in_python_does():
    seeds = np.arange(4)

    def one(seed):
        options = {"num_initial": 4, "num_rounds": ROUNDS, "stop": ANY, "stop_inputs": TEST.inputs}
        state, infos = baal.run(LOOP, jax.random.key(seed), TRAIN, TEST, **options)
        return state.step, infos.indices, infos.stopped

    expected = [by_hand(jax.random.key(seed)) for seed in seeds]
    lengths = [length for length, _ in expected]
    assert min(lengths) < max(lengths)  # seeds stop in rounds of their own
    for steps, indices, stopped in jax.device_get(
        jax.jit(lambda seeds: (jax.vmap(one)(seeds), jax.lax.map(one, seeds)))(seeds)
    ):
        assert steps.tolist() == lengths
        same(stopped, np.arange(ROUNDS) >= np.array(lengths)[:, None])
        for found, (length, picks) in zip(indices, expected, strict=True):
            same(found[:length], picks)
            assert (found[length:] == -1).all()


def test_criteria_say_what_they_miss():
    run = functools.partial(baal.run, LOOP, jax.random.key(0), TRAIN, num_initial=4, num_rounds=1)
    for message, test, criterion in (
        ("'auroc' is not among the metrics of the run: accuracy", TEST, stopping.plateau("auroc")),
        ("no test set", None, stopping.plateau("accuracy")),
        ("stop_inputs", TEST, stopping.stabilising_predictions()),
    ):
        with pytest.raises(ValueError, match=message):
            run(test, stop=criterion)
