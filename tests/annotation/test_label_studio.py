"""What keeps a labelling project right over months: whose export it is, which answer is newer, files that were lost."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest

from baal_jax import __main__ as command_line
from baal_jax import annotation, selection
from baal_jax._util.images import png
from tests.fixtures import clouds as data, loops

TRAIN, _ = data()
NAMES = ["ape", "bee", "cat"]
REFERENCES = [f"pool/{i}.png" for i in range(40)]
LOOP = loops(["bald"], query_size=5)["bald"]


def begin(folder, references=REFERENCES):
    annotation.start(folder, references=references, class_names=NAMES)
    return folder


def ask(folder, **options):
    return annotation.propose(folder, LOOP, TRAIN.inputs, key=jax.random.key(0), num_initial=6, **options)


def answer(name, when=None, who=1, **fields):
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [name]}}
    times = {} if when is None else {"created_at": f"2026-01-{when:02d}T12:00:00Z"}
    return {"completed_by": who, "was_cancelled": False, "result": [result], **times, **fields}


def refused(when=None):
    return answer("ape", when, was_cancelled=True, result=[])


def exported(query, *annotations):
    tasks = json.loads(query.tasks.read_text())
    for task in tasks:
        task["annotations"] = list(annotations)
    return tasks


def save(folder, tasks):
    path = folder / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def target_of(folder, index):
    return int(annotation.answers(folder).targets[index])


def test_the_export_of_another_project_is_refused_although_its_ids_fit(tmp_path):
    mine, other = begin(tmp_path / "mine"), begin(tmp_path / "other", [f"else/{i}.png" for i in range(40)])
    queries = ask(mine), ask(other)
    np.testing.assert_array_equal(queries[0].indices, queries[1].indices)
    with pytest.raises(ValueError, match=r"export.json, task 0 has baal_project='\w+', but the tasks of this folder"):
        annotation.ingest(mine, save(tmp_path, exported(queries[1], answer("ape"))))
    assert not (mine / "labels.json").exists()
    foreign = exported(queries[0], answer("ape"))
    del foreign[3]["data"]["baal_project"]
    with pytest.raises(ValueError, match="task 3 has baal_project=None"):
        annotation.ingest(mine, save(tmp_path, foreign))
    same = begin(tmp_path / "same")  # the same pool, so an id means the same example
    ask(same)
    assert len(annotation.ingest(same, save(tmp_path, exported(queries[0], answer("ape")))).new) == 6


# What the folder has, what an export brings later, what then holds (None: skipped), and where the id is reported.
LATE = {
    "newer": (answer("ape", 5), answer("bee", 6), 1, "corrected"),
    "older": (answer("ape", 5), answer("bee", 4), 0, "outdated"),
    "as old": (answer("ape", 5), answer("bee", 5), 1, "corrected"),
    "without a time": (answer("ape", 5), answer("bee"), 1, "corrected"),
    "with a time, the known one without": (answer("ape"), answer("bee", 4), 1, "corrected"),
    "older and equal": (answer("ape", 5), answer("ape", 4), 0, "unchanged"),
    "skipped later": (answer("ape", 5), refused(6), None, "skipped"),
    "skipped earlier": (answer("ape", 5), refused(4), 0, "outdated"),
    "answered after the skip": (refused(5), answer("bee", 6), 1, "new"),
    "answered before the skip": (refused(5), answer("bee", 4), None, "outdated"),
    "skipped twice": (refused(5), refused(4), None, "skipped"),
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    home = begin(tmp_path_factory.mktemp("asked") / "project")
    return home, ask(home)


@pytest.mark.parametrize("case", LATE)
def test_of_two_exports_the_newer_answer_holds(asked, tmp_path, case):
    home, query = asked
    before, later, holds, reported = LATE[case]
    (home / "labels.json").unlink(missing_ok=True)
    annotation.ingest(home, save(tmp_path, exported(query, before)))
    found = annotation.ingest(home, save(tmp_path, exported(query, later)[:1]))
    index = int(query.indices[0])
    told = {name: ids.tolist() for name, ids in found._asdict().items() if name != "waiting"}
    assert told == {name: [index] if name == reported else [] for name in told}
    assert (int(annotation.answers(home).labelled_at[index]) == -2) == (holds is None)
    assert target_of(home, index) == (-1 if holds is None else holds)
    content = (home / "labels.json").read_bytes()
    annotation.ingest(home, tmp_path / "export.json")
    assert (home / "labels.json").read_bytes() == content


def test_who_said_what_and_when_is_kept(asked, tmp_path):
    home, query = asked
    (home / "labels.json").unlink(missing_ok=True)
    tasks = exported(query, answer("cat", 3, who={"id": 4, "email": "ann@example.org"}))
    tasks[1]["annotations"] = [answer("ape")]
    annotation.ingest(home, save(tmp_path, tasks))
    kept = json.loads((home / "labels.json").read_text())["labels"]
    first, second = (kept[str(index)] for index in query.indices[:2])
    assert first == {"target": 2, "round": 0, "annotator": "ann@example.org", "time": "2026-01-03T12:00:00+00:00"}
    assert second == {"target": 0, "round": 0, "annotator": "1", "time": None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("ape", 1, "a"), ("bee", 2, "a"), ("ape", 3, "b"), ("bee", 4, "c")], "bee"),  # a has changed their mind
        ([("ape", 1, "a"), ("ape", 2, "a"), ("ape", 3, "a"), ("bee", 4, "b")], "bee"),  # one vote each, the newest wins
        ([("ape", 1, None), ("ape", 2, None), ("bee", 3, None)], "ape"),  # nameless ones are different people
        ([("ape", 2, "a"), ("bee", 1, "b"), ("ape", 3, "c")], "ape"),
        ([("ape", 4, "a"), ("bee", 1, "b"), ("bee", 2, "c"), ("ape", 3, "a")], "bee"),
    ],
)
def test_an_annotator_has_one_vote(given, expected):
    task = {"data": {"image": "a", "baal_index": 3}, "annotations": [answer(*said) for said in given]}
    found = annotation.from_label_studio([task], NAMES, num_examples=5, several="majority")
    assert [NAMES[target] for target in found.targets] == [expected]
    assert found.times == {3: "2026-01-04T12:00:00+00:00"} if len(given) == 4 else found.times[3].endswith("+00:00")


def test_damaged_files_of_a_project_are_named(tmp_path):
    home = begin(tmp_path / "project")
    export = save(tmp_path, exported(ask(home), answer("ape")))
    annotation.ingest(home, export)
    ask(home)
    for name in ("project.json", "query-0000.json", "labels.json"):
        whole = (home / name).read_bytes()
        for damage, message in (
            (whole[: len(whole) // 2], "is not JSON"),
            (b"{}", "lacks format"),
            (b"[", "is not JSON"),
        ):
            (home / name).write_bytes(damage)
            with pytest.raises(ValueError, match=rf"{name} {message}.*restore it"):
                annotation.ingest(home, export)
            with pytest.raises(ValueError, match=name):
                ask(home)
        (home / name).write_bytes(whole)
    (home / "query-0000.json").rename(tmp_path / "lost.json")
    with pytest.raises(ValueError, match=r"lacks query-0000.json, but has later ones: restore"):
        ask(home)
    with pytest.raises(ValueError, match=r"lacks query-0000.json"):
        annotation.ingest(home, export)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'[{"data": '], ids=["bytes", "nested", "cut"])
def test_an_export_that_is_no_json_is_named(asked, tmp_path, content):
    path = tmp_path / "export.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"export\.json is not JSON"):
        annotation.ingest(asked[0], path)


def test_a_byte_order_mark_is_no_damage(asked, tmp_path):
    home, query = asked
    (home / "labels.json").unlink(missing_ok=True)
    path = tmp_path / "export.json"
    path.write_text(json.dumps(exported(query, answer("ape"))), encoding="utf-8-sig")
    assert len(annotation.ingest(home, path).new) == 6


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_ingest_that_fails_leaves_the_answers_as_they_were(asked, tmp_path, monkeypatch, call):
    home, query = asked
    (home / "labels.json").unlink(missing_ok=True)
    annotation.ingest(home, save(tmp_path, exported(query, answer("ape"))))
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    save(tmp_path, exported(query, answer("bee")))

    def fails(*arguments):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fails)
        with pytest.raises(OSError, match="the disk is gone"):
            annotation.ingest(home, tmp_path / "export.json")
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    assert len(annotation.ingest(home, tmp_path / "export.json").corrected) == 6


def test_a_cold_start_from_a_command_line_is_the_same_whenever_asked(tmp_path, capsys):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, 3)).astype(np.float32)
    np.savez(tmp_path / "pool.npz", inputs=inputs, references=[f"text {i}" for i in range(30)])
    found = []
    for number, how in enumerate(["random", "k_center", "k_center"]):
        home = tmp_path / str(number)
        begun = ["propose", str(home), "--data", str(tmp_path / "pool.npz"), "--kind", "text", "--classes", *NAMES]
        assert command_line.main([*begun, "--num-initial", "4", "--cold-start", how]) == 0
        found.append(json.loads((home / "query-0000.json").read_text())["indices"])
    assert found[0] != found[1] == found[2]
    capsys.readouterr()
    assert command_line.main([*begun, "--cold-start", "random"]) == 1
    assert "cold_start='random', but the project was begun with 'k_center'" in capsys.readouterr().err
    wrong = ["propose", str(tmp_path / "wrong"), *begun[2:], "--cold-start", "bald"]
    assert command_line.main(wrong) == 1
    assert not (tmp_path / "wrong" / "query-0000.json").exists()


def test_predictions_that_are_not_finite_are_not_offered():
    tasks = annotation.to_label_studio([1, 2], ["a", "b"], NAMES, predictions=[[np.nan] * 3, [0.5, 0.25, 0.25]])
    assert ["predictions" in task for task in tasks] == [False, True]
    numbers = annotation.to_label_studio([1, 2], ["a", "b"], None, predictions=[[np.inf], [2.0]], scores=[np.nan, 1.0])
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers[1]["predictions"][0]["result"][0]["value"] == {"number": 2.0}
    with pytest.raises(ValueError, match=r"predictions of shape \(2,\) do not fit a number"):
        annotation.to_label_studio([1], ["a"], None, predictions=[[1.0, 2.0]])


def test_names_of_files_are_quoted_in_urls_alone(tmp_path):
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for name in ("a b.png", "50% #1&2.png"):
        (pictures / name).write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    found = {}
    for prefix in ("", "/data/local-files/?d=photos/"):
        home = tmp_path / f"home{len(prefix)}"
        wanted = ["--data", str(pictures), "--classes", *NAMES, "--url-prefix", prefix, "--num-initial", "1"]
        assert command_line.main(["propose", str(home), *wanted, "--query-size", "1", "--image-size", "4"]) == 0
        found[prefix] = json.loads((home / "project.json").read_text())["references"]
    assert found[""] == ["50% #1&2.png", "a b.png"]
    urls = [urlsplit(url) for url in found["/data/local-files/?d=photos/"]]
    assert [unquote(url.query) for url in urls] == [f"d=photos/{name}" for name in found[""]]
    assert not any(url.fragment or "&" in url.query for url in urls)


def test_the_page_on_digits_runs_as_written(tmp_path, monkeypatch):
    """Its Python and its commands, with somebody who knows the digits, skips one and was asked twice about another."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "labels_from_people.md").read_text()
    section = page.split("### Digits")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(program, names)
    truth = names["train"].targets
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line)[3:] for block in blocks for line in block.splitlines()]
    assert [command[0] for command in commands] == ["propose", "ingest", "propose"]
    assert commands[0][-1] in selection.REGISTRY
    cheap = [
        "--model",
        "mlp",
        "--num-steps",
        "20",
        "--num-samples",
        "3",
        "--num-initial",
        "40",
        "--cold-start",
        "random",
    ]
    assert command_line.main([*commands[0], *cheap]) == 0
    tasks = json.loads(Path("digits/query-0000.label_studio.json").read_text())
    for task in tasks:
        task["annotations"] = [answer(str(truth[task["data"]["baal_index"]]), 2)]
        assert Path("digits", task["data"]["image"]).is_file()
    tasks[0]["annotations"] = [refused(1)]
    tasks[1]["annotations"].insert(0, answer("7", 1, who=2))
    save(tmp_path, tasks[::-1])
    assert command_line.main(commands[1]) == 0
    assert command_line.main(commands[2]) == 0
    state = annotation.answers("digits")
    skipped = np.asarray(state.labelled_at) == -2
    labelled = np.flatnonzero(np.asarray(state.labelled_at) == 0)
    assert len(labelled) == 39
    np.testing.assert_array_equal(np.asarray(state.targets)[labelled], truth[labelled])
    second = json.loads(Path("digits/query-0001.json").read_text())["indices"]
    assert not set(second) & {*labelled.tolist(), *np.flatnonzero(skipped).tolist()}
    assert len(second) == 20


def test_the_commands_are_listed_from_a_shell():
    shown = subprocess.run([sys.executable, "-m", "baal_jax", "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in shown.stdout for name in command_line.COMMANDS)
    assert {"propose", "ingest"} <= set(command_line.COMMANDS)
