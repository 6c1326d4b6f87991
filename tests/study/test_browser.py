"""The report in a real browser, at the width of a phone and of a screen."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from baal_jax.study import report, results
from tests.study.files import make_results, write_study

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = importlib.util.find_spec("axe_core_python")
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.skipif(AXE is None, reason="there is no axe: pip install --no-deps axe-core-python"),
]
# What is wider than its page, and what is cut off without a way to scroll to it.
LOOK = """
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const cut = [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth + 1)
  .map((box) => box.getAttribute("aria-label") ?? box.className);
axe.run().then((found) => {
  const bad = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
  const told = bad.map((one) => `${one.id}: ${one.nodes[0].html.slice(0, 200)} ${one.nodes[0].failureSummary}`);
  const all = document.createElement("pre");
  all.id = "seen";
  all.textContent = btoa(unescape(encodeURIComponent(JSON.stringify([wide, cut, told]))));
  document.body.append(all);
});
"""


def browse(page: Path, width: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--window-size={width},2000", "--virtual-time-budget=20000", f"--user-data-dir={page.parent / 'home'}"]
    return subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study"), make_results(seeds=4, rounds=5))
    blank = folder / "blank.html"
    blank.write_text("<title>here</title>", encoding="utf-8")
    try:
        assert "here" in browse(blank, 500, "--dump-dom").stdout
    except (subprocess.SubprocessError, OSError, AssertionError) as error:
        pytest.skip(f"{BROWSER} does not start here: {error}")
    return report.write(folder)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_all_of_it_and_finds_no_fault(page, width):
    plain = browse(page, width, "--dump-dom")
    assert "CONSOLE" not in plain.stderr
    text = page.read_text(encoding="utf-8")
    assert AXE is not None
    axe = (Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # which lets no other script in
    framed = page.with_name(f"looked_{width}.html")
    framed.write_text(opened.replace("</body>", f"<script>{axe}</script><script>{LOOK}</script></body>"), "utf-8")
    shown = browse(framed, width, "--dump-dom").stdout
    seen = re.search(r'<pre id="seen">([^<]*)</pre>', shown)
    assert seen is not None
    assert json.loads(base64.b64decode(seen[1])) == [0, [], []]


def test_the_numbers_that_it_offers_are_those_of_the_table(page):
    """And it says when and with what it was made."""
    text = page.read_text(encoding="utf-8")
    offered = re.search(r'download="results.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"', text)
    assert offered is not None
    assert base64.b64decode(offered[1]).decode() == results.table(results.read(page.parent))
    assert re.search(r"Computed with .*, cells from \d{4}-\d\d-\d\d \d\d:\d\d to ", text)
