"""BAIT against the trace that it shrinks, written out in float64."""

import jax
import numpy as np
import pytest

from baal_jax import selection
from baal_jax.selection.sets import feature_maps
from tests.oracles import sets as oracle
from tests.selection.sets.problems import (
    NOISE,
    NUM,
    QUERY,
    SEEDS,
    build,
    mean_probabilities,
    pick,
    predictions,
    problem,
)


def traces_of(rows, available, labelled, picks):
    known = np.flatnonzero(labelled).tolist()
    return [oracle.bait_trace(rows, available | labelled, known + picks[:t], NOISE) for t in range(len(picks) + 1)]


@pytest.mark.parametrize(("rank", "oversampling"), [(1, 1.0), (1, 2.0), (3, 1.0), (3, 1.5)])
def test_picks_shrink_the_trace_most(rank, oversampling):
    acquisition = build("bait", features=feature_maps.embedding, noise=NOISE, oversampling=oversampling)
    excess = []
    for seed in SEEDS:
        features, available, labelled = problem(seed, size=6 if rank == 1 else 12)
        rows = features.reshape(NUM, rank, -1)
        found = pick(acquisition, features if rank == 1 else rows, available, labelled)
        picks = found.indices.tolist()
        assert picks == oracle.bait(rows, available, QUERY, labelled, NOISE, oversampling)
        traces = traces_of(rows, available, labelled, picks)
        if oversampling == 1:
            np.testing.assert_allclose(found.scores, -np.diff(traces), rtol=3e-3, atol=1e-5 * traces[0])
        else:
            forward = oracle.bait(rows, available, QUERY, labelled, NOISE)
            excess.append(traces[-1] / traces_of(rows, available, labelled, forward)[-1] - 1)
    if excess:  # backward steps help on average
        assert np.mean(excess) < 0


def test_without_labels_it_starts_from_the_prior():
    features, available, labelled = problem(1)
    acquisition = build("bait", feature_maps.embedding, noise=NOISE, oversampling=1.0, use_labelled=False)
    # The trace is over what is labelled as well.
    picks = oracle.greedy(
        lambda picks: np.array(
            [-oracle.bait_trace(features[:, None], available | labelled, [*picks, i], NOISE) for i in range(NUM)]
        ),
        available,
        QUERY,
    )
    assert pick(acquisition, features, available, labelled).indices.tolist() == picks


def test_it_reads_a_classifier():
    given, labelled = predictions(1), np.arange(NUM) < 4
    acquisition = selection.bait(noise=NOISE, oversampling=1.0)
    found = pick(acquisition, jax.jit(acquisition.summarise)(given), ~labelled, labelled)
    rows = oracle.fisher_rows(mean_probabilities(given), given.features)
    assert found.indices.tolist() == oracle.bait(rows, ~labelled, QUERY, labelled, NOISE)
