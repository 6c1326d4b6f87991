"""What the selections for small budgets have in common, and the first labels of a loop and of a pool."""

import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, pool, selection
from tests import fixtures
from tests.selection import problems
from tests.selection.problems import EVERY, NUM, SIZE, build, pick


@pytest.mark.parametrize(
    ("name", "arguments"), [("k_means", {}), ("typiclust", {"num_clusters": 8}), ("prob_cover", {"num_classes": 8})]
)
def test_one_pick_of_every_blob_and_none_of_those_with_a_label(name, arguments):
    for seed in range(3):
        points, truth = problems.blobs(seed)
        found = pick(build(name, **arguments), points, truth >= 0, truth < 0, key=seed)
        order = truth[found.indices].tolist()
        assert order[::-1] == list(range(8)) if name == "typiclust" else sorted(order) == list(range(8))
        labelled = np.isin(np.arange(len(truth)), [np.flatnonzero(truth == blob)[0] for blob in (1, 4, 6, 7)])
        if name != "k_means":
            found = pick(build(name, **arguments), points, ~labelled, labelled, key=seed)
            assert sorted(truth[found.indices[:4]].tolist()) == [0, 2, 3, 5]


def test_what_does_not_fit_is_refused():
    for name, wrong in (
        ("k_means", {"num_clusters": 0, "num_iterations": 0}),
        ("typiclust", {"num_clusters": 0, "num_neighbours": 0, "max_clusters": 2.5, "num_iterations": 0}),
        ("prob_cover", {"radius": 0.0, "purity": 0.0, "num_classes": 0}),
        ("cluster_margin", {"candidates_per_pick": 0, "num_clusters": 0}),
    ):
        for argument, value in wrong.items():
            with pytest.raises(ValueError, match=f"{argument}={value} must be"):
                selection.REGISTRY[name](**{argument: value})
    with pytest.raises(ValueError, match=r"purity=1.5 is a share"):
        selection.prob_cover(purity=1.5)
    points, available, labelled = problems.problem(0)
    for name in ("k_means", "prob_cover", "typiclust"):
        for features in (points[..., None], (points, points)):
            with pytest.raises(ValueError, match=f"{name} needs one row an example"):
                pick(build(name), features, available, labelled)


# The first query

LOOP = baal.active_loop(fixtures.SPY, selection.random(), query_size=1)
DATA = baal.Dataset(problems.problem(0)[0], np.zeros(NUM, np.int32))


def first_labels(key, num, given=None, **options):
    state = LOOP.init(key, DATA, num, given, **options)
    return np.flatnonzero(pool.labelled(state.pool)).tolist()


def test_an_acquisition_picks_the_first_labels_and_the_key_is_its_own(key):
    for acquisition in (build("k_center"), build("k_means_pp")):
        picked = pool.first_query(key, pool.init(NUM), 4, acquisition, DATA.inputs)
        fixtures.same(picked, acquisition.select(key, DATA.inputs, EVERY, 4, ~EVERY))
        assert len(first_labels(key, 4, acquisition=acquisition, embeddings=DATA.inputs)) == 4
    at_random = pool.first_query(key, pool.init(NUM), 4)
    np.testing.assert_array_equal(at_random.indices, pool.random_query(key, pool.init(NUM), 4))
    assert np.isnan(at_random.scores).all()
    # Random and given scores need no embeddings.
    assert len(first_labels(key, 2, acquisition=selection.random())) == 2
    assert first_labels(key, 2, acquisition=selection.precomputed(np.arange(48.0))) == [46, 47]


def test_what_is_labelled_already_is_a_centre_and_what_is_excluded_is_nothing(key):
    given = pool.exclude(pool.label(pool.init(NUM), [7]), [3, 4])
    distances = ((DATA.inputs - DATA.inputs[7]) ** 2).sum(axis=1)
    farthest = int(np.argmax(np.where(np.isin(np.arange(NUM), [3, 4]), -1, distances)))
    found = first_labels(key, 1, given, acquisition=build("k_center"), embeddings=DATA.inputs)
    assert found == sorted([7, farthest])


def test_embeddings_may_be_what_the_data_are(key):
    pixels = np.random.default_rng(0).integers(0, 255, (NUM, 1, SIZE, 1)).astype(np.uint8)
    flat = pixels.reshape(NUM, -1).astype(np.float32)
    one, other = (first_labels(key, 4, acquisition=build("k_means_pp"), embeddings=x) for x in (pixels, flat))
    assert one == other


def test_first_labels_that_cannot_be_found_are_refused(key):
    for num, options, message in (
        (2, {"acquisition": build("typiclust")}, "embeddings is None"),
        (2, {"acquisition": build("typiclust"), "embeddings": DATA.inputs[:29]}, "embeddings of 29 examples for 48"),
        (2, {"embeddings": DATA.inputs}, "embeddings are given but no acquisition"),
        (0, {"acquisition": build("typiclust"), "embeddings": DATA.inputs}, "num_initial=0 leaves the acquisition"),
        (2, {"acquisition": selection.top_k(heuristics.bald), "embeddings": DATA.inputs}, "there is no fit to predict"),
    ):
        with pytest.raises(ValueError, match=message):
            first_labels(key, num, **options)
