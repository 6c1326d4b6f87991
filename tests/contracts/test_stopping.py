"""The contract of every rule for stopping, then each in numbers checked by hand, and in the compiled run."""

import collections
import functools
import itertools

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
CRITERIA = members("stopping", RULES)
every_rule = pytest.mark.parametrize("name", CRITERIA)
ROUNDS, SEEDS, SIZE, INPUTS, CLASSES = 9, 6, 12, 30, 3
Info = collections.namedtuple("Info", "metrics mean_score")


def outcome(labelled=0, value=np.nan, predicted=0):
    """What a rule may look at, with as many labels, one value for all that is measured, and classes predicted."""
    since = np.where(np.arange(SIZE) < labelled, np.arange(SIZE) % 2, -1).astype(np.int32)
    info = Info(metrics={"nll": np.float32(value)}, mean_score=np.float32(value))
    log_probs = np.log(np.eye(CLASSES)[np.broadcast_to(predicted, INPUTS)] + 0.1).astype(np.float32)
    return stopping.Outcome(pool.PoolState(since, np.int32(2)), info, log_probs)


def answers(criterion, rounds):
    """What a rule says after each round of a loop in Python."""
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
def test_values_that_are_nan_never_stop(name):
    assert not any(answers(CRITERIA[name], [outcome(2, np.nan, np.roll(np.arange(INPUTS) % 3, r)) for r in range(5)]))


def test_equal_configurations_are_one_object_so_that_runs_compile_once():
    low, plateau = stopping.low_uncertainty(0.2), stopping.plateau("nll", patience=2, atol=0.1)
    again = (stopping.any_of(low, plateau), stopping.all_of(stopping.labelling_budget(3), plateau))
    assert again == (RULES["any_of"], RULES["all_of"])
    assert stopping.stabilising_predictions(0.7, window=2) is RULES["stabilising_predictions"]


