"""A summary says what its parts say, and the table says it to people."""

import numpy as np
import pytest

from baal_jax.study import results as study_results
from baal_jax.study import statistics
from tests.study.files import make_results, write_study

NAMES = ("random", "bald", "entropy", "margin")


def _cells(text):
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_a_summary_has_the_numbers_of_the_functions():
    results = make_results(NAMES, seeds=12, rounds=8, effect={"bald": 0.06, "margin": -0.06})
    found = statistics.summary(results)
    assert (found.metric, found.baseline, found.higher_is_better) == ("accuracy", "random", True)
    assert (found.low, found.high, found.num_shortened) == (10, 45, 0)
    values = {name: runs.metrics["accuracy"].astype(float) for name, runs in results.runs.items()}
    labels = results.runs["random"].num_labelled[0]
    areas = {name: statistics.area(labels, value) for name, value in values.items()}
    verdicts = statistics.compare_all(areas, "random", metric="accuracy")
    for row in found.rows:
        assert row.final == pytest.approx(values[row.strategy][:, -1].mean())
        assert row.final_error == pytest.approx(values[row.strategy][:, -1].std(ddof=1) / np.sqrt(12))
        assert row.area == pytest.approx(areas[row.strategy].mean())
        assert row.verdict == verdicts.get(row.strategy)
        needed = statistics.labels_to_target(labels, values[row.strategy], found.target)
        assert row.labels == np.median(needed)
    assert [row.verdict and row.verdict.verdict for row in found.rows] == [
        None,
        "better",
        "no difference shown",
        "worse",
    ]
    assert found.ranking == statistics.rank(areas)
    assert (values["random"].max(axis=1) >= found.target).sum() >= 9  # of the baseline's 12 runs
    assert found.rows[1].saved.ratio < 1
    text = _cells(statistics.markdown(found))
    assert text["bald"]["against random"] == "better"
    assert text["bald"]["difference of area [95%]"].startswith("+0.0")
    assert text["random"]["against random"] == "baseline"
    assert text["margin"]["mean rank"] == f"{found.ranking.mean_ranks['margin']:.2f}"


def test_lower_is_better_and_the_target_can_be_given():
    results = make_results(NAMES, seeds=10, effect={"bald": 0.1})
    found = statistics.summary(results, "nll", target=0.5)
    assert not found.higher_is_better
    rows = {row.strategy: row for row in found.rows}
    assert rows["bald"].verdict.comparison.difference < 0
    assert rows["bald"].verdict.verdict == "better"
    assert rows["bald"].mean_rank == 1
    nll = results.runs["bald"].metrics["nll"]
    first = np.array([10 + 5 * np.flatnonzero(run <= 0.5)[0] for run in nll])
    assert rows["bald"].labels == np.median(first)
    against = statistics.summary(results, "nll", baseline="bald")
    assert {row.verdict.verdict for row in against.rows if row.verdict} == {"worse"}


def test_no_share_of_labels_is_claimed_where_the_baseline_did_not_reach_the_target():
    results = make_results(NAMES, seeds=10, effect={"bald": 0.3})
    best = np.sort(results.runs["random"].metrics["accuracy"].max(axis=1))
    found = statistics.summary(results, "accuracy", target=float(best[-3]))
    assert np.isfinite(found.rows[1].labels)
    assert found.rows[1].saved.ratio == 0
    text = _cells(statistics.markdown(found))
    assert text["random"][f"labels to {found.target:.4f}"] == "not reached"
    assert text["bald"]["share of the labels [95%]"] == "–"
    assert any("Half of the runs of random or more did not reach" in note for note in statistics.table(found).notes)


