"""What ``python -m baal_jax`` says of itself, and how it ends."""

import subprocess
import sys

import pytest

from baal_jax import __main__ as command_line
from tests.study.files import make_results, write_study


def test_the_commands_are_listed_and_what_is_none_is_refused(capsys, monkeypatch):
    shown = subprocess.run([sys.executable, "-m", "baal_jax"], capture_output=True, text=True, check=True).stdout
    assert list(command_line.COMMANDS) == ["study", "propose", "ingest", "report"]
    for name, (_, text) in command_line.COMMANDS.items():
        assert f"  {name:10s} {text}\n" in shown
        with pytest.raises(SystemExit) as stop:
            command_line.main([name, "--help"])
        assert stop.value.code == 0
        assert f"usage: python -m baal_jax {name} " in capsys.readouterr().out
    assert command_line.main(["-h"]) == 0
    assert command_line.main(["propse"]) == 2
    assert "baal_jax: 'propse' is no command: use one of study, propose" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert command_line.main(["report", "x"]) == 1
    assert capsys.readouterr().err.startswith("report: ")


def test_a_report_is_written_where_it_is_asked_for(tmp_path, capsys):
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
    assert command_line.main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"report: folder='{tmp_path}' holds no study")
