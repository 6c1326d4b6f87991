"""A real annotation loop from files: what is proposed, what people do to it, what is read back."""

import copy
import json
import os
import xml.etree.ElementTree as ET

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import Predictions, annotation, selection
from baal_jax import __main__ as command_line
from tests.fixtures import clouds as data, loops

TRAIN, _ = data()
NAMES = ["ape", "bee", "cat"]
REFERENCES = [f"pool/{i}.png" for i in range(40)]
LOOP = loops(["bald"], query_size=5)["bald"]


def begin(folder, **options):
    annotation.start(folder, references=REFERENCES, class_names=NAMES, **options)
    return folder


def ask(folder, **options):
    return annotation.propose(folder, LOOP, TRAIN.inputs, key=jax.random.key(0), num_initial=6, **options)


def answer(name, when="2026-01-01T00:00:00Z", **fields):
    """An annotation as Label Studio exports it."""
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}, "id": "xyz"}
    return {"id": 7, "completed_by": 1, "was_cancelled": False, "created_at": when, "result": [result], **fields}


def exported(query, targets=TRAIN.targets):
    """The tasks of a query with the right answers, as they come back: other ids, other order, fields of the tool."""
    tasks = json.loads(query.tasks.read_text())
    for number, task in enumerate(tasks):
        task |= {"id": 900 - number, "drafts": [], "project": 3, "meta": {}}
        task["annotations"] = [answer(NAMES[targets[task["data"]["baal_index"]]])]
    return tasks[::-1]


def save(folder, tasks, name="export.json"):
    path = folder / name
    path.write_text(json.dumps(tasks))
    return path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_round_trip(tmp_path):
    """propose → edited export → ingest → next round."""
    home = begin(tmp_path / "project")
    first = ask(home)
    assert len(set(first.indices)) == 6
    tasks = exported(first)
    ids = [task["data"]["baal_index"] for task in tasks]
    tasks[0]["annotations"] = [{"was_cancelled": True, "result": [], "created_at": "2026-01-01T00:00:00Z"}]
    tasks[1]["annotations"] = []
    wrong, right = NAMES[(TRAIN.targets[ids[2]] + 1) % 3], NAMES[TRAIN.targets[ids[2]]]
    tasks[2]["annotations"] = [answer(right, "2026-01-03T00:00:00Z"), answer(wrong, "2026-01-02T00:00:00.5+02:00")]
    tasks[3]["annotations"].append({"was_cancelled": True, "result": [], "created_at": "2026-02-01T00:00:00Z"})
    tasks[4]["annotations"][0]["result"].append({"from_name": "comment", "type": "textarea", "value": {"text": ["?"]}})
    found = annotation.ingest(home, save(tmp_path, tasks))
    assert found.new.tolist() == sorted(ids[2:])
    assert found.skipped.tolist() == [ids[0]]
    assert found.waiting.tolist() == [ids[1]]
    state = annotation.answers(home)
    labelled = np.flatnonzero(np.asarray(state.labelled_at) >= 0)
    assert labelled.tolist() == sorted(ids[2:])
    np.testing.assert_array_equal(np.asarray(state.targets)[labelled], TRAIN.targets[labelled])
    assert np.flatnonzero(np.asarray(state.labelled_at) == -2).tolist() == [ids[0]]
    assert np.all(np.asarray(state.targets)[np.asarray(state.labelled_at) < 0] == -1)

    waiting = ask(home)  # one answer is missing: the same query
    assert waiting.round == 0
    assert waiting.waiting.tolist() == [ids[1]]
    tasks[1]["annotations"] = [answer(NAMES[TRAIN.targets[ids[1]]])]
    assert annotation.ingest(home, save(tmp_path, tasks)).new.tolist() == [ids[1]]

    second = ask(home)
    assert second.round == 1
    assert len(second.indices) == 5
    assert not set(second.indices) & set(ids)
    content = json.loads((home / "query-0001.json").read_text())
    assert np.isfinite(content["scores"]).all()
    assert content["references"] == [REFERENCES[i] for i in second.indices]
    np.testing.assert_allclose(np.sum(content["predictions"], axis=1), 1.0, rtol=1e-5)
    guess = json.loads(second.tasks.read_text())[0]["predictions"][0]
    assert guess["result"][0]["value"]["choices"] == [NAMES[int(np.argmax(content["predictions"][0]))]]
    assert guess["score"] == pytest.approx(max(content["predictions"][0]), rel=1e-5)

    both = exported(second) + tasks  # one project collects all queries
    assert annotation.ingest(home, save(tmp_path, both)).new.tolist() == sorted(second.indices)
    state = annotation.answers(home)
    assert sorted(np.asarray(state.labelled_at)[second.indices]) == [1] * 5
    assert ask(home).round == 2


