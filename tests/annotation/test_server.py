"""Three rounds of every kind of project through a real Label Studio: ``pytest -m label_studio tests/annotation``."""

import csv
import json
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from baal_jax import __main__ as command_line
from baal_jax import annotation, study
from tests.annotation import server

pytestmark = pytest.mark.label_studio
CHEAP = ["--num-initial", "6", "--query-size", "4", "--num-steps", "30", "--num-samples", "4", "--model", "mlp"]
PREFIX = "/data/local-files/?d=photos/"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("files")
    (root / "photos").mkdir()
    try:
        with server.running(root / "data", root) as address:
            people = [server.Session(address, server.USER, server.PASSWORD)]
            people.append(server.Session(address, "bob@example.org", server.PASSWORD, is_new=True))
            yield root, people
    except server.Unavailable as error:
        pytest.skip(str(error))


def chosen(kind, *names):
    value = {"choices": list(names)}
    return [{"from_name": "label", "to_name": kind, "type": "choices", "value": value}]


def numbered(kind, number):
    return [{"from_name": "label", "to_name": kind, "type": "number", "value": {"number": number}}]


def photos(root, count):
    """Photographs, each brighter than the last, with spaces in their names."""
    for i in range(count):
        pixels = np.full((8, 8, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"photo {i:02d} of many.png")


def texts(root, count):
    with (root / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text"])
        for i in range(count):
            animal = "a cat that purrs" if i % 2 else "a dog that barks"
            rows.writerow([f'number {i}, "{animal}" & <b>more</b> of the same words'])


# What a project is begun with, what is shown, and the truth of an example in the tool's words.
KINDS = {
    "classes": (["--classes", "dark", "bright"], "image", lambda i: chosen("image", "bright" if i > 9 else "dark")),
    "several labels": (
        ["--classes", "bright", "even", "--multi-label"],
        "image",
        lambda i: (
            chosen("image", *(name for name, holds in (("bright", i > 9), ("even", i % 2 == 0)) if holds))
            if i > 9 or i % 2 == 0
            else []
        ),
    ),
    "numbers": ([], "image", lambda i: numbered("image", i / 10)),
    "texts": (["--classes", "dog", "cat"], "text", lambda i: chosen("text", "cat" if i % 2 else "dog")),
}


def call(*arguments):
    return command_line.main([*map(str, arguments)])


@pytest.mark.parametrize("name", KINDS)
def test_three_rounds_through_the_server(place, name, monkeypatch, capsys, tmp_path):
    root, (ann, bob) = place
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    options, kind, truth = KINDS[name]
    photos(root, 20)
    texts(root, 20)
    data = ["--data", root / "photos", "--url-prefix", PREFIX, "--image-size", 4]
    data = data if kind == "image" else ["--data", root / "texts.csv"]
    assert call("propose", "home", *data, *options, *CHEAP) == 0
    home = tmp_path / "home"
    project = ann.project((home / "label_config.xml").read_text(encoding="utf-8"))
    if kind == "image":
        ann.call("POST", "/api/storages/localfiles/", {"project": project, "path": str(root / "photos")})
    asked = []
    for number in range(3):
        path = home / f"query-{number:04d}.label_studio.json"
        tasks = json.loads(path.read_text(encoding="utf-8"))
        brought = ann.call("POST", f"/api/projects/{project}/import", tasks)
        guesses = sum("predictions" in task for task in tasks)
        assert [brought["task_count"], brought["prediction_count"]] == [len(tasks), guesses]
        assert number == 0 or guesses or name == "several labels"
        ids = [task["data"]["baal_index"] for task in tasks]
        asked.append(ids)
        known = ann.tasks(project)
        if kind == "image":  # the tool shows them
            shown = ann.call("GET", tasks[0]["data"]["image"])
            assert (
                shown == (root / "photos" / urllib.parse.unquote(tasks[0]["data"]["image"][len(PREFIX) :])).read_bytes()
            )
        for index in ids[2:]:
            ann.annotate(known[index], truth(index), lead_time=2.5, ground_truth=index % 3 == 0)
        ann.annotate(known[ids[0]], [], was_cancelled=True)  # a skip
        if number == 0:
            ann.call("POST", f"/api/tasks/{known[ids[1]]}/drafts", {"result": truth(ids[1])})  # a draft is no answer
            (tmp_path / "early.json").write_bytes(ann.export(project))
            assert call("ingest", "home", "early.json") == 0
            assert "4 new, 0 corrected, 0 unchanged, 1 skipped, 1 waiting" in capsys.readouterr().out
        # Two people do not agree; the later of them is right.
        other = {"classes": "dark", "several labels": "bright", "texts": "dog"}.get(name)
        wrong = numbered(kind, -3.0) if other is None else chosen(kind, other)
        bob.annotate(known[ids[1]], wrong)
        ann.annotate(known[ids[1]], truth(ids[1]))
        (tmp_path / "export.json").write_bytes(ann.export(project))
        (tmp_path / "min.json").write_bytes(ann.export(project, "JSON_MIN"))
        capsys.readouterr()
        assert call("ingest", "home", "min.json") == 2
        assert "min.json, task 0 has no data: export as JSON, not as JSON-MIN" in capsys.readouterr().err
        assert call("ingest", "home", "export.json") == 0
        out = capsys.readouterr().out
        assert "0 waiting" in out
        assert "0 outdated" in out
        assert call("propose", "home") == 0
    state = annotation.answers(home)
    told = np.asarray(state.labelled_at)
    assert sorted(np.flatnonzero(told >= 0).tolist()) == sorted(i for ids in asked for i in ids[1:])
    assert (told[[ids[0] for ids in asked]] == -2).all()
    for ids in asked:
        for index in ids[1:]:
            target = np.asarray(state.targets)[index].tolist()
            if name == "numbers":
                assert target == pytest.approx(index / 10)
            elif name == "several labels":
                assert target == [int(index > 9), int(index % 2 == 0)]
            else:
                assert target == int(index % 2 if kind == "text" else index > 9)
    # A review stands beside the first tasks in the same project of the tool.
    assert call("propose", "home", "--give-up", "--review") == 0
    path = home / "query-0004.label_studio.json"
    tasks = json.loads(path.read_text(encoding="utf-8"))
    ann.call("POST", f"/api/projects/{project}/import", tasks)
    known = ann.tasks(project)
    for task in tasks:
        index = task["data"]["baal_index"]
        ann.annotate(known[index], truth(index))
    (tmp_path / "export.json").write_bytes(ann.export(project))
    capsys.readouterr()
    assert call("ingest", "home", "export.json") == 0
    assert "0 new, 0 corrected" in capsys.readouterr().out
    np.testing.assert_array_equal(annotation.answers(home).targets, state.targets)
    assert call("export", "home", "--folds", "2") == 0
    assert (home / "network.stablehlo").exists()
