"""The report in a real browser: it looks right, reacts, asks for nothing, and fits on a telephone."""

import numpy as np
import pytest

from baal_jax.study import report
from tests.study.report import browser as browsers
from tests.study.files import make_results

pytestmark = pytest.mark.skipif(
    browsers.find() is None, reason=f"none of {', '.join(browsers.NAMES)} is installed: apt-get install chromium"
)
LONG = "a_strategy_whose_name_is_so_long_that_nobody_would_want_it_on_a_telephone"
HOSTILE = '</script><img src="x:y" onerror="document.title=1">'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    study = make_results(
        ("random", "bald", LONG, HOSTILE),
        seeds=6,
        rounds=8,
        pictures=300,
        effect={"bald": 0.02},
        stopped={"bald": [8, 5, 8, 8, 8, 8], LONG: [8, 8, 7, 8, 8, 8]},
    )
    study.runs["random"].metrics["nll"][:, 0] = np.nan
    study.description["a" * 90] = {"b" * 90: "c" * 90}
    return report.write(study, tmp_path_factory.mktemp("report") / "report.html")


def curves(browser):
    """Which strategies have a line in the first chart."""
    return browser.run(
        "[...document.querySelectorAll('#curve-chart .line')].map(e => e.closest('[data-strategy]')).filter(Boolean)"
        ".map(e => +e.dataset.strategy)"
    )


def clean(browser):
    asked = [url for url in browser.requests if not url.startswith("data:")]
    return not browser.problems and len(asked) == 1 and asked[0].startswith("file:")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_and_is_legible(browser, path, width, dark):
    browser.open(path, width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    paper, ink = browser.run(
        "['backgroundColor', 'color'].map(n => getComputedStyle(document.body)[n].match(/\\d+/g).map(Number))"
    )
    assert (sum(paper) < 150) == dark
    assert contrast(paper, ink) > 12
    for selector in (".caption", "#curve-chart text", ".legend span", ".findings .why", "a", ".config th"):
        name = "fill" if "text" in selector else "color"
        found = browser.run(f"getComputedStyle(document.querySelector('{selector}')).{name}.match(/\\d+/g).map(Number)")
        assert contrast(paper, found[:3]) > 4.5, selector
    # Charts are as wide as their place and not wider.
    wide, room = browser.run(
        "[document.querySelector('#curve-chart > svg').getBoundingClientRect().width,"
        "document.querySelector('main').clientWidth]"
    )
    assert wide == pytest.approx(room, abs=1)
    assert browser.run("[...document.querySelectorAll('.scroll')].every(e => e.clientWidth <= innerWidth)")
    assert clean(browser)


def contrast(a, b):
    """Of WCAG 2."""

    def light(colour):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_a_click_and_a_key_hide_a_strategy_everywhere(browser, path):
    browser.open(path)
    assert curves(browser) == [0, 1, 2, 3]
    browser.click(".legend button[data-strategy='1']")
    assert curves(browser) == [0, 2, 3]
    for host in ("queried", "entropy", "reliability"):
        shown = browser.run(f"[...document.querySelectorAll('#{host} figure')].map(e => +e.dataset.strategy)")
        assert shown == [0, 2, 3]
    assert browser.run("document.querySelector(\".legend button[data-strategy='1']\").ariaPressed") == "false"
    # The focus is on the button that was clicked: the space bar switches it back, Tab goes to the next one.
    browser.press(" ", 32, " ")
    assert curves(browser) == [0, 1, 2, 3]
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.dataset.strategy") == "2"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter", 13, "\r")
    assert curves(browser) == [0, 1, 3]
    for i in (0, 1, 3):
        browser.click(f".legend button[data-strategy='{i}']")
    assert "every strategy is switched off" in browser.run("document.querySelector('#curve-chart').textContent")
    browser.click(".legend button[data-strategy='3']")
    assert curves(browser) == [3]
    assert clean(browser)


def test_metrics_and_seeds_are_chosen(browser, path):
    browser.open(path)
    title = "document.querySelector('#curve-chart .title').textContent"
    assert browser.run(title) == "accuracy"
    assert browser.run("document.querySelectorAll('#curve-chart .band').length") == 4
    names = browser.run(
        "[...document.querySelectorAll('#curve-controls .choice:first-child button')].map(e => e.textContent)"
    )
    browser.click(f"#curve-controls .choice:first-child button:nth-child({names.index('NLL (nats)') + 1})")
    assert browser.run(title) == "NLL (nats)"
    browser.click("#curve-controls .choice:last-child button:last-child")
    assert browser.run("document.querySelectorAll('#curve-chart .seed').length") == 4 * 6
    assert browser.run("document.querySelectorAll('#curve-chart .band').length") == 0
    assert browser.run("document.querySelector('#curve-chart').innerHTML.includes('NaN')") is False
    assert clean(browser)