def test_what_makes_no_sense_and_what_is_missing_is_refused():
    run = functools.partial(baal.run, LOOP, jax.random.key(0), TRAIN, num_initial=4, num_rounds=1)
    for call, message in (
        (lambda: stopping.labelling_budget(0), "budget=0"),
        (lambda: stopping.plateau("nll", patience=-1), "patience=-1"),
        (lambda: stopping.stabilising_predictions(window=2.5), "window=2.5"),
        (lambda: run(TEST, stop=stopping.plateau("auroc")), "'auroc' is not among the metrics of the run: accuracy"),
        (lambda: run(None, stop=stopping.plateau("accuracy")), "no test set"),
        (lambda: run(TEST, stop=stopping.stabilising_predictions()), "stop_inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# Each in numbers


def test_a_budget_counts_every_label_but_those_taken_back_and_criteria_combine():
    # Baal counts only what its data set shows, so with last_active_steps its budget is never reached.
    rounds = [outcome(count) for count in (4, 5, 6, 4)]  # half of them of round 0, half of round 1
    assert answers(stopping.labelling_budget(5), rounds) == [False, True, True, False]
    excluded = rounds[1]._replace(pool=pool.exclude(rounds[1].pool, [2]))
    assert answers(stopping.labelling_budget(5), [excluded]) == [False]
    # Low uncertainty is strict, and criteria combine.
    rounds = [outcome(labelled, value) for labelled, value in ((1, 0.1), (1, 0.5), (2, 0.9), (2, -1.0))]
    rules = stopping.labelling_budget(2), stopping.low_uncertainty(0.5)
    assert answers(rules[1], rounds) == [True, False, False, True]
    assert answers(stopping.any_of(*rules), rounds) == [True, False, True, True]
    assert answers(stopping.all_of(*rules), rounds) == [False, False, False, True]


def test_a_plateau_is_the_latest_value_and_patience_before_it_as_numpy_measures_closeness():
    rng = np.random.default_rng(0)
    history = np.float32(1 + rng.choice([0.1, 0.6], size=200) * rng.normal(size=200))
    as_baal = np.float32([1, 1, 1, 0.5, 0.5, 0.5, 0.5])  # the third, and the fourth after a change
    for values, patience, options in ((history, 2, {"atol": 0.1, "rtol": 0.3}), (as_baal, 3, {})):
        info = Info(metrics={"nll": values, "other": -values}, mean_score=values)
        criterion = stopping.plateau("nll", patience=patience, **options)
        said = jax.jit(lambda info, rule=criterion: in_a_scan(rule, stopping.Outcome(None, info)))(info)
        windows = [values[max(0, t - patience) : t + 1] for t in range(len(values))]
        assert said.tolist() == [len(w) >= patience and np.allclose(w, w[-1], **options) for w in windows]
        assert 0.05 < said.mean() < 0.95


def test_stabilising_predictions_is_the_mean_kappa_of_a_window():
    """Of predictors with unlike class frequencies, so that the agreement by chance needs those of both."""
    rng = np.random.default_rng(1)
    rounds = [rng.choice(3, p=[0.7, 0.2, 0.1], size=INPUTS)]
    for changed in (15, 12, 6, 3, 2, 2, 1, 0, 0):
        rounds.append(rounds[-1].copy())
        rounds[-1][rng.choice(INPUTS, changed, replace=False)] = rng.choice(3, p=[0.1, 0.1, 0.8], size=changed)
    seen, kappas = (
        [outcome(predicted=p) for p in rounds],
        [cohen_kappa_score(a, b) for a, b in itertools.pairwise(rounds)],
    )
    means = np.convolve(kappas, [0.5, 0.5], "valid")
    for threshold in means:  # stops from the mean itself on, and with a little more not yet
        for slack in (-1e-5, 1e-5):
            said = answers(stopping.stabilising_predictions(float(threshold) + slack, window=2), seen)
            assert said == [False, False, *(means >= threshold + slack).tolist()]
    # A network that predicts one class everywhere agrees with itself, by chance or not.
    assert answers(stopping.stabilising_predictions(window=1), [outcome(predicted=1)] * 2) == [False, True]


TRAIN, TEST = clouds()
LOOP = baal.active_loop(centroids(), selection.top_k(heuristics.bald), query_size=2, num_samples=5)


def test_every_seed_of_many_stops_where_its_loop_in_python_does():
    parts = stopping.plateau("accuracy", patience=2, atol=0.04), stopping.stabilising_predictions(0.85, window=1)
    rule, average, seeds, expected = stopping.any_of(*parts), jax.jit(metrics.model_average), np.arange(4), []

    def one(seed):
        options = {"num_initial": 4, "num_rounds": ROUNDS, "stop": rule, "stop_inputs": TEST.inputs}
        state, infos = baal.run(LOOP, jax.random.key(seed), TRAIN, TEST, **options)
        return state.step, infos.indices, infos.stopped

    for seed in seeds:
        state, memory, stop = LOOP.init(jax.random.key(seed), TRAIN, num_initial=4), None, False
        expected.append(np.full((ROUNDS, 2), -1))
        while not stop and int(state.step) < ROUNDS:
            state, info = LOOP.step(state, TRAIN)
            info = info._replace(metrics=LOOP.evaluate(state, TEST))
            seen = stopping.Outcome(state.pool, info, average(LOOP.predict(state, TEST.inputs)))
            memory, stop = rule.update(rule.init(seen) if memory is None else memory, seen)
            expected[-1][int(state.step) - 1] = info.indices
    lengths = np.sum(np.array(expected)[:, :, 0] >= 0, axis=1)
    assert min(lengths) < max(lengths) <= ROUNDS  # seeds stop in rounds of their own
    for steps, indices, stopped in jax.jit(lambda seeds: (jax.vmap(one)(seeds), jax.lax.map(one, seeds)))(seeds):
        same((steps, indices, stopped), (lengths, np.array(expected), np.arange(ROUNDS) >= lengths[:, None]))
