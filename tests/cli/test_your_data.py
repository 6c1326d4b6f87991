"""The page on data and parts of one's own."""

import re
import shlex
import signal
from pathlib import Path

import numpy as np

from baal_jax import __main__ as command_line
from baal_jax import data, study
from baal_jax.study import results
from tests.annotation.exports import NAMES
from tests.cli.test_cli import QUICK, cached
from tests.fixtures import clouds

__all__ = ["cached"]


def test_the_page_on_your_data_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text(encoding="utf-8")
    scaled, mine = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[:2]
    Path("mine.py").write_text(mine, encoding="utf-8")
    rng, lines = np.random.default_rng(0), ["bill,island,species"]
    exec(scaled, {"np": np, "inputs": 9 + 5 * rng.normal(size=(30, 4)), "targets": np.array(NAMES)[np.arange(30) % 3]})
    opened = data.open("embeddings.npz")
    assert [opened.num_classes, round(float(opened.train.inputs.std()))] == [3, 1]
    for i in range(60):
        lines.append(f"{i % 3 + rng.normal():.3f},{'uvw'[rng.integers(3)]},{NAMES[i % 3]}")
    Path("penguins.csv").write_text("\n".join(lines), encoding="utf-8")
    command = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)[-1].replace("\\\n", " ")
    assert command_line.main([*shlex.split(command)[1:], *QUICK.split()]) == 0
    found = results.read(Path("runs/mine"))
    assert [*found.runs] == ["random", "margin", "pick", "doubt"]
    assert found.description["metric"] == "worst_class"
    assert found.description["class_names"] == sorted(NAMES)
    shown = capsys.readouterr()
    assert "worst_class: higher is better" in shown.out
    assert shown.err.startswith("penguins.csv: 48 rows to choose from and 12 held out, classes")
    assert "baal-jax study runs/mine --data penguins.csv --target species" in Path("runs/mine/report.html").read_text(
        "utf-8"
    )


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    command = ["study", str(home), "--strategies", "random", *QUICK.split()]
    with monkeypatch.context() as patched:
        patched.setattr(study, "run", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert command_line.main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "study: interrupted: nothing was computed yet"
    assert command_line.main(command) == 0
    with monkeypatch.context() as patched:
        patched.setattr(study, "run", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert command_line.main(command) == 130
    kept = f"1 of 1 cells are kept in {home}: the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == f"study: interrupted: {kept}"


def test_a_head_without_a_network_reads_its_inputs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    train, test = clouds()
    arrays = {"train_inputs": train.inputs, "train_targets": train.targets}
    np.savez(tmp_path / "mine.npz", **arrays, test_inputs=test.inputs, test_targets=test.targets)
    command = ["study", str(tmp_path / "home"), "--posteriors", "logistic_regression", "--seeds", "2", "--rounds", "2"]
    command += ["--num-initial", "4", "--query-size", "2", "--num-samples", "2"]
    wanted = ["--data", str(tmp_path / "mine.npz"), "--strategies", "random", "margin", "badge"]
    assert command_line.main([*command, *wanted]) == 0
    assert "| badge |" in capsys.readouterr().out
    assert command_line.main([*command, "--model", "cnn"]) == 2
    assert "posteriors='logistic_regression' is for classes and rows of numbers" in capsys.readouterr().err
    # One draw cannot disagree: all scores would be equal, and the first rows of the file the query.
    blind = ["--strategies", "random", "power_bald", "--posteriors", "logistic_regression_point"]
    assert command_line.main([*command, *wanted[:2], *blind]) == 2
    assert "'power_bald' asks whether draws disagree, but logistic_regression_point has one" in capsys.readouterr().err
    start = ["propose", str(tmp_path / "p"), "--data", "pool.npz", "--classes", "a", "b", *blind[3:]]
    np.savez(tmp_path / "pool.npz", inputs=train.inputs, references=[str(i) for i in range(len(train.inputs))])
    monkeypatch.chdir(tmp_path)
    assert command_line.main([part.replace("--posteriors", "--posterior") for part in start]) == 2
    assert "'power_bald' asks whether draws disagree" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