def test_the_picks_are_those_of_the_acquisition_without_what_was_skipped(tmp_path):
    home = begin(tmp_path / "project")
    tasks = exported(ask(home))
    tasks[0]["annotations"] = [{"was_cancelled": True, "result": []}]
    annotation.ingest(home, save(tmp_path, tasks))
    expected = set(range(40)) - {task["data"]["baal_index"] for task in tasks}
    everything = loops(["bald"], query_size=39)["bald"]
    query = annotation.propose(home, everything, TRAIN.inputs, key=jax.random.key(0))
    assert set(query.indices.tolist()) == expected
    assert np.all(np.diff(query.scores) <= 0)
    annotation.ingest(home, save(tmp_path, exported(query)))
    with pytest.raises(ValueError, match="all 40 examples have been answered or skipped"):
        annotation.propose(home, everything, TRAIN.inputs, key=jax.random.key(0))


def test_the_same_folder_gives_the_same_query(tmp_path):
    found = []
    for name in ("a", "b"):
        home = begin(tmp_path / name)
        query = ask(home)
        chex.assert_trees_all_equal(ask(home)._replace(tasks=None), query._replace(tasks=None))
        annotation.ingest(home, save(tmp_path, exported(query)))
        found.append(ask(home).indices.tolist())
    assert found[0] == found[1]


def test_an_export_twice_changes_nothing_and_a_later_one_corrects(tmp_path):
    home = begin(tmp_path / "project")
    tasks = exported(ask(home))
    path = save(tmp_path, tasks)
    annotation.ingest(home, path)
    before = files(home)
    again = annotation.ingest(home, path)
    assert files(home) == before
    assert len(again.unchanged) == 6
    assert not len(again.new) + len(again.corrected)
    index = tasks[0]["data"]["baal_index"]
    other = NAMES[(TRAIN.targets[index] + 1) % 3]
    tasks[0]["annotations"].append(answer(other, "2026-05-01T00:00:00Z"))
    assert annotation.ingest(home, save(tmp_path, tasks[:1], "later.json")).corrected.tolist() == [index]
    assert NAMES[int(annotation.answers(home).targets[index])] == other
    tasks[0]["annotations"] = [{"was_cancelled": True, "result": []}]
    annotation.ingest(home, save(tmp_path, tasks[:1], "last.json"))
    state = annotation.answers(home)
    assert int(state.labelled_at[index]) == -2
    annotation.ingest(home, path)  # and back
    state = annotation.answers(home)
    assert int(state.labelled_at[index]) == 0


def test_giving_up_asks_for_others(tmp_path):
    home = begin(tmp_path / "project")
    first = ask(home)
    annotation.ingest(home, save(tmp_path, exported(first)[:4]))
    second = ask(home, give_up=True)
    assert second.round == 1
    assert len(second.waiting) == 5


def changed(**fields):
    def change(tasks):
        tasks[1] = {**tasks[1], **fields}
        return tasks

    return change


def with_answer(**fields):
    def change(tasks):
        tasks[1]["annotations"][0]["result"][0] |= fields
        return tasks

    return change


def with_index(value):
    def change(tasks):
        tasks[1]["data"]["baal_index"] = value
        return tasks

    return change


def without_index(tasks):
    del tasks[1]["data"]["baal_index"]
    return tasks


