"""A study is its runs, whole on disk after every kill, and one program a strategy. See also contracts/test_files.py."""

import contextlib
import fcntl
import io
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
from baal_jax.study import _program, _run, results
from tests.fixtures import centroids, clouds, loops, same

TRAIN, TEST = clouds()
KEY = jax.random.key(0)
SIZE = {"num_seeds": 3, "num_rounds": 3, "num_initial": 4}


def run(folder, strategies=None, train=TRAIN, test=TEST, **options):
    strategies = loops() if strategies is None else strategies
    return study.run(folder, strategies, train, test, **{"key": KEY, **SIZE, **options})


def by_hand(loop, seed, train=TRAIN, **options):
    data = jax.tree.map(jnp.asarray, (train, TEST._replace(inputs=TEST.inputs.reshape(30, *train.inputs.shape[1:]))))
    return baal.run(loop, jax.random.fold_in(KEY, seed), *data, num_initial=4, **options)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run(folder, num_seeds=5)
    return folder


def test_every_seed_is_the_run_that_one_would_have_by_hand(home):
    found = study.results.read(home)
    assert found.description["seeds"] == list(range(5))
    for name, loop in loops().items():
        for seed in (0, 4):  # the second is in a call of its own
            state, infos = by_hand(loop, seed, num_rounds=3)
            runs = jax.tree.map(lambda leaf, seed=seed: leaf[seed], found.runs[name])
            same([runs.indices, runs.num_labelled], [infos.indices, infos.num_labelled])
            np.testing.assert_array_equal(runs.metrics["accuracy"], infos.metrics["accuracy"])
            np.testing.assert_allclose(runs.metrics["nll"], infos.metrics["nll"], rtol=1e-6)
            labelled = np.concatenate([runs.initial, runs.indices.ravel()])
            assert sorted(labelled) == np.flatnonzero(np.asarray(state.pool.labelled_at) >= 0).tolist()
    random, bald = found.runs.values()
    same([random.initial, random.metrics["nll"][:, 0]], [bald.initial, bald.metrics["nll"][:, 0]])
    assert len({tuple(row) for row in random.initial}) == 5


def test_what_is_missing_is_added_and_nothing_is_taken_away(home, tmp_path, monkeypatch):
    compiled, original = [], jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, *_, **__: compiled.append(self.as_text()) or original(self)
    )
    run(tmp_path, loops(["random"]), num_seeds=2)
    first = contents(tmp_path / "cells")
    assert [len(compiled), len(first)] == [1, 1]
    write_cell = results.write_cell

    def fails(folder, strategy, cell):
        if strategy == "bald":
            raise KeyboardInterrupt
        return write_cell(folder, strategy, cell)

    monkeypatch.setattr(results, "write_cell", fails)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, num_seeds=5)
    assert (tmp_path / "results.csv").read_text().count("random") == 5 * 3  # the table is of all that is there
    monkeypatch.setattr(results, "write_cell", write_cell)
    run(tmp_path, num_seeds=5)
    assert [len(compiled), compiled[0], compiled[2]] == [4, compiled[1], compiled[3]]  # a seed more is the same program
    assert not any("callback" in text for text in compiled)
    assert (tmp_path / "results.csv").read_bytes() == (home / "results.csv").read_bytes()
    assert contents(tmp_path / "cells").items() >= first.items()
    about = study.About(metric="nll", name="a title", higher_is_better=False)
    fewer = run(tmp_path, loops(["bald"]), num_seeds=1, about=about, chunk=8)  # it keeps the chunk it was begun with
    assert len(compiled) == 4  # nothing was missing
    assert [len(fewer.runs["random"].seeds), fewer.description["seeds"]] == [5, list(range(5))]
    assert list(fewer.runs) == fewer.description["strategies"] == ["random", "bald"]
    found = study.results.read(tmp_path).description
    assert found["higher_is_better"] == {"nll": False}
    assert [found[name] for name in ("metric", "name", "baseline", "seeds")] == [
        "nll",
        "a title",
        "random",
        [0, 1, 2, 3, 4],
    ]


