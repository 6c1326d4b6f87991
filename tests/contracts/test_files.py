"""Whatever writes a file: it is durable when the call returns, after a failure as it was, and it comes back."""

import collections
import csv
import io
import json
import os
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from baal_jax import annotation, checkpoint
from baal_jax._cli import _annotation, _assemble
from baal_jax.study import _folder, report, results
from tests.contracts import damage, members
from tests.contracts.damage import NAMES, save
from tests.fixtures import same
from tests.study.files import make_results

# ``new(folder)`` writes files, after which ``read(folder)`` gives ``value``; ``old`` wrote what was there before.
Writer = collections.namedtuple("Writer", "new read value old", defaults=(lambda folder: None,))


STUDY = make_results(("random",), seeds=2, rounds=2, classes=2, pictures=3)
NUMBERS = make_results(("random",), seeds=2, rounds=2, classes=None)
for _name in ("mae", "nll"):
    del NUMBERS.runs["random"].metrics[_name]
NUMBERS.runs["random"].mean_score[:] = np.nan  # one figure is left


def restored(folder):
    with checkpoint.checkpointer(folder, {"rate": 0.1}) as saved:
        return saved.restore({"number": 0, "rows": np.zeros(300, int)})


def configured(folder):
    with checkpoint.checkpointer(folder, {"rate": 0.1}):
        return json.loads((folder / "config.json").read_text())["config"]


def study(num_seeds, folder):
    """A folder of a study, to which one process adds the cell of the last seed."""
    asked = {"strategies": ["random"], "baseline": None, "seeds": list(range(num_seeds))}
    place = _folder.Folder(folder, asked)
    place.begin({})
    runs = jax.tree.map(lambda leaf: leaf[num_seeds - 1 : num_seeds], STUDY.runs["random"])
    place.add("random", results.Cell(runs, "none", "cpu"))
    place.finish(None, None)


def studied(folder):
    found = results.read(folder)
    table = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    return found.runs["random"], found.description["seeds"], [row["num_labelled"] for row in table]


def project(folder):
    annotation.start(folder, references=["a", "b", "ç", "d"], class_names=NAMES, config={"rate": 0.5})


def started(folder):
    project(folder)  # compares with what is there
    choices = ET.parse(folder / "label_config.xml").iter("Choice")
    return [choice.get("value") for choice in choices], np.asarray(annotation.answers(folder).targets)


def ask(folder):
    project(folder)
    return annotation.propose(folder, None, np.zeros((4, 1)), key=jax.random.key(0), num_initial=4)


def asked(folder):
    query = ask(folder)  # which is not another one
    tasks = json.loads(query.tasks.read_text())
    return sorted(query.indices), sorted(task["data"]["baal_index"] for task in tasks)


def ingest(name, folder):
    path = folder / "query-0000.label_studio.json"
    tasks = json.loads((path if path.exists() else ask(folder).tasks).read_text())
    for task in tasks:
        result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}
        task["annotations"] = [{"result": [result]}]
    export = folder.parent / f"{folder.name}.export.json"
    export.write_text(json.dumps(tasks))
    annotation.ingest(folder, export)


def show(folder):
    pool = _assemble.Pool(STUDY.pictures.images, [f"images/{i}.png" for i in range(3)], np.zeros((3, 1)))
    _annotation._write_pictures(folder, pool, annotation.Query(0, np.array([1]), None, None, None))


def shown(folder):
    return np.asarray(pytest.importorskip("PIL.Image").open(folder / "images" / "1.png"))[..., None]


