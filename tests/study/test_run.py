"""A study is its runs, whole on disk after every kill, and one program a strategy. See also contracts/test_files.py."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import metrics, selection, stopping, study
from baal_jax.data import View
from baal_jax.study import _program, results
from tests.fixtures import centroids, close, clouds, loops, noted, same

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
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
            parts = [[one.indices, one.num_labelled, one.metrics["accuracy"]] for one in (runs, infos)]
            same(*parts)
            close(runs.metrics["nll"], infos.metrics["nll"], rtol=1e-6)
            labelled = np.concatenate([runs.initial, runs.indices.ravel()])
            assert sorted(labelled) == np.flatnonzero(np.asarray(state.pool.labelled_at) >= 0).tolist()
    random, bald = found.runs.values()
    same([random.initial, random.metrics["nll"][:, 0]], [bald.initial, bald.metrics["nll"][:, 0]])
    assert len({tuple(row) for row in random.initial}) == 5


def test_what_is_missing_is_added_and_nothing_is_taken_away(home, tmp_path, monkeypatch):
    compiled, original, write_cell = [], jax.stages.Lowered.compile, results.write_cell
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda self, *_, **__: compiled.append(self.as_text()) or original(self)
    )
    run(tmp_path, loops(["random"]), num_seeds=2)
    first = contents(tmp_path / "cells")
    assert [len(compiled), len(first)] == [1, 1]

    def fails(folder, description, strategy, cell):
        if strategy == "bald":
            raise KeyboardInterrupt
        return write_cell(folder, description, strategy, cell)

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_cell", fails)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, num_seeds=5)
    assert [*(tmp_path / "claims").iterdir()] == []
    assert results.progress(tmp_path) == (2, 4)
    run(tmp_path, num_seeds=5)
    assert results.progress(tmp_path) == (4, 4)
    assert [len(compiled), compiled[1]] == [3, compiled[2]]  # a seed more is the same program, of both strategies
    assert (tmp_path / "results.csv").read_bytes() == (home / "results.csv").read_bytes()
    assert contents(tmp_path / "cells").items() >= first.items()
    about = study.About(metric="nll", name="a title", higher_is_better=False)
    fewer = run(tmp_path, loops(["bald"]), num_seeds=1, about=about, chunk=8)  # it keeps the chunk it was begun with
    assert len(compiled) == 3  # nothing was missing
    assert [len(fewer.runs["random"].seeds), [*fewer.runs]] == [5, ["random", "bald"]]
    expected = {"strategies": ["random", "bald"], "metric": "nll", "name": "a title", "baseline": "random"}
    expected |= {"seeds": [0, 1, 2, 3, 4], "higher_is_better": {"nll": False}}
    for description in (fewer.description, study.results.read(tmp_path).description):
        assert description.items() >= expected.items()


# A schedule, a criterion, a part of the pool, and images: on the device once, and from the host.
IMAGES = TRAIN._replace(inputs=TRAIN.inputs.reshape(40, 2, 2, 1))
BUDGET = {"num_rounds": 4, "stop": stopping.labelling_budget(6)}


def grown(**options):
    diagnostics = metrics.classification(diagnostics=True)
    return loops(["bald"], **{"query_size": (1, 2, 4), "max_sample": 15, "metrics": diagnostics, **options})


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
    close([mine.scores, mine.mean_score], [infos.scores, infos.mean_score], rtol=1e-6)
    assert np.isnan(runs.metrics["nll"][:, 2:]).all()
    known = np.where(runs.indices >= 0, TRAIN.targets[runs.indices], -1)
    np.testing.assert_array_equal(runs.diagnostics["query_targets"], known)
    assert runs.diagnostics["reliability_accuracy"].shape == (3, 4, 15)
    assert "reliability_accuracy" not in runs.metrics
    (path,) = (folder / "cells").iterdir()
    assert [path.name, found.description["chunk"]] == ["bald-00000-00002.npz", 5]  # padding to 8 is dropped
    assert [runs.seeds.tolist(), found.devices] == [[0, 1, 2], {"cpu (cpu)": 1}]
    asked = [*runs.initial[0], *runs.indices[0].ravel()]
    ids = sorted(index for index in asked if index >= 0)
    low, high = IMAGES.inputs.min(), IMAGES.inputs.max()
    stretched = np.round((IMAGES.inputs[ids] - low) / (high - low) * 255)
    same(found.pictures, results.Pictures(np.array(ids), stretched, TRAIN.targets[ids]))
    assert found.pictures.images.dtype == np.uint8
    expected = {"baseline": "bald", "metric": "accuracy", "num_pool": 40, "num_rounds": 4, "num_initial": 4}
    expected |= {"class_counts": np.bincount(TRAIN.targets).tolist(), "key": [0, 0], "class_names": None}
    assert found.description.items() >= expected.items()
    assert found.description["environment"]["jax"] == jax.__version__
    assert "bald (compiling, first seeds)" in shown
    assert "12 of 12 rounds: done" in shown  # no terminal: lines, not a bar


def test_a_source_on_the_host_gives_the_study_of_an_array(stopped, tmp_path):
    runs = study.results.read(stopped[0]).runs["bald"]
    items = [{"input": row, "name": "a.png"} for row in IMAGES.inputs]
    train = IMAGES._replace(inputs=View(items, lambda item: item["input"]))
    streamed = run_images(tmp_path, train=train, num_seeds=2).runs["bald"]
    for field in ("seeds", "initial", "indices", "num_labelled", "num_picked", "stopped"):
        np.testing.assert_array_equal(getattr(streamed, field), getattr(runs, field)[:2])
    close([streamed.scores, streamed.metrics["nll"]], [runs.scores[:2], runs.metrics["nll"][:2]], rtol=1e-5)
    assert len([*tmp_path.glob("cells/*")]) == 2  # a seed each
    before = contents(tmp_path)
    next(tmp_path.glob("cells/*00001.npz")).unlink()
    run_images(tmp_path, train=train, num_seeds=2)
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match="another program"):
        run_images(tmp_path, grown(batch_size=7), train, num_seeds=2)
    with pytest.raises(ValueError, match=r"train has 39 inputs, but targets of shape \(40"):
        run_images(tmp_path, train=IMAGES._replace(inputs=list(IMAGES.inputs[1:])))


DIFFERENT = [
    ({"num_rounds": 4}, "num_rounds=3, but now it is 4"),
    ({"num_initial": 5}, "num_initial=4, but now it is 5"),
    ({"key": jax.random.key(1)}, "key="),
    ({"key": jax.random.key(0, impl="rbg")}, "key="),
    ({"train": TRAIN._replace(inputs=TRAIN.inputs + 1)}, "data="),
    ({"test": TEST._replace(inputs=TEST.inputs + 1)}, "data="),
    ({"about": study.About(config={"rate": 0.5})}, "config=None, but now it is {'rate': 0.5}: use another folder"),
    ({"strategies": loops(num_samples=7)}, r"loops\['random'\] is another program than .* its 2 cells"),
    ({"strategies": {}}, "loops is empty"),
    ({"strategies": {"a\0": None}}, r"loops holds 'a\\x00', but '\\x00' cannot be written"),
    ({"about": study.About(name="a\nb")}, r"about holds 'a\\nb', but"),
    ({"about": study.About(class_names=["a", "\ud800"])}, r"about holds '\\ud800', but"),
    ({"about": study.About(config={"a": ["\x85"]})}, r"about.config holds '\\x85', but"),
    ({"num_seeds": 0}, "num_seeds=0"),
    ({"num_rounds": 0}, "num_rounds=0"),
    ({"num_initial": -1}, "num_initial=-1"),
    ({"chunk": 0}, "chunk=0"),
    ({"about": study.About(baseline="badge")}, "baseline='badge' is not among the strategies: random, b"),
    ({"about": study.About(metric="auroc")}, "metric='auroc' is not what 'random' reports: choose one of "),
    ({"train": TRAIN._replace(targets=None)}, "train has no targets"),
    ({"test": TEST._replace(targets=None)}, "test has no targets"),
    ({"train": TRAIN._replace(targets=TRAIN.targets[1:])}, "train has 40 inputs, but targets of shape .39"),
    ({"key": 0}, "key=0 must be a typed key"),
    ({"test": TEST._replace(inputs=View(TEST.inputs))}, "test.inputs is a source"),
    ({"num_initial": 39}, "query_size=3 exceeds the 1 unlabelled"),
]


def test_what_is_another_study_or_none_is_refused_before_anything_is_written(home):
    before = contents(home)
    for options, message in DIFFERENT:
        with pytest.raises(ValueError, match=message):
            run(home, **{"num_seeds": 5, **options})
    assert contents(home) == before


def test_a_seed_is_run_with_what_the_acquisition_and_the_criterion_read(tmp_path, monkeypatch):
    calls, loop = {}, loops(["bald"])["bald"]
    monkeypatch.setattr(_program, "fingerprint", noted(calls, "fingerprint", "a program"))
    monkeypatch.setattr(_program, "programs", noted(calls, "programs", noted(calls, "program", None)))
    with pytest.raises(AttributeError):  # nothing is no program
        run(tmp_path, {"bald": loop}, target_inputs=np.zeros(2), stop_inputs=np.ones(3), stop=BUDGET["stop"], chunk=7)
    (_, rounds, data, _), (_, chunk, _) = calls["programs"], calls["program"]
    assert [*rounds, chunk] == [3, 4, BUDGET["stop"], 7]
    same(data[2:], (TEST, np.zeros(2), np.ones(3)))
    monkeypatch.setattr(_program, "run", noted(calls, "run", (None, None)))
    initial, _ = _program._one_seed([loop], rounds, 2, 0, data)
    *arguments, options = calls["run"]
    expected = [loop, None, 3, BUDGET["stop"]]
    assert [*arguments[:2], options.pop("num_rounds"), options.pop("stop")] == expected
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


def test_cores_and_seeds_of_a_call(monkeypatch):
    assert study.use_all_cores(7) == 4  # XLA_FLAGS has decided
    monkeypatch.setenv("XLA_FLAGS", "")
    for cores, message in ((7, "num_cores=7 comes too late"), (0, "num_cores=0")):
        with pytest.raises(ValueError, match=message):
            study.use_all_cores(cores)
    assert study.use_all_cores(4) == 4
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    assert study.use_all_cores() == os.cpu_count()
    data = _program.Data(KEY, TRAIN._replace(inputs=jnp.asarray(TRAIN.inputs)), TEST, None, None)
    chunk = lambda *given: _program.default_chunk(data, *given)  # noqa: E731
    assert [chunk(9, 2, 1), chunk(9, 2, 2), chunk(9, 2, 3), chunk(9, 2, 7)] == [4, 4, 4, 3]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [chunk(9, 2, 1), chunk(9, 2, 2), chunk(9, 2, 3), chunk(9, 2, 7)] == [9, 9, 5, 3]
    assert _program.default_chunk(data._replace(train=TRAIN._replace(inputs=View(TRAIN.inputs))), 9, 2, 1) == 1


def test_programs_are_kept_on_the_disk(tmp_path):
    code = """
