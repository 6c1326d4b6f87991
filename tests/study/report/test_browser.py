"""The report in a real browser, which prints what it has made of the page."""

import re
import shutil
import subprocess

import pytest

from baal_jax.study import report
from tests.study.files import make_results

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --enable-logging=stderr "
FLAGS += "--virtual-time-budget=5000 --dump-dom"
CLICK = "<script>document.querySelector(\".legend button[data-strategy='1']\").click()</script></body>"


@pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed: apt-get install chromium")
def test_curves_are_drawn_and_hidden_without_an_error_or_a_request(tmp_path):
    def num_lines(study, more=""):
        path = report.write(study, tmp_path / "report.html")
        if more:  # the policy would refuse a second script
            text = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", path.read_text("utf-8"))
            path.write_text(text.replace("</body>", more))
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr  # errors, and what the policy has refused
        assert "NaN" not in re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
        assert "<title>1</title>" not in done.stdout
        return done.stdout.split('id="curve-chart"')[1].split("</section>")[0].count('class="line"')

    hostile = '</script><img src="x:y" onerror="document.title=1">'
    study = make_results(("random", "bald", hostile), pictures=20, stopped={"bald": [6, 3, 6, 6, 6]})
    assert [num_lines(study), num_lines(study, CLICK)] == [3, 2]
    for study in (make_results(classes=None), make_results(seeds=1, rounds=1), make_results()._replace(runs={})):
        assert num_lines(study) == len(study.runs)
