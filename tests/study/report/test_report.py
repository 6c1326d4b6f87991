"""A report shows the numbers of a study, says what is missing, and lets no name become markup."""

import base64
import hashlib
import html.parser
import io
import json
import re

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from PIL import Image

from baal_jax._util import images
from baal_jax.study import report, statistics
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


def test_curves_are_means_and_bands_of_the_runs_still_going():
    study = make_results(stopped={"bald": [6, 6, 6, 6, 3]}, effect={"bald": 0.01}, noise=0.2)
    study.runs["bald"].metrics["accuracy"][4, 3:] = 0.5  # whatever stands there did not happen
    study.description.update(num_pool=1234, metric="accuracy")
    page = Page(study)
    found = page.data["curves"]["accuracy"][1]
    values = study.runs["bald"].metrics["accuracy"].astype(np.float64)
    for r, count in enumerate([5, 5, 5, 4, 4, 4]):
        here = values[:count, r]
        half = {5: 2.7764451, 4: 3.1824463}[count] * here.std(ddof=1) / np.sqrt(count)
        expected = [here.mean(), here.mean() - half, here.mean() + half]
        np.testing.assert_allclose([found[name][r] for name in ("mean", "low", "high")], expected, rtol=1e-4)
    assert found["x"] == [10, 15, 20, 25, 30, 35]
    assert found["seeds"][4][3:] == [None] * 3
    assert found["labels"] == study.runs["bald"].num_labelled.tolist()  # they differ from seed to seed
    assert "labels" not in page.data["curves"]["accuracy"][0]
    assert page.texts["strong"][0] == "3 strategies × 5 seeds × 6 rounds"
    assert ", from 10 to 35 labels of a pool of 1,234. Judged by accuracy; the baseline is " in page.texts["p"]
    assert page.data["metrics"][0]["name"] == "accuracy"
    scores = page.data["scores"][0]["mean"]
    np.testing.assert_allclose(scores, study.runs["random"].mean_score.mean(axis=0), rtol=1e-4)
    study.runs["random"].num_labelled[:] = 1_234_567 + np.arange(6)
    data = _content.page_data(study)
    for labels in (data["curves"]["accuracy"][0]["x"], data["queries"]["runs"]["random"][0]["before"]):
        assert labels[:2] == [1_234_567, 1_234_568]


def test_the_chart_for_readers_without_scripts_spans_the_means():
    curve = {"x": [10, 20, 30], "mean": [0.5, None, 0.9], "low": [0.1, None, 0.9], "high": [0.6, None, 1.0]}
    data = {"strategies": [{"name": "a"}], "curves": {"accuracy": [curve]}, "metrics": [{"label": "accuracy"}]}
    chart = _page._chart(data)
    band = "62.0 276.0L888.0 30.0L888.0 30.0L62.0 358.0"  # cut at the ends of the axes
    assert chart["lines"] == [{"name": "a", "line": "62.0 358.0L888.0 30.0", "band": band}]
    assert [tick["text"] for tick in chart["ticks_x"]] == ["10", "20", "30"]
    assert [tick["text"] for tick in chart["ticks_y"]] == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert [chart["ticks_y"][i]["at"] for i in (0, -1)] == ["358.0", "30.0"]
    assert _page._chart({**data, "curves": {"accuracy": [None]}}) is None


def test_calibration_pools_seeds_and_keeps_the_last_round_of_a_stopped_run():
    study = make_results(stopped={"bald": [6, 6, 2, 6, 6], "entropy": 0}, noise=0.1)
    runs = study.runs["bald"]
    runs.diagnostics["reliability_accuracy"][...] *= np.linspace(0.5, 1, 5)[:, None, None]
    found, last = _content.reliability(runs), (np.arange(5), np.array([5, 5, 1, 5, 5]))
    names = [f"reliability_{name}" for name in ("num_examples", "confidence", "accuracy")]
    count, *parts = (runs.diagnostics[name].astype(np.float64)[last] for name in names)
    np.testing.assert_allclose(found.num_examples[-1], count.sum(axis=0))
    for part, mine in zip(parts, (found.confidence, found.accuracy), strict=True):
        assert np.isnan(mine[:, 0]).all()  # of bin 0 there is nothing
        np.testing.assert_allclose(mine[-1, 1:], np.average(part[:, 1:], axis=0, weights=count[:, 1:]))
    gaps = np.nansum(count * np.abs(parts[0] - parts[1]), axis=1) / count.sum(axis=1)
    np.testing.assert_allclose(found.ece[-1], gaps.mean())
    counts = runs.diagnostics["entropy_histogram"][last]
    np.testing.assert_allclose(_content.entropies(runs)[-1], counts.sum(axis=0) / counts.sum())
    assert np.isnan(_content.entropies(study.runs["entropy"])).all()


