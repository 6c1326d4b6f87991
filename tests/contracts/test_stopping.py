"""When to stop, in numbers that can be checked by hand, and in the compiled run."""

import functools
import itertools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

import baal_jax as baal
from baal_jax import heuristics, metrics, pool, selection, stopping

# The rules of Baal are conformance case 48.


def answers(criterion, rounds):
    """What a criterion says after each of some rounds."""
    memory, said = criterion.init(rounds[0]), []
    for found in rounds:
        memory, stop = criterion.update(memory, found)
        said.append(bool(stop))
    return said


def measured(values, name="nll"):
    infos = [SimpleNamespace(metrics={name: jnp.float32(value)}, mean_score=jnp.float32(value)) for value in values]
    return [stopping.Outcome(None, info) for info in infos]


def predicted(*rounds, num_classes=3):
    return [
        stopping.Outcome(None, None, jnp.log(jax.nn.one_hot(jnp.array(found), num_classes) + 0.1)) for found in rounds
    ]


def test_a_budget_counts_every_label_whenever_it_was_given():
    # Baal counts only what its data set shows, so with last_active_steps its budget is never reached.
    states = [pool.label(pool.init(10), [0])]
    for i in range(1, 4):
        states.append(pool.label(states[-1], [i]))
    assert int(pool.labelled(states[-1], last_rounds=1).sum()) == 1
    assert answers(stopping.labelling_budget(3), [stopping.Outcome(state, None) for state in states]) == [0, 0, 1, 1]


def test_a_budget_is_not_spent_by_padding_nor_by_labels_taken_back():
    state = pool.label(pool.init(5), [0, 1, -1])
    full = pool.label(state, [2])
    rounds = [stopping.Outcome(found, None) for found in (state, full, pool.unlabel(full, [0]))]
    assert answers(stopping.labelling_budget(3), rounds) == [False, True, False]


def test_low_uncertainty_is_strict():
    assert answers(stopping.low_uncertainty(0.25), measured([0.1, 0.25, 0.3, np.nan])) == [True, False, False, False]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([1.0, 1.0], [0, 0]),
        ([1.0, 1.0, 1.0], [0, 0, 1]),  # as Baal: the third value of three stops
        ([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5], [0, 0, 1, 0, 0, 0, 1]),  # and the fourth after a change
        ([0.5, 0.6, 0.7, 0.8], [0, 0, 0, 0]),  # not a plateau, although it improves
        ([0.9, 0.50005, 0.5, 0.5, 0.49995], [0, 0, 0, 0, 1]),
        ([0.9, 0.5002, 0.5, 0.5], [0, 0, 0, 0]),
        ([0.5, np.nan, 0.5], [0, 0, 0]),
        ([0.5, 0.5, np.nan], [0, 0, 0]),
    ],
)
def test_a_plateau_is_the_latest_value_and_patience_before_it(history, expected):
    assert answers(stopping.plateau("nll", patience=3), measured(history)) == expected


def test_a_plateau_is_measured_as_numpy_measures_closeness():
    rng = np.random.default_rng(0)
    history = np.float32(100 * (1 + rng.choice([1e-4, 3e-3], size=200) * rng.normal(size=200)))
    said = answers(stopping.plateau("nll", patience=2, atol=0.01, rtol=1e-3), measured(history))
    windows = [history[max(0, t - 2) : t + 1] for t in range(200)]
    assert said == [len(w) >= 2 and np.allclose(w, w[-1], atol=0.01, rtol=1e-3) for w in windows]
    assert 10 < sum(said) < 190


def test_patience_has_the_documented_default():
    assert answers(stopping.plateau("nll"), measured([0.7] * 11)) == [False] * 9 + [True] * 2
    assert not any(answers(stopping.plateau("nll"), measured([0.8] + [0.7] * 9)))