import sys, jax
from baal_jax import study
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event.rpartition("/")[2]))
place = study.use_compilation_cache(sys.argv[1])
jax.jit(lambda x: x**2 + 1).lower(1.0).compile()
print(place, study.use_compilation_cache(sys.argv[1] + "-elsewhere") == place, "cache_hits" in seen)
"""
    try_it = [sys.executable, "-c", code, str(tmp_path / "programs")]
    own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    tried = [subprocess.run(try_it, env=own, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    first, second = map(str.split, tried)
    assert first[0] == second[0]
    if first[0] == "None":  # programs of the disk are refused by this processor
        return
    assert [first[1:], second[1:]] == [["True", "False"], ["True", "True"]]
    assert first[0].startswith(str(tmp_path / "programs" / "jaxlib-"))
    (Path(first[0]) / "verdict.txt").write_text("refused")
    assert subprocess.run(try_it, env=own, capture_output=True, text=True, check=True).stdout.startswith("None")


def test_strategies_that_report_other_types_are_programs_of_their_own(tmp_path):
    def halved(*given, **options):
        picked = selection.random().select(*given, **options)
        return picked._replace(scores=picked.scores.astype(jnp.float16))

    picks = {"random": selection.random(), "half": selection.random()._replace(select=halved)}
    both = study.strategies(centroids(), picks, query_size=2)
    runs = run(tmp_path, both, num_seeds=1).runs
    same(runs["half"].indices, runs["random"].indices)
    same(runs["half"].metrics, runs["random"].metrics)
