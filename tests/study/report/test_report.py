"""A report shows the numbers of a study, says what is missing, and lets no name become markup."""

import base64
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

from baal_jax import __main__ as command_line
from baal_jax._util import images
from baal_jax.study import plots, report, results
from baal_jax.study.report import _content, _page
from tests.study.files import make_results, write_study

HOSTILE = '</script><b onclick="x()">&amp;\u2028 ${1} {{js}} \\1'


class Page(html.parser.HTMLParser):
    """What a browser would see: elements, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(text)

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

    @property
    def text(self):
        skip = ("script", "style")
        return " ".join(" ".join(parts) for tag, parts in self.texts.items() if tag not in skip)

    @property
    def data(self):
        at = [tag for tag, _ in self.tags].index("script")
        assert self.tags[at][1]["type"] == "application/json"
        return json.loads(self.texts["script"][0], parse_constant=lambda name: pytest.fail(name))


def page_of(study):
    found = Page(_page.page(study))
    assert not found.open
    return found


@hypothesis.given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))))
def test_png_is_what_another_decoder_reads(image):
    found = np.asarray(Image.open(io.BytesIO(images.png(image))))
    np.testing.assert_array_equal(found.reshape(image.shape), image)


def test_thumbnails_are_means_of_blocks():
    images = np.random.default_rng(0).integers(0, 256, (2, 100, 130, 3)).astype(np.uint8)
    found = _content.small(images)
    assert found.shape == (2, 33, 43, 3)
    np.testing.assert_allclose(found[1, 4, 7], images[1, 12:15, 21:24].mean(axis=(0, 1)), atol=0.51)
    assert _content.small(images[:, :48, :48]) is not None
    np.testing.assert_array_equal(_content.small(images[:, :48, :48]), images[:, :48, :48])


def test_the_sheet_holds_every_picture_where_the_page_looks_for_it():
    study = make_results(pictures=7)
    sheet = _content.queries(study)["sheet"]
    whole = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet["uri"].partition(",")[2]))))
    assert sheet["ids"] == study.pictures.ids.tolist()
    for k, image in enumerate(study.pictures.images):
        y, x = k // sheet["columns"] * 8, k % sheet["columns"] * 8
        np.testing.assert_array_equal(whole[y : y + 8, x : x + 8], image[..., 0])


def test_names_are_text_and_never_markup():
    study = make_results(strategies=(HOSTILE, "bald"), classes=2)
    study.description.update(name=HOSTILE, class_names=[HOSTILE, "b"], extra={HOSTILE: [HOSTILE]})
    found = page_of(study)
    plain = page_of(make_results(strategies=("random", "bald"), classes=2))
    scripts = [attributes for tag, attributes in found.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert [tag for tag, _ in found.tags].count("b") == [tag for tag, _ in plain.tags].count("b") == 0
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.data["strategies"][0]["name"] == HOSTILE
    assert HOSTILE in found.text.replace("\u2028", "\u2028")


def test_half_a_surrogate_pair_does_not_break_the_file(tmp_path):
    study = make_results(rounds=2, seeds=2)
    study.description["name"] = "half \ud83d"
    assert "half ?" in report.write(study, tmp_path / "a.html").read_text("utf-8")


def test_the_page_asks_for_nothing():
    found = page_of(make_results(pictures=5))
    for tag, attributes in found.tags:
        for name in ("src", "href", "action", "data", "poster"):
            assert re.match(r"#|data:|$", attributes.get(name) or ""), (tag, attributes)
    style_sheet = found.texts["style"][0]
    assert "@import" not in style_sheet
    assert "url(" not in style_sheet
    policy = next(attributes for _, attributes in found.tags if "http-equiv" in attributes)["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_curves_are_means_and_bands_of_the_runs_still_going():
    study = make_results(stopped={"bald": [6, 6, 6, 6, 3]}, effect={"bald": 0.01})
    found = page_of(study).data["curves"]["accuracy"][1]
    values = study.runs["bald"].metrics["accuracy"].astype(np.float64)
    for r, count in enumerate([5, 5, 5, 4, 4, 4]):
        here = values[:count, r]
        half = {5: 2.7764451, 4: 3.1824463}[count] * here.std(ddof=1) / np.sqrt(count)
        np.testing.assert_allclose(found["mean"][r], here.mean(), rtol=1e-4)
        np.testing.assert_allclose(
            [found["low"][r], found["high"][r]], [here.mean() - half, here.mean() + half], rtol=1e-4
        )
    assert found["x"] == [10, 15, 20, 25, 30, 35]
    assert found["seeds"][4][3:] == [None] * 3
    assert "bald: 1 of 5 runs stopped early, at 20 labels." in page_of(study).text


def test_large_numbers_of_labels_are_not_rounded():
    study = make_results(seeds=2, rounds=2)
    study.runs["bald"].num_labelled[:] = [1_234_567, 1_234_572]
    data = _content.page_data(study)
    assert data["curves"]["accuracy"][1]["x"] == [1_234_567, 1_234_572]
    assert data["queries"]["runs"]["bald"][0]["before"] == [1_234_567, 1_234_572]


def test_calibration_pools_seeds_and_keeps_the_last_round_of_a_stopped_run():
    study = make_results(stopped={"bald": [6, 6, 2, 6, 6]}, noise=0.1)
    runs = study.runs["bald"]
    runs.diagnostics["reliability_accuracy"][...] *= np.linspace(0.5, 1, 5)[:, None, None]
    found = _content.reliability(runs)
    count, confidence, accuracy = (
        runs.diagnostics[f"reliability_{name}"].astype(np.float64)
        for name in ("num_examples", "confidence", "accuracy")
    )
    last = [(i, 1 if i == 2 else 5) for i in range(5)]
    for b in range(1, count.shape[-1]):
        weights = [count[i, r, b] for i, r in last]
        np.testing.assert_allclose(found.num_examples[-1, b], sum(weights))
        for part, mine in ((confidence, found.confidence), (accuracy, found.accuracy)):
            np.testing.assert_allclose(mine[-1, b], np.average([part[i, r, b] for i, r in last], weights=weights))
    each = [
        sum(count[i, r, b] * abs(confidence[i, r, b] - accuracy[i, r, b]) for b in range(1, 10)) / count[i, r].sum()
        for i, r in last
    ]
    np.testing.assert_allclose(found.ece[-1], np.mean(each))
    assert np.isnan(found.accuracy[:, 0]).all()


def test_entropies_are_shares():
    study = make_results(stopped={"bald": 0})
    np.testing.assert_allclose(_content.entropies(study.runs["random"]).sum(axis=-1), 1)
    counts = study.runs["random"].diagnostics["entropy_histogram"].sum(axis=0)
    np.testing.assert_allclose(_content.entropies(study.runs["random"])[2], counts[2] / counts[2].sum())
    assert np.isnan(_content.entropies(study.runs["bald"])).all()


def test_queries_are_counted_by_class_as_far_as_classes_are_known():
    study = make_results(pictures=9, stopped={"bald": 2})
    known = dict(zip(study.pictures.ids.tolist(), study.pictures.targets.tolist(), strict=True))
    found, share = _content.queried_by_class(study)
    asked = 0
    for name, runs in study.runs.items():
        for i in range(5):
            ids = [j for j in runs.indices[i].ravel().tolist() if j >= 0]
            asked += len(ids)
            expected = [sum(known.get(j) == c for j in ids) for c in range(3)]
            assert found[name][i].tolist() == expected
    assert share == pytest.approx(sum(part.sum() for part in found.values()) / asked)
    assert 0 < share < 1
    assert "of the queries is known" in page_of(study).text


def test_targets_may_come_without_pictures():
    study = make_results()
    for runs in study.runs.values():
        runs.diagnostics["query_targets"] = np.where(runs.indices >= 0, runs.indices % 3, np.nan)
    found, share = _content.queried_by_class(study)
    assert share == 1
    assert found["bald"][0].tolist() == np.bincount(study.runs["bald"].indices[0].ravel() % 3, minlength=3).tolist()
    queries = page_of(study).data["queries"]
    assert all(label == f"class {int(index) % 3}" for index, label in queries["targets"].items())
    assert queries["sheet"] is None


def test_what_is_missing_is_said():
    study = make_results(seeds=6)
    runs = dict(study.runs)
    del runs["entropy"]
    runs["bald"] = runs["bald"]._replace(
        **{
            name: {key: part[[0, 2]] for key, part in value.items()} if isinstance(value, dict) else value[[0, 2]]
            for name, value in runs["bald"]._asdict().items()
        }
    )
    runs["random"].metrics["nll"][1, 2:4] = np.inf, np.nan
    text = page_of(study._replace(runs=runs)).text
    assert "nothing is there of entropy" in text
    assert "Unfinished: of bald, seeds 1, 3–5 are missing, and 2 of 6 are there." in text
    assert "random: nll is non-finite in 2 rounds." in text


def test_without_the_baseline_there_is_no_comparison_but_a_page():
    study = make_results()
    runs = {name: value for name, value in study.runs.items() if name != "random"}
    text = page_of(study._replace(runs=runs)).text
    assert "There is no comparison by this metric: baseline='random' is not among the results" in text


def test_regression_has_no_calibration_and_no_classes():
    found = page_of(make_results(classes=None, pictures=3))
    assert "There is no reliability diagram: this is regression" in found.text
    assert "There is no histogram of classes: this is regression" in found.text
    assert found.data["metrics"][0] == {"name": "rmse", "label": "RMSE"}


def test_a_study_without_runs_has_a_page(tmp_path):
    study = make_results()._replace(runs={})
    assert "No run of this study is there yet." in page_of(study).text
    with pytest.raises(ValueError, match="no runs yet"):
        report.figures(study, tmp_path)


def test_findings_are_those_of_the_statistics():
    study = make_results(seeds=12, effect={"bald": 0.1, "entropy": -0.1}, noise=0.01)
    text = page_of(study).text
    assert re.search(r"The baseline .*Better than random .*Worse than random", text)
    assert "Too few seeds" in page_of(make_results(seeds=4)).text


def test_a_page_carries_a_limited_load_and_says_so(monkeypatch):
    study = make_results(seeds=6, pictures=60)
    monkeypatch.setattr(_content, "_MOST_PICKS", 2 * 3 * 6 * 5)
    monkeypatch.setattr(_content, "_MOST_BYTES", 4 * 64)
    found = page_of(study)
    queries = found.data["queries"]
    assert {len(runs) for runs in queries["runs"].values()} == {2}
    assert len(queries["sheet"]["ids"]) == 4
    assert "Queries of the first 2 seeds are listed" in found.text
    assert re.search(r"4 of \d+ pictures are in this page", found.text)
    monkeypatch.setattr(_content, "_MOST_PICKS", 3 * 6 * 2)
    queries = page_of(study).data["queries"]
    assert {len(row) for runs in queries["runs"].values() for run in runs for row in run["ids"]} == {2}
    assert queries["left_out"][1] == "Of each round, the first 2 of 5 queries are listed."


def test_a_digits_study_can_be_mailed():
    study = make_results([f"strategy {i}" for i in range(8)], seeds=20, rounds=20, classes=10, pictures=2000)
    assert len(_page.page(study).encode()) < 1_500_000


def test_the_configuration_is_exact():
    study = make_results()
    study.description["config"] = {"rate": 1e-3, "nested": {"deep": [1, 2, 5]}, "flag": True, "nothing": None}
    found = page_of(study)
    assert json.loads("".join(found.texts["pre"])) == study.description
    for text in ("0.001", "deep", "1, 2, 5", "yes", "none", "0 to 4"):
        assert text in found.text


def test_styles_differ_in_more_than_colour():
    style = plots._style
    assert len({style(i).dashes for i in range(6)}) == 6
    pairs = {(style(i).dashes, style(i).path) for i in range(8)}
    assert len(pairs) == 7  # black is a plain line with circles, as is the first colour: they differ most in lightness
    assert len({style(i) for i in range(48)}) == 48


def test_write_takes_a_folder_or_results(tmp_path):
    study = make_results(seeds=2, rounds=2)
    folder = write_study(tmp_path / "study", study)
    path = report.write(folder)
    assert path == folder / "report.html"
    assert path.read_text("utf-8") == report.write(study, tmp_path / "deep" / "b.html").read_text("utf-8")
    assert report.write(str(folder), tmp_path / "c.html").exists()
    with pytest.raises(ValueError, match="pass path"):
        report.write(study)
    with pytest.raises(ValueError, match="holds no study"):
        report.write(tmp_path / "nowhere")


def test_figures_are_files_of_every_format(tmp_path):
    study = make_results(("random", "a/b"), seeds=2, rounds=2, pictures=40, stopped={"a/b": [1, 2]})
    paths = report.figures(study, tmp_path, formats=("png", "pdf"))
    names = {path.stem for path in paths}
    assert {"curves_accuracy", "curves_nll", "mean_score", "entropy", "reliability", "classes"} <= names
    assert any(name.startswith("queries_a_b") for name in names)
    assert len(paths) == 2 * len(names)
    for path in paths:
        assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"\x89PNG")
    with pytest.raises(ValueError, match="formats holds 'doc'"):
        report.figures(study, tmp_path, formats=("doc",))


def test_figures_show_the_curves_of_the_page():
    from baal_jax.study.report import _figures

    study = make_results(seeds=3, rounds=3)
    drawn = dict(_figures._all(study))
    lines = drawn["curves_accuracy"].axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["random", "bald", "entropy"]
    np.testing.assert_allclose(lines[1].get_ydata(), study.runs["bald"].metrics["accuracy"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(lines[1].get_xdata(), [10, 15, 20])
    assert drawn["curves_nll"].axes[0].get_ylabel() == "NLL (nats)"
    bars = drawn["entropy"].axes[1].patches[-1].get_data()
    np.testing.assert_allclose(bars.values, _content.entropies(study.runs["bald"])[-1])
    assert bars.edges[-1] == pytest.approx(np.log(3))


def test_the_command_writes_and_explains(tmp_path, capsys):
    folder = write_study(tmp_path / "study", make_results(("random",), seeds=2, rounds=2, classes=None))
    assert command_line.main(["report", str(folder), "--out", str(tmp_path / "x.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.html'}\n"
    assert command_line.main(["report", str(folder), "--figures", str(tmp_path / "figures"), "--formats", "svg"]) == 0
    assert (tmp_path / "figures" / "curves_rmse.svg").exists()
    assert (folder / "report.html").exists()
    assert command_line.main(["report", str(tmp_path)]) == 1
    assert "holds no study" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        command_line.main(["report", "--help"])
    assert stop.value.code == 0
    assert "Folder of the study" in capsys.readouterr().out


def test_results_read_from_disk_give_the_same_page(tmp_path):
    study = make_results(seeds=3, rounds=3, pictures=4)
    assert _page.page(results.read(write_study(tmp_path / "a", study))) == _page.page(study)