def test_stabilising_predictions_is_the_mean_kappa_of_a_window():
    rng = np.random.default_rng(1)
    rounds = [rng.integers(3, size=40)]
    for changed in (20, 10, 5, 2, 1, 1, 0, 0):
        ids = rng.choice(40, changed, replace=False)
        rounds.append(rounds[-1].copy())
        rounds[-1][ids] = rng.integers(3, size=changed)
    kappas = [np.nan, *(cohen_kappa_score(a, b) for a, b in itertools.pairwise(rounds))]
    means = [np.mean(kappas[t - 1 : t + 1]) if t >= 2 else 0 for t in range(len(rounds))]
    said = answers(stopping.stabilising_predictions(0.9, window=2), predicted(*rounds))
    assert said == [mean >= 0.9 for mean in means]
    assert 0 < sum(said) < len(rounds) - 2


def test_a_network_that_predicts_one_class_everywhere_agrees_with_itself():
    same = predicted([1, 1, 1], [1, 1, 1])
    assert answers(stopping.stabilising_predictions(window=1), same) == [False, True]


def test_criteria_combine():
    rounds = [
        stopping.Outcome(pool.label(pool.init(4), list(range(n))), SimpleNamespace(mean_score=jnp.float32(score)))
        for n, score in ((1, 0.1), (1, 0.9), (2, 0.9), (2, 0.1))
    ]
    rules = stopping.labelling_budget(2), stopping.low_uncertainty(0.5)
    assert answers(stopping.any_of(*rules), rounds) == [True, False, True, True]
    assert answers(stopping.all_of(*rules), rounds) == [False, False, False, True]


def test_equal_configurations_are_one_object_so_that_runs_compile_once():
    assert stopping.plateau("nll", patience=3) is stopping.plateau("nll", patience=3)
    rules = stopping.labelling_budget(3), stopping.low_uncertainty(0.1)
    assert stopping.any_of(*rules) is stopping.any_of(*rules)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_counts_must_be_positive_integers(value):
    with pytest.raises(ValueError, match="budget"):
        stopping.labelling_budget(value)
    with pytest.raises(ValueError, match="patience"):
        stopping.plateau("nll", patience=value)
    with pytest.raises(ValueError, match="window"):
        stopping.stabilising_predictions(window=value)


# In the compiled run, with a posterior in closed form: class means, blurred by the labels that are missing.


def _fit(key, dataset, labelled, previous=None):
    members = jnp.where(labelled[:, None], jax.nn.one_hot(dataset.targets, 3), 0)
    counts = members.sum(axis=0)[:, None]
    return {"means": members.T @ dataset.inputs / jnp.maximum(counts, 1), "width": 1 / jnp.sqrt(1 + counts)}


def _sample(key, state, num_samples):
    noise = jax.random.normal(key, (num_samples, 3, 3))
    return jax.vmap(lambda found: state["means"] + state["width"] * found)(noise)


def _apply(state, draw, inputs):
    return -4 * jnp.sum((inputs[:, None] - draw[None]) ** 2, axis=-1)


POSTERIOR = baal.Posterior(_fit, _sample, _apply)
ROUNDS, SEEDS = 6, 6
CRITERIA = {
    "budget": stopping.labelling_budget(9),
    "uncertainty": stopping.low_uncertainty(0.22),
    "plateau": stopping.plateau("accuracy", patience=2, atol=0.08),
    "predictions": stopping.stabilising_predictions(0.75, window=1),
    "any": stopping.any_of(stopping.labelling_budget(11), stopping.stabilising_predictions(0.85, window=1)),
}


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=60)
    inputs = np.float32(np.eye(3)[targets] + 0.5 * rng.normal(size=(60, 3)))
    data = baal.Dataset(jnp.asarray(inputs), jnp.asarray(targets))
    train, test = (jax.tree.map(lambda leaf, part=part: leaf[part], data) for part in (slice(40), slice(40, 60)))

    loop = baal.active_loop(POSTERIOR, selection.top_k(heuristics.bald), query_size=(1, 2), num_samples=5)
    return loop, train, test


def by_hand(loop, criterion, key, train, test):
    """The same run as a loop in Python: rounds until the criterion stops."""
    state, memory, picks = loop.init(key, train, num_initial=4), None, []
    for _ in range(ROUNDS):
        state, info = loop.step(state, train)
        info = info._replace(metrics=loop.evaluate(state, test))
        found = stopping.Outcome(state.pool, info, metrics.model_average(loop.predict(state, test.inputs)))
        memory, stop = criterion.update(criterion.init(found) if memory is None else memory, found)
        picks.append(info.indices)
        if stop:
            break
    return len(picks), np.stack(picks)