def test_values_are_read_with_the_pointer_and_with_keys(browser, path):
    browser.open(path)
    readout = "document.querySelector('#curve-chart .readout')"
    assert browser.run(f"{readout}.hidden")
    x, y = browser.run(
        "(() => { const e = document.querySelector('#curve-chart > svg'); e.scrollIntoView({block: 'center'});"
        "const b = e.getBoundingClientRect(); return [b.right - 20, b.y + b.height / 2] })()"
    )
    browser.move(x, y)
    assert browser.run(f"{readout}.hidden") is False
    assert browser.run(f"{readout}.querySelector('b').textContent") == "45 labels"
    browser.move(5, 5)
    assert browser.run(f"{readout}.hidden")
    browser.run("document.querySelector('#curve-chart > svg').focus()")
    browser.press("Home", 36)
    browser.press("ArrowRight", 39)
    assert browser.run(f"{readout}.querySelector('b').textContent") == "15 labels"
    values = browser.run(f"[...{readout}.querySelectorAll('td:nth-child(2)')].map(e => +e.textContent)")
    assert values == sorted(values, reverse=True)
    assert len(values) == 4
    assert "15 labels: " in browser.run("document.querySelector('#curve-chart [role=status]').textContent")
    browser.press("Escape", 27)
    assert browser.run(f"{readout}.hidden")
    browser.open(path, 360)
    browser.run("document.querySelector('#curve-chart > svg').focus()")
    for key, code in (("Home", 36), ("End", 35)):
        browser.press(key, code)
        assert browser.run("document.documentElement.scrollWidth") <= 360
        assert browser.run(f"(b => b.left >= 0 && b.right <= 360)({readout}.getBoundingClientRect())")
    assert clean(browser)


def test_queries_of_every_strategy_and_seed_can_be_seen(browser, path):
    browser.open(path)
    assert browser.run("document.querySelectorAll('#rounds .round').length") == 5
    assert browser.run("document.querySelectorAll('#rounds .round:first-child [role=img]').length") == 5
    assert browser.run("getComputedStyle(document.querySelector('.pick i')).backgroundImage").startswith('url("data:')
    choose = (
        "(e => { e.value = %d; e.dispatchEvent(new Event('change')) })"
        "(document.querySelectorAll('#query-controls select')[%d])"
    )
    browser.run(choose % (1, 0))
    browser.run(choose % (1, 1))
    assert browser.run("document.querySelectorAll('#rounds .round').length") == 5
    assert "This run has stopped after round 4." in browser.run("document.querySelector('#rounds').textContent")
    browser.run(choose % (2, 1))
    browser.click("#rounds > button")
    assert browser.run("document.querySelectorAll('#rounds .round').length") == 8
    assert clean(browser)


def test_the_slider_moves_the_histograms(browser, path):
    browser.open(path)
    before = browser.run("document.querySelector('#entropy').innerHTML")
    browser.run("document.querySelector('#entropy-round input').focus()")
    browser.press("Home", 36)
    assert browser.run("document.querySelector('#entropy-round output').textContent") == "round 0"
    assert browser.run("document.querySelector('#entropy').innerHTML") != before
    assert clean(browser)


def test_without_scripts_the_main_figure_and_the_tables_are_there(browser, path):
    browser.open(path, scripts=False)
    text = browser.run("document.body.innerText")
    assert "Without JavaScript" in text
    assert browser.run("document.querySelectorAll('#curve-chart .line').length") == 4
    assert browser.run("document.querySelector('#statistics table').offsetHeight > 100")
    assert browser.run("document.querySelector('#curve-controls').offsetHeight") == 0
    assert "ECE, LAST ROUND" in text.upper()
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_on_paper_it_is_light_and_without_controls(browser, path):
    browser.open(path, dark=True)
    browser.look(800, dark=True, media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("document.querySelector('#curve-controls button').offsetHeight") == 0
    assert browser.run("document.documentElement.scrollWidth") <= 800
    assert len(browser.call("Page.printToPDF")["data"]) > 10_000


@pytest.mark.parametrize("kind", ["regression", "empty", "one seed", "many strategies"])
def test_other_studies_have_no_errors_either(browser, tmp_path, kind):
    study = {
        "regression": lambda: make_results(classes=None, pictures=2),
        "empty": lambda: make_results()._replace(runs={}),
        "one seed": lambda: make_results(seeds=1, rounds=1),
        "many strategies": lambda: make_results([f"strategy {i}" for i in range(20)], classes=30, seeds=3),
    }[kind]()
    browser.open(report.write(study, tmp_path / "x.html"), 360)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    assert len(curves(browser)) == len(study.runs)
    assert browser.run("document.body.innerHTML.includes('NaN')") is False
    assert clean(browser)
