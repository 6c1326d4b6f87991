"""Projects that change while people label: nothing is lost, and every label stays where it is."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import baal_jax as baal
from baal_jax import __main__ as command_line
from baal_jax import annotation, posteriors, selection, study
from baal_jax._util import files
from tests.annotation.exports import answer, save

KEY = jax.random.key(5)
INPUTS = np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32)


def loop_of(classes):
    head = posteriors.logistic_regression(classes, prior_precision=1.0)
    return baal.active_loop(head, selection.top_k(baal.heuristics.margin), query_size=3, num_samples=4)


def names_of(count):
    return [f"photo {i}.png" for i in range(count)]


def answered(folder, number, said):
    """An export of a query, with what ``said`` says of an id; what it does not say is not answered."""
    tasks = json.loads((folder / f"query-{number:04d}.label_studio.json").read_text(encoding="utf-8"))
    for task in tasks:
        what = said.get(task["data"]["baal_index"])
        task["annotations"] = [] if what is None else [answer(what, 1)]
    return save(folder.parent, tasks)


def told(folder):
    """Answers by id, as names."""
    state, names = annotation.answers(folder), json.loads((folder / "project.json").read_text())["class_names"]
    at, targets = np.asarray(state.labelled_at), np.asarray(state.targets)
    return {i: names[targets[i]] for i in np.flatnonzero(at >= 0).tolist()}


def test_a_project_grows_and_every_label_stays_where_it_is(tmp_path):
    home = tmp_path / "a"
    annotation.start(home, references=names_of(12), class_names=["cat", "dog"])
    first = annotation.propose(home, loop_of(2), INPUTS[:12], key=KEY, num_initial=6).indices.tolist()
    export = answered(home, 0, {i: "cat" if i % 2 else "dog" for i in first[:4]})
    annotation.ingest(home, export)
    before = told(home)
    # New photographs and a class, while two answers are still out.
    annotation.amend(home, references=names_of(17)[12:], classes=["bird"])
    assert told(home) == before
    query = annotation.propose(home, loop_of(3), INPUTS, key=KEY)
    assert query.waiting.tolist() == first[4:]
    annotation.amend(home, rename={"cat": "kitten"})
    assert told(home) == {i: "kitten" if name == "cat" else name for i, name in before.items()}
    # An export of tasks from before all this still counts, and so does one from after it.
    late = answered(home, 0, {first[4]: "cat", first[5]: "bird"})
    assert annotation.ingest(home, late).new.tolist() == sorted(first[4:])
    assert told(home)[first[4]] == "kitten"
    everything = told(home)
    out = first[0]
    annotation.amend(home, exclude=[out, 16])
    assert told(home) == {i: name for i, name in everything.items() if i != out}
    asked = [first]
    for number in (1, 2, 3):
        query = annotation.propose(home, loop_of(3), INPUTS, key=KEY)
        assert not {*query.indices.tolist()} & {out, 16, *(i for ids in asked for i in ids)}
        asked.append(query.indices.tolist())
        annotation.ingest(home, answered(home, number, dict.fromkeys(asked[-1], "bird")))

    def label_on():
        for number in (4, 5, 6):
            query = annotation.propose(home, loop_of(3), INPUTS, key=KEY)
            annotation.ingest(home, answered(home, number, dict.fromkeys(query.indices.tolist(), "dog")))

    with pytest.raises(ValueError, match="have been answered or skipped"):
        label_on()
    assert {*told(home)} == {*range(16)} - {out}
    for given, message in (
        ({"references": ["photo 3.png"]}, "references holds 'photo 3.png', which the project has"),
        ({"references": ["x", "x"]}, "references holds 'x'"),
        ({"rename": {"cat": "lion"}}, "rename='cat' is none of the classes kitten, dog, bird"),
        ({"classes": ["dog"]}, "dog"),
        ({"exclude": [17]}, "exclude holds 17"),
    ):
        content = (home / "project.json").read_bytes()
        with pytest.raises(ValueError, match=message):
            annotation.amend(home, **given)
        assert (home / "project.json").read_bytes() == content
    annotation.start(tmp_path / "b", references=names_of(3))
    with pytest.raises(ValueError, match="people give numbers"):
        annotation.amend(tmp_path / "b", classes=["bird"])


def test_a_disk_that_fills_up_leaves_the_project_as_it_was_or_as_it_will_be(tmp_path, monkeypatch):
    for fails_at in range(4):
        home = tmp_path / str(fails_at)
        annotation.start(home, references=names_of(8), class_names=["cat", "dog"])
        ids = annotation.propose(home, loop_of(2), INPUTS[:8], key=KEY, num_initial=4).indices.tolist()
        annotation.ingest(home, answered(home, 0, dict.fromkeys(ids[:2], "cat")))
        writes, real = [], files.write_text

        def write(path, text, real=real, writes=writes, fails_at=fails_at):
            writes.append(path.name)
            if len(writes) == fails_at + 1:
                raise OSError(28, "No space left on device")
            return real(path, text)

        with monkeypatch.context() as patched:
            patched.setattr(files, "write_text", write)
            if fails_at < 3:
                with pytest.raises(OSError, match="No space left"):
                    annotation.amend(home, classes=["bird"], rename={"cat": "lion"})
        # Whatever was written, the same call ends it, and no label is lost.
        if fails_at < 3:
            assert told(home) == dict.fromkeys(ids[:2], "cat")
        annotation.amend(home, classes=["bird"], rename={"cat": "lion"})
        assert told(home) == dict.fromkeys(ids[:2], "lion")
        assert annotation.propose(home, loop_of(3), INPUTS[:8], key=KEY).waiting.tolist() == ids[2:]


def test_photographs_that_come_are_added_by_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    (tmp_path / "photos").mkdir()
    for name in ("b", "d", "f"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "photos" / f"{name}.png")
    options = [f"--{name}={value}" for name, value in {"num-initial": 2, "num-steps": 2, "num-samples": 2}.items()]
    assert command_line.main(["propose", "home", "--data", "photos", "--classes", "x", "y", *options]) == 0
    for name in ("a", "e"):
        Image.new("RGB", (8, 8), "blue").save(tmp_path / "photos" / f"{name}.png")
    assert command_line.main(["amend", "home", "--add-classes", "z", "--rename", "x=w", "--exclude", "0"]) == 0
    assert command_line.main(["propose", "home"]) == 0
    assert "2 new examples, with ids from 3 on" in capsys.readouterr().err
    content = json.loads((tmp_path / "home" / "project.json").read_text())
    assert content["references"] == ["b.png", "d.png", "f.png", "a.png", "e.png"]
    assert [content["class_names"], content["excluded"]] == [["w", "y", "z"], [0]]
    (tmp_path / "photos" / "d.png").unlink()
    assert command_line.main(["propose", "home"]) == 2
    assert "'d.png' of the project is not among the data any more: put it back" in capsys.readouterr().err
    assert command_line.main(["amend", "home", "--rename", "w"]) == 2
    assert "rename='w' must be old=new" in capsys.readouterr().err