@pytest.mark.parametrize(("name", "over_keys"), [*((name, jax.lax.map) for name in CRITERIA), ("any", None)])
def test_every_seed_of_many_stops_where_its_loop_in_python_does(name, over_keys, setting):
    loop, train, test = setting
    keys = jax.random.split(jax.random.key(3), SEEDS)

    def one(key):
        return baal.run(
            loop, key, train, test, num_initial=4, num_rounds=ROUNDS, stop=CRITERIA[name], stop_inputs=test.inputs
        )

    states, infos = jax.jit(lambda keys: over_keys(one, keys) if over_keys else jax.vmap(one)(keys))(keys)
    lengths = []
    for s in range(SEEDS):
        length, picks = by_hand(loop, CRITERIA[name], keys[s], train, test)
        lengths.append(length)
        assert infos.stopped[s].tolist() == [r >= length for r in range(ROUNDS)]
        np.testing.assert_array_equal(infos.indices[s, :length], picks)
        assert (infos.indices[s, length:] == -1).all()
        assert not infos.num_picked[s, length:].any()
        assert np.isnan(infos.metrics["accuracy"][s, length:]).all()
        assert np.isfinite(infos.metrics["accuracy"][s, :length]).all()
        assert int(states.step[s]) == length
    assert min(lengths) < ROUNDS
    if name in ("uncertainty", "plateau", "predictions", "any"):
        assert len(set(lengths)) > 1  # seeds stop in rounds of their own


def test_a_run_that_continues_decides_as_one_that_was_never_interrupted(setting):
    loop, train, test = setting
    key = jax.random.key(4)
    arguments = {"stop": CRITERIA["predictions"], "stop_inputs": test.inputs}
    whole, infos = baal.run(loop, key, train, test, num_initial=4, num_rounds=4, **arguments)
    half, first = baal.run(loop, key, train, test, num_initial=4, num_rounds=2, **arguments)
    rest, second = baal.run(loop, None, train, test, state=half, num_rounds=2, **arguments)
    chex.assert_trees_all_equal(rest._replace(key=0), whole._replace(key=0))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    chex.assert_trees_all_equal(joined, infos)
    with pytest.raises(ValueError, match="another stopping criterion"):
        baal.run(loop, None, train, test, state=half, num_rounds=1, stop=CRITERIA["plateau"])


def test_criteria_say_what_they_miss(setting):
    loop, train, test = setting
    run = functools.partial(baal.run, loop, jax.random.key(0), train, num_initial=4, num_rounds=1)
    with pytest.raises(ValueError, match="'auroc' is not among the metrics of the run: accuracy"):
        run(test, stop=stopping.plateau("auroc"))
    with pytest.raises(ValueError, match="no test set"):
        run(stop=stopping.plateau("accuracy"))
    with pytest.raises(ValueError, match="stop_inputs"):
        run(test, stop=stopping.stabilising_predictions())


def test_a_schedule_of_query_sizes(setting):
    loop, train, _ = setting
    state, infos = baal.run(loop, jax.random.key(0), train, num_initial=4, num_rounds=3)
    assert infos.num_picked.tolist() == [1, 2, 2]  # the last size holds on
    assert infos.num_labelled.tolist() == [4, 5, 7]
    assert (infos.indices >= 0).tolist() == [[True, False], [True, True], [True, True]]
    # Where the schedule stands travels in the state.
    half, _ = baal.run(loop, jax.random.key(0), train, num_initial=4, num_rounds=1)
    rest, later = baal.run(loop, None, train, state=half, num_rounds=2)
    assert later.num_picked.tolist() == [2, 2]
    chex.assert_trees_all_equal(rest.pool, state.pool)


@pytest.mark.parametrize("sizes", [(), (5, 0), [1.5]])
def test_schedules_are_positive_numbers(sizes, setting):
    with pytest.raises(ValueError, match="query_size"):
        baal.active_loop(POSTERIOR, selection.random(), query_size=sizes)
