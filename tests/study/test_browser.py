"""The report in a real browser, at the width of a phone and of a screen."""

import base64
import re

import pytest

from baal_jax.study import report, results
from tests import browser
from tests.study.files import make_results, write_study

pytestmark = browser.NEEDED


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study"), make_results(seeds=4, rounds=5))
    browser.start(folder)
    return report.write(folder)


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_all_of_it_and_finds_no_fault(page, width):
    home = page.with_name("home")
    assert "CONSOLE" not in browser.browse(page.as_uri(), home, width, "--dump-dom").stderr
    text = page.read_text(encoding="utf-8")
    opened = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # which lets no other script in
    framed = page.with_name(f"looked_{width}.html")
    framed.write_text(browser.looking(opened), encoding="utf-8")
    assert browser.seen(browser.browse(framed.as_uri(), home, width, "--dump-dom").stdout) == [0, [], []]


def test_the_numbers_that_it_offers_are_those_of_the_table(page):
    """And it says when and with what it was made."""
    text = page.read_text(encoding="utf-8")
    offered = re.search(r'download="results.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"', text)
    assert offered is not None
    assert base64.b64decode(offered[1]).decode() == results.table(results.read(page.parent))
    assert re.search(r"Computed with .*, cells from \d{4}-\d\d-\d\d \d\d:\d\d to ", text)