MALFORMED = {
    "an object": (lambda tasks: {"tasks": tasks}, r"export.json holds a dict, not a list of tasks"),
    "the minimal export": (
        lambda tasks: [{"image": "a", "baal_index": 1, "label": "cat"}],
        "task 0 has no data: export as JSON, not as JSON-MIN",
    ),
    "no annotations": (changed(annotations=None), "task 1 has no annotations: export as JSON"),
    "tasks of somebody else": (without_index, r"task 1 has baal_index=None, not an integer"),
    "an index in words": (with_index("7"), "task 1 has baal_index='7', not an integer"),
    "a truth value": (with_index(True), "task 1 has baal_index=True"),
    "out of range": (with_index(40), "task 1 has baal_index 40, outside of the 40 examples"),
    "negative": (with_index(-1), "task 1 has baal_index -1, outside"),
    "an example twice": (lambda tasks: [*tasks, tasks[0]], "task 6: baal_index .* is there a second time"),
    "an unknown class": (
        with_answer(value={"choices": ["dog"]}),
        "task 1, annotation 0 has the class 'dog': the classes",
    ),
    "two classes": (
        with_answer(value={"choices": NAMES[:2]}),
        r"has the choices \['ape', 'bee'\], but one is asked for",
    ),
    "another interface": (with_answer(from_name="kind"), "answers kind, not label: use the labelling interface"),
    "another object": (with_answer(to_name="photo"), "labels 'photo', not 'image'"),
    "another type": (with_answer(type="number", value={"number": 2}), "has type 'number', not choices"),
    "no value": (with_answer(value=None), "annotation 0 has the value None without choices"),
    "a time that is none": (changed(annotations=[answer("ape", "yesterday")]), "task 1 has the time 'yesterday'"),
    "no result": (changed(annotations=[{"was_cancelled": False}]), "task 1, annotation 0 has no result"),
    "two labels": (
        lambda tasks: changed(annotations=[answer("ape", result=answer("ape")["result"] * 2)])(tasks),
        "has 2 labels, but one is asked for",
    ),
    "a task in words": (lambda tasks: [tasks[0], "task"], "task 1 has no data"),
    "an annotation in words": (changed(annotations=["ape"]), "annotation 0 is a str"),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    home = begin(tmp_path_factory.mktemp("asked") / "project")
    return home, exported(ask(home))


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_export_is_refused_by_name_and_nothing_is_written(asked, tmp_path, case):
    home, tasks = asked
    change, message = MALFORMED[case]
    before = files(home)
    with pytest.raises(ValueError, match=message):
        annotation.ingest(home, save(tmp_path, change(copy.deepcopy(tasks))))
    assert files(home) == before


def test_files_that_are_no_export_are_refused(asked, tmp_path):
    home, _ = asked
    broken = tmp_path / "broken.json"
    broken.write_text('[{"data": ')
    with pytest.raises(ValueError, match=r"broken.json is not JSON .*: export again"):
        annotation.ingest(home, broken)
    with pytest.raises(ValueError, match="is no file"):
        annotation.ingest(home, tmp_path / "nowhere.json")
    with pytest.raises(ValueError, match="holds no project"):
        annotation.ingest(tmp_path, broken)
    with pytest.raises(ValueError, match="has asked for nothing yet"):
        annotation.ingest(begin(tmp_path / "new"), broken)
    never = next(i for i in range(40) if i not in [task["data"]["baal_index"] for task in asked[1]])
    tasks = copy.deepcopy(asked[1])
    tasks[0]["data"]["baal_index"] = never
    with pytest.raises(ValueError, match=f"task 0 has baal_index {never}, which was never asked for"):
        annotation.ingest(home, save(tmp_path, tasks))


def test_whatever_fails_the_same_call_goes_on(tmp_path, monkeypatch):
    """Every rename of a round fails once."""
    original = os.replace

    def whole_round(home):
        begin(home)
        query = ask(home)
        if query.round == 0:
            annotation.ingest(home, save(tmp_path, exported(query)))
            query = ask(home)
        return query

    expected = whole_round(tmp_path / "peace")
    for allowed in range(20):
        home, left = tmp_path / f"killed-{allowed}", allowed

        def fails(source, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("the disk is gone")
            original(source, target)

        monkeypatch.setattr(os, "replace", fails)
        try:
            whole_round(home)
            break
        except OSError:
            monkeypatch.setattr(os, "replace", original)
        for path in home.glob("*.json"):
            json.loads(path.read_text())
        assert not list(home.glob(".*"))
        assert whole_round(home).indices.tolist() == expected.indices.tolist()
    assert allowed >= 6  # config, project, tasks, query, labels, tasks, query


def test_another_project_in_the_folder_is_refused(tmp_path):
    home = begin(tmp_path)
    assert begin(home) == home
    for options in ({"class_names": NAMES[:2]}, {"references": REFERENCES[1:]}, {"kind": "text"}, {"config": {"a": 1}}):
        with pytest.raises(ValueError, match=f"holds a project with other {next(iter(options))}"):
            annotation.start(home, **{"references": REFERENCES, "class_names": NAMES, **options})
    with pytest.raises(ValueError, match="inputs holds 39 examples, but the project 40"):
        annotation.propose(home, LOOP, TRAIN.inputs[1:], key=jax.random.key(0))


def test_a_cold_start_picks_the_first_query(tmp_path):
    home = begin(tmp_path)
    query = ask(home, cold_start=selection.typiclust(), embeddings=TRAIN.inputs)
    typical = selection.typiclust()
    summary = typical.summarise(Predictions(None, jnp.asarray(TRAIN.inputs)))
    everything = jnp.ones(40, bool)
    expected = typical.select(jax.random.split(jax.random.key(0))[1], summary, everything, 6, ~everything).indices
    np.testing.assert_array_equal(query.indices, expected)
    assert query.indices.tolist() != ask(begin(tmp_path / "random")).indices.tolist()
    with pytest.raises(ValueError, match="embeddings is None"):
        ask(begin(tmp_path / "without"), cold_start=selection.typiclust())


@pytest.mark.parametrize(("several", "expected"), [("newest", 2), ("majority", 0)])
def test_of_several_annotators_the_newest_or_most_count(several, expected):
    times = ["2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"]
    task = {"data": {"image": "a", "baal_index": 3}}
    said = zip(["ape", "ape", "cat"], times, strict=True)
    task["annotations"] = [answer(name, when, completed_by=who) for who, (name, when) in enumerate(said)]
    found = annotation.from_label_studio([task], NAMES, num_examples=5, several=several)
    assert found.targets.tolist() == [expected]
    task["annotations"][0]["updated_at"] = "2026-06-01T00:00:00Z"  # what was edited last is newest
    assert annotation.from_label_studio([task], NAMES, num_examples=5).targets.tolist() == [0]


def test_numbers_are_read_back_as_they_are():
    tasks = annotation.to_label_studio([4, 2, -1], ["a", "b", "c"], None, kind="text", predictions=[0.5, 1.5, 0.0])
    assert [task["data"] for task in tasks] == [{"text": "a", "baal_index": 4}, {"text": "b", "baal_index": 2}]
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"number": 0.5}
    for task, number in zip(tasks, (2.5, -1), strict=True):
        result = {"from_name": "label", "to_name": "text", "type": "number", "value": {"number": number}}
        task["annotations"] = [{"result": [result]}]
    found = annotation.from_label_studio(tasks, None, num_examples=5, kind="text")
    assert found.indices.tolist() == [2, 4]
    assert found.targets.tolist() == [-1.0, 2.5]
    tasks[0]["annotations"][0]["result"][0]["value"]["number"] = "2.5"
    with pytest.raises(ValueError, match=r"has the number '2\.5'"):
        annotation.from_label_studio(tasks, None, num_examples=5, kind="text")


def test_the_interface_names_what_the_tasks_name():
    names = ['"quoted" & <odd>', "naïve"]
    root = ET.fromstring(annotation.labelling_config(names, "text"))
    assert [choice.get("value") for choice in root.iter("Choice")] == names
    task = annotation.to_label_studio([1], ["words"], names, kind="text", predictions=[[0.1, 0.9]])[0]
    result = task["predictions"][0]["result"][0]
    assert root.find("Choices").get("name") == result["from_name"]
    assert root.find("Choices").get("toName") == root.find("Text").get("name") == result["to_name"]
    assert root.find("Text").get("value").removeprefix("$") in task["data"]
    assert ET.fromstring(annotation.labelling_config(None)).find("Number") is not None
    for wrong in (["a"], ["a", "a"], ["a", " "]):
        with pytest.raises(ValueError, match="class_names="):
            annotation.labelling_config(wrong)
    with pytest.raises(ValueError, match="kind='video'"):
        annotation.labelling_config(names, "video")
    with pytest.raises(ValueError, match="references holds 1 for 2 indices"):
        annotation.to_label_studio([1, 2], ["words"], names)


def test_the_commands_do_the_same_from_files(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    np.savez(tmp_path / "pool.npz", inputs=images)
    home = tmp_path / "home"
    quick = ["--num-initial", "6", "--query-size", "3", "--num-steps", "5", "--num-samples", "2"]
    begun = ["propose", str(home), "--data", str(tmp_path / "pool.npz"), "--classes", *NAMES, *quick]
    assert command_line.main(begun) == 0
    assert "round 0: 6 examples, 0 answered" in capsys.readouterr().out
    query = json.loads((home / "query-0000.json").read_text())
    assert all((home / reference).read_bytes().startswith(b"\x89PNG") for reference in query["references"])
    tasks = json.loads((home / "query-0000.label_studio.json").read_text())
    for task in tasks:
        task["annotations"] = [answer(NAMES[task["data"]["baal_index"] % 3])]
    assert command_line.main(["ingest", str(home), str(save(tmp_path, tasks))]) == 0
    assert "6 new, 0 corrected" in capsys.readouterr().out
    assert command_line.main(["propose", str(home)]) == 0
    assert "round 1: 3 examples, 0 answered" in capsys.readouterr().out
    assert command_line.main(["propose", str(home), "--model", "cnn"]) == 1
    assert "model='cnn', but the project was begun with 'mlp'" in capsys.readouterr().err
    assert command_line.main(["ingest", str(home), str(tmp_path / "pool.npz")]) == 1
    assert "pool.npz is not JSON" in capsys.readouterr().err
    assert command_line.main(["propose", str(tmp_path / "new")]) == 1
    assert "begin one with --data" in capsys.readouterr().err


def test_every_command_says_what_it_does(capsys):
    assert command_line.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("study", "report", "propose", "ingest"))
    assert command_line.main(["propse"]) == 2
    assert "'propse' is no command: use one of study, propose" in capsys.readouterr().err
    for name in command_line.COMMANDS:
        with pytest.raises(SystemExit) as stop:
            command_line.main([name, "--help"])
        assert stop.value.code == 0
        assert "baal_jax" in capsys.readouterr().out
