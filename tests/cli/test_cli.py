"""The commands: what they say, what their options become, and what they leave in a folder."""

import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import baal_jax
from baal_jax import __main__ as command_line
from baal_jax import annotation, data, features, losses, metrics, posteriors, selection, stopping, study
from baal_jax._cli import _annotation, _assemble
from baal_jax._util.images import png
from baal_jax.data import _open
from baal_jax.study import results
from baal_jax.typing import Posterior
from tests.annotation.exports import NAMES, answer, refused, save
from tests.fixtures import NnxNet, close, clouds, noted, same_key
from tests.study.files import make_results, write_study

QUICK = "--seeds 2 --rounds 2 --num-initial 4 --query-size 2 --num-steps 3 --num-samples 2 --batch-size 4"
HERE = "tests.cli.test_cli"


@pytest.fixture(autouse=True)
def cached(monkeypatch):
    """How often the cache of compiled programs is switched on, which would be for all tests that follow."""
    times = []
    monkeypatch.setattr(study, "use_compilation_cache", lambda: times.append(1))
    return times


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What the parts of a study and of a query are called with; nothing is run or fitted."""
    calls = {}
    asked = annotation.Query(0, np.array([2, 0]), None, np.array([0]), tmp_path / "tasks.json")
    told = make_results(seeds=2, rounds=2)
    told.description["chunk"] = 1
    write_study(tmp_path / "home", told)
    for place, name, result in (
        (study, "strategies", "loops"),
        (study, "run", told),
        (annotation, "propose", asked),
        (_annotation, "active_loop", "a loop"),
        (_assemble, "trainer", "a trainer"),
        (_assemble, "check", None),
    ):
        monkeypatch.setattr(place, name, noted(calls, name, result))
    for name in ("standardised", "of_standardised"):
        monkeypatch.setattr(_assemble, name, lambda part: part)
    monkeypatch.setattr(_assemble.optax, "adam", lambda rate: f"Adam of {rate}")
    monkeypatch.setattr(selection, "by_name", lambda name, **_: f"picks by {name}")
    for name in ("gradient", "last_hidden"):
        monkeypatch.setattr(features, name, lambda model, name=name: (name, model))
    for name in ("swag", "laplace", "mc_dropout"):
        monkeypatch.setitem(posteriors.REGISTRY, name, lambda model, fit, name=name: Posterior(name, model, fit))
    return calls


def test_the_commands_are_listed_and_what_is_none_is_refused(capsys, monkeypatch):
    shown = subprocess.run([sys.executable, "-m", "baal_jax"], capture_output=True, text=True, check=True).stdout
    assert list(command_line.COMMANDS) == ["study", "propose", "ingest", "amend", "export", "report"]
    for name, (*_, text) in command_line.COMMANDS.items():
        assert f"  {name:10s} {text}\n" in shown
        with pytest.raises(SystemExit) as stop:
            command_line.main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: baal-jax {name} " in capsys.readouterr().out
    assert command_line.main(["-h"]) == 0
    assert command_line.main(["propse"]) == 2
    assert "baal-jax: 'propse' is no command: use one of study, propose" in capsys.readouterr().err
    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out == f"baal_jax {baal_jax.__version__}\n"


def test_help_loads_nothing_heavy_and_names_the_extra():
    """A bare wheel has jax, but nobody waits for it to read a page."""
    heavy = ["jax", "numpy", "flax", "tqdm", "tyro"]
    for command in (["--help"], ["--version"], *([name, "--help"] for name in command_line.COMMANDS)):
        code = f"import sys; sys.argv[1:] = {command}; from baal_jax.__main__ import command as c\ntry: c()\n"
        code += f"finally: print([name for name in {heavy} if name in sys.modules])"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert shown.endswith("[]\n"), command
        assert ("pip install 'baal_jax[experiments]'" in shown) == (command != ["--version"])


def test_a_report_is_written_where_it_is_asked_for(tmp_path, capsys, monkeypatch):
    study = make_results(("random",), seeds=2, rounds=2, classes=None)
    for name in ("mae", "nll"):
        del study.runs["random"].metrics[name]
    folder, figures = write_study(tmp_path / "study", study), tmp_path / "figures"
    assert command_line.main(["report", str(folder), "--out", str(tmp_path / "x.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.html'}\n"
    assert not (folder / "report.html").exists()
    assert command_line.main(["report", str(folder), "--figures", str(figures), "--formats", "svg"]) == 0
    written = [folder / "report.html", figures / "curves_rmse.svg", figures / "mean_score.svg"]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written if path.exists()]
    (tmp_path / "folder.html").mkdir()
    assert command_line.main(["report", str(folder), "--out", str(tmp_path / "folder.html")]) == 2
    assert capsys.readouterr().err == f"report: [Errno 21] Is a directory: '{tmp_path / 'folder.html'}'\n"
    with monkeypatch.context() as patched:
        patched.setattr(results, "read", lambda folder: signal.raise_signal(signal.SIGINT))
        assert command_line.main(["report", str(folder)]) == 130
    assert capsys.readouterr().err == "report: interrupted\n"
    assert command_line.main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"report: {tmp_path / 'study.json'} is missing: run a study there first")


# Studies


def nnx_factory(num_outputs):
    return lambda rngs: NnxNet(rngs, num_outputs)


def broken():
    raise KeyError("no")


def saved(path, **more):
    train, test = clouds()
    arrays = {"train_inputs": train.inputs, "train_targets": train.targets}
    arrays |= {"test_inputs": test.inputs, "test_targets": test.targets, **more}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return str(path)


def test_a_study_from_a_file_with_a_network_of_ones_own(tmp_path, capsys, cached):
    source, home = saved(tmp_path / "mine.npz", class_names=np.array(["a", "b", "c"])), tmp_path / "home"
    command = ["study", str(home), "--data", source, "--model", "tests.fixtures:Net", *QUICK.split()]
    assert command_line.main([*command, "--strategies", "random"]) == 0
    shown = capsys.readouterr().out
    assert "| random |" in shown
    assert shown.endswith(f"\n{home / 'results.csv'}\n{home / 'report.html'}\n")
    found = results.read(home)
    assert found.runs["random"].indices.shape == (2, 2, 2)
    assert found.runs["random"].diagnostics["reliability_accuracy"].shape == (2, 2, 15)
    assert found.description["class_names"] == ["a", "b", "c"]
    assert "Active learning on mine" in (home / "report.html").read_text()
    assert command_line.main([*command, "--strategies", "random", "--rate", "0.3"]) == 2
    assert "study.json is of a study with config['rate']=0.5, but now it is 0.3: use" in capsys.readouterr().err
    assert command_line.main([*command, "--strategies", "random", "margin"]) == 0
    sorted(home.glob("cells/*margin*"))[0].unlink()
    capsys.readouterr()
    assert command_line.main([*command, "--strategies", "random"]) == 0
    shown = capsys.readouterr().out
    assert ["| random |" in shown, "| margin |" in shown, "cells are still missing" in shown] == [True, False, True]


def test_options_become_the_parts_of_a_study(called, tmp_path, capsys):
    table = tmp_path / "table.txt"
    np.savetxt(table, np.random.default_rng(0).normal(size=(60, 5)))
    command = f"study {tmp_path / 'home'} --data {table} --num-test 20 --strategies random lcmd "
    command += "--posteriors swag laplace --features gradient --seeds 7 --rounds 3 --num-initial 4 --query-size 1 2 "
    command += "--num-samples 6 --max-sample 30 --num-steps 11 --batch-size 8 --learning-rate 0.5 --budget 9 "
    command += "--part 3/12 --same-device --metric mae --reach 0.25 --chunk 2 --seed 5 --rate 0.125 "
    command += f"--model {HERE}:nnx_factory"
    assert command_line.main(command.split()) == 0
    by_name, picks, options = called["strategies"]
    assert [(name, found[0], found[2]) for name, found in by_name.items()] == [
        (name, name, "a trainer") for name in ("swag", "laplace")
    ]
    assert picks == {"random": "picks by random", "lcmd": "picks by lcmd"}
    expected = {"query_size": (1, 2), "num_samples": 6, "max_sample": 30}
    expected |= {"features": ("gradient", by_name["swag"][1]), "metrics": metrics.regression()}
    assert options == expected
    assert called["trainer"] == ("Adam of 0.5", losses.squared_error, {"num_steps": 11, "batch_size": 8})
    folder, loops, train, test, options = called["run"]
    assert [folder, loops] == [tmp_path / "home", "loops"]
    opened = data.open(table, num_test=20, seed=5)
    close((train, test), (opened.train, opened.test))
    same_key(options.pop("key"), jax.random.key(5))
    about = options.pop("about")
    sizes = {"num_seeds": 7, "num_rounds": 3, "num_initial": 4, "chunk": 2, "progress": True}
    sizes |= {"part": (3, 12), "same_device": True}
    assert options == {**sizes, "stop": stopping.labelling_budget(9)}
    assert about[:5] == ("Active learning on table", None, "mae", 0.25, None)
    # What may grow, what changes no number, and what the folder has under other names, is not compared.
    expected |= dict.fromkeys(("target", "task", "image_size")) | {"encode": "tfidf"}
    expected |= {"data": str(table), "num_test": 20, "model": f"{HERE}:nnx_factory", "rate": 0.125}
    expected |= {"features": "gradient", "num_steps": 11, "batch_size": 8, "learning_rate": 0.5, "budget": 9}
    del expected["metrics"]
    assert about.config == expected
    # Classes are reported with diagnostics, and one posterior gives no name.
    source = saved(tmp_path / "mine.npz")
    assert command_line.main(["study", str(tmp_path / "home"), "--data", source, *QUICK.split()]) == 0
    posterior, picks, options = called["strategies"]
    assert [posterior[0], list(picks), options["query_size"]] == ["mc_dropout", ["random", "bald"], (2,)]
    assert options["metrics"] is metrics.classification(diagnostics=True)
    assert [called["trainer"][1], called["run"][-1]["stop"]] == [losses.cross_entropy, None]
    assert [called["run"][-1][name] for name in ("part", "same_device")] == [None, False]
    # A part has nothing to tell while others are missing.
    capsys.readouterr()
    next(tmp_path.glob("home/cells/*")).unlink()
    assert command_line.main(["study", str(tmp_path / "home"), "--data", source, *QUICK.split()]) == 0
    assert capsys.readouterr().out.startswith("1 of 6 cells are still missing: other parts")


WRONG = [
    (["--strategies", "bld"], "name='bld' is no strategy: use one of"),
    (["--strategies", "nowhere.py:pick"], "strategies='nowhere.py:pick' cannot be imported (FileNotFoundError"),
    (["--strategies", f"{HERE}:broken"], "fails when it is called (KeyError: 'no')"),
    (["--strategies", f"{HERE}:HERE"], "is a str: name an acquisition"),
    (["--posteriors", "mc_drop"], "posteriors='mc_drop' is unknown: use one of bayes_by_backprop,"),
    (["--posteriors"], "posteriors is empty: name at least one"),
    (["--posteriors", f"{HERE}:broken"], "fails when it is called (TypeError"),
    (["--model", "resnet"], "model='resnet' is unknown: use mlp or cnn, or file.py:name"),
    (["--model", ":thing"], "model=':thing' must be file.py:name or package.module:name"),
    (["--metric", f"{HERE}:broken"], "metric='tests.cli.test_cli:broken' fails when it is called"),
    (["--metric", "acuracy"], "metric='acuracy' is not what"),
    (["--seeds", "many"], "argument --seeds: invalid int value: 'many': see baal-jax study --help"),
    (["--seeds", "0"], "num_seeds=0 must be an integer of at least 1"),
    (["--sead", "1"], "unrecognized arguments: --sead 1"),
    (["--features", "all"], "argument --features: invalid choice: 'all'"),
    (["--rounds"], "argument --rounds: expected one argument"),
    (["--query-size", "0"], "query_size=0"),
    (["--target", "0.9"], "no use for it, leave it out (a value to reach is --reach)"),
    (["--data", "hf:nowhere"], "datasets"),
    (["--data", "tfds:nowhere"], "nowhere was not found. Tried:"),
    (["--data", "photo.jpeg2000"], "data='photo.jpeg2000' does not exist: give digits"),
    (["--data", os.devnull], "does not exist: give digits"),
    (["--data", __file__], "is of a kind that is not known: give digits"),
    (["--model", "no.such:thing"], "cannot be imported"),
    (["--model", f"{HERE}:thing"], "cannot be imported"),
    (["--model", "builtins:int"], "made int: return a linen module"),
    (["--model", "cnn"], "model='cnn' needs images [H, W, C], but inputs are (4,)"),
    (["--data", "cifar10", "--data-dir", "nowhere"], "cifar10 was not found. Tried:"),
    (["--part", "3"], "part=3 must be i/n, such as 0/8"),
    (["--part", "2/2"], "part=(2, 2) does not exist: count from (0, 2) to (1, 2)"),
    (["--data", "nowhere.npz"], "data='nowhere.npz' does not exist: give digits, cifar10"),
]


def test_what_cannot_be_done_is_said_in_a_line(tmp_path, capsys):
    source = saved(tmp_path / "mine.npz")
    for more, message in WRONG:
        assert command_line.main(["study", str(tmp_path / "home"), "--data", source, *QUICK.split(), *more]) == 2
        shown = capsys.readouterr().err.splitlines()[-1]
        assert shown.startswith("study: ")
        assert message in shown
        assert not (tmp_path / "home").exists()


def test_data_by_name(tmp_path, monkeypatch):
    def problem(name="a.npz", model="mlp", data_dir=None, **arrays):
        source = saved(tmp_path / name, **arrays) if name.endswith("npz") else name
        return data.open(source, image=model == "cnn", data_dir=data_dir)

    found = problem()
    close((found.train, found.test), clouds())
    assert found[2:6] == (3, None, None, None)
    assert found.said == "a.npz: 40 examples to choose from and 30 held out, 3 classes"
    assert problem(class_names=np.array(list("abcde")))[2:4] == (5, tuple("abcde"))
    assert problem(train_targets=np.full(40, 7)).num_classes == 8
    ones = {"train_targets": np.zeros(40, int), "test_targets": np.zeros(30, int)}
    assert problem(**ones).num_classes == 2
    shape = {"train_inputs": np.zeros((40, 2, 2, 3)), "test_inputs": np.zeros((30, 2, 2, 3))}
    found = problem(**{name: value / 2 for name, value in ones.items()}, **shape)
    assert [found.num_classes, found.images.shape] == [None, (40, 2, 2, 3)]
    with pytest.raises(ValueError, match=r"lacks test_targets: it has train_inputs, train_targets, test_inputs"):
        problem(test_targets=None)
    for arrays, message in (
        ({"test_targets": np.array([print], object)}, "allow_pickle=False"),
        ({"test_targets": np.zeros(29, int)}, "30 inputs, but targets of shape .29"),
        ({"test_targets": np.zeros(30)}, "train and test differ"),
        ({"test_inputs": np.zeros((30, 5))}, "train and test differ"),
        ({"class_names": np.array(["a", "b"])}, "are not 3 different names"),
        ({"class_names": np.array(["a", "b", " "])}, "are not 3 different names, none empty"),
        ({"class_names": np.array([b"a", b"b", b"c"])}, "is no list of texts"),
        ({"class_names": np.array([["a", "b", "c"]])}, "is no list of texts"),
    ):
        with pytest.raises(ValueError, match=f"a.npz': cannot be read .*{message}.*save it again with numpy.savez"):
            problem(**arrays)
    path = Path(saved(tmp_path / "a.npz"))
    whole = path.read_bytes()
    shorter = whole.replace(b"(40, 4)", b"(30, 4)", 1)  # the rest is not read, and its checksum neither
    for content in (shorter, whole[:-30], b"", b"PK", whole[:200] + b"x" + whole[201:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.npz': cannot be read .*save it again"):
            data.open(path)
    for model, shape in (("mlp", (64,)), ("cnn", (8, 8, 1))):
        found = problem("digits", model)
        assert [found.train.inputs.shape[1:], found.num_classes] == [shape, 10]
        assert found.class_names == tuple("0123456789")
        np.testing.assert_array_equal(found.images.reshape(len(found.images), *shape), found.train.inputs)
    monkeypatch.setattr(_open, "cifar10", lambda folder: data.digits() if folder == Path("there") else None)
    found = problem("cifar10", data_dir=Path("there"))
    assert found[2:4] == (10, data.CIFAR10_CLASSES)
    assert found.images is found.train.inputs


@pytest.mark.parametrize("name", ["mlp", "cnn", "tests.fixtures:Net", f"{HERE}:nnx_factory"])
def test_networks_by_name(key, name):
    shape = (8, 8, 1) if name == "cnn" else (4,)
    # Of all dropped out nothing but the bias is left, which is zero at first.
    model = _assemble.network(name, 3, shape, 1.0 if ":" not in name else 0.5)
    inputs = jnp.arange(2 * np.prod(shape), dtype=jnp.uint8 if name == "cnn" else jnp.float32).reshape(2, *shape)

    @jax.jit
    def outputs(key):
        variables = model.init(key, inputs)
        return jnp.stack([model.apply(variables, inputs, one) for one in jax.random.split(key)])

    first, second = outputs(key)
    assert first.shape == (2, 3)
    assert np.array_equal(first, np.zeros((2, 3))) == np.array_equal(first, second) == (":" not in name)
    # Bytes are scaled, and numbers are not.
    np.testing.assert_allclose(_assemble._scaled(np.array([0, 255], np.uint8)), [-1, 1])
    assert _assemble._scaled(np.array([0.5], np.float32)) == 0.5


# Labelling projects


def propose(home, *options):
    return command_line.main(["propose", str(home), *map(str, options)])


def content(home, name="project.json"):
    return json.loads((home / name).read_text())


def test_the_page_on_digits_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "labels_from_people.md").read_text()
    section = page.split("### Digits")[1].split("\n## ")[0]
    names, home = {}, Path("digits")
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], names)
    inputs, truth = names["train"].inputs, names["train"].targets
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
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
    assert capsys.readouterr().out == "39 new, 0 corrected, 0 unchanged, 1 skipped, 0 waiting, 1 disputed, 0 outdated\n"
    assert command_line.main(commands[2]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(
        r"round 1: 5 examples, 0 answered\n"
        r"(  \d+ images/\d+.png: \d 0\.\d\d, \d 0\.\d\d; score \S+ \(what is left has \S+ on average\)\n){5}"
        r"digits/query-0001.label_studio.json\n",
        said.out,
    )
    assert re.search(r"fits to 39 labels, scores 1397 examples\ntook \d+\.\d s", said.err)
    state = annotation.answers(home)
    labelled_at, targets = np.asarray(state.labelled_at), np.asarray(state.targets)
    np.testing.assert_array_equal(targets[labelled_at == 0], truth[labelled_at == 0])


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
        posterior, picks, loop_options = called["active_loop"]
        assert [posterior[0], posterior[2], picks] == ["swag", "a trainer", "picks by margin"]
        assert loop_options == {"query_size": 2, "num_samples": 6, "features": ("last_hidden", posterior[1])}
        assert called["trainer"][::2] == ("Adam of 0.5", {"num_steps": 7, "batch_size": 5})
        folder, loop, rows, found = called["propose"]
        assert [folder, loop] == [home, "a loop"]
        np.testing.assert_array_equal(rows, inputs)
        np.testing.assert_array_equal(found.pop("embeddings"), embeddings.reshape(4, 6).astype(np.float32))
        same_key(found.pop("key"), jax.random.key(9))
        assert found == {"num_initial": 3, "cold_start": "picks by k_means", "give_up": give_up, "review": False}
        assert capsys.readouterr().out == f"round 0: 2 examples, 1 answered\n{tmp_path / 'tasks.json'}\n"
    assert content(home).items() >= {"kind": "text", "class_names": NAMES, "references": texts}.items()
    assert not (home / "images").exists()
    for said, message in (
        (["--cold-start", "random"], "cold_start='random', but the project was begun with 'k_means': leave it out"),
        (["--classes", "a", "b"], f"classes=['a', 'b'], but the project was begun with {NAMES}"),
        (["--kind", "audio"], "kind='audio', but the project was begun with 'text'"),
    ):
        assert propose(home, *said) == 2
        assert message in capsys.readouterr().err
    # People who give numbers: other defaults.
    assert propose(tmp_path / "b", "--data", tmp_path / "pool.npz") == 0
    assert [called["active_loop"][0][0], called["active_loop"][1]] == ["mc_dropout", "picks by variance"]
    sizes = {
        "image_size": 32,
        "num_initial": 20,
        "query_size": 20,
        "num_samples": 20,
        "num_steps": 500,
        "batch_size": 32,
    }
    said = {"model": "mlp", "posterior": "mc_dropout", "strategy": "variance", "cold_start": "random", "url_prefix": ""}
    said |= {"image_size": 32, "rate": 0.5, "learning_rate": 1e-3, "seed": 0, "data": str(tmp_path / "pool.npz")}
    assert content(tmp_path / "b")["config"] == sizes | said


def test_names_of_files_are_quoted_in_urls_alone_and_pictures_resized_or_written(called, tmp_path):
    names, pictures, found = ["50% #1&2.PNG", "a b.png", "deeper/c.jpg"], tmp_path / "photos", {}
    (pictures / "deeper").mkdir(parents=True)
    for i, name in enumerate(names):
        (pictures / name).write_bytes(png(np.full((4, 4, 3), 100 * i, np.uint8)))
    for prefix in ("", "/data/local-files/?d=photos/"):
        home = tmp_path / f"home{len(prefix)}"
        wanted = ["--data", pictures, "--classes", *NAMES, "--url-prefix", prefix, "--image-size", "2"]
        wanted += ["--cold-start", "k_means"]
        assert propose(home, *wanted) == 0
        found[prefix] = content(home)["references"]
        rows, options = called["propose"][2:]
        np.testing.assert_array_equal(rows, np.full((3, 2, 2, 3), np.array([0, 100, 200])[:, None, None, None]))
        np.testing.assert_allclose(options["embeddings"], rows.reshape(3, 12) / 255, rtol=1e-6)
    assert found[""] == names
    urls = [urlsplit(url) for url in found["/data/local-files/?d=photos/"]]
    assert [unquote(url.query) for url in urls] == [f"d=photos/{name}" for name in names]
    assert not any(url.fragment or "&" in url.query for url in urls)
    # Pictures that exist nowhere else are written.
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
    arrays["numbers"] = {**inputs, "references": np.zeros(2)}
    for name, held in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **held)
    for folder in ("none", "broken", "bomb", "cut", "flipped", "undecodable"):
        (tmp_path / folder).mkdir()
    picture = bytearray(png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)))
    (tmp_path / "cut" / "a.png").write_bytes(picture[:-20])
    (tmp_path / "undecodable" / os.fsdecode(b"a\xff.png")).write_bytes(picture)
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + picture[24:29]
    bomb = picture[:12] + header + struct.pack(">I", zlib.crc32(header)) + picture[33:]
    (tmp_path / "bomb" / "a.png").write_bytes(bomb)
    picture[-17] ^= 1  # of the checksum that no decoder has to look at
    (tmp_path / "flipped" / "a.png").write_bytes(picture)
    (tmp_path / "broken" / "a.png").write_bytes(b"GIF89a")
    for name, message, *more in (
        (None, "holds no project yet: begin one with --data"),
        ("nowhere.npz", "nowhere.npz' is neither a folder of images nor an .npz file"),
        ("none", "holds no images, .bmp, .gif, .jpeg, .jpg, .png"),
        ("broken", "a.png: cannot be read (UnidentifiedImageError"),
        ("empty.npz", "lacks inputs: it has other"),
        ("nameless.npz", "lacks references: give what people are shown"),
        ("numbers.npz", "float64(2,) is no list of texts"),
        ("bomb", "a.png: cannot be read (DecompressionBomb"),
        ("cut", "a.png: cannot be read ("),
        ("flipped", "a.png: cannot be read ("),
        ("undecodable", "a\\udcff.png': cannot be read (UnicodeEncodeError"),
        ("short.npz", "holds 1 references for 2 inputs"),
        ("apart.npz", "holds 3 embeddings for 2 inputs"),
        ("fine.npz", "posteriors='mc' is unknown: use one of", "--posterior", "mc"),
    ):
        assert propose(tmp_path / "new", *([] if name is None else ["--data", tmp_path / name]), *more) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("propose: ")
        assert message in shown
        assert not (tmp_path / "new").exists()
    annotation.start(tmp_path / "python", references=["a", "b"], class_names=NAMES)
    assert propose(tmp_path / "python") == 2
    assert "was begun from Python, with its own loop: go on from there" in capsys.readouterr().err


def test_ingest_passes_on_what_counts_of_several(monkeypatch, tmp_path, capsys):
    calls, brought = {}, annotation.Ingested(*([0] * count for count in range(7)))
    monkeypatch.setattr(annotation, "ingest", noted(calls, "ingest", brought))
    for options, several in (([], "newest"), (["--several", "majority"], "majority")):
        assert command_line.main(["ingest", str(tmp_path), "x.json", *options]) == 0
        assert calls["ingest"] == (tmp_path, Path("x.json"), {"several": several})
    assert "0 new, 1 corrected, 2 unchanged, 3 skipped, 4 waiting, 5 disputed, 6 outdated\n" in capsys.readouterr().out
