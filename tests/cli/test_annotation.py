"""The commands of a labelling project: its files, its settings, and the page of the documentation as written."""

import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax
import numpy as np
import pytest
from PIL import Image

from baal_jax import __main__ as command_line
from baal_jax import annotation, features, posteriors, selection
from baal_jax._cli import _annotation, _assemble
from baal_jax._util.images import png
from tests.annotation.exports import NAMES, answer, refused, save
from tests.fixtures import noted, same_key


def propose(home, *options):
    return command_line.main(["propose", str(home), *map(str, options)])


def content(home, name="project.json"):
    return json.loads((home / name).read_text())


def test_the_page_on_digits_runs_as_written(tmp_path, monkeypatch, capsys):
    """Its Python and its commands, with somebody who knows the digits, skips one and was asked twice about another."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "labels_from_people.md").read_text()
    section = page.split("### Digits")[1].split("\n## ")[0]
    names, home = {}, Path("digits")
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    inputs, truth = names["train"].inputs, names["train"].targets
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line)[3:] for block in blocks for line in block.splitlines()]
    assert [command[0] for command in commands] == ["propose", "ingest", "propose"]
    assert commands[0][-1] in selection.REGISTRY
    cheap = "--model mlp --num-steps 2 --num-samples 3 --num-initial 40 --cold-start random --query-size 5"
    assert command_line.main([*commands[0], *cheap.split()]) == 0
    assert capsys.readouterr().out.startswith("round 0: 40 examples, 0 answered\n")
    tasks = content(home, "query-0000.label_studio.json")
    for task in tasks:
        index = task["data"]["baal_index"]
        task["annotations"] = [answer(str(truth[index]), 2)]
        stretched = (inputs[index, ..., 0] - inputs.min()) / (inputs.max() - inputs.min()) * 255
        np.testing.assert_array_equal(Image.open(home / task["data"]["image"]), np.round(stretched))
    tasks[0]["annotations"] = [refused(1)]
    tasks[1]["annotations"].insert(0, answer("7", 1, who=2))
    save(tmp_path, tasks[::-1])
    assert command_line.main(commands[1]) == 0
    assert capsys.readouterr().out == "39 new, 0 corrected, 0 unchanged, 1 skipped, 0 waiting, 0 outdated\n"
    assert command_line.main(commands[2]) == 0
    assert capsys.readouterr().out == "round 1: 5 examples, 0 answered\ndigits/query-0001.label_studio.json\n"
    state = annotation.answers(home)
    labelled = np.flatnonzero(np.asarray(state.labelled_at) == 0)
    np.testing.assert_array_equal(np.asarray(state.targets)[labelled], truth[labelled])
    assert not {*content(home, "query-0001.json")["indices"]} & {task["data"]["baal_index"] for task in tasks}


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What the parts of a query are called with; nothing is fitted."""
    calls = {}

    asked = annotation.Query(0, np.array([2, 0]), None, np.array([0]), tmp_path / "tasks.json")
    monkeypatch.setattr(annotation, "propose", noted(calls, "propose", asked))
    monkeypatch.setattr(_annotation, "active_loop", noted(calls, "loop", "a loop"))
    monkeypatch.setattr(_assemble, "trainer", noted(calls, "trainer", "a trainer"))
    monkeypatch.setattr(_assemble.optax, "adam", lambda rate: f"Adam of {rate}")
    monkeypatch.setattr(selection, "by_name", lambda name: f"picks by {name}")
    monkeypatch.setattr(features, "last_hidden", lambda model: ("last hidden", model))
    for name in ("swag", "mc_dropout"):
        monkeypatch.setitem(posteriors.REGISTRY, name, lambda model, fit, name=name: (name, model, fit))
    return calls


def test_options_become_the_parts_of_a_query_and_hold_for_later_ones(called, tmp_path, capsys):
    rng, home = np.random.default_rng(0), tmp_path / "a"
    inputs, embeddings = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(4, 2, 3))
    texts = [f"text {i}" for i in range(4)]
    np.savez(tmp_path / "pool.npz", inputs=inputs, references=texts, embeddings=embeddings)
    options = "--kind text --model mlp --rate 0.25 --posterior swag --strategy margin --num-initial 3 --seed 9 "
    options += "--cold-start k_means --query-size 2 --num-samples 6 --num-steps 7 --batch-size 5 --learning-rate 0.5"
    first = ["--data", tmp_path / "pool.npz", "--classes", *NAMES, *options.split()]
    for arguments, give_up in ((first, False), (["--give-up", "--seed", 9], True)):
        assert propose(home, *arguments) == 0
        posterior, picks, loop_options = called["loop"]
        assert [posterior[0], posterior[2], picks] == ["swag", "a trainer", "picks by margin"]
        assert loop_options == {"query_size": 2, "num_samples": 6, "features": ("last hidden", posterior[1])}
        assert called["trainer"][::2] == ("Adam of 0.5", {"num_steps": 7, "batch_size": 5})
        folder, loop, rows, found = called["propose"]
        assert [folder, loop] == [home, "a loop"]
        np.testing.assert_array_equal(rows, inputs)
        np.testing.assert_array_equal(found.pop("embeddings"), embeddings.reshape(4, 6).astype(np.float32))
        same_key(found.pop("key"), jax.random.key(9))
        assert found == {"num_initial": 3, "cold_start": "picks by k_means", "give_up": give_up}
        assert capsys.readouterr().out == f"round 0: 2 examples, 1 answered\n{tmp_path / 'tasks.json'}\n"
    assert content(home).items() >= {"kind": "text", "class_names": NAMES, "references": texts}.items()
    assert not (home / "images").exists()
    for said, message in (
        (["--cold-start", "random"], "cold_start='random', but the project was begun with 'k_means': leave it out"),
        (["--classes", "a", "b"], f"classes=['a', 'b'], but the project was begun with {NAMES}"),
        (["--kind", "audio"], "kind='audio', but the project was begun with 'text'"),
    ):
        assert propose(home, *said) == 1
        assert message in capsys.readouterr().err
    # People who give numbers: other defaults.
    assert propose(tmp_path / "b", "--data", tmp_path / "pool.npz") == 0
    assert [called["loop"][0][0], called["loop"][1]] == ["mc_dropout", "picks by variance"]
    settings = _annotation.Settings(str(tmp_path / "pool.npz"), strategy="variance")
    assert content(tmp_path / "b")["config"] == settings._asdict()


