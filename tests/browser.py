"""A page in a real browser: what it complains about, what is wider than the page, what a reader cannot use."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = importlib.util.find_spec("axe_core_python")
NEEDED = [
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


def browse(address: str, home: Path, width: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens an address; ``home`` is a folder for the browser's own files."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--window-size={width},2000", "--virtual-time-budget=20000", f"--user-data-dir={home}"]
    return subprocess.run([*command, *options, address], capture_output=True, text=True, timeout=120, check=True)


def start(folder: Path) -> None:
    """Skips where the browser does not start."""
    blank = folder / "blank.html"
    blank.write_text("<title>here</title>", encoding="utf-8")
    try:
        assert "here" in browse(blank.as_uri(), folder / "home", 500, "--dump-dom").stdout
    except (subprocess.SubprocessError, OSError, AssertionError) as error:
        pytest.skip(f"{BROWSER} does not start here: {error}")


def looking(text: str) -> str:
    """The page, with what looks at it in the end."""
    assert AXE is not None
    axe = (Path(AXE.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
    page, end, rest = text.rpartition("</body>")
    return f"{page}<script>{axe}</script><script>{LOOK}</script>{end}{rest}"


def seen(dom: str) -> list:
    """Pixels that a page is too wide, boxes that are cut off, and serious or critical findings of axe."""
    found = re.search(r'<pre id="seen"[^>]*>([^<]*)</pre>', dom)
    assert found is not None
    return json.loads(base64.b64decode(found[1]))