# A schedule, a criterion, a part of the pool, and images: on the device once, and from the host.
IMAGES = TRAIN._replace(inputs=TRAIN.inputs.reshape(40, 2, 2, 1))
BUDGET = {"num_rounds": 4, "stop": stopping.labelling_budget(6)}


def grown(**options):
    options = {
        "query_size": (1, 2, 4),
        "max_sample": 15,
        "metrics": metrics.classification(diagnostics=True),
        **options,
    }
    return loops(["bald"], **options)


def run_images(folder, strategies=None, train=IMAGES, **options):
    test = TEST._replace(inputs=TEST.inputs.reshape(30, 2, 2, 1))
    return run(folder, grown() if strategies is None else strategies, train, test, **{**BUDGET, **options})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder, shown = tmp_path_factory.mktemp("stopped"), io.StringIO()
    with contextlib.redirect_stderr(shown):
        run_images(folder, chunk=5, progress=True)
    return folder, shown.getvalue()


def test_every_seed_stops_for_itself_and_a_bar_shows_what_is_left(stopped):
    folder, shown = stopped
    found = study.results.read(folder)
    runs = found.runs["bald"]
    _, infos = by_hand(grown()["bald"], 1, IMAGES, **BUDGET)
    mine = jax.tree.map(lambda leaf: leaf[1], runs)
    same([mine.stopped, mine.indices, mine.num_picked], [infos.stopped, infos.indices, infos.num_picked])
    np.testing.assert_array_equal(mine.stopped, [False, False, True, True])
    np.testing.assert_allclose(mine.scores, infos.scores, rtol=1e-6)
    np.testing.assert_allclose(mine.mean_score, infos.mean_score, rtol=1e-6)
    assert np.isnan(runs.metrics["nll"][:, 2:]).all()
    known = np.where(runs.indices >= 0, TRAIN.targets[runs.indices], -1)
    np.testing.assert_array_equal(runs.diagnostics["query_targets"], known)
    assert runs.diagnostics["reliability_accuracy"].shape == (3, 4, 15)
    assert "reliability_accuracy" not in runs.metrics
    (cell,) = results.read_cells(folder, "bald")
    assert [cell.chunk, runs.seeds.tolist()] == [8, [0, 1, 2]]  # two for each of four devices, and padding is dropped
    asked = [*runs.initial[0], *runs.indices[0].ravel()]
    assert found.pictures.ids.tolist() == sorted(index for index in asked if index >= 0)
    low, high = IMAGES.inputs.min(), IMAGES.inputs.max()
    stretched = np.round((IMAGES.inputs - low) / (high - low) * 255)
    np.testing.assert_array_equal(found.pictures.images, stretched[found.pictures.ids])
    np.testing.assert_array_equal(found.pictures.targets, TRAIN.targets[found.pictures.ids])
    assert found.pictures.images.dtype == np.uint8
    expected = {"baseline": "bald", "metric": "accuracy", "num_pool": 40, "num_rounds": 4, "num_initial": 4}
    expected |= {"class_counts": np.bincount(TRAIN.targets).tolist(), "key": [0, 0], "class_names": None}
    assert {name: found.description[name] for name in expected} == expected
    assert found.description["environment"]["jax"] == jax.__version__
    assert "bald (compiling)" in shown
    assert "12/12" in shown


