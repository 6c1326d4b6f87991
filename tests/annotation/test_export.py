"""What comes out of a project: labels, predictions of everything, and a network that anybody can call."""

import csv
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import baal_jax as baal
from baal_jax import __main__ as command_line
from baal_jax import annotation, heuristics, metrics, posteriors, selection, study
from tests.annotation.exports import answer, save
from tests.fixtures import clouds

TRAIN, _ = clouds()
NAMES = ["ape", "bee", "cat"]
KEY = jax.random.key(3)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def begun(folder, names=NAMES):
    """A project whose first query is answered, and the ids that were asked for."""
    references = [f"photo {i}, of many.png" for i in range(len(TRAIN.targets))]
    annotation.start(folder, references=references, class_names=names)
    return annotation.propose(folder, loop_of(names), TRAIN.inputs, key=KEY, num_initial=9).indices


def loop_of(names=NAMES):
    head = posteriors.logistic_regression(3, prior_precision=1.0) if names else NUMBERS
    return baal.active_loop(head, selection.random(), query_size=2, num_samples=6)


NUMBERS = posteriors.gaussian_process(posteriors.kernels.rbf(1.0), num_features=32, max_labelled=16)


def answered(folder, said):
    """The first query comes back as it was written, with what is said of each example."""
    tasks = json.loads((folder / "query-0000.label_studio.json").read_text(encoding="utf-8"))
    for task in tasks:
        what = said[task["data"]["baal_index"]]
        given = answer(what, 1) if isinstance(what, str) else answer("", 1, number=what)
        task["annotations"] = [given]
    annotation.ingest(folder, save(folder.parent, tasks))


def test_tables_and_the_network_say_what_the_loop_predicts(tmp_path):
    ids = begun(tmp_path / "a")
    with pytest.raises(ValueError, match="has no answers yet"):
        annotation.export(tmp_path / "a", loop_of(), TRAIN.inputs, key=KEY)
    answered(tmp_path / "a", [NAMES[target] for target in TRAIN.targets])
    written = annotation.export(tmp_path / "a", loop_of(), TRAIN.inputs, key=KEY)
    names = ["labels.csv", "predictions.csv", "network.stablehlo", "learning_curve.csv"]
    assert [path.name for path in written] == names
    labels = table(written[0])
    assert [int(row["id"]) for row in labels] == sorted(ids.tolist())
    assert {row["label"] for row in labels} <= {*NAMES}
    assert labels[0]["reference"] == f"photo {labels[0]['id']}, of many.png"
    # The posterior is that of the answers, with the keys of the next query.
    known = np.isin(np.arange(len(TRAIN.targets)), ids)
    pool = baal.pool.PoolState(jnp.where(known, 0, -1).astype(jnp.int32), jnp.int32(1))
    state = baal.LoopState(jax.random.split(KEY)[0], pool, None, jnp.int32(0))
    after, _ = loop_of().step(state, baal.Dataset(*map(jnp.asarray, TRAIN)))
    logits = loop_of().predict(after, jnp.asarray(TRAIN.inputs))
    expected, found = np.exp(metrics.model_average(logits)), table(written[1])
    np.testing.assert_allclose([[float(row[name]) for name in NAMES] for row in found], expected, atol=1e-6)
    np.testing.assert_allclose([float(row["entropy"]) for row in found], heuristics.entropy(logits), atol=1e-5)
    np.testing.assert_allclose([float(row["mutual_information"]) for row in found], heuristics.bald(logits), atol=1e-5)
    assert [row["predicted"] for row in found] == [NAMES[i] for i in expected.argmax(axis=1)]
    assert [row["label"] != "" for row in found] == known.tolist()
    network = jax.export.deserialize(bytearray(written[2].read_bytes()))
    for i in (0, 17):
        np.testing.assert_allclose(network.call(TRAIN.inputs[i : i + 1])[0], expected[i], atol=1e-6)
    # Labels alone need no loop, and the same call writes the same bytes.
    before = [path.read_bytes() for path in written]
    assert annotation.export(tmp_path / "a") == written[:1]
    annotation.export(tmp_path / "a", loop_of(), TRAIN.inputs, key=KEY)
    assert [path.read_bytes() for path in written[:2]] == before[:2]
    for given, message in (
        ({"loop": loop_of()}, "loop is given, but not inputs or key"),
        ({"loop": loop_of(), "inputs": TRAIN.inputs[:5], "key": KEY}, "inputs holds 5 examples, but the project 40"),
    ):
        with pytest.raises(ValueError, match=message):
            annotation.export(tmp_path / "a", **given)


def test_numbers_have_a_mean_and_a_deviation(tmp_path):
    begun(tmp_path / "a", None)
    answered(tmp_path / "a", [float(i) for i in range(len(TRAIN.targets))])
    written = annotation.export(tmp_path / "a", loop_of(None), TRAIN.inputs, key=KEY)
    found = table(written[1])
    assert list(found[0]) == ["id", "reference", "label", "mean", "deviation"]
    network = jax.export.deserialize(bytearray(written[2].read_bytes()))
    np.testing.assert_allclose(network.call(TRAIN.inputs[4:5])[0, 0], float(found[4]["mean"]), rtol=1e-4)


def test_a_strangers_script_classifies_a_photograph(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 90, (12, 9, 3)) + 120 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    sizes = {"num-initial": 6, "num-steps": 40, "num-samples": 3, "query-size": 2, "image-size": 8}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    assert command_line.main(["propose", "cats", "--data", "photos", "--classes", "dark", "bright", *options]) == 0
    answered(tmp_path / "cats", ["dark", "bright"] * 5)
    capsys.readouterr()
    assert command_line.main(["export", "cats"]) == 0
    assert "cats/classify.py" in capsys.readouterr().out
    run = subprocess.run(
        [sys.executable, "cats/classify.py", "photos/7.png"], capture_output=True, text=True, check=True
    )
    path, name, probability = run.stdout.split()
    row = table(tmp_path / "cats" / "predictions.csv")[7]
    assert [path, name] == ["photos/7.png", row["predicted"]]
    np.testing.assert_allclose(float(probability), max(float(row["dark"]), float(row["bright"])), atol=1e-4)