WRITERS = {
    "checkpoint": Writer(partial(save, 2), restored, {"number": 2, "rows": np.arange(300) * 2}, partial(save, 1)),
    "configuration of checkpoints": Writer(configured, configured, {"rate": 0.1}),
    "journal cut to its checkpoint": Writer(
        lambda folder: checkpoint.keep_lines(folder / "rounds.jsonl", 2),
        lambda folder: checkpoint.read_lines(folder / "rounds.jsonl"),
        [{"i": 0}, {"i": 1}],
        lambda folder: [checkpoint.append_line(folder / "rounds.jsonl", {"i": i}) for i in range(3)],
    ),
    "study": Writer(partial(study, 2), studied, (STUDY.runs["random"], [0, 1], ["10", "15"] * 2), partial(study, 1)),
    "pictures of a study": Writer(
        lambda folder: results.write_pictures(folder / "pictures.npz", STUDY.pictures, {}),
        lambda folder: results.read_pictures(folder / "pictures.npz", {}),
        STUDY.pictures,
        lambda folder: results.write_pictures(
            folder / "pictures.npz", STUDY.pictures._replace(ids=np.arange(9, 12)), {}
        ),
    ),
    "page of a study": Writer(
        lambda folder: report.write(NUMBERS, folder / "a" / "page.html"),
        lambda folder: "a study that nobody ran" in (folder / "a" / "page.html").read_text("utf-8"),
        True,
        lambda folder: report.write(NUMBERS._replace(runs={}), folder / "a" / "page.html"),
    ),
    "figures of a study": Writer(
        lambda folder: report.figures(NUMBERS, folder, formats=("svg",)),
        lambda folder: ET.parse(folder / "curves_rmse.svg").getroot().tag.endswith("svg"),
        True,
    ),
    "labelling project": Writer(project, started, (NAMES, np.full(4, -1))),
    "query": Writer(ask, asked, ([0, 1, 2, 3],) * 2, project),
    "answers": Writer(
        partial(ingest, "bée"),
        lambda folder: annotation.answers(folder).targets,
        np.ones(4),
        partial(ingest, "ape"),
    ),
    "pictures of a query": Writer(show, shown, STUDY.pictures.images[1]),
}
WRITERS = members("files", WRITERS)


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