class Items:
    """A source that gives one example at a time."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"input": self.inputs[index], "name": f"{index}.png"}


def test_a_source_on_the_host_gives_the_study_of_an_array(stopped, tmp_path):
    runs = study.results.read(stopped[0]).runs["bald"]
    train = IMAGES._replace(inputs=View(Items(IMAGES.inputs), lambda item: item["input"]))
    streamed = run_images(tmp_path, train=train, num_seeds=2).runs["bald"]
    for field in ("seeds", "initial", "indices", "num_labelled", "num_picked", "stopped"):
        np.testing.assert_array_equal(getattr(streamed, field), getattr(runs, field)[:2])
    np.testing.assert_allclose(streamed.scores, runs.scores[:2], rtol=1e-5)
    np.testing.assert_allclose(streamed.metrics["nll"], runs.metrics["nll"][:2], rtol=1e-5)
    assert len(results.read_cells(tmp_path, "bald")) == 2  # a seed a call
    before = contents(tmp_path)
    next(tmp_path.glob("cells/*00001.npz")).unlink()
    run_images(tmp_path, train=train, num_seeds=2)
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="another program"):
        run_images(tmp_path, grown(batch_size=7), train, num_seeds=2)
    with pytest.raises(ValueError, match="train has 39 inputs, but 40 targets"):
        run_images(tmp_path, train=IMAGES._replace(inputs=list(IMAGES.inputs[1:])))


DIFFERENT = {
    "num_rounds": ({"num_rounds": 4}, "num_rounds=3, but now it is 4"),
    "num_initial": ({"num_initial": 5}, "num_initial=4, but now it is 5"),
    "key": ({"key": jax.random.key(1)}, "key="),
    "implementation of the key": ({"key": jax.random.key(0, impl="rbg")}, "key="),
    "data": ({"train": TRAIN._replace(inputs=TRAIN.inputs + 1)}, "data="),
    "test data": ({"test": TEST._replace(inputs=TEST.inputs + 1)}, "data="),
    "config": ({"about": study.About(config={"rate": 0.5})}, "config=None, but now it is {'rate': 0.5}"),
    "draws": ({"strategies": loops(num_samples=7)}, r"loops\['random'\] is another program than .* its 2 cells"),
    "no strategy": ({"strategies": {}}, "loops is empty"),
    "no seeds": ({"num_seeds": 0}, "num_seeds=0"),
    "no rounds": ({"num_rounds": 0}, "num_rounds=0"),
    "initial": ({"num_initial": -1}, "num_initial=-1"),
    "chunk": ({"chunk": 0}, "chunk=0"),
    "baseline": ({"about": study.About(baseline="badge")}, "baseline='badge' is not among the strategies: random, b"),
    "metric": ({"about": study.About(metric="auroc")}, "metric='auroc' is not what 'random' reports: choose one of "),
    "targets": ({"train": TRAIN._replace(targets=None)}, "train has no targets"),
    "test targets": ({"test": TEST._replace(targets=None)}, "test has no targets"),
    "lengths": ({"train": TRAIN._replace(targets=TRAIN.targets[1:])}, "train needs one common leading axis"),
    "no key": ({"key": 0}, "key=0 must be a typed key"),
    "test source": ({"test": TEST._replace(inputs=View(TEST.inputs))}, "test.inputs is a source"),
    "too many": ({"num_initial": 39}, "query_size=3 exceeds the 1 unlabelled"),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_is_another_study_or_none_is_refused_before_anything_is_written(home, tmp_path, change):
    options, message = DIFFERENT[change]
    before = contents(home)
    with pytest.raises(ValueError, match=message):
        run(home, **{"num_seeds": 5, **options})
    assert contents(home) == before


def test_killed_at_any_moment_the_same_command_finishes_it_and_two_writers_are_refused(home, tmp_path):
    """experiments/benchmarks/study.py kills a study of three strategies and six seeds thirty times."""
    code = "import sys; from tests.study.test_run import run; print('ready', flush=True); run(sys.argv[1], num_seeds=5)"
    stale = [
        tmp_path / name for name in (".results.csv.abc", ".study.json.b", ".pictures.npz.c", "cells/.a.npz.abcdef")
    ]
    stale[-1].parent.mkdir()
    for path in stale:
        path.write_bytes(b"half")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.7)
        process.send_signal(signal.SIGKILL)
    run(tmp_path, num_seeds=5)
    assert not any(path.exists() for path in stale)
    for name in ("results.csv", "study.json"):
        assert (tmp_path / name).read_bytes() == (home / name).read_bytes()
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="is being written to by another process"):
            run(tmp_path, num_seeds=5)
    (tmp_path / "study.json").unlink()
    with pytest.raises(ValueError, match=r"has cells, such as bald-00000-00003.npz, but no study.json: empty it"):
        run(tmp_path, num_seeds=5)


def test_a_seed_is_run_with_what_the_acquisition_and_the_criterion_read(tmp_path, monkeypatch):
    noted = []

    def program(loop, rounds, data, chunk):
        noted.append((loop, rounds, data, chunk))
        raise KeyboardInterrupt

    loop = loops(["bald"])["bald"]
    monkeypatch.setattr(_run, "program", program)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, {"bald": loop}, target_inputs=np.zeros(2), stop_inputs=np.ones(3), stop=BUDGET["stop"], chunk=7)
    ((_, rounds, data, chunk),) = noted
    assert [*rounds, chunk] == [3, 4, BUDGET["stop"], 7]
    same(data[2:], (TEST, np.zeros(2), np.ones(3)))
    monkeypatch.setattr(_program, "run", lambda *arguments, **options: (None, (arguments, options)))
    initial, (arguments, options) = _program._one_seed(loop, rounds, 2, data)
    assert [arguments[0], arguments[1], options.pop("num_rounds"), options.pop("stop")] == [
        loop,
        None,
        3,
        BUDGET["stop"],
    ]
    state = options.pop("state")
    same(state.pool, loop.init(jax.random.fold_in(KEY, 2), TRAIN, 4).pool)
    assert initial.tolist() == np.flatnonzero(np.asarray(state.pool.labelled_at) >= 0).tolist()
    same(options, {"target_inputs": np.zeros(2), "stop_inputs": np.ones(3)})


def test_names_of_a_grid():
    several = {"near": centroids(9.0), "far": centroids(1.0)}
    picks = {"random": selection.random(), "other": selection.random()}
    assert list(study.strategies(several, picks["random"], query_size=1)) == ["near", "far"]
    assert list(study.strategies(centroids(), picks, query_size=1)) == ["random", "other"]
    assert study.strategies(several, picks, query_size=(2, 5))["far, other"].sizes == (2, 5)
    with pytest.raises(ValueError, match="without a name"):
        study.strategies(centroids(), selection.random(), query_size=1)
    with pytest.raises(ValueError, match="query_size=0"):
        study.strategies(several, picks, query_size=0)


def test_cores_are_decided_before_jax_computes(monkeypatch):
    assert study.use_all_cores(7) == 4  # XLA_FLAGS has decided
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(ValueError, match=r"num_cores=7 comes too late"):
        study.use_all_cores(7)
    with pytest.raises(ValueError, match=r"num_cores=0"):
        study.use_all_cores(0)
    assert study.use_all_cores(4) == 4
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    assert study.use_all_cores() == os.cpu_count()


def test_a_call_has_a_seed_for_every_device_or_on_an_accelerator_all_of_them(monkeypatch):
    assert _program.default_chunk(9) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _program.default_chunk(9) == 9


def test_an_interrupted_study_has_a_table_of_what_is_done(tmp_path, monkeypatch):
    def chunk(self, strategy):
        if strategy == "bald":
            raise KeyboardInterrupt

    monkeypatch.setattr(_run._folder.Folder, "chunk", chunk)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, num_seeds=5)  # two calls, and only the first writes the table by itself
    done = results.read(tmp_path)
    assert [*done.runs] == ["random"]
    assert len(done.runs["random"].seeds) == 5
    assert (tmp_path / "results.csv").read_text() == results.table(done)
