"""A study is its runs, whole on disk after every kill, and one program a strategy."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import metrics, selection, stopping, study
from baal_jax.data import View
from baal_jax.study import results
from tests.fixtures import centroids, clouds as data, loops

TRAIN, TEST = data()
SIZE = {"num_seeds": 3, "num_rounds": 3, "num_initial": 4}


def run(folder, strategies=None, train=TRAIN, test=TEST, **options):
    strategies = loops() if strategies is None else strategies
    return study.run(folder, strategies, train, test, **{"key": jax.random.key(0), **SIZE, **options})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run(folder, num_seeds=5)
    return folder


def plain_run(loop, seed, num_rounds=3, **options):
    key = jax.random.fold_in(jax.random.key(0), seed)
    return baal.run(
        loop, key, *jax.tree.map(jnp.asarray, (TRAIN, TEST)), num_initial=4, num_rounds=num_rounds, **options
    )


def read_table(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_seed_is_the_run_that_one_would_have_by_hand(home):
    found = study.results.read(home)
    for name, loop in loops().items():
        for seed in (0, 4):
            state, infos = plain_run(loop, seed)
            runs = jax.tree.map(lambda leaf, seed=seed: leaf[seed], found.runs[name])
            np.testing.assert_array_equal(runs.indices, infos.indices)
            np.testing.assert_array_equal(runs.num_labelled, infos.num_labelled)
            np.testing.assert_array_equal(runs.metrics["accuracy"], infos.metrics["accuracy"])
            np.testing.assert_allclose(runs.metrics["nll"], infos.metrics["nll"], rtol=1e-6)
            labelled = np.concatenate([runs.initial, runs.indices.ravel()])
            assert sorted(labelled) == np.flatnonzero(np.asarray(state.pool.labelled_at) >= 0).tolist()


def test_strategies_share_their_first_labels_and_seeds_do_not(home):
    random, bald = study.results.read(home).runs.values()
    np.testing.assert_array_equal(random.initial, bald.initial)
    np.testing.assert_array_equal(random.metrics["nll"][:, 0], bald.metrics["nll"][:, 0])
    assert len({tuple(row) for row in random.initial}) == 5


def test_the_table_holds_every_round(home):
    found = study.results.read(home)
    rows = read_table(home)
    assert len(rows) == 2 * 5 * 3
    for row in rows:
        runs, at = found.runs[row["strategy"]], (int(row["seed"]), int(row["round"]))
        assert int(row["num_labelled"]) == runs.num_labelled[at]
        assert np.float32(row["accuracy"]) == runs.metrics["accuracy"][at]
        assert np.float32(row["mean_score"] or np.nan) == runs.mean_score[at] or row["strategy"] == "random"


def test_seeds_and_strategies_are_added_to_what_is_there(home, tmp_path):
    run(tmp_path, loops(["random"]), num_seeds=2)
    run(tmp_path, loops(["random"]), num_seeds=5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*")}
    found = run(tmp_path, num_seeds=5)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert (tmp_path / "results.csv").read_bytes() == (home / "results.csv").read_bytes()
    assert list(found.runs) == ["random", "bald"]
    assert found.description["seeds"] == list(range(5))
    fewer = run(
        tmp_path, loops(["bald"]), num_seeds=1, about=study.About(metric="nll", name="a title")
    )  # less: nothing is taken away
    assert len(fewer.runs["random"].seeds) == 5
    assert fewer.description["baseline"] == "random"
    assert study.results.read(tmp_path).description["metric"] == "nll"


def test_a_strategy_is_compiled_once_and_a_seed_more_compiles_nothing_else(tmp_path, monkeypatch):
    compiled = []
    original = jax.stages.Lowered.compile

    def counted(self, *arguments, **options):
        compiled.append(self.as_text())
        return original(self, *arguments, **options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    run(tmp_path, num_seeds=9)
    assert len(compiled) == 2
    run(tmp_path, num_seeds=9)
    assert len(compiled) == 2  # nothing is missing
    run(tmp_path, num_seeds=10)
    assert compiled[2:] == compiled[:2]
    assert not any("callback" in text for text in compiled)


def test_every_seed_stops_for_itself(tmp_path):
    grown = loops(query_size=(1, 2, 4))
    stop = stopping.labelling_budget(6)
    found = run(tmp_path, grown, num_rounds=4, stop=stop)
    for name, loop in grown.items():
        _, infos = plain_run(loop, 1, num_rounds=4, stop=stop)
        runs = jax.tree.map(lambda leaf: leaf[1], found.runs[name])
        np.testing.assert_array_equal(runs.stopped, infos.stopped)
        np.testing.assert_array_equal(runs.stopped, [False, False, True, True])
        np.testing.assert_array_equal(runs.indices, infos.indices)
        assert np.isnan(runs.metrics["nll"][2:]).all()
    rows = read_table(tmp_path)
    assert {row["nll"] for row in rows if row["stopped"] == "1"} == {""}


def test_it_tells_what_was_asked_for_and_shows_it(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(len(TRAIN.targets), 2, 2, 1)).astype(np.float32)
    options = {"metrics": metrics.classification(diagnostics=True)}
    run(tmp_path, loops(["bald"], **options), baal.Dataset(images, TRAIN.targets), baal.Dataset(images, TRAIN.targets))
    found = study.results.read(tmp_path)
    runs, pictures = found.runs["bald"], found.pictures
    np.testing.assert_array_equal(runs.diagnostics["query_targets"], TRAIN.targets[runs.indices])
    assert runs.diagnostics["reliability_accuracy"].shape == (3, 3, 15)
    assert "reliability_accuracy" not in runs.metrics
    assert found.description["class_counts"] == np.bincount(TRAIN.targets).tolist()
    assert sorted(np.concatenate([runs.initial[0], runs.indices[0].ravel()])) == pictures.ids.tolist()
    assert pictures.images.dtype == np.uint8
    stretched = (images - images.min()) / (images.max() - images.min()) * 255
    np.testing.assert_array_equal(pictures.images, np.round(stretched)[pictures.ids])


class Items:
    """A source that gives one example at a time, and only what it is asked for."""

    def __init__(self, inputs):
        self.inputs, self.read = inputs, 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.read += 1
        return {"input": self.inputs[index], "name": f"{index}.png"}


STREAMED = {
    "schedule and stopping": {"query_size": (1, 2, 4)},
    "a part of the pool": {"max_sample": 15},
    "last rounds": {"last_rounds": 1},
}


@pytest.mark.parametrize("case", STREAMED)
def test_a_source_on_the_host_gives_the_study_of_an_array(tmp_path, case):
    strategies = loops(**STREAMED[case])
    options = {"num_rounds": 4, "num_seeds": 2, "stop": stopping.labelling_budget(9)}
    inside = run(tmp_path / "device", strategies, **options)
    source = Items(TRAIN.inputs)
    train = TRAIN._replace(inputs=View(source, lambda item: item["input"]))
    outside = run(tmp_path / "host", strategies, train, **options)
    assert source.read
    for name, runs in inside.runs.items():
        streamed = outside.runs[name]
        for field in ("seeds", "initial", "indices", "num_labelled", "num_picked", "stopped"):
            np.testing.assert_array_equal(getattr(streamed, field), getattr(runs, field))
        np.testing.assert_allclose(streamed.scores, runs.scores, rtol=1e-5)
        np.testing.assert_allclose(streamed.metrics["nll"], runs.metrics["nll"], rtol=1e-5)
    before = (tmp_path / "host" / "results.csv").read_bytes()
    for path in (tmp_path / "host" / "cells").glob("bald-*"):
        path.unlink()
    run(tmp_path / "host", strategies, train, **options)
    assert (tmp_path / "host" / "results.csv").read_bytes() == before


def test_sources_may_be_lists_and_memory_maps_and_their_changes_are_seen(tmp_path):
    np.save(tmp_path / "pool.npy", TRAIN.inputs)
    sources = {"list": list(TRAIN.inputs), "map": View(np.load(tmp_path / "pool.npy", mmap_mode="r"))}
    strategies = loops(["bald"])
    found = {
        name: run(tmp_path / name, strategies, TRAIN._replace(inputs=source), num_seeds=1)
        for name, source in sources.items()
    }
    np.testing.assert_array_equal(found["list"].runs["bald"].indices, found["map"].runs["bald"].indices)
    with pytest.raises(ValueError, match="another program"):
        run(tmp_path / "list", loops(["bald"], batch_size=7), TRAIN._replace(inputs=sources["list"]))
    with pytest.raises(ValueError, match="train has 39 inputs, but 40 targets"):
        run(tmp_path / "list", strategies, TRAIN._replace(inputs=sources["list"][1:]))


CHANGES = {
    "num_rounds": ({"num_rounds": 4}, "num_rounds=3, but now it is 4"),
    "num_initial": ({"num_initial": 5}, "num_initial=4, but now it is 5"),
    "key": ({"key": jax.random.key(1)}, "key="),
    "implementation of the key": ({"key": jax.random.key(0, impl="rbg")}, "key="),
    "data": ({"train": TRAIN._replace(inputs=TRAIN.inputs + 1)}, "data="),
    "test data": ({"test": TEST._replace(inputs=TEST.inputs + 1)}, "data="),
    "config": ({"about": study.About(config={"rate": 0.5})}, "config="),
    "query size": ({"strategies": loops(query_size=2)}, r"loops\['random'\] is another program"),
    "draws": ({"strategies": loops(num_samples=7)}, r"loops\['random'\] is another program"),
    "posterior": (
        {"strategies": study.strategies(centroids(1.0), {"random": selection.random()}, query_size=3)},
        "another prog",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_study_in_the_same_folder_is_refused(home, change):
    options, message = CHANGES[change]
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(ValueError, match=message):
        run(home, **{"num_seeds": 5, **options})
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "lock"} == before


WRONG = {
    "no strategy": ({"strategies": {}}, "loops is empty"),
    "no seeds": ({"num_seeds": 0}, "num_seeds=0"),
    "chunk": ({"chunk": 0}, "chunk=0"),
    "baseline": (
        {"about": study.About(baseline="badge")},
        "baseline='badge' is not among the strategies: random, bald",
    ),
    "metric": (
        {"about": study.About(metric="auroc")},
        "metric='auroc' is not what 'random' reports: choose",
    ),
    "targets": ({"train": TRAIN._replace(targets=None)}, "train has no targets"),
    "lengths": ({"train": TRAIN._replace(targets=TRAIN.targets[1:])}, "train needs one common leading axis"),
    "key": ({"key": 0}, "key=0 must be a typed key"),
    "test source": ({"test": TEST._replace(inputs=View(TEST.inputs))}, "test.inputs is a source"),
    "too many": ({"num_initial": 39}, "query_size=3 exceeds the 1 unlabelled"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path, wrong):
    options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_two_writers_are_refused(home):
    with (home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is being written to by another process"):
            run(home, num_seeds=5)


def test_cells_without_a_description_are_refused(tmp_path):
    run(tmp_path, loops(["random"]))
    (tmp_path / "study.json").unlink()
    with pytest.raises(ValueError, match=r"has cells, such as random-00000-00002.npz, but no study.json"):
        run(tmp_path, loops(["random"]))


def test_names_may_look_alike_and_hold_anything(tmp_path):
    picks = {name: selection.random() for name in ("bald", "bald-0", "a/τ")}
    found = run(tmp_path, study.strategies(centroids(), picks, query_size=3))
    assert list(found.runs) == list(picks)
    again = study.results.read(tmp_path)
    for name in picks:
        np.testing.assert_array_equal(again.runs[name].indices, found.runs[name].indices)
        assert again.runs[name].seeds.tolist() == [0, 1, 2]


def test_whatever_fails_the_same_call_goes_on(home, tmp_path, monkeypatch):
    """Every rename of a study fails in turn, until one gets through."""
    original, failed = os.replace, 0
    while True:
        remaining = 1

        def fails_once(source, target):
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                raise OSError("the disk is gone")
            original(source, target)

        monkeypatch.setattr(os, "replace", fails_once)
        try:
            run(tmp_path, num_seeds=5)
            break
        except OSError:
            failed += 1
        monkeypatch.setattr(os, "replace", original)
        for strategy in ("random", "bald") if (tmp_path / "study.json").exists() else ():
            assert all(len(cell.runs.seeds) for cell in results.read_cells(tmp_path, strategy))
        assert not list(tmp_path.rglob(".*"))
    assert failed >= 4
    assert (tmp_path / "results.csv").read_bytes() == (home / "results.csv").read_bytes()
    assert (tmp_path / "study.json").read_bytes() == (home / "study.json").read_bytes()


def test_killed_at_any_moment_the_same_command_finishes_it(home, tmp_path):
    """experiments/benchmarks/study.py kills a study of three strategies and six seeds thirty times."""
    code = (
        "import sys; from tests.study import test_run; print('ready', flush=True); test_run.run(sys.argv[1], num_seeds=5)"
    )
    stale = [tmp_path / ".results.csv.abcdef", tmp_path / "cells" / ".bald-00000-00003.npz.abcdef"]
    stale[1].parent.mkdir()
    for path in stale:
        path.write_bytes(b"half")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    for wait in (0.7, None):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        if wait is not None:
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == (0 if wait is None else -signal.SIGKILL)
    assert not any(path.exists() for path in stale)
    assert (tmp_path / "results.csv").read_bytes() == (home / "results.csv").read_bytes()


def test_names_of_a_grid():
    several = {"near": centroids(9.0), "far": centroids(1.0)}
    assert list(study.strategies(several, selection.random(), query_size=1)) == ["near", "far"]
    with pytest.raises(ValueError, match="without a name"):
        study.strategies(centroids(), selection.random(), query_size=1)
    with pytest.raises(ValueError, match="query_size=0"):
        study.strategies(several, selection.random(), query_size=0)


def test_cores_are_decided_before_jax_computes(monkeypatch):
    assert study.use_all_cores(7) == len(jax.devices())  # XLA_FLAGS has decided
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(ValueError, match=r"num_cores=7 comes too late"):
        study.use_all_cores(7)
    assert study.use_all_cores(len(jax.devices())) == len(jax.devices())


def test_a_bar_shows_what_is_left(tmp_path, capsys):
    run(tmp_path, loops(["bald"]), progress=True)
    shown = capsys.readouterr().err
    assert "bald" in shown
    assert "9/9" in shown


def test_the_description_is_plain_json(home):
    found = json.loads((home / "study.json").read_text())
    assert found["baseline"] == "random"
    assert found["metric"] == "accuracy"
    assert found["num_pool"] == 40
    assert found["environment"]["jax"] == jax.__version__