def test_queries_are_counted_by_class_as_far_as_classes_are_known():
    study = make_results(pictures=9, stopped={"bald": 2})
    study.description["class_counts"] = [10, 20, 30]
    known = dict(zip(study.pictures.ids.tolist(), study.pictures.targets.tolist(), strict=True))
    found, share = _content.queried_by_class(study)
    asked = {name: [[j for j in row.ravel() if j >= 0] for row in runs.indices] for name, runs in study.runs.items()}
    for name, rows in asked.items():
        assert found[name].tolist() == [[sum(known.get(j) == c for j in ids) for c in range(3)] for ids in rows]
    num_asked = sum(len(ids) for rows in asked.values() for ids in rows)
    assert share == pytest.approx(sum(part.sum() for part in found.values()) / num_asked)
    page = Page(study)
    assert f"The class of {share:.0%} of the queries is known" in page.text
    np.testing.assert_allclose(page.data["queried"]["pool"], [1 / 6, 1 / 3, 1 / 2], atol=1e-4)
    expected = found["bald"].sum(axis=0) / found["bald"].sum()
    np.testing.assert_allclose(page.data["queried"]["shares"][1], expected, atol=1e-4)
    study = make_results()  # targets without pictures
    for runs in study.runs.values():
        runs.diagnostics["query_targets"] = np.where(runs.indices >= 0, runs.indices % 3, np.nan)
    found, share = _content.queried_by_class(study)
    assert share == 1
    assert found["bald"][0].tolist() == np.bincount(study.runs["bald"].indices[0].ravel() % 3, minlength=3).tolist()
    queries, runs = Page(study).data["queries"], study.runs["random"]
    assert all(label == f"class {int(index) % 3}" for index, label in queries["targets"].items())
    listed = queries["runs"]["random"][1]
    assert [listed["seed"], listed["ids"], queries["sheet"]] == [1, runs.indices[1].tolist(), None]
    np.testing.assert_allclose(listed["scores"], runs.scores[1], rtol=6e-3)


def test_what_is_missing_is_said(tmp_path):
    study = make_results(seeds=6, stopped={"random": [6, 6, 3, 6, 5, 6]})
    runs = {"random": study.runs["random"], "bald": jax.tree.map(lambda leaf: leaf[[0, 2]], study.runs["bald"])}
    runs["random"].metrics["nll"][1, 2:4] = np.inf, np.nan
    nobody = study._replace(runs={})
    for shown, said in (
        (study._replace(runs=runs), "nothing is there of entropy"),
        (study._replace(runs=runs), "Unfinished: of bald, seeds 1, 3–5 are missing, and 2 of 6 are there."),
        (study._replace(runs=runs), "random: nll is non-finite in 2 rounds."),
        (study._replace(runs=runs), "random: 2 of 6 runs stopped early, at 20 to 30 labels."),
        (study._replace(runs={"bald": runs["bald"]}), "no comparison by this metric: baseline='random' is not among"),
        (nobody, "No run of this study is there yet."),
        (make_results(classes=None, pictures=3), "There is no reliability diagram: this is regression"),
        (make_results(seeds=4), "Too few seeds"),
    ):
        assert said in Page(shown).text
    with pytest.raises(ValueError, match="no runs yet"):
        report.figures(nobody, tmp_path)


def test_findings_are_those_of_the_statistics():
    study = make_results(seeds=12, effect={"bald": 0.1, "entropy": -0.1}, noise=0.01)
    page, summary = Page(study), statistics.summary(study)
    heads, rows, notes = statistics.table(summary)
    assert page.texts["th"][: len(heads)] == list(heads)
    assert page.texts["td"][0].strip() == re.split(r" (?=[±\[])", rows[0][1].replace("-", "−"))[0]
    assert all(note in page.text for note in notes)
    said = re.findall(r"(The baseline|Better than random|Worse than random)", " ".join(page.texts["span"]))
    assert said == ["The baseline", "Better than random", "Worse than random"]
    for row, word in zip(summary.rows[1:], ("higher", "lower"), strict=True):
        (difference, low, high, *_), p_value, _ = row.verdict
        number = [statistics.number(value).replace("-", "−") for value in (abs(difference), low, high, p_value)]
        why = "over the curve accuracy is {} " + word + " (95 % interval {} to {}, p = {})"
        saved = f"; it took {row.saved.ratio * 100:.0f} % of the baseline’s labels to reach "
        assert why.format(*number) + saved * (word == "higher") in page.text  # the other never reached it