def contents(folder):
    """Of all files but the lock, which holds nothing that anybody wants back."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def watch(monkeypatch, fails=None, error=OSError):
    """Lists what makes files durable: ``(fsync, path, size)`` and ``(replace, source, target)``; one call fails."""
    calls = []

    def watched(original, describe):
        def call(*arguments, **options):
            calls.append(describe(*arguments))
            if len(calls) - 1 == fails:
                raise error("the disk is gone")
            return original(*arguments, **options)

        return call

    def synced(file):
        return "fsync", Path(os.readlink(f"/proc/self/fd/{file}")), os.fstat(file).st_size

    def renamed(source, target):
        return "replace", Path(source), Path(target)

    for name, describe in (("fsync", synced), ("replace", renamed), ("rename", renamed)):
        monkeypatch.setattr(os, name, watched(getattr(os, name), describe))
    return calls


def prepared(writer, folder):
    folder.mkdir()
    writer.old(folder)
    return contents(folder)


def test_content_is_durable_before_it_has_its_name_and_the_name_when_the_call_returns(writer, tmp_path, monkeypatch):
    before = prepared(writer, tmp_path / "a")
    calls = watch(monkeypatch)
    writer.new(tmp_path / "a")
    after = contents(tmp_path / "a")
    renames = {target: (i, source) for i, (kind, source, target) in enumerate(calls) if kind == "replace"}
    assert {path for path in after if after[path] != before.get(path)} <= renames.keys()
    assert renames
    for target, (i, source) in renames.items():
        assert source.parent == target.parent  # another file system would not be atomic
        assert ("fsync", source, len(after[target])) in calls[:i]
        assert ("fsync", target.parent) in [call[:2] for call in calls[i + 1 :]]
        assert target.stat().st_mode & 0o777 == 0o644  # a temporary file is private, what it becomes is not
    same(writer.read(tmp_path / "a"), writer.value)


def test_a_failure_leaves_the_old_files_whole_and_nothing_temporary(writer, tmp_path, monkeypatch):
    number, finished = 0, False
    while not finished:
        error = (OSError, KeyboardInterrupt)[number % 2]
        folder = tmp_path / str(number)
        before = prepared(writer, folder)
        with monkeypatch.context() as patched:
            calls = watch(patched, fails=number, error=error)
            try:
                writer.new(folder)
                finished = True
            except error:
                pass
        through = [call for i, call in enumerate(calls) if i != number and call[0] == "replace"]
        renamed, after = {target for _, _, target in through}, contents(folder)
        assert after.keys() <= before.keys() | renamed
        for path in before.keys() - renamed:
            assert after[path] == before[path]
        if not renamed:  # and the same call goes on
            writer.new(folder)
            same(writer.read(folder), writer.value)
        number += 1
    assert number > 3


@pytest.mark.parametrize("name", damage.kinds())
def test_what_is_damaged_lost_or_of_another_folder_is_refused_by_name_or_read_as_it_was(name):
    attempts = list(damage.attempts(name, damage.kinds()[name], 80, seed=0))
    assert not [attempt for attempt in attempts if attempt.outcome in ("silent", "nameless")]
    assert sum(attempt.outcome == "refused" for attempt in attempts) > 10


@pytest.fixture(params=damage.PROGRAMS)
def program(request, tmp_path):
    """Something that goes on with its folder; a folder; and what is in it at the end."""
    peace, folder = tmp_path / "peace", tmp_path / "folder"
    for place in (peace, folder):
        place.mkdir()
    damage.PROGRAMS[request.param](peace)
    return request.param, damage.PROGRAMS[request.param], folder, damage.contents(peace)


@pytest.mark.parametrize("name", damage.PROGRAMS)
def test_what_is_killed_goes_on_and_ends_as_if_in_peace(name, tmp_path):
    """``python -m tests.contracts.damage --kills 40`` kills more."""
    assert all(damage.kills(name, 2, 0, tmp_path))


def test_a_full_disk_is_said_with_the_file_and_what_is_there_stays_whole(program):
    _, go_on, folder, expected = program
    resource = pytest.importorskip("resource")  # which Windows lacks
    (soft, hard), said = resource.getrlimit(resource.RLIMIT_FSIZE), []
    for size in (1, *[size - 1 for size in sorted(map(len, expected.values()))]):  # a file grows to no more
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            go_on(folder)
        except OSError as error:
            said.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    go_on(folder)
    assert len(said) >= 3
    assert all(f"File too large: '{folder}" in error for error in said)
    assert damage.contents(folder) == expected


def test_a_folder_that_is_moved_is_said_and_goes_on_where_it_is_now(program, monkeypatch, tmp_path):
    name, go_on, _, expected = program
    chance = np.random.default_rng(0)
    for attempt in range(10):
        here, now, calls = tmp_path / f"here{attempt}", tmp_path / f"now{attempt}", iter(range(1000))
        here.mkdir()
        at, fsync = chance.integers(12), os.fsync

        def moves(file, here=here, now=now, at=at, calls=calls, fsync=fsync, attempt=attempt):
            fsync(file)
            if next(calls) == at:
                here.rename(now)
                if name == "study" and attempt % 2:  # which knows its folder from another
                    (here / "cells").mkdir(parents=True)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", moves)
            with pytest.raises((ValueError, OSError), match=str(here)):
                go_on(here)
        assert not [path for path in here.rglob("*") if path.is_file()]
        go_on(now)
        assert damage.contents(now) == expected


def test_a_line_of_a_journal_is_durable_when_the_call_returns_and_a_cut_one_is_left_out(tmp_path, monkeypatch):
    path = tmp_path / "rounds.jsonl"
    calls = watch(monkeypatch)
    checkpoint.append_line(path, {"i": 0})
    first = path.read_bytes()
    checkpoint.append_line(path, {"i": 1, "values": [1, 2]})
    content = path.read_bytes()
    assert calls == [("fsync", path, len(first)), ("fsync", path, len(content))]
    for end in range(len(first), len(content)):
        path.write_bytes(content[:end])
        assert checkpoint.read_lines(path) == [{"i": 0}]
