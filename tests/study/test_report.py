"""A report shows pictures as they are and lets no name become markup. What it says: test_golden.py."""

import base64
import hashlib
import html.parser
import io
import json
import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from PIL import Image

from baal_jax._util import images
from baal_jax.study import report
from baal_jax.study.report import _content, _figures, _page
from tests.study.files import make_results, write_study

HOSTILE = '</script><b onclick="x()">&amp;\u2028 ${1} {{js}} \\1'


class Page(html.parser.HTMLParser):
    """What a browser would see: elements, and the text of each kind of element."""

    def __init__(self, study):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(_page.page(study))
        assert not self.open
        self.text = " ".join(" ".join(parts) for tag, parts in self.texts.items() if tag not in ("script", "style"))
        self.data = json.loads(self.texts["script"][0], parse_constant=lambda name: pytest.fail(name))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


@hypothesis.given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_png_is_what_another_decoder_reads(image):
    found = np.asarray(Image.open(io.BytesIO(images.png(image))))
    np.testing.assert_array_equal(found.reshape(image.shape), image)


def test_thumbnails_are_means_of_blocks_and_lie_where_the_page_looks_for_them():
    images = np.random.default_rng(0).integers(0, 256, (2, 100, 130, 3)).astype(np.uint8)
    found = _content.small(images)
    assert found.shape == (2, 33, 43, 3)
    np.testing.assert_allclose(found[1, 4, 7], images[1, 12:15, 21:24].mean(axis=(0, 1)), atol=0.51)
    np.testing.assert_array_equal(_content.small(images[:, :48, :48]), images[:, :48, :48])
    assert _content.small(images[:, :49, :48]).shape == (2, 24, 24, 3)
    assert _content.small(images[:, :1]).shape == (2, 1, 43, 3)
    study = make_results(pictures=7)
    sheet = _content.queries(study)["sheet"]
    whole = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["uri"].removeprefix("data:image/png;base64,")))))
    assert [sheet[name] for name in ("ids", "columns", "height", "width")] == [study.pictures.ids.tolist(), 3, 8, 8]
    for k, image in enumerate(study.pictures.images):
        y, x = k // 3 * 8, k % 3 * 8
        np.testing.assert_array_equal(whole[y : y + 8, x : x + 8], image[..., 0])


def test_names_are_text_and_never_markup_and_the_page_asks_for_nothing(tmp_path):
    study = make_results(strategies=(HOSTILE, "bald"), classes=2, pictures=2)
    study.description.update(name=HOSTILE, class_names=[HOSTILE, "b"], extra={HOSTILE: [HOSTILE]})
    found = Page(study)
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert found.data["strategies"][0]["name"] == HOSTILE
    assert HOSTILE in found.text
    assert json.loads("".join(found.texts["pre"])) == study.description
    for tag, attributes in found.tags:
        assert tag != "b"
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data", "poster"):
            assert re.match(r"#|data:|$", attributes.get(name) or ""), (tag, attributes)
    assert not re.search(r"@import|url\(", found.texts["style"][0])
    policy = next(attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(found.texts["script"][1].encode()).digest()).decode()
    expected = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'; "
    assert policy == expected.format(digest) + "base-uri 'none'; form-action 'none'"
    study.description["name"] = "half \ud83d"  # a pair of surrogates
    assert "half ?" in report.write(study, tmp_path / "a.html").read_text("utf-8")


NO_HTML = "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]"
STRINGS = (
    *("<script>x()</script>", "</script><script>x()</script>", "</style>", "</title>", "<!--", "<!--<script>", "--!>"),
    *("]]>", '"><img src=x onerror=x()>', "' onload='x()", "&lt;&#0;&#x110000;", "{{js}}", "{{&data}}", "{{#runs}}x"),
    *("a\0b", "\ud800", "\u202eevil\u2066", "a\u2028b\u2029", "x" * 100_000, "\r\n\t", "\x85\x9f\x7f", "\ufffe\uffff"),
    *("__proto__", "constructor", "\\1\\g<0>", "%s {0}", "$\\frac{", "javascript:x()"),
)


@pytest.mark.parametrize("text", STRINGS, ids=lambda text: ascii(text[:20]))
def test_no_string_breaks_the_page_or_becomes_a_script(text):
    study = make_results((text, "bald"), seeds=2, rounds=2, classes=2, pictures=2)
    for runs in study.runs.values():
        runs.metrics[text] = runs.metrics["accuracy"]
    study.description.update(
        name=text, metric=text, class_names=[text, f"{text}2"], environment={text: [text, {text: 1}]}
    )
    found, page = Page(study), _page.page(study)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert [dict(attributes).get("id") for tag, attributes in found.tags if tag == "script"] == ["data", None]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert not {"img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in found.tags}
    assert not re.search(NO_HTML, page.encode("utf-8").decode("utf-8"))
    assert found.data["strategies"][0]["name"] == text
    assert len(found.tags) == len(Page(make_like(study)).tags)


def make_like(study):
    """The same study with harmless names."""
    old = study.description["strategies"][0]
    study.description.update(name="a", metric="b", class_names=["c", "d"], environment={"e": ["f", {"g": 1}]})
    study.description.update(strategies=["h", "bald"], baseline="h")
    runs = {"h" if name == old else name: part for name, part in study.runs.items()}
    for part in runs.values():
        part.metrics["b"] = part.metrics.pop(old)
    return study._replace(runs=runs)


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    study = make_results(("$\\frac{", "b"), seeds=2, rounds=2, classes=2, pictures=2)
    study.description.update(class_names=["$x", "_$"])
    assert report.figures(study, tmp_path, formats=("png",))


def test_what_a_page_and_figures_are_made_of_and_where_they_go(tmp_path):
    study = make_results(("random",), seeds=2, rounds=2, pictures=4)
    folder = write_study(tmp_path / "study", study)
    assert report.write(str(folder)) == folder / "report.html"
    text = (folder / "report.html").read_text("utf-8")
    made = re.search(r"Computed with .*?, cells from [-0-9: ]* to [-0-9: ]*\.", text)
    assert made is not None
    assert text == _page.page(study, made[0])
    assert report.write(study, tmp_path / "deep" / "b.html").read_text("utf-8") == _page.page(study)
    bare = study._replace(runs={"random": study.runs["random"]._replace(diagnostics={}, metrics={})}, pictures=None)
    contents = {path.name: path.read_bytes()[:4] for path in report.figures(bare, tmp_path)}
    assert contents == {"mean_score.png": b"\x89PNG", "mean_score.pdf": b"%PDF"}
    assert list(_figures._spread(np.arange(7), 4)) == [0, 2, 4, 6]
    for call, message in (
        (lambda: report.write(study), "pass path"),
        (lambda: report.write(tmp_path / "nowhere"), "study.json is missing: run a study"),
        (lambda: report.figures(study, tmp_path, formats=("doc",)), "formats holds 'doc'"),
        (lambda: report.figures(study._replace(runs={}), tmp_path), "no runs yet"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
