"""Parts of a pool: what survives a score, from a source too, and neighbours of what is labelled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import Predictions, data, heuristics, selection
from baal_jax._util import sources
from baal_jax.selection.sets import _kernel, feature_maps, selectors, transforms
from tests.fixtures import centroids, close, clouds, same

TRAIN, TEST = clouds(num_pool=90)
SIZE, KEY = len(TRAIN.inputs), jax.random.key(3)
OPTIONS = {"query_size": 4, "num_samples": 5, "batch_size": 8}
PLAIN = selection.grid(
    feature_maps.embedding, [transforms.centre()], selectors.k_means_pp(use_labelled=False), reads_labelled=False
)


def rounds(loop, dataset, num_rounds=3, **options):
    return baal.run(loop, KEY, dataset, None, num_initial=4, num_rounds=num_rounds, **options)[1]


def loop_of(acquisition, **options):
    options = {"features": lambda state, rows: rows} | OPTIONS | options
    return baal.active_loop(centroids(), acquisition, **options)


def test_survivors_are_the_best_of_what_is_available_and_pick_alike_from_a_source(monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 1)  # a block is a batch
    some_broken = lambda state, rows: jnp.where(rows[:, :1] > 1.0, jnp.nan, rows)  # noqa: E731
    for acquisition in (PLAIN, selection.random()):
        for options in ({"max_sample": 40}, {"features": some_broken}) if acquisition is PLAIN else ({},):
            loop = loop_of(selection.survivors(acquisition, 12), **options)
            infos = rounds(loop, TRAIN)
            again = rounds(loop, TRAIN._replace(inputs=data.View(TRAIN.inputs)))
            jax.tree.map(np.testing.assert_array_equal, infos, again)
            assert len({*infos.indices.ravel().tolist()}) == 12
            assert bool(infos.num_nan[0] > 0) == (acquisition is PLAIN and "features" in options)
    # By hand.
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, SIZE, 3)), jnp.float32)
    available = np.arange(SIZE) % 3 != 0
    given = Predictions(logits, TRAIN.inputs)
    scores = np.where(available, heuristics.margin(logits), -np.inf)
    few = np.argsort(-scores, kind="stable")[:12]
    picked = baal.select(KEY, selection.survivors(PLAIN, 12, heuristics.margin), given, available, query_size=4)
    part = Predictions(logits[:, few], TRAIN.inputs[few])
    alone = baal.select(KEY, PLAIN, part, query_size=4)
    same(picked.indices, few[alone.indices])
    close(picked.scores, alone.scores)


def test_of_a_source_no_more_than_the_survivors_are_held(monkeypatch):
    held = []
    blocks = sources.best
    monkeypatch.setattr(sources, "best", lambda *given: held.append(blocks(*given)) or held[-1])
    loop = loop_of(selection.survivors(PLAIN, 12))
    rounds(loop, TRAIN._replace(inputs=data.View(TRAIN.inputs)), 1)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(held[0][1])} == {12}
    few = np.arange(SIZE) < 5  # fewer than survive
    ids, rows, broken = sources.best(lambda rows: rows[:, 0], data.View(TRAIN.inputs), 8, few, 12)
    assert sorted(ids.tolist()) == [-1] * 7 + [*range(5)]
    same(rows[ids >= 0], TRAIN.inputs[:5, 0])
    assert broken == 0


def test_of_equal_scores_the_lowest_ids_survive():
    for size in (5, 90):
        values = np.repeat(np.float32([1, 2, 1]), 30)
        ids, rows, _ = sources.best(lambda rows: rows, data.View(values), 7, np.ones(90, bool), size)
        same(ids, np.sort(np.argsort(-values, kind="stable")[:size]))
        same(rows, values[ids])


def test_survivors_refuse_what_they_would_hide():
    with pytest.raises(ValueError, match=r"num=5 survivors would hide the labelled .*use_labelled=False"):
        selection.survivors(selection.k_center(), 5)
    with pytest.raises(ValueError, match="num=0"):
        selection.survivors(selection.random(), 0)
    with pytest.raises(ValueError, match="num=3 survivors are fewer than query_size=4"):
        rounds(loop_of(selection.survivors(PLAIN, 3)), TRAIN)
    for name in ("k_center", "k_means_pp", "lcmd"):
        assert selection.survivors(getattr(selection, name)(use_labelled=False), 5).keep == 5
    assert selection.survivors(selection.top_k(), 3, heuristics.multi_label(heuristics.bald)).tasks == ()


def brute(rows, ids, k):
    distances = ((rows[ids][:, None].astype(np.float64) - rows[None]) ** 2).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_exact_and_looked_for_once(offset, monkeypatch, tmp_path):
    monkeypatch.setattr("baal_jax.selection._candidates._ROWS", 32)
    monkeypatch.setattr("baal_jax.selection._candidates._QUERIES", 4)
    rows = (np.random.default_rng(1).integers(-8, 8, (SIZE, 3)) / 4 + offset).astype(np.float32)  # with ties
    np.save(tmp_path / "rows.npy", rows)
    on_disk = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for embeddings in (rows, jnp.asarray(rows), on_disk):
        near = selection.nearest(7, embeddings)
        ids = np.array([3, 88, 0, 41, 40, 5])
        same(near(ids), brute(rows, ids, 7))
        monkeypatch.setattr(sources, "stream", None)
        same(near(ids[::-1]), brute(rows, ids[::-1], 7))
        monkeypatch.undo()
    assert selection.nearest(1000, rows)(ids).shape == (6, SIZE)


def full(options):
    return loop_of(selection.top_k(), **options)


def test_rounds_score_neighbours_alone_and_with_all_of_them_the_whole_pool():
    rows = TRAIN.inputs
    plain = rounds(full({}), TRAIN)
    for inputs in (rows, data.View(rows)):
        dataset = TRAIN._replace(inputs=inputs)
        loop = full({"candidates": selection.nearest(SIZE, rows)})
        infos = rounds(loop, dataset)
        same(infos.indices, plain.indices)
        close(infos.scores, plain.scores)
        near = full({"candidates": selection.nearest(6, rows)})
        state = near.init(KEY, dataset, num_initial=4)
        for _ in range(3):
            labelled = np.flatnonzero(np.asarray(baal.pool.labelled(state.pool)))
            state, info = near.step(state, dataset)
            assert {*info.indices.tolist()} <= {*brute(rows, labelled, 6).ravel().tolist()} - {*labelled.tolist()}


def test_few_neighbours_are_filled_up_nothing_labelled_is_everything_and_labelled_rows_are_read():
    alone = lambda ids: np.stack([ids, ids * 0 - 1], axis=1)  # an index that knows no other, and says so  # noqa: E731
    infos = rounds(full({"candidates": selection.nearest(2, index=alone), "query_size": (4, 7)}), TRAIN)
    picked = infos.indices[infos.indices >= 0]
    assert len({*picked.tolist()}) == len(picked) == 4 + 7 + 7
    loop = full({"candidates": selection.nearest(2, TRAIN.inputs)})
    state = loop.init(KEY, TRAIN)
    same(loop.step(state, TRAIN)[1].indices, full({}).step(state, TRAIN)[1].indices)
    # Labelled examples are centres.
    whole, near = (loop_of(selection.k_center(), candidates=c) for c in (None, selection.nearest(SIZE, TRAIN.inputs)))
    same(rounds(near, TRAIN).indices, rounds(whole, TRAIN).indices)
    ids, available = near.round.candidates(KEY, near.init(KEY, TRAIN, num_initial=4))
    assert ids.shape == available.shape == (SIZE,)
    assert available.sum() == SIZE - 4
    small = full({"candidates": selection.nearest(6, TRAIN.inputs)})
    ids, available = small.round.candidates(KEY, small.init(KEY, TRAIN, num_initial=4))
    assert ids.shape == (32,)
    assert available.sum() == (ids >= 0).sum() <= 20


def test_candidates_are_refused_where_they_cannot_be_looked_for():
    loop = full({"candidates": selection.nearest(6, TRAIN.inputs)})
    with pytest.raises(ValueError, match="candidates are looked for on the host"):
        jax.vmap(lambda key: baal.run(loop, key, TRAIN, None, num_initial=4, num_rounds=1))(jax.random.split(KEY, 2))
    with pytest.raises(ValueError, match="max_sample=9 and candidates both say"):
        full({"candidates": selection.nearest(6, TRAIN.inputs), "max_sample": 9})
    for wrong in ({}, {"embeddings": TRAIN.inputs, "index": lambda ids: ids}):
        with pytest.raises(ValueError, match="embeddings or index, not both"):
            selection.nearest(3, **wrong)
    for rows in (TRAIN.inputs[0], TRAIN.inputs[:0]):
        with pytest.raises(ValueError, match=r"embeddings have shape .*: pass one row for each"):
            selection.nearest(3, rows)


IN_BLOCKS = {
    "k_center": selection.k_center,
    "k_means_pp": selection.k_means_pp,
    "lcmd": selection.lcmd,
    "badge": selection.badge,
}


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_sets_are_picked_in_blocks_of_what_stays_in_numpy_as_from_arrays(name, monkeypatch):
    monkeypatch.setattr("baal_jax.selection.sets._kernel._BYTES", 200)
    acquisition, rng = IN_BLOCKS[name](), np.random.default_rng(4)
    whole, left, none = np.ones(SIZE, bool), np.arange(SIZE) % 7 != 2, np.zeros(SIZE, bool)
    for offset, unit, labelled in ((0, 1, ~left), (1000, 1, ~left), (0, 1e-4, none)):
        rows = ((TRAIN.inputs + offset) * np.float32(unit)).astype(np.float32)
        rows[[3, 5, 8]] = np.array([np.nan, np.inf, 1e30])[:, None]
        logits = jnp.asarray(rng.normal(size=(5, SIZE, 3)), jnp.float32)
        summary = jax.tree.map(np.asarray, acquisition.summarise(Predictions(logits, jnp.asarray(rows))))
        for available, query_size in ((whole & ~labelled, 6), (np.isin(np.arange(SIZE), [3, 8, 11, 40]), 6)):
            given = KEY, summary, jnp.asarray(available), query_size, jnp.asarray(labelled)
            expected, picked = acquisition.select(*given), acquisition.select.in_blocks(*given)
            same(picked.indices, expected.indices)
            close(picked.scores, expected.scores, rtol=1e-3)
            assert picked.indices.dtype == jnp.int32
    with pytest.raises(ValueError, match="which float32 cannot square: scale them"):
        acquisition.select.in_blocks(KEY, np.full((SIZE, 2), 1e15), whole, 2)
    with pytest.raises(ValueError, match="bait alone reads several"):
        acquisition.select.in_blocks(KEY, np.zeros((SIZE, 2, 2)), whole, 2)


def test_large_summaries_of_a_source_stay_in_numpy(monkeypatch):
    monkeypatch.setattr("baal_jax.loop._loop._MOST", 0)
    arrays, nearest_of = [], _kernel.nearest_of
    monkeypatch.setattr(_kernel, "nearest_of", lambda *given: arrays.append(given[0]) or nearest_of(*given))
    for acquisition in (selection.k_center(), selection.badge()):
        loop = loop_of(acquisition, query_size=(3, 5))
        expected = rounds(loop, TRAIN)
        arrays.clear()
        infos = rounds(loop, TRAIN._replace(inputs=data.View(TRAIN.inputs)))
        same(infos.indices, expected.indices)
        assert [type(features) for features in arrays] == [_kernel.Blocks] * 3