def test_a_page_carries_a_limited_load_and_says_so(monkeypatch):
    study = make_results(seeds=6, pictures=60)
    limits = {"_MOST_PICKS": 2 * 3 * 6 * 5, "_MOST_BYTES": 4 * 64, "_MOST_SEED_VALUES": 3 * 6 * 6 * 4 - 1}
    for name, limit in limits.items():
        monkeypatch.setattr(_content, name, limit)
    found = Page(study)
    queries, curves = found.data["queries"], found.data["curves"]
    assert {len(runs) for runs in queries["runs"].values()} == {2}
    first = [index for runs in queries["runs"].values() for row in runs[0]["ids"] for index in row[:1]]
    assert set(queries["sheet"]["ids"]) <= set(first)  # the first picks of the first seed come first
    assert len(queries["sheet"]["ids"]) == 4
    assert "Queries of the first 2 seeds are listed" in found.text
    assert re.search(r"4 of \d+ pictures are in this page", found.text)
    assert ["seeds" in curves[name][0] for name in ("accuracy", "nll")] == [True, False]
    monkeypatch.setattr(_content, "_MOST_PICKS", 3 * 6 * 2)
    queries = _content.queries(study)
    assert {len(row) for runs in queries["runs"].values() for run in runs for row in run["ids"]} == {2}
    assert queries["left_out"][1] == "Of each round, the first 2 of 5 queries are listed."


def test_the_configuration_is_exact_and_a_folder_or_results_can_be_written(tmp_path):
    study = make_results(seeds=5, rounds=2, pictures=4)
    study.description["config"] = {"rate": 1e-3, "nested": {"deep": [1, 2, 5]}, "flag": True, "nothing": None, "e": {}}
    study.description["config"] |= {"pair": [3, 4], "row": [[3, 4, 5], [0.1 + 0.2]]}
    cells = Page(study).texts["td"]
    assert {"0.001", "1, 2, 5", "yes", "none", "0 to 4", "3, 4", "3 to 5", "0.30000000000000004", "–"} <= {*cells}
    folder = write_study(tmp_path / "study", study)
    assert report.write(str(folder)) == folder / "report.html"
    text = (folder / "report.html").read_text("utf-8")
    assert text == report.write(study, tmp_path / "deep" / "b.html").read_text("utf-8") == _page.page(study)
    for given, message in ((study, "pass path"), (tmp_path / "nowhere", "holds no study")):
        with pytest.raises(ValueError, match=message):
            report.write(given)


def test_figures_are_those_of_the_page(tmp_path):
    study = make_results(("random", "a/b"), seeds=2, rounds=4, pictures=40, stopped={"a/b": [1, 4]})
    drawn, random = dict(_figures._all(study)), study.runs["random"]
    names = {"curves_accuracy", "curves_nll", "curves_brier", "curves_ece", "mean_score", "entropy", "reliability"}
    assert drawn.keys() - names == {"classes", "queries_random", "queries_a_b.c14cddc0"}
    lines = drawn["curves_accuracy"].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["random", "a/b"]
    values = study.runs["a/b"].metrics["accuracy"]
    np.testing.assert_allclose(lines[1].get_ydata(), np.nanmean(values, axis=0), rtol=1e-5)
    np.testing.assert_allclose(lines[1].get_xdata(), [10, 15, 20, 25])
    first, last = (patch.get_data() for patch in drawn["entropy"].axes[0].patches)
    np.testing.assert_allclose([first.values, last.values], _content.entropies(random)[[0, -1]])
    assert last.edges[-1] == pytest.approx(np.log(3))
    bins = _content.reliability(random)
    assert drawn["reliability"].axes[0].get_title() == f"random, ECE {bins.ece[-1]:.3f}"
    there = ~np.isnan(bins.accuracy[-1])
    np.testing.assert_allclose(drawn["reliability"].axes[0].get_lines()[1].get_ydata(), bins.accuracy[-1][there])
    titles = [axes.get_title(loc="left") for axes in drawn["queries_random"].axes]
    assert [title for title in titles if title] == [f"round {r}, at {10 + 5 * r} labels" for r in range(4)]
    assert list(_figures._spread(np.arange(7), 4)) == [0, 2, 4, 6]
    counts, _ = _content.queried_by_class(study)
    heights = [bar.get_height() for bar in drawn["classes"].axes[0].patches]
    np.testing.assert_allclose(heights, np.concatenate([part.mean(axis=0) for part in counts.values()]))
    small = study._replace(runs={"random": random._replace(diagnostics={}, metrics={})}, pictures=None)
    paths = report.figures(small, tmp_path)
    assert {path.name: path.read_bytes()[:4] for path in paths} == {
        "mean_score.png": b"\x89PNG",
        "mean_score.pdf": b"%PDF",
    }
    with pytest.raises(ValueError, match="formats holds 'doc'"):
        report.figures(study, tmp_path, formats=("doc",))
