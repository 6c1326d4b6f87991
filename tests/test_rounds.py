"""One round, whoever runs it: by hand, in a scan, from a source on the host, in a study, with annotators."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import annotation, calibration, data, heuristics, loop, metrics, posteriors, selection, study
from tests.fixtures import centroids
from tests.fixtures import clouds

TRAIN, TEST = clouds()
NAMES, ROUNDS, INITIAL = ["ape", "bee", "cat"], 3, 6
KEY = jax.random.key(5)
OPTIONS = {
    "plain": {},
    "all of them": {"max_sample": 17, "last_rounds": 2, "batch_size": 7},
    "schedule": {"query_size": (1, 2, 4), "batch_size": None},
}


def make(**options):
    options = {"query_size": 3, "num_samples": 6, **options}
    return baal.active_loop(centroids(), selection.top_k(heuristics.bald), **options)


def key_of_seed():
    return jax.random.fold_in(KEY, 0)


def by_hand(made, dataset):
    state, picks = made.init(key_of_seed(), dataset, num_initial=INITIAL), []
    for _ in range(ROUNDS):
        state, info = made.step(state, dataset)
        picks.append(np.asarray(info.indices))
    return np.stack(picks)


def from_parts(made, dataset):
    """A round of one's own, made of the five parts."""
    state, picks = made.init(key_of_seed(), dataset, num_initial=INITIAL), []
    for _ in range(ROUNDS):
        keys = loop.round_keys(state.key, state.pool.round)
        fitted = made.round.fit(keys.fit, dataset, state)
        ids, available = made.round.candidates(keys.subset, state)
        inputs = dataset.inputs if ids is None else dataset.inputs[jnp.maximum(ids, 0)]
        summary = made.round.summarise(keys.draws, fitted, inputs)
        picked, _ = made.round.select(keys.select, state, summary, ids, available)
        state = made.round.advance(state, fitted, picked)
        picks.append(np.asarray(picked.indices))
    return np.stack(picks)


def with_annotators(made, folder):
    """Queries as files, answered with the truth."""
    annotation.start(folder, references=[f"{i}.png" for i in range(len(TRAIN.targets))], class_names=NAMES)
    picks = []
    for _ in range(ROUNDS + 1):
        query = annotation.propose(folder, made, TRAIN.inputs, key=key_of_seed(), num_initial=INITIAL)
        picks.append(query.indices)
        tasks = json.loads(query.tasks.read_text())
        for task in tasks:
            answer = {"choices": [NAMES[TRAIN.targets[task["data"]["baal_index"]]]]}
            control = {"from_name": "label", "to_name": "image", "type": "choices", "value": answer}
            task["annotations"] = [{"result": [control]}]
        export = folder / "export.json"
        export.write_text(json.dumps(tasks))
        annotation.ingest(folder, export)
    return picks[1:]


@pytest.mark.parametrize("options", OPTIONS)
def test_all_pick_the_same_examples_from_the_same_state(options, tmp_path):
    made = make(**OPTIONS[options])
    arrays, source = TRAIN._replace(inputs=jnp.asarray(TRAIN.inputs)), TRAIN._replace(inputs=data.View(TRAIN.inputs))
    expected = by_hand(made, arrays)
    assert len(set(expected[expected >= 0])) == np.sum(expected >= 0)
    scan = baal.run(made, key_of_seed(), arrays, TEST, num_initial=INITIAL, num_rounds=ROUNDS)[1].indices
    np.testing.assert_array_equal(scan, expected)
    np.testing.assert_array_equal(from_parts(made, arrays), expected)
    np.testing.assert_array_equal(by_hand(made, source), expected)
    host = baal.run(made, key_of_seed(), source, TEST, num_initial=INITIAL, num_rounds=ROUNDS)[1].indices
    np.testing.assert_array_equal(host, expected)
    size = {"key": KEY, "num_seeds": 1, "num_rounds": ROUNDS, "num_initial": INITIAL}
    for name, dataset in (("arrays", TRAIN), ("source", source)):
        results = study.run(tmp_path / name, {"bald": made}, dataset, TEST, **size)
        np.testing.assert_array_equal(results.runs["bald"].indices[0], expected)
    for asked, row in zip(with_annotators(made, tmp_path / "project"), expected, strict=True):
        np.testing.assert_array_equal(asked, row[row >= 0])


