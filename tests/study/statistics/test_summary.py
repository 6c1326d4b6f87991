"""A summary says what its parts say. More of them, and their tables: ../test_golden.py."""

import numpy as np
import pytest

from baal_jax.study import statistics
from tests.study.files import make_results


def test_a_summary_has_the_numbers_of_the_functions():
    results = make_results(
        ("random", "bald", "entropy", "margin"), seeds=12, rounds=8, effect={"bald": 0.06, "margin": -0.06}
    )
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
        final, area, mine = values[row.strategy][:, -1], areas[row.strategy], needed[row.strategy]
        assert row[1:3] == (12, 0)
        spread = [part.std(ddof=1) / np.sqrt(12) for part in (final, area)]
        np.testing.assert_allclose(row[3:7], [final.mean(), spread[0], area.mean(), spread[1]])
        assert row.verdict == verdicts.get(row.strategy)
        assert (row.labels, row.mean_rank) == (np.median(mine), found.ranking.mean_ranks[row.strategy])
        saved = None if row.strategy == "random" else statistics.labels_saved(mine, needed["random"])
        assert row.saved == saved
    assert [one.verdict for one in verdicts.values()] == ["better", "no difference shown", "worse"]


def test_unknown_names_are_named():
    results = make_results()
    unnamed = results._replace(description={**results.description, "metric": None})
    for study, arguments, message in (
        (results, ("f1",), "metric='f1' is not among the results of 'random': accuracy, brier, ece, nll"),
        (results, (None, "badge"), "baseline='badge' is not among the results: there are random, bald, entropy"),
        (unnamed, (), "metric=None, and the study names none"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.summary(study, *arguments)
