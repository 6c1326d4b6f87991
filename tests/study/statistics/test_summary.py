"""A summary says what its parts say, and the table says it to people."""

from pathlib import Path

import numpy as np
import pytest

from baal_jax.study import results as study_results
from baal_jax.study import statistics
from tests.study.files import make_results, write_study

NAMES, NAN, INF = ("random", "bald", "entropy", "margin"), float("nan"), float("inf")


def cells(found):
    rows = [line.strip("| ").split(" | ") for line in statistics.markdown(found).splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_a_summary_has_the_numbers_of_the_functions():
    results = make_results(NAMES, seeds=12, rounds=8, effect={"bald": 0.06, "margin": -0.06})
    found = statistics.summary(results)
    assert (found.metric, found.baseline, found.higher_is_better) == ("accuracy", "random", True)
    assert (found.low, found.high, found.num_shortened) == (10, 45, 0)
    values = {name: runs.metrics["accuracy"].astype(float) for name, runs in results.runs.items()}
    # The best value that three quarters of the baseline's twelve runs reach.
    assert found.target == np.sort(values["random"].max(axis=1))[3 - 1]
    labels = results.runs["random"].num_labelled[0]
    areas = {name: statistics.area(labels, value) for name, value in values.items()}
    needed = {name: statistics.labels_to_target(labels, value, found.target) for name, value in values.items()}
    verdicts = statistics.compare_all(areas, "random", metric="accuracy")
    assert found.ranking == statistics.rank(areas)
    for row in found.rows:
        final, area = values[row.strategy][:, -1], areas[row.strategy]
        assert row[1:3] == (12, 0)
        spread = [part.std(ddof=1) / np.sqrt(12) for part in (final, area)]
        np.testing.assert_allclose(row[3:7], [final.mean(), spread[0], area.mean(), spread[1]])
        assert row.verdict == verdicts.get(row.strategy)
        assert (row.labels, row.mean_rank) == (np.median(needed[row.strategy]), found.ranking.mean_ranks[row.strategy])
        is_baseline = row.strategy == "random"
        assert row.saved == (None if is_baseline else statistics.labels_saved(needed[row.strategy], needed["random"]))
    assert [one.verdict for one in verdicts.values()] == ["better", "no difference shown", "worse"]


def test_lower_is_better_and_the_target_can_be_given():
    results = make_results(NAMES, seeds=10, effect={"bald": 0.1})
    found = statistics.summary(results, "nll", target=0.5, confidence=0.9)
    assert (found.higher_is_better, found.confidence, found.target) == (False, 0.9, 0.5)
    bald = found.rows[1]
    assert bald.verdict.comparison.difference < 0
    assert (bald.verdict.verdict, bald.mean_rank) == ("better", 1)
    labels = results.runs["bald"].num_labelled
    values = {name: runs.metrics["nll"] for name, runs in results.runs.items()}
    areas = {name: statistics.area(labels, value) for name, value in values.items()}
    assert found.ranking == statistics.rank(areas, higher_is_better=False, confidence=0.9)
    assert bald.verdict.comparison == statistics.compare(areas["bald"], areas["random"], confidence=0.9)
    options = {"target": 0.5, "higher_is_better": False}
    needed = [statistics.labels_to_target(labels, values[name], **options) for name in ("bald", "random")]
    assert (bald.labels, bald.saved) == (np.median(needed[0]), statistics.labels_saved(*needed, confidence=0.9))
    best = np.sort(results.runs["random"].metrics["nll"].min(axis=1))
    against = statistics.summary(results, "nll", baseline="bald")
    assert {row.verdict.verdict for row in against.rows if row.verdict} == {"worse"}
    assert statistics.summary(results, "nll").target == best[7]  # eight of ten reach it
    assert statistics.summary(results, "nll", higher_is_better=True).rows[1].verdict.verdict == "worse"
    results.description["target"] = 0.25
    assert statistics.summary(results, "nll").target == best[7]  # it is one of accuracy
    assert statistics.summary(results).target == 0.25


def test_runs_that_stopped_are_compared_over_what_they_saw():
    # A run that stops early has seen the low part of the curve alone; that must not count against it.
    stops = [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]
    results = make_results(seeds=10, stopped={"bald": stops}, effect={"bald": 0.05})
    found = statistics.summary(results)
    bald, accuracy = found.rows[1], results.runs["bald"].metrics["accuracy"]
    assert bald.num_stopped == found.num_shortened == 4
    assert bald.final == pytest.approx(np.mean([accuracy[i, stop - 1] for i, stop in enumerate(stops)]))
    assert bald.verdict.verdict == "better"
    assert bald.verdict.comparison.difference == pytest.approx(0.05, abs=0.02)
    gone = statistics.summary(make_results(seeds=10, stopped={"bald": 0}))
    assert (cells(gone)["bald"]["area"], cells(gone)["bald"]["mean rank"]) == ("– ± –", "–")
    assert gone.rows[2].verdict.comparison.num_seeds == 10
    assert "Without an area, and not ranked: bald." in statistics.table(gone).notes
    assert (gone.ranking.num_seeds, sum(row.mean_rank for row in gone.rows[::2])) == (10, 3)
    # Without a baseline's values there is no target, and nobody has failed to reach it.
    lost = statistics.summary(make_results(seeds=10, stopped={"random": 0}))
    assert np.isnan([lost.target, *(row.labels for row in lost.rows)]).all()
    assert "Too few seeds: there is no pair of seeds." in statistics.markdown(lost)


def test_unfinished_studies_pair_the_seeds_that_are_there(tmp_path):
    results = make_results(("random", "bald|x"), seeds=9, effect={"bald|x": 0.1})
    write_study(tmp_path, results)
    for lost in ("random-00000-00000.npz", "random-00001-00001.npz"):
        (tmp_path / "cells" / lost).unlink()
    found = statistics.summary(study_results.read(tmp_path))
    assert [row.num_seeds for row in found.rows] == [7, 9]
    areas = [statistics.area(runs.num_labelled, runs.metrics["accuracy"]) for runs in results.runs.values()]
    assert found.rows[1].verdict.comparison == pytest.approx(statistics.compare(areas[1][2:], areas[0][2:]))
    counts = (
        "Runs with values: random 7, bald|x 9. Pairs of runs with a finite difference, which alone count: bald|x 7."
    )
    assert counts in statistics.table(found).notes


def test_runs_that_diverged_are_counted_and_left_out():
    results = make_results(("random", "bald"), seeds=8)
    bald, random = (results.runs[name].metrics["nll"] for name in ("bald", "random"))
    bald[2, 3], random[4], random[0, 0] = np.inf, np.nan, np.nan
    found = statistics.summary(results, "nll", target=0.2)
    assert (found.low, found.high, found.num_shortened) == (10, 35, 0)
    assert [row.num_seeds for row in found.rows] == [7, 8]
    assert found.rows[1].area == np.inf
    assert found.rows[1].verdict.comparison.num_seeds == 6
    assert np.isfinite(found.rows[1].verdict.comparison[:4]).all()
    assert found.ranking.num_seeds == 7  # the worst has a rank
    labels = results.runs["bald"].num_labelled[0]
    for row, values in zip(found.rows, (np.delete(random, 4, axis=0), bald), strict=True):
        assert row.labels == np.median(statistics.labels_to_target(labels, values, 0.2, higher_is_better=False))


def test_small_studies_have_summaries():
    for options in ({"strategies": ("random",)}, {"seeds": 1}, {"rounds": 1}, {"classes": None}, {"seeds": 20}):
        results = make_results(**options)
        found = statistics.summary(results)
        assert "nan" not in statistics.markdown(found)
        assert len(cells(found)) == len(results.runs)
        assert (found.ranking is None) == (len(results.runs) == 1)
    assert "No difference from random is shown. That does not say that there is none." in statistics.table(found).notes
    unreached = cells(statistics.summary(results, target=2.0))["bald"]
    assert (unreached["labels to 2.0000"], unreached["share of the labels [95%]"]) == ("not reached", "–")


def test_the_table_says_it_to_people():
    better = statistics.Verdict(statistics.Comparison(0.0123, -INF, INF, 0.01, 0.002, 8), 0.02, "better")
    clear = statistics.Comparison(-12345.6, -0.25, 0.0, 0.5, 0.0625, 9)
    few = statistics.Verdict(clear, 1.0, "too few seeds to show a difference")
    saved = statistics.Saved(30.0, 45.0, 2 / 3, 0.5, INF, 9, 10, 10), statistics.Saved(INF, INF, NAN, 0.0, INF, 0, 0, 9)
    rows = (
        statistics.Row("random", 10, 0, 0.9, 0.01, 0.7, 0.0005, None, 45.0, None, 2.25),
        statistics.Row("bald|x", 9, 2, 0.95, NAN, 0.75, 0.02, better, 32.5, saved[0], 1.0),
        statistics.Row("margin", 10, 0, 0.5, 0.01, 0.625, 0.02, few, INF, saved[1], NAN),
    )
    ranking = statistics.Ranking({}, 0.0001, 1.657, (("bald|x",), ("random", "margin")), 9)
    found = statistics.Summary("nll", False, "random", 0.5, 0.95, 10.0, 50.0, 1, rows, ranking)
    golden = Path(__file__).parents[2] / "golden" / "summary.md"
    assert statistics.markdown(found) == golden.read_text("utf-8")
    # Where no run stopped and no pair is missing there is nothing to say of it.
    full = better._replace(comparison=better.comparison._replace(num_seeds=10))
    plain = rows[0], rows[1]._replace(num_seeds=10, num_stopped=0, verdict=full)
    assert len(statistics.table(found._replace(rows=plain, ranking=None)).notes) == 2
    values = (0.0, 1e-3, 0.00099, 9999.5, 1e4, INF, -INF, NAN)
    texts = ["0.0000", "0.0010", "0.00099", "9999.5000", "1e+04", "∞", "−∞", "–"]
    assert [*map(statistics.number, values)] == texts


def test_curves_may_begin_without_labels():
    results = make_results(NAMES, seeds=8, effect={"bald": 0.1})
    for runs in results.runs.values():
        runs.num_labelled[:] -= 10
    found = statistics.summary(results, target=0.0)
    assert (found.low, [row.labels for row in found.rows]) == (0, [0] * 4)
    assert found.rows[1].verdict.verdict == "better"
    assert cells(found)["bald"]["share of the labels [95%]"] == "– [0.00, ∞]"
    assert "nan" not in statistics.markdown(found)


def test_a_study_is_asked_for_directions_that_are_not_known_and_keeps_the_answer():
    results = make_results(NAMES, seeds=8, effect={"bald": 0.1})
    for runs in results.runs.values():
        runs.metrics["score"] = runs.metrics["accuracy"]
    with pytest.raises(ValueError, match=r"metric='score' does not tell .* About"):
        statistics.summary(results, "score")
    results.description["higher_is_better"] = {"score": True, "accuracy": False}
    for metric, override, expected in (
        ("score", None, "better"),
        ("score", False, "worse"),
        ("accuracy", None, "worse"),
    ):
        assert statistics.summary(results, metric, higher_is_better=override).rows[1].verdict.verdict == expected


def test_unknown_names_are_named():
    results = make_results()
    for arguments, message in (
        (("f1",), "metric='f1' is not among the results of 'random': accuracy, brier, ece, nll"),
        ((None, "badge"), "baseline='badge' is not among the results: there are random, bald, entropy"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.summary(results, *arguments)
    del results.description["metric"]
    with pytest.raises(ValueError, match="metric=None, and the study names none"):
        statistics.summary(results)
