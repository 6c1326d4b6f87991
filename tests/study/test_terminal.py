"""What a terminal shows: a table that fits it, and a bar whose clock goes on."""

import io
import sys
from types import SimpleNamespace

import pytest

from baal_jax.study import _run, statistics

TABLE = statistics.Table(
    ("strategy", "final accuracy", "area", "against random"),
    (("random", "0.8625 ± 0.0051", "0.7557", "baseline"), ("badge", "0.9153 ± 0.0053", "0.8197", "better")),
    ("A note that is longer than a line of a narrow terminal can be, and has to be broken.",),
)


@pytest.mark.parametrize("width", [34, 60, 200])
def test_a_table_fits_and_leaves_nothing_out(width):
    lines = statistics.text(TABLE, width).splitlines()
    assert max(map(len, lines)) <= width
    whole = " ".join(lines)
    assert all(cell in whole for row in (TABLE[0], *TABLE[1]) for cell in row)
    assert whole.split(" A note")[1].split() == TABLE[2][0].removeprefix("A note").split()
    # Columns that come under the others begin with the strategy again.
    assert whole.count("badge") == {34: 2, 60: 1, 200: 1}[width]


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    (tmp_path / "cells").mkdir()
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    with _run._bar(SimpleNamespace(path=tmp_path), [("random", range(2))], 3, True) as advance:
        advance("random (first seeds)")
        _run.results.path_of(tmp_path, "random", range(2)).touch()
    text = shown.getvalue()
    assert "random (first seeds)" in text
    assert "6/6" in text
    assert "rounds:" not in text
