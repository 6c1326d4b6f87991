"""Tasks and exports of Label Studio, and a project as a folder. See also contracts/test_files.py."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import annotation, heuristics, pool, selection
from baal_jax._util import files
from tests.annotation.exports import NAMES, answer, exported, refused, save
from tests.fixtures import clouds, loops
from tests.study import golden

# Tasks and exports


def rejects(message, call, *arguments, **options):
    with pytest.raises(ValueError, match=message):
        call(*arguments, **options)


def read(*annotations, names=NAMES, **options):
    """The answers of one task, of example 3."""
    task = {"data": {"image": "a", "baal_index": 3}, "annotations": list(annotations)}
    return annotation.from_label_studio([task], names, num_examples=5, **options)


ODD = ['"quoted" & <odd>', "naïve"]
GUESSES = np.array([[0.2, 0.7123456789, 0.1], [np.nan] * 3, [0.1] * 3, [0.5, 0.25, 0.25]])
SCORES = {"predictions": GUESSES, "scores": np.array([0.123456789, np.nan, 3.0, np.inf], np.float32)}
NUMBERS = {"kind": "text", "predictions": [[np.inf], [2.0]]}
COMMENT = {"from_name": "comment", "type": "textarea", "value": {"text": ["?"]}}
ZONED = {"created_at": "2026-01-05T01:00:00+02:00"}


def several(*given):
    """By what is made of several answers."""
    annotations = [answer(*said) for said in given]
    return [read(*annotations, several=how) for how in ("newest", "majority")] + [read(*annotations)]


def numbered(*numbers):
    return [answer("", i + 1, who, number=number) for i, (number, who) in enumerate(numbers)]


CASES = {
    "interface": lambda: annotation.labelling_config(ODD, "text"),
    "interface of numbers": lambda: annotation.labelling_config(None, "audio"),
    "odd names": lambda: annotation.to_label_studio([1], ["words"], ODD, kind="text", predictions=[[0.1, 0.9]]),
    "tasks": lambda: annotation.to_label_studio(np.array([4, 2, -1, 0]), [*"abcd"], NAMES, project="mine", **SCORES),
    "tasks of numbers": lambda: annotation.to_label_studio([1, 2], ["a", "b"], None, **NUMBERS),
    # A refusal does not count beside an answer.
    "refused and answered": lambda: read(answer("bee", 1), refused(2)),
    "refused": lambda: [read(refused(2), refused(1)), read(refused(1), refused(3), refused())],
    "unanswered": lambda: [read(), read(answer("bee", result=[]))],
    "a comment": lambda: read(answer("cat", result=[COMMENT, *answer("cat")["result"]])),
    "who": lambda: [read(answer("ape", 1, who)) for who in ({"id": 4, "email": "ann@example.org"}, {"id": 4}, None, 5)],
    "when": lambda: [read(answer("cat", 3, **time)) for time in (ZONED, {"updated_at": "2026-02-03T04:05:06"})],
    "a changed mind": lambda: several(("ape", 1, "a"), ("bee", 2, "a"), ("ape", 3, "b"), ("bee", 4, "c")),
    "one vote each": lambda: several(("ape", 1, "a"), ("ape", 2, "a"), ("ape", 3, "a"), ("bee", 4, "b")),
    "another order": lambda: several(("ape", 4, "a"), ("bee", 1, "b"), ("bee", 2, "c"), ("ape", 3, "a")),
    "nameless": lambda: several(("ape", 1, None), ("ape", 2, None), ("bee", 4, None)),
    "a majority": lambda: several(("ape", 2, "a"), ("bee", 4, "b"), ("ape", 3, "c")),
    "equals": lambda: [several(*said) for said in itertools.permutations([("ape", None, "a"), ("bee", 4, "b")])],
    # The mean is the majority of numbers.
    "numbers": lambda: [
        read(*numbered((1.0, "a"), (4.0, "a"), (1.0, "b"), (4.0, "c")), names=None, several=how)
        for how in ("newest", "majority")
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_tasks_and_answers_are_as_they_were(name):
    golden.is_as_it_was("label_studio.json", name, CASES[name]())


def test_answers_come_sorted_and_tasks_fit():
    tasks = [{"data": {"baal_index": index}, "annotations": [answer(NAMES[index % 3])]} for index in (4, 2, 3)]
    found = annotation.from_label_studio(tasks, NAMES, num_examples=5)
    assert [found.indices.tolist(), found.targets.tolist()] == [[2, 3, 4], [2, 0, 1]]
    assert [part.dtype for part in found[:4]] == [np.int32] * 4
    assert read(numbered((2.5, "a"))[0], names=None).targets.dtype == np.float64
    for wrong in (["a"], ["a", "a"], ["a", " "]):
        rejects("class_names=", annotation.labelling_config, wrong)
    rejects("kind='video' is unknown: choose one of image, text, audio", annotation.labelling_config, NAMES, "video")
    for arguments, options, message in (
        (([1, 2], ["a"], NAMES), {}, "references holds 1 for 2 indices: pass one for each"),
        (([1, 2], ["a", "b"], NAMES), {"scores": [1.0]}, "scores holds 1 for 2"),
        (([1, 2], ["a", "b"], NAMES), {"predictions": [[1, 0, 0]]}, "predictions holds 1 for 2"),
        (([1, 1], ["a", "b"], NAMES), {}, "indices"),
        (([1], ["a"], NAMES), {"kind": "video"}, "kind='video'"),
        (([1], ["a"], NAMES), {"predictions": [[1.0, 2.0]]}, r"predictions of shape \(2,\) do not fit 3 classes"),
        (([1], ["a"], None), {"predictions": [[1.0, 2.0]]}, r"predictions of shape \(2,\) do not fit a number"),
    ):
        rejects(message, annotation.to_label_studio, *arguments, **options)


# Projects

TRAIN, _ = clouds()
REFERENCES = [f"pool/{i}.png" for i in range(40)]
LOOP = loops(["bald"], query_size=(5, 3))["bald"]  # five after the first query, then three
KEY = jax.random.key(0)


def begin(folder, **options):
    annotation.start(folder, **{"references": REFERENCES, "class_names": NAMES, **options})
    return folder


def ask(folder, loop=LOOP, inputs=TRAIN.inputs, **options):
    return annotation.propose(folder, loop, inputs, **{"key": KEY, "num_initial": 6, **options})


def tell(folder, query, *annotations, part=slice(None), **options):
    """Ingests a part of a query with these annotations, or with the right answers."""
    tasks = exported(query, *annotations, targets=None if annotations else TRAIN.targets)[part]
    return annotation.ingest(folder, save(folder.parent, tasks), **options)


def labelled_at(folder):
    return np.asarray(annotation.answers(folder).labelled_at)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    home = begin(tmp_path_factory.mktemp("asked") / "project")
    return home, ask(home)


def test_the_picks_are_those_of_a_loop_with_the_same_key(tmp_path):
    data = jax.tree.map(jnp.asarray, TRAIN)
    state = LOOP.init(KEY, data, 6)
    home, from_host = begin(tmp_path / "a"), begin(tmp_path / "b")
    first = ask(home)
    assert sorted(first.indices) == np.flatnonzero(np.asarray(pool.labelled(state.pool))).tolist()
    assert np.isnan(first.scores).all()
    tell(home, first)
    tell(from_host, ask(from_host, inputs=list(TRAIN.inputs)))
    for number in (1, 2):
        state, _ = LOOP.step(state, data)
        query = ask(home)
        np.testing.assert_array_equal(labelled_at(home)[query.indices], -1)
        picked = np.flatnonzero(np.asarray(state.pool.labelled_at) == number).tolist()
        assert [query.round, sorted(query.indices)] == [number, picked]
        assert np.all(np.diff(query.scores) <= 0)
        tell(home, query)
        assert labelled_at(home)[query.indices].tolist() == [number] * (5, 3)[number - 1]
        if number == 1:
            assert ask(from_host, inputs=list(TRAIN.inputs)).indices.tolist() == query.indices.tolist()


def test_what_is_excluded_costs_or_has_a_quota_is_so_in_a_project(tmp_path):
    home, groups = begin(tmp_path / "project"), np.arange(40) % 4
    limits = pool.exclude(pool.init(40, costs=np.ones(40), groups=groups, quota=3), np.arange(20))
    asked = []
    for _ in range(3):
        query = ask(home, limits=limits)
        asked += query.indices.tolist()
        tell(home, query)
    assert len(asked) == len(set(asked)) == 12
    assert np.bincount(groups[asked]).tolist() == [3, 3, 3, 3]
    assert min(asked) >= 20
    rejects("all 40 examples have been answered or skipped", ask, home, limits=limits)
    rejects("limits are of 3 examples, but the project holds 40", ask, home, limits=pool.init(3))


@pytest.mark.parametrize("names", [NAMES, None])
def test_a_query_holds_the_mean_prediction_of_what_is_asked_for(names, tmp_path):
    # Of two known draws: outputs are nothing in one, and three times the first inputs in the other.
    posterior = baal.Posterior(
        fit=lambda key, dataset, labelled, previous=None: jnp.sum(labelled, dtype=jnp.float32),
        sample=lambda key, state, num_samples: jnp.array([0.0, 3.0]),
        apply=lambda state, draw, inputs: draw * inputs[:, : len(names or [1])],
    )
    home = begin(tmp_path / "project", class_names=names, kind="text")
    acquisition = selection.top_k(heuristics.variance if names is None else heuristics.entropy)
    loop = baal.active_loop(posterior, acquisition, query_size=4, num_samples=2)
    first = ask(home, loop)
    value = {"number": 2.5} if names is None else {"choices": ["bee"]}
    result = {"from_name": "label", "to_name": "text", "type": next(iter(value)), "value": value}
    annotation.ingest(home, save(tmp_path, exported(first, {"result": [result]})))
    expected = np.full(40, np.nan if names is None else -1.0)
    expected[first.indices] = 2.5 if names is None else 1
    np.testing.assert_array_equal(annotation.answers(home).targets, expected)
    query = ask(home, loop)
    content = json.loads((home / "query-0001.json").read_text())
    assert content["indices"] == query.indices.tolist()
    assert content["references"] == [REFERENCES[i] for i in query.indices]
    np.testing.assert_allclose(content["scores"], query.scores)
    inputs = TRAIN.inputs[query.indices].astype(np.float64)
    weights = np.exp(3 * inputs[:, :3]) / np.exp(3 * inputs[:, :3]).sum(axis=1, keepdims=True)
    shown = 1.5 * inputs[:, 0] if names is None else (weights + 1 / 3) / 2
    np.testing.assert_allclose(content["predictions"], shown, rtol=1e-4, atol=1e-6)
    first_task = json.loads(query.tasks.read_text())[0]
    value = first_task["predictions"][0]["result"][0]["value"]
    assert first_task["data"]["text"] == REFERENCES[query.indices[0]]
    assert value == ({"choices": [NAMES[np.argmax(shown[0])]]} if names else {"number": pytest.approx(shown[0], 1e-4)})


def test_the_same_query_is_returned_until_every_example_has_an_answer_or_is_skipped(tmp_path):
    home = begin(tmp_path / "project")
    first = ask(home)
    ids = first.indices[::-1].tolist()  # in the order of the export
    assert [first.waiting.tolist(), len(set(ids))] == [first.indices.tolist(), 6]
    tell(home, first, refused(), part=slice(1))
    brought = tell(home, first, part=slice(2, None))
    assert [brought.new.tolist(), brought.waiting.tolist()] == [sorted(ids[2:]), [ids[1]]]
    state, expected = annotation.answers(home), np.full((2, 40), -1)
    expected[0, ids[0]], expected[0, ids[2:]], expected[1, ids[2:]] = -2, 0, TRAIN.targets[ids[2:]]
    np.testing.assert_array_equal([state.labelled_at, state.targets], expected)
    assert int(state.round) == 1
    first.tasks.unlink()  # somebody has moved it: it is written again
    again = ask(home)
    assert [again.round, again.waiting.tolist(), again.indices.tolist()] == [0, [ids[1]], first.indices.tolist()]
    assert len(json.loads(first.tasks.read_text())) == 6
    # What nobody answered may be asked for again, what was skipped not; one project collects all queries.
    picked = {}
    for number in range(1, 12):
        query = ask(home, give_up=True)
        assert query.round == number
        assert tell(home, query).new.tolist() == sorted(query.indices)
        picked |= dict.fromkeys(query.indices.tolist(), number)
    assert sorted(picked) == sorted({*range(40)} - {ids[0], *ids[2:]})
    assert [labelled_at(home)[index] for index in (ids[1], ids[2])] == [picked[ids[1]], 0]
    rejects("all 40 examples have been answered or skipped", ask, home)


def test_a_first_query_that_is_given_up_is_followed_by_others(tmp_path):
    home = begin(tmp_path / "project")
    picked = [ask(home, give_up=bool(number)).indices.tolist() for number in range(3)]
    key = jax.random.split(KEY)[1]
    for number, ids in enumerate(picked):
        now = jax.random.fold_in(key, number) if number else key
        assert ids == pool.first_query(now, pool.init(40), 6, None, None).indices.tolist()
    assert len({*map(tuple, picked)}) == 3
    assert len(ask(home, give_up=True, num_initial=99).indices) == 40  # no more than there are
    rejects("num_initial=0", ask, home, give_up=True, num_initial=0)
    typical = selection.typiclust()  # a cold start
    query = ask(begin(tmp_path / "typical"), cold_start=typical, embeddings=TRAIN.inputs)
    summary = typical.summarise(baal.Predictions(None, jnp.asarray(TRAIN.inputs)))
    everything = jnp.ones(40, bool)
    np.testing.assert_array_equal(query.indices, typical.select(key, summary, everything, 6, ~everything).indices)
    rejects("embeddings is None", ask, begin(tmp_path / "without"), cold_start=typical)


# What the folder has, what an export brings later, what then holds (None: skipped), and where the id is reported.
LATE = [
    (answer("ape", 5), answer("bee", 6), 1, "corrected"),
    (answer("ape", 5), answer("bee", 4), 0, "outdated"),
    (answer("ape", 5), answer("bee", 5), 1, "corrected"),
    (answer("ape", 5), answer("bee"), 1, "corrected"),  # what has no time is as new as its export
    (answer("ape"), answer("bee", 4), 1, "corrected"),
    (answer("ape", 5), answer("ape", 4), 0, "unchanged"),
    (answer("ape", 5), answer("ape", 6), 0, "unchanged"),
    (answer("ape", 5), refused(6), None, "skipped"),
    (answer("ape", 5), refused(4), 0, "outdated"),
    (refused(5), answer("bee", 6), 1, "new"),
    (refused(5), answer("bee", 4), None, "outdated"),
    (refused(5), refused(4), None, "skipped"),
    (refused(), answer("bee", 4), 1, "new"),
]


def test_of_two_exports_the_newer_answer_holds_and_who_said_what_and_when_is_kept(asked):
    home, query = asked
    index, path = int(query.indices[-1]), home / "labels.json"
    nothing = path.read_bytes()
    for before, later, holds, reported in LATE:
        path.write_bytes(nothing)
        tell(home, query, before)
        brought = tell(home, query, later, part=slice(1))
        told = {name: ids.tolist() for name, ids in brought._asdict().items() if name != "waiting"}
        assert told == {name: [index] if name == reported else [] for name in told}
        assert (labelled_at(home)[index] == -2) == (holds is None)
        assert int(annotation.answers(home).targets[index]) == (-1 if holds is None else holds)
        content = path.read_bytes()
        again = tell(home, query, later, part=slice(1))  # the same twice changes nothing
        assert path.read_bytes() == content
        assert not len(again.new) + len(again.corrected)
    path.write_bytes(nothing)
    tell(home, query, answer("bee", 1), answer("cat", 3, who={"email": "ann@example.org"}), answer("bee", 2, who=3))
    tell(home, query, refused(4), part=slice(1, 2))
    kept, times = json.loads(path.read_text()), [f"2026-01-0{day}T12:00:00+00:00" for day in (3, 4)]
    expected = {"target": 2, "round": 0, "annotator": "ann@example.org", "time": times[0]}
    days = [f"2026-01-0{day}T12:00:00+00:00" for day in (1, 2, 3)]
    expected["said"] = [["1", 1, days[0]], ["3", 1, days[1]], ["ann@example.org", 2, days[2]]]
    assert kept["labels"][str(index)] == expected
    assert kept["skipped"] == {str(query.indices[-2]): {"round": 0, "time": times[1]}}
    several = answer("ape", 4), answer("ape", 5, who=2), answer("bee", 6, who=3)
    tell(home, query, *several, several="majority", part=slice(1))
    assert json.loads(path.read_text())["labels"][str(index)]["target"] == 0


def test_what_is_no_export_of_this_project_is_refused_and_nothing_is_written(asked, tmp_path):
    home, query = asked
    tell(home, query, answer("ape"))
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    other = begin(tmp_path / "other", references=[f"else/{i}.png" for i in range(40)])
    foreign = ask(other)
    np.testing.assert_array_equal(foreign.indices, query.indices)  # its ids fit
    never = exported(query, answer("bee"))
    never[2]["data"]["baal_index"] = min({*range(40)} - {*query.indices.tolist()})
    not_json = r"export\.json: cannot be read .*: export again, as JSON"
    path = tmp_path / "export.json"
    for content, message in (
        (b"\xff\xfe\x00", not_json),
        (b"[" * 100_000, not_json),
        (b'[{"data": ', not_json),
        (exported(foreign, answer("bee")), r"export.json, task 0 has baal_project='\w+', but the tasks of this folder"),
        (never, r"task 2 has baal_index \d+, which was never asked for"),
        ([*exported(query, answer("bee"))[:3], {}], "export.json, task 3 has no data"),
    ):
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        rejects(message, annotation.ingest, home, path)
    for folder, export, message in (
        (home, tmp_path / "nowhere.json", "is no file: give the JSON"),
        (tmp_path, path, "project.json is missing: start a project first"),
        (begin(tmp_path / "new"), path, "has asked for nothing yet: propose first"),
    ):
        rejects(message, annotation.ingest, folder, export)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    ask(tmp_path / "new")  # the same pool, so an id means the same example
    path.write_text(json.dumps(exported(query, answer("ape"))), encoding="utf-8-sig")  # the mark is no damage
    assert len(annotation.ingest(str(tmp_path / "new"), str(path)).new) == 6


def test_files_that_are_lost_or_of_another_version_are_named(tmp_path):
    home = begin(tmp_path / "project")
    tell(home, query_0 := ask(home))
    ask(home)
    project = files.read_json(home / "project.json", "")
    query = {"round": 0, "indices": [0, 0], "references": ["", ""], "scores": [None] * 2, "predictions": None}
    index, said = str(query_0.indices[0]), {"target": 0, "round": 0, "annotator": None, "time": None}
    for name, content, message in (
        ("labels.json", {"labels": {}}, ": cannot be read .*'skipped'.*: restore it from a backup"),
        (
            "labels.json",
            {"labels": {index: said | {"target": 3}}, "skipped": {}},
            ": cannot be read .* has the target 3",
        ),
        ("labels.json", {"labels": {index: said | {"time": "noon"}}, "skipped": {}}, ": cannot be read .*noon"),
        ("labels.json", {"labels": {index: said}, "skipped": {index: said}}, ": cannot be read .*query-0000.json, if"),
        (
            "labels.json",
            {"labels": {index: said | {"round": 2}}, "skipped": {}},
            ": cannot be read .*query-0002.json, if",
        ),
        ("query-0000.json", query | {"indices": [0, 0]}, ": cannot be read .*indices holds 0 more than once"),
        ("query-0000.json", query | {"indices": [0, 40]}, ": cannot be read .*indices holds 40, outside"),
        (
            "query-0000.json",
            query | {"indices": [0, 1]},
            ": cannot be read .*its references are not those of the project",
        ),
    ):
        whole = (home / name).read_bytes()
        files.write_json(home / name, content, files.digest(project))
        rejects(f"{name}{message}", ask, home)
        (home / name).write_bytes(whole)
    (home / "project.json").write_text('{"format": 1}')
    rejects("project.json has format 1, but this version reads 3", ask, home)
    (home / "project.json").unlink()  # a new one would begin again
    rejects("is there, but no project.json: restore it from a backup", begin, home)
    files.write_json(home / "project.json", project)
    (home / "label_config.xml").unlink()
    begin(home)
    assert (home / "label_config.xml").exists()
    tasks = ask(home).tasks
    tasks.write_text(tasks.read_text() + " ")
    rejects(f"{tasks.name} is damaged or not what was asked for: delete it", ask, home)
    tasks.unlink()
    (home / "query-0000.json").unlink()  # its ids would be asked for again
    rejects(r"query-0000.json is missing: restore", ask, home)


WRONG = [
    ({"references": []}, "references is empty"),
    ({"class_names": ["a"]}, "class_names="),
    ({"class_names": ["a", "b\n"]}, r"class_names holds 'b\\n', but"),
    ({"references": ["a\n", "b\0"]}, r"references holds 'b\\x00', but"),
    ({"config": {"\udfff": 1}}, r"config holds '\\udfff', but"),
]


def test_another_project_in_the_folder_is_refused(tmp_path):
    home = begin(tmp_path)
    assert annotation.start(home, references=REFERENCES, class_names=tuple(NAMES)) == home / "project.json"
    before = (home / "label_config.xml").read_bytes()
    for options, shown in (
        ({"class_names": NAMES[:2]}, f" ({NAMES!r}, now {NAMES[:2]!r})"),
        ({"references": REFERENCES[1:]}, ""),
        ({"kind": "text"}, " ('image', now 'text')"),
        ({"config": {"a": 1}}, " ({}, now {'a': 1})"),
    ):
        message = f"project.json is of a project with other {next(iter(options))}{shown}: use another folder"
        rejects(re.escape(message), begin, home, **options)
    assert (home / "label_config.xml").read_bytes() == before
    for options, message in (
        ({"inputs": TRAIN.inputs[1:]}, "inputs holds 39 examples, but the project 40"),
        ({"inputs": list(TRAIN.inputs[1:])}, "inputs holds 39 examples, but the project 40"),
        ({"key": 0}, "key=0 must be a typed key"),
    ):
        rejects(message, ask, home, **options)
    for options, message in WRONG:
        with pytest.raises(ValueError, match=message):
            begin(tmp_path / "new", **options)


if __name__ == "__main__":
    golden.write("label_studio.json", CASES)
