"""The contract of every source: inputs that stay on the host and are read as they are needed give what arrays give."""

import re
import sys
import threading
from pathlib import Path

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
    scores = baal.score(KEY, POSTERIOR, STATE, source, heuristics.bald, **OPTIONS)
    assert all(isinstance(part, np.ndarray) for part in parts)
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


class Waits(WholeBatches):
    """Row 12, of the third block, is not read before the first batch is looked at; row 50 cannot be."""

    def __init__(self, rows):
        super().__init__(rows)
        self.asked, self.looked_at = [], threading.Event()

    def __getitems__(self, ids):
        self.asked.append(len(ids))
        assert 12 not in ids or self.looked_at.wait(60)
        if 50 in ids:
            raise IndexError("row 50 is broken")
        return super().__getitems__(ids)


def test_a_stream_reads_ahead_in_a_thread_that_ends_with_it(of_arrays, tmp_path, monkeypatch):
    for rows in (ROWS, jnp.asarray(ROWS), memory_map(ROWS, tmp_path)):
        parts = baal.predict_stream(KEY, POSTERIOR, STATE, rows, **OPTIONS)
        close(np.concatenate(list(parts), axis=1), of_arrays[0])
    monkeypatch.setattr(sources, "_BLOCK", 2 * 4 * ROWS[0].nbytes)  # of two batches
    threads, options = threading.active_count(), {"num_samples": DRAWS, "batch_size": 4}
    for goes_on in (False, True):
        source = Waits([*ROWS, *ROWS])
        stream = baal.predict_stream(KEY, POSTERIOR, STATE, source, **options)
        assert source.asked == []
        close(next(stream), of_arrays[0][:, :4])
        assert source.read == [*range(12)]
        source.looked_at.set()
        if goes_on:
            with pytest.raises(IndexError, match="row 50 is broken"):
                list(stream)
        stream.close()
        assert source.asked == [4, 8, 8, 8, 8, 8, 8][: 7 if goes_on else 3]
        assert threading.active_count() == threads


def test_a_source_is_one_program_whatever_is_left_over(of_arrays, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 2 * BATCH * (ROWS[0].nbytes + 4))
    traced = []

    def counted(logits):
        traced.append(logits.shape)
        return heuristics.bald(logits)

    for source in (data.View([*ROWS, *ROWS, ROWS[0]]), WholeBatches(ROWS)):
        scores = baal.score(KEY, POSTERIOR, STATE, source, counted, **OPTIONS)
        close(scores, np.resize(of_arrays[1], len(source)))
    assert {shape[1] for shape in traced} <= {1, BATCH}  # one row tells the shapes
    traced.clear()
    close(baal.score(KEY, POSTERIOR, STATE, data.View(ROWS), counted, **OPTIONS), of_arrays[1])
    assert traced == []


def test_reading_a_memory_map_keeps_none_of_its_pages_and_changes_no_copy(tmp_path):
    rows = memory_map(np.arange(2**22, dtype=np.float32).reshape(-1, 8), tmp_path)

    def resident():
        smaps = Path("/proc/self/smaps").read_text().split("rows.npy", 1)[1]
        return int(re.search(r"Rss:\s+(\d+) kB", smaps)[1])

    some = np.arange(0, len(rows), 100)
    for ids in (slice(None), some):
        same(sources.load(data.View(rows), ids), np.asarray(rows)[ids])
        if Path("/proc/self/smaps").exists():
            assert resident() > 1000
            sources.load(rows, ids)
            assert resident() == 0
    copy = np.load(tmp_path / "rows.npy", mmap_mode="c")
    copy[3] = -1.0
    for _ in range(2):
        same(sources.load(copy, np.array([3])), np.full((1, 8), -1.0, np.float32))


class HuggingFace:
    """With what ``datasets.Dataset`` has: rows are dicts of Python numbers and lists."""

    def __len__(self):
        return SIZE

    def __getitem__(self, key):
        if isinstance(key, int):
            return {"embedding": ROWS[key].tolist(), "label": key}
        return {"embedding": [ROWS[i].tolist() for i in key], "label": list(key)}

    def __getitems__(self, keys):
        batch = self[keys]
        return [{name: column[i] for name, column in batch.items()} for i in range(len(keys))]


class MapDataset:
    """With what ``grain.MapDataset`` has: slices are data sets, indices wrap around, what is filtered is None."""

    def __init__(self, keep=lambda index: True):
        self.keep = keep

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        assert type(index) is int
        return {"embedding": ROWS[index % SIZE]} if self.keep(index) else None


def test_data_sets_of_hugging_face_and_of_grain_are_sources(of_arrays):
    for source in (HuggingFace(), MapDataset()):
        view = data.View(source, lambda item: item["embedding"])
        scores = baal.score(KEY, POSTERIOR, STATE, view, heuristics.bald, **OPTIONS)
        close(scores, of_arrays[1], rtol=1e-5)
        same(sources.load(source, [3, 1])["embedding"], ROWS[[3, 1]].astype(scores.dtype))
    with pytest.raises(ValueError, match=r"source\[7\] is None: filter before"):
        sources.load(MapDataset(lambda index: index != 7), slice(5, 9))


def test_a_view_shows_its_progress_wherever_it_is_read(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    view = data.View(ROWS, progress=True)
    for read in (
        lambda view: baal.score(KEY, POSTERIOR, STATE, view, heuristics.bald, **OPTIONS),
        lambda view: list(baal.predict_stream(KEY, POSTERIOR, STATE, view, **OPTIONS)),
        lambda view: baal.encode(lambda rows: rows, view),
        lambda view: baal.score(KEY, POSTERIOR, STATE, data.View(view, ids=range(SIZE)), heuristics.bald, **OPTIONS),
    ):
        read(view)
        assert f"{SIZE}/{SIZE}" in capsys.readouterr().err
        read(data.View(ROWS))
        assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    read(view)
    assert capsys.readouterr().err == ""


def test_streams_refuse_empty_sources_and_wrong_sizes():
    with pytest.raises(ValueError, match="source is empty"):  # before anything is asked of the stream
        baal.predict_stream(KEY, POSTERIOR, STATE, [])
    for call in (
        lambda source, **options: list(baal.predict_stream(KEY, POSTERIOR, STATE, source, **options)),
        lambda source, **options: baal.score(KEY, POSTERIOR, STATE, source, heuristics.bald, **options),
    ):
        with pytest.raises(ValueError, match="source is empty"):
            call([])
        for name in ("batch_size", "num_samples"):
            with pytest.raises(ValueError, match=f"{name}=0"):
                call(ROWS, **{name: 0})