def test_it_says_when_nothing_is_shown():
    text = statistics.markdown(statistics.summary(make_results(NAMES, seeds=20)))
    assert "No difference from random is shown. That does not say that there is none." in text
    assert {row["against random"] for row in _cells(text).values()} == {"baseline", "no difference shown"}
    assert "Not shown to differ: " in text
    few = statistics.markdown(statistics.summary(make_results(seeds=5, effect={"bald": 0.2})))
    assert _cells(few)["bald"]["against random"] == "too few seeds to show a difference"
    assert "no p-value can be below 0.062" in few
    unreached = statistics.markdown(statistics.summary(make_results(), target=2.0))
    assert _cells(unreached)["bald"]["labels to 2.0000"] == "not reached"
    assert _cells(unreached)["bald"]["share of the labels [95%]"] == "–"


def test_runs_that_stopped_are_compared_over_what_they_saw():
    # A run that stops early has seen the low part of the curve alone; that must not count against it.
    stops = [2, 3, 4, 5, 6, 6, 6, 6, 6, 6]
    found = statistics.summary(make_results(seeds=10, stopped={"bald": stops}, effect={"bald": 0.05}))
    rows = {row.strategy: row for row in found.rows}
    assert rows["bald"].num_stopped == found.num_shortened == 4
    assert rows["bald"].verdict.verdict == "better"
    assert rows["bald"].verdict.comparison.difference == pytest.approx(0.05, abs=0.02)
    assert "Runs that stopped early: bald 4." in statistics.markdown(found)
    gone = statistics.summary(make_results(seeds=10, stopped={"bald": 0}))
    row = _cells(statistics.markdown(gone))["bald"]
    assert (row["area"], row["mean rank"]) == ("– ± –", "–")
    assert gone.rows[2].verdict.comparison.num_seeds == 10


def test_unfinished_studies_pair_the_seeds_that_are_there(tmp_path):
    results = make_results(("random", "bald|x"), seeds=9, effect={"bald|x": 0.1})
    write_study(tmp_path, results)
    for lost in ("random-00000-00000.npz", "random-00001-00001.npz"):
        (tmp_path / "cells" / lost).unlink()
    read = study_results.read(tmp_path)
    assert list(read.runs["random"].seeds) == list(range(2, 9))
    found = statistics.summary(read)
    assert [row.num_seeds for row in found.rows] == [7, 9]
    assert found.rows[1].verdict.comparison.num_seeds == 7
    areas = [statistics.area(runs.num_labelled, runs.metrics["accuracy"]) for runs in results.runs.values()]
    expected = statistics.compare(areas[1][2:], areas[0][2:])
    assert found.rows[1].verdict.comparison == pytest.approx(expected)
    text = statistics.markdown(found)
    assert (
        "Runs with values: random 7, bald|x 9. Pairs of runs with a finite difference, which alone count: bald|x 7"
        in text
    )
    assert "| bald\\|x |" in text  # the table keeps its columns


def test_runs_that_diverged_are_counted_and_named():
    results = make_results(("random", "bald"), seeds=8)
    results.runs["bald"].metrics["nll"][2, 3] = np.inf
    results.runs["random"].metrics["nll"][4] = np.nan
    found = statistics.summary(results, "nll")
    assert found.rows[1].area == np.inf
    assert found.rows[1].verdict.comparison.num_seeds == 6
    assert np.isfinite(found.rows[1].verdict.comparison[:4]).all()
    assert found.ranking.num_seeds == 7  # the worst has a rank
    assert "which alone count: bald 6." in statistics.markdown(found)


def test_small_studies_have_summaries():
    for results in (
        make_results(("random",)),
        make_results(seeds=1),
        make_results(rounds=1),
        make_results(classes=None),
    ):
        found = statistics.summary(results)
        text = statistics.markdown(found)
        assert "nan" not in text
        assert len(_cells(text)) == len(results.runs)
    assert statistics.summary(make_results(("random",))).ranking is None


def test_unknown_names_are_named():
    results = make_results()
    with pytest.raises(
        ValueError, match=r"metric='f1' is not among the results of 'random': accuracy, brier, ece, nll"
    ):
        statistics.summary(results, "f1")
    with pytest.raises(ValueError, match=r"baseline='badge' is not among the results: there are random, bald, entropy"):
        statistics.summary(results, baseline="badge")