def test_names_of_files_are_quoted_in_urls_alone_and_pictures_resized(called, tmp_path):
    names, pictures, found = ["50% #1&2.PNG", "a b.png", "deeper/c.jpg"], tmp_path / "photos", {}
    (pictures / "deeper").mkdir(parents=True)
    for i, name in enumerate(names):
        (pictures / name).write_bytes(png(np.full((4, 4, 3), 100 * i, np.uint8)))
    for prefix in ("", "/data/local-files/?d=photos/"):
        home = tmp_path / f"home{len(prefix)}"
        wanted = ["--data", pictures, "--classes", *NAMES, "--url-prefix", prefix, "--image-size", "2"]
        assert propose(home, *wanted) == 0
        found[prefix] = content(home)["references"]
        rows, options = called["propose"][2:]
        np.testing.assert_array_equal(rows, np.full((3, 2, 2, 3), np.array([0, 100, 200])[:, None, None, None]))
        np.testing.assert_allclose(options["embeddings"], rows.reshape(3, 12) / 255, rtol=1e-6)
    assert found[""] == names
    urls = [urlsplit(url) for url in found["/data/local-files/?d=photos/"]]
    assert [unquote(url.query) for url in urls] == [f"d=photos/{name}" for name in names]
    assert not any(url.fragment or "&" in url.query for url in urls)


def test_pictures_that_exist_nowhere_else_are_written_as_bytes(called, tmp_path):
    pictures, home = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 1), tmp_path / "home"
    np.savez(tmp_path / "pool.npz", inputs=pictures)
    wanted = ["--data", tmp_path / "pool.npz", "--classes", *NAMES, "--url-prefix", "http://host/"]
    assert propose(home, *wanted) == 0
    assert content(home)["references"] == [f"http://host/images/{i}.png" for i in range(3)]
    assert sorted(path.name for path in (home / "images").iterdir()) == ["0.png", "2.png"]  # those that are asked for
    np.testing.assert_array_equal(Image.open(home / "images" / "2.png"), pictures[2, ..., 0])
    (home / "images" / "2.png").write_bytes(b"mine")
    assert propose(home) == 0
    assert (home / "images" / "2.png").read_bytes() == b"mine"


def test_what_cannot_be_proposed_is_said_in_a_line(called, tmp_path, capsys):
    inputs, names = {"inputs": np.zeros((2, 3))}, {"references": ["a", "b"]}
    arrays = {"empty": {"other": np.zeros(2)}, "nameless": inputs, "short": {**inputs, "references": ["a"]}}
    arrays |= {"apart": {**inputs, **names, "embeddings": np.zeros((3, 1))}, "fine": {**inputs, **names}}
    for name, held in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **held)
    for folder in ("none", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"GIF89a")
    for name, message, *more in (
        (None, "holds no project yet: begin one with --data"),
        ("nowhere.npz", "nowhere.npz' is neither a folder of images nor an .npz file"),
        ("none", "holds no .png, .jpg, .jpeg files: give a folder of images"),
        ("broken", "a.png cannot be read as an image"),
        ("empty.npz", "lacks inputs: it has other"),
        ("nameless.npz", "lacks references: give what people are shown"),
        ("short.npz", "holds 1 references for 2 inputs"),
        ("apart.npz", "holds 3 embeddings for 2 inputs"),
        ("fine.npz", "posterior='mc' is unknown: use one of", "--posterior", "mc"),
    ):
        assert propose(tmp_path / "new", *([] if name is None else ["--data", tmp_path / name]), *more) == 1
        shown = capsys.readouterr().err
        assert shown.startswith("propose: ")
        assert message in shown
        assert not (tmp_path / "new").exists()
    annotation.start(tmp_path / "python", references=["a", "b"], class_names=NAMES)
    assert propose(tmp_path / "python") == 1
    assert "was begun from Python, with its own loop: go on from there" in capsys.readouterr().err


def test_ingest_passes_on_what_counts_of_several(monkeypatch, tmp_path, capsys):
    calls, brought = {}, annotation.Ingested(*([0] * count for count in range(6)))
    monkeypatch.setattr(annotation, "ingest", noted(calls, "ingest", brought))
    for options, several in (([], "newest"), (["--several", "majority"], "majority")):
        assert command_line.main(["ingest", str(tmp_path), "x.json", *options]) == 0
        assert calls["ingest"] == (tmp_path, Path("x.json"), {"several": several})
    assert "0 new, 1 corrected, 2 unchanged, 3 skipped, 4 waiting, 5 outdated\n" in capsys.readouterr().out