class Photos:
    """A source of dictionaries that knows what was read of it."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(TRAIN.inputs)

    def __getitem__(self, index):
        self.read.append(index)
        return {"input": TRAIN.inputs[index], "name": f"{index}.png"}


def test_a_source_is_read_in_batches_and_only_where_something_is_predicted():
    photos = Photos()
    dataset = TRAIN._replace(inputs=data.View(photos, lambda item: item["input"]))
    made = baal.active_loop(centroids(), selection.random(), query_size=3, num_samples=2)
    state = made.init(KEY, dataset, num_initial=4)
    photos.read.clear()
    state, info = made.step(state, dataset)
    trained_on = np.flatnonzero(np.asarray(state.pool.labelled_at) == 0)
    assert set(photos.read) - {0} <= set(trained_on)  # the first example tells the shapes
    assert int(info.num_picked) == 3
    with pytest.raises(ValueError, match="dataset has 40 inputs, but 39 targets"):
        made.init(KEY, dataset._replace(targets=TRAIN.targets[1:]))


def test_what_a_source_is(tmp_path):
    np.save(tmp_path / "pool.npy", TRAIN.inputs)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    made = make(max_sample=20)
    expected = by_hand(made, TRAIN)
    for inputs in (mapped, data.View(mapped), list(TRAIN.inputs)):
        np.testing.assert_array_equal(by_hand(made, TRAIN._replace(inputs=inputs)), expected)
    source = baal.Dataset(data.View(mapped), TRAIN.targets.tolist())
    np.testing.assert_array_equal(by_hand(made, source), expected)
    with pytest.raises(ValueError, match="cannot be read inside jit"):
        jax.vmap(lambda key: baal.run(made, key, source, num_initial=3, num_rounds=1))(jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match=r"test.inputs is a source"):
        baal.run(made, KEY, TRAIN, source, num_initial=3, num_rounds=1)
    with pytest.raises(ValueError, match="common leading axis"):
        made.init(KEY, baal.Dataset({"a": TRAIN.inputs, "b": TRAIN.inputs[1:]}, TRAIN.targets))


def network():
    net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(3)])
    trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=20, batch_size=8, warm_start=True)
    return posteriors.mc_dropout(baal.from_linen(net), trainer)


@pytest.mark.parametrize(
    "posterior", [network, lambda: calibration.calibrated(centroids(), calibration.temperature(), num_samples=4)]
)
def test_keys_and_the_last_fit_reach_every_round_from_arrays_and_from_a_source(posterior):
    """With random fits, a random selection, a fit that goes on from the last, and more labels than the least room."""
    made = baal.active_loop(posterior(), selection.power(heuristics.bald), query_size=9, num_samples=4)
    arrays, source = TRAIN._replace(inputs=jnp.asarray(TRAIN.inputs)), TRAIN._replace(inputs=data.View(TRAIN.inputs))
    expected = by_hand(made, arrays)
    scan = baal.run(made, key_of_seed(), arrays, num_initial=INITIAL, num_rounds=ROUNDS)[1].indices
    np.testing.assert_array_equal(scan, expected)
    np.testing.assert_array_equal(from_parts(made, arrays), expected)
    np.testing.assert_array_equal(by_hand(made, source), expected)
    host = baal.run(made, key_of_seed(), source, num_initial=INITIAL, num_rounds=ROUNDS)[1].indices
    np.testing.assert_array_equal(host, expected)


def test_a_source_trains_on_pools_that_store_their_labels():
    stored = baal.pool.init(40, targets=jnp.full(40, -1))
    stored = baal.pool.label(stored, [3, 17, 30], targets=TRAIN.targets[[3, 17, 30]])
    made = make(metrics=metrics.classification())
    picks = []
    for inputs in (TRAIN.inputs, data.View(TRAIN.inputs)):
        dataset = baal.Dataset(inputs)
        _, info = made.step(made.init(KEY, dataset, pool=stored), dataset)
        picks.append(info.indices.tolist())
    assert picks[0] == picks[1]
