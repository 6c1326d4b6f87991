"""The contract of every source: inputs that stay on the host and are read as they are needed give what arrays give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import data, heuristics, selection
from baal_jax._util import sources
from tests.contracts import members
from tests.fixtures import centroids, close, clouds, same

TRAIN, TEST = clouds()
ROWS, SIZE = TRAIN.inputs, len(TRAIN.inputs)
KEY, DRAWS, BATCH = jax.random.key(2), 5, 16


class OneByOne:
    """Examples of a folder, say."""

    def __init__(self, rows):
        self.rows, self.read = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError(f"{index!r} is not an int")
        self.read.append(index)
        return self.rows[index]


class WholeBatches(OneByOne):
    """As a torch or a TFDS source, asked for many examples at once."""

    def __getitem__(self, index):
        raise AssertionError("one example at a time")

    def __getitems__(self, ids):
        self.read.extend(ids)
        return [self.rows[i] for i in ids]


def memory_map(rows, folder):
    np.save(folder / "rows.npy", rows)
    return np.load(folder / "rows.npy", mmap_mode="r")


# Of the rows and a folder.
SOURCES = members(
    "sources",
    {
        "list": lambda rows, folder: list(rows),
        "one by one": lambda rows, folder: OneByOne(rows),
        "whole batches": lambda rows, folder: WholeBatches(rows),
        "memory map": memory_map,
        "view of a memory map": lambda rows, folder: data.View(memory_map(rows, folder)),
        "view of a part of every item": lambda rows, folder: data.View(
            [(row, 7) for row in rows], lambda item: item[0]
        ),
        "view of some": lambda rows, folder: data.View(WholeBatches([*rows[::-1], *rows]), ids=np.arange(SIZE)[::-1]),
    },
)


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    return SOURCES[request.param](ROWS, tmp_path)


POSTERIOR = centroids()
STATE = (np.eye(3, 4, dtype=np.float32), np.full(3, 9, np.float32))
OPTIONS = {"num_samples": DRAWS, "batch_size": BATCH}
LOOP = baal.active_loop(POSTERIOR, selection.top_k(heuristics.bald), query_size=3, **OPTIONS)


@pytest.fixture(scope="module")
def of_arrays():
    """What the arrays give."""
    options = {"num_samples": DRAWS, "batch_size": None}
    logits = baal.predict(KEY, POSTERIOR, STATE, ROWS, **options)
    state, picks = LOOP.init(KEY, TRAIN, num_initial=5), []
    for _ in range(2):
        state, info = LOOP.step(state, TRAIN)
        picks.append(info.indices)
    evaluated = baal.evaluate(KEY, POSTERIOR, STATE, TRAIN, **options)
    return np.asarray(logits), np.asarray(heuristics.bald(logits)), evaluated, np.stack(picks)


def test_predictions_come_in_order_and_batches_and_scores_and_metrics_are_those_of_the_arrays(source, of_arrays):
    assert sources.is_source(source)
    assert len(source) == SIZE
    parts = list(baal.predict_stream(KEY, POSTERIOR, STATE, source, **OPTIONS))
    assert [part.shape for part in parts] == [(DRAWS, 16, 3), (DRAWS, 16, 3), (DRAWS, 8, 3)]
    scores = baal.score_stream(KEY, POSTERIOR, STATE, source, heuristics.bald, **OPTIONS)
    assert all(isinstance(part, np.ndarray) for part in [*parts, scores])
    close((np.concatenate(parts, axis=1), scores), of_arrays[:2])
    for batch_size in (BATCH, None):
        options = OPTIONS | {"batch_size": batch_size}
        close(baal.score(KEY, POSTERIOR, STATE, source, heuristics.bald, **options), of_arrays[1])
    dataset = TRAIN._replace(inputs=source)
    for batch_size in (BATCH, None):
        options = OPTIONS | {"batch_size": batch_size}
        close(baal.evaluate(KEY, POSTERIOR, STATE, dataset, **options), of_arrays[2])
    with pytest.raises(ValueError, match=f"{SIZE} inputs, but targets of shape .{SIZE - 1}"):
        baal.evaluate(KEY, POSTERIOR, STATE, dataset._replace(targets=TRAIN.targets[1:]))


def test_rounds_pick_the_same_examples(source, of_arrays):
    dataset = baal.Dataset(source, np.asarray(TRAIN.targets))
    state, infos = baal.run(LOOP, KEY, dataset, None, num_initial=5, num_rounds=2)
    same(infos.indices, of_arrays[3])
    if isinstance(source, np.ndarray):  # which may be what a round is evaluated on, where other sources may not
        _, evaluated = baal.run(LOOP, KEY, dataset, dataset, num_initial=5, num_rounds=2)
        same(evaluated.indices, infos.indices)
        assert np.isfinite(evaluated.metrics["accuracy"]).all()
    with pytest.raises(ValueError, match="cannot be read inside jit"):
        jax.vmap(lambda state: LOOP.step(state, dataset))(jax.tree.map(lambda leaf: leaf[None], state))
    with pytest.raises(ValueError, match=f"dataset has {SIZE} inputs, but targets of shape .{SIZE - 1}"):
        LOOP.init(KEY, dataset._replace(targets=TRAIN.targets[1:]))


def test_examples_can_be_loaded_by_ids_and_tell_their_shapes(source):
    trees = [{"left": row[:2], "right": row[2:]} for row in ROWS]
    for items, expected in ((source, ROWS), (trees, {"left": ROWS[:, :2], "right": ROWS[:, 2:]})):
        for ids in ([7, 3, 3, 39], np.array([0]), slice(30, 40)):
            same(sources.load(items, ids), jax.tree.map(lambda leaf, ids=ids: leaf[ids], expected))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), expected)
        assert sources.shapes_of(items) == shapes


def test_what_is_a_source_and_what_a_view_reads(tmp_path):
    assert not sources.is_source(np.asarray(memory_map(ROWS, tmp_path)))  # in memory
    for inputs in (ROWS, jnp.zeros(2), np.float32(3), jax.ShapeDtypeStruct((3,), jnp.float32), {"a": ROWS}, (ROWS,), 3):
        assert not sources.is_source(inputs)
    for inputs in ([], [ROWS], "text", data.View(ROWS), OneByOne(ROWS), memory_map(ROWS, tmp_path)):
        assert sources.is_source(inputs)
    # A view reads what is asked for.
    rows = OneByOne([(10.0 * i, i) for i in range(6)])
    view = data.View(rows, lambda item: item[0], ids=[4, -1, 2])  # −1 is padding and reads the first
    assert len(view) == 3
    assert [view[0], view[1], view[np.int64(2)], *view.__getitems__([2, 0])] == [40.0, 0.0, 20.0, 20.0, 40.0]
    assert rows.read == [4, 0, 2, 2, 4]
    assert (len(data.View(rows)), data.View(rows)[5]) == (6, (50.0, 5))
    same(data.View(jnp.asarray(ROWS))[1], ROWS[1])
    together = WholeBatches(ROWS)
    same(np.stack(data.View(together, ids=[9, 8, 7]).__getitems__(range(2))), ROWS[[9, 8]])
    assert together.read == [9, 8]


def test_a_stream_slices_arrays_and_reads_no_further_than_one_batch_ahead(of_arrays, tmp_path):
    for rows in (ROWS, jnp.asarray(ROWS), memory_map(ROWS, tmp_path)):
        parts = baal.predict_stream(KEY, POSTERIOR, STATE, rows, **OPTIONS)
        close(np.concatenate(list(parts), axis=1), of_arrays[0])
    source = WholeBatches(ROWS)
    stream = baal.predict_stream(KEY, POSTERIOR, STATE, source, **OPTIONS)
    assert source.read == []
    for read in (32, 40, 40):
        next(stream)
        assert source.read == [*range(read)]
    assert next(stream, None) is None


def test_streams_refuse_empty_sources_and_wrong_sizes():
    with pytest.raises(ValueError, match="source is empty"):  # before anything is asked of the stream
        baal.predict_stream(KEY, POSTERIOR, STATE, [])
    for call in (
        lambda source, **options: list(baal.predict_stream(KEY, POSTERIOR, STATE, source, **options)),
        lambda source, **options: baal.score_stream(KEY, POSTERIOR, STATE, source, heuristics.bald, **options),
    ):
        for empty in ([], np.zeros((0, 4))):
            with pytest.raises(ValueError, match="source is empty"):
                call(empty)
        for name in ("batch_size", "num_samples"):
            with pytest.raises(ValueError, match=f"{name}=0"):
                call(ROWS, **{name: 0})
