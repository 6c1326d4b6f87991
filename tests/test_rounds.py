"""One round, whoever runs it: by hand, in a scan, from a source on the host. With annotators: annotation/."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import calibration, data, heuristics, loop, losses, metrics, selection, stopping
from tests.fixtures import SPY, centroids, close, clouds, linear, same, trainer

TRAIN, TEST = clouds()
SOURCE = TRAIN._replace(inputs=data.View(TRAIN.inputs))
ROUNDS, INITIAL = 3, 6
KEY = jax.random.key(5)


def make(posterior, acquisition=selection.top_k(heuristics.bald), **options):  # noqa: B008
    return baal.active_loop(posterior, acquisition, **{"query_size": 3, "num_samples": 6} | options)


def test_all_pick_the_same_examples_from_the_same_state():
    """With everything that can be asked of a loop: a schedule, a sample, the last rounds, a part of the batches."""
    made, picks = make(centroids(), query_size=(1, 2, 4), max_sample=17, last_rounds=2, batch_size=7), []
    for dataset in (TRAIN, SOURCE):
        state, infos = made.init(KEY, dataset, num_initial=INITIAL), []
        for _ in range(ROUNDS):
            state, info = made.step(state, dataset)
            infos.append(info.indices)
        picks += [
            np.stack(infos),
            baal.run(made, KEY, dataset, None, num_initial=INITIAL, num_rounds=ROUNDS)[1].indices,
        ]
    same(picks[1:], picks[:1] * 3)
    assert (picks[0] >= 0).sum(axis=1).tolist() == [1, 2, 4]
    assert len(set(picks[0][picks[0] >= 0].tolist())) == 7


TRAINED = SPY._replace(fit=trainer(optax.adam(0.1), losses.squared_error, warm_start=True)(linear()))
CALIBRATED = calibration.calibrated(centroids(), calibration.temperature(), num_samples=4)


@pytest.mark.parametrize("posterior", [TRAINED, CALIBRATED], ids=["trained", "calibrated"])
def test_a_fit_to_the_labelled_part_of_a_source_is_the_fit_to_the_whole_pool(posterior):
    """Where batches, or what is held out, are drawn from what is labelled, and a fit goes on from the last."""
    made = make(posterior, selection.random())
    state = made.init(KEY, TRAIN, num_initial=INITIAL)
    for _ in range(2):
        whole = made.round.fit(loop.round_keys(state.key, state.pool.round).fit, TRAIN, state)
        part, picked, _ = loop.query(made, state, SOURCE)
        close(part, whole)
        state = made.round.advance(state, whole, picked)


def test_a_source_is_read_only_where_something_is_predicted():
    read = []
    inputs_of = lambda item: (read.append(item[0]), item[1])[1]  # noqa: E731
    dataset = TRAIN._replace(inputs=data.View([*enumerate(TRAIN.inputs)], inputs_of))
    scoring = baal.Acquisition(lambda predictions: predictions.logits[0, :, 0], selection.top_k().select)
    silent, reading = make(SPY, selection.random()), make(SPY, scoring, max_sample=5)
    state = silent.init(KEY, dataset, num_initial=4)
    trained_on = set(np.flatnonzero(np.asarray(state.pool.labelled_at) == 0).tolist())
    ids, _ = reading.round.candidates(loop.round_keys(state.key, state.pool.round).subset, state)
    for made, expected in ((silent, trained_on), (reading, trained_on | set(ids.tolist()))):
        read.clear()
        made.step(state, dataset)
        assert set(read) - {0} == expected - {0}  # the first example tells the shapes


def test_the_labelled_part_of_a_source_has_a_room_that_rarely_changes():
    """A power of two from 32 on, or all that a run will ever train on; in ascending order, and padded unlabelled."""
    inputs, targets = np.arange(100, dtype=np.float32)[:, None], np.arange(100, dtype=np.int32)
    dataset = baal.Dataset(data.View(inputs), targets)
    made = make(SPY, selection.random(), query_size=4)

    def state_of(labelled, **fields):
        since = np.full(100, -1, np.int32)
        since[labelled] = 0
        return baal.LoopState(KEY, baal.PoolState(jnp.asarray(since), jnp.int32(1), **fields), None, 0)

    for num, room, capacity in ((0, 32, None), (32, 32, None), (33, 64, None), (65, 100, None), (2, 5, 5)):
        labelled = list(range(99, 99 - num, -1))
        fitted, picked, _ = loop.query(made, state_of(labelled), dataset, capacity=capacity)
        assert fitted["labelled"].tolist() == [True] * num + [False] * (room - num)
        assert fitted["targets"][:num].tolist() == sorted(labelled)
        assert not set(picked.indices.tolist()) & set(labelled)
    # The labels of the last round are not trained on: 2 and 2 · 4 are.
    final, _ = baal.run(made, None, dataset, None, num_rounds=3, state=state_of([7, 3])._replace(posterior=None))
    assert final.posterior["labelled"].tolist() == [True] * 10
    assert baal.run(made, None, dataset, None, num_rounds=1, state=state_of([]))[0].posterior["labelled"].tolist() == [
        False
    ]
    # Labels that people gave are stored in the pool.
    stored = state_of([7, 3], targets=jnp.asarray(500 - targets))
    fitted, _, _ = loop.query(made, stored, dataset._replace(targets=None))
    assert fitted["targets"][:3].tolist() == [497, 493, 493]


def accuracy_and_a_count(log_probs, targets):
    right = jnp.argmax(log_probs, axis=-1) == targets
    return {"accuracy": jnp.mean(right.astype(jnp.float32)), "right": jnp.sum(right, dtype=jnp.int32)}


@pytest.mark.parametrize("dataset", [TRAIN, SOURCE], ids=["arrays", "source"])
def test_rounds_after_a_stop_change_nothing_and_say_so(dataset):
    average = lambda predictions: metrics.model_average(predictions.logits)  # noqa: E731
    made = make(centroids(), metrics=metrics.MetricSet(average, accuracy_and_a_count))
    stop = {"stop": stopping.labelling_budget(10)}
    state, infos = baal.run(made, KEY, dataset, TEST, num_initial=INITIAL, num_rounds=4, **stop)
    infos = jax.device_get(infos)
    assert infos.stopped.tolist() == [False, False, True, True]
    assert infos.round.tolist() == [1, 2, 3, 3]
    assert infos.num_labelled.tolist() == [6, 9, 12, 12]
    assert infos.num_picked.tolist() == [3, 3, 0, 0]
    assert infos.num_nan.tolist() == [0] * 4
    assert (infos.indices < 0).all(axis=1).tolist() == infos.stopped.tolist()
    for values in (infos.scores[:, 0], infos.mean_score, infos.metrics["accuracy"]):
        assert np.isnan(values).tolist() == infos.stopped.tolist()
    assert (infos.metrics["right"] == -1).tolist() == infos.stopped.tolist()
    assert (int(state.step), int(state.pool.round), bool(state.stopping[1])) == (2, 3, True)

    # A run that continues decides as one that was never interrupted, and one that has stopped goes on being stopped.
    half, first = baal.run(made, KEY, dataset, TEST, num_initial=INITIAL, num_rounds=1, **stop)
    rest, second = baal.run(made, None, dataset, TEST, state=half, num_rounds=3, **stop)
    same(rest._replace(key=0), state._replace(key=0))
    same(jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second), infos)
    with pytest.raises(ValueError, match="another stopping criterion"):
        baal.run(made, None, dataset, TEST, state=half, num_rounds=1, stop=stopping.plateau("accuracy"))
