"""Checkpoints: everything comes back bit for bit or an error says what is wrong. See also contracts/test_files.py."""

import dataclasses
import json
import os
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import checkpoint
from baal_jax._util import files
from baal_jax._util import random as random_util
from tests.fixtures import same

CONFIG = {"rate": 0.1, "layers": (1, 2), "out": Path("x")}


def opened(folder, config=CONFIG, **options):
    return checkpoint.checkpointer(folder, config, **options)


def refused(folder, config=CONFIG, **options):
    """What is said when a folder is not opened."""
    with pytest.raises(ValueError, match=r".") as caught, opened(folder, config, **options):
        pass
    return str(caught.value)


def assert_identical(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, jax.Array) and jnp.issubdtype(theirs.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(ours) == jax.random.key_impl(theirs)
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@jax.jit
def arrays():
    example_key = random_util.of_example(jax.random.key(6), jnp.ones(3))  # of an implementation without a name in jax
    return {
        "keys": jax.random.split(jax.random.key(4), (2, 3)),
        "other keys": jax.random.split(jax.random.key(5, impl="rbg"), 2),
        "keys of an example": jax.random.split(example_key, 2),
        "half": jnp.array([1.5, -0.0, jnp.nan], jnp.bfloat16),
        "bits": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "optimizer": optax.adam(1e-3).init({"w": jnp.ones((2, 2))}),
        "strange/name.with ['signs']": jnp.ones(1),
    }


def test_everything_comes_back_bit_for_bit_in_an_order_of_its_own(tmp_path):
    given = arrays()
    state = {**given, "bytes": np.arange(5, dtype=np.uint8), "doubles": np.array([0.1, np.inf])}
    state |= {"complex": np.array([1 + 2j], np.complex64), "nothing": None, "numbers": (1, 2.5, True)}
    with opened(tmp_path) as saved:
        assert saved.latest is None
        saved.save(0, state)
        assert_identical(saved.restore(state), state)
        with np.load(tmp_path / "step_00000000.npz") as plain:  # which others read too
            assert plain["['doubles'] float64 (2,)"].tolist() == [0.1, np.inf]
        saved.save(1, {"big endian": np.array([1, 2], ">i4"), "scalar": np.float64(1.5), "a": np.int32(3)})
        like = OrderedDict(scalar=np.float64(0), a=np.int32(0), **{"big endian": np.zeros(2, np.int32)})
        restored = saved.restore(like)
        assert [restored["scalar"], restored["scalar"].dtype, int(restored["a"])] == [1.5, np.float64, 3]
        assert restored["big endian"].tolist() == [1, 2]
        with pytest.raises(ValueError, match=r"\['scalar'\] float64 \(\) becomes float32 .* jax_enable_x64"):
            saved.restore({**like, "scalar": jax.ShapeDtypeStruct((), np.float64)})
        saved.save(2, given)
        like = jax.eval_shape(arrays)
        assert_identical(saved.restore(like), given)  # shapes alone are enough
        with pytest.raises(
            ValueError, match=r"key<\w+> \(2, 3\) is saved, but not.*key<\w+> \(2,\) is expected, but not"
        ):
            saved.restore({**like, "keys": like["keys of an example"]})


def test_of_a_pool_a_bit_an_example_and_the_rounds_of_labels_are_kept(tmp_path):
    state = baal.pool.exclude(baal.pool.label(baal.pool.init(100_003), [7, 100_002, 50_000]), [8])
    vectors = [np.array(some, np.int32) for some in ([], [-1], [3], [-1] * 9, [5] * 9, range(-4, 40))]
    with opened(tmp_path, keep=1) as saved:
        for number, kept in enumerate([state, *vectors, [np.arange(9, dtype=np.int32).reshape(3, 3) - 1]]):
            saved.save(number, kept)
            assert_identical(saved.restore(kept), kept)
            size = (tmp_path / f"step_{number:08d}.npz").stat().st_size
            assert size < (100_003 / 8 + 4 * 4 + 1500 if kept is state else 1500)


def test_a_placement_is_kept(tmp_path, mesh):
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis)) for axis in ("pool", None))
    rows, keys = np.arange(8.0, dtype=np.float32), jax.random.split(jax.random.key(0), 8)
    state = {"rows": jax.device_put(rows, split), "keys": jax.device_put(keys, whole)}
    with opened(tmp_path) as saved:
        saved.save(1, state)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        restored = saved.restore(like)
    assert [restored["rows"].sharding, restored["keys"].sharding] == [split, whole]
    assert_identical(restored, state)


def test_another_configuration_or_format_is_refused_with_every_difference_and_another_jax_is_said(tmp_path):
    values = {"rate": 0.1, "inner": (1, 2), "place": Path("a"), "deep": {"x": 1, "empty": {}}}
    config = dataclasses.make_dataclass("Config", values)(**values)
    for given in (config, {**values, "inner": [1, 2], "place": "a"}):
        with opened(tmp_path, given):
            pass
    said = refused(tmp_path, {"rate": 0.2, "inner": [1, 2], "deep": {"x": 1, "y": None, "empty": {}}})
    assert said.startswith(
        f"{tmp_path / 'config.json'} belongs to another configuration:\n  config.deep.y: saved nothing, now null\n"
    )
    assert '\n  config.place: saved "a", now nothing\n  config.rate: saved 0.1, now 0.2\nGo back' in said
    path = tmp_path / "config.json"
    record = files.read_json(path, "")
    files.write_json(path, record | {"versions": {"jax": "0.0.1", "jaxlib": record["versions"]["jaxlib"]}})
    said_first = r'another version of jax[^:]*:\n  versions.jax: saved "0.0.1"'
    with pytest.warns(UserWarning, match=said_first) as said, opened(tmp_path, config) as saved:
        saved.save(1, 1)
    assert said[0].filename == __file__  # where the folder is opened
    files.write_json(path, record | {"format": 2})
    assert f"{path} has format 2, but this version reads 3: use the one" in refused(tmp_path, config)
    assert r"config holds 'a\ud800', but '\ud800' cannot be written" in refused(tmp_path / "new", {"x": ["a\ud800"]})
    path.unlink()  # without checkpoints a folder may be anybody's
    assert "holds checkpoints but no config.json" in refused(tmp_path)


def test_a_state_of_another_shape_is_named_and_what_cannot_be_saved(tmp_path):
    saved_state = {"w": np.ones((2, 3), np.float32)}
    with opened(tmp_path) as saved:
        saved.save(1, saved_state)
        for like, words in (
            ({"w": np.zeros((2, 2), np.float32)}, r"\['w'\] float32 \(2, 2\)"),
            ({"w": np.zeros((2, 3), np.int32)}, r"\['w'\] int32 \(2, 3\)"),
            ({"w": jax.random.key(0)}, r"\['w'\] key<fry> \(\)"),
            ({"v": 1.0}, r"\['v'\] number float"),
            (saved_state["w"], r"the state float32 \(2, 3\)"),
        ):
            start = r"step_00000001.npz does not fit: \['w'\] float32 \(2, 3\) is saved, but not expected; "
            with pytest.raises(ValueError, match=f"{start}{words} is expected, but not saved$"):
                saved.restore(like)
        with pytest.raises(ValueError, match=r"fit: \['v'\] number int is expected, but not saved$"):
            saved.restore({**saved_state, "v": 1})
        for value in (object(), "text", np.array(["text"]), 1j, np.array("2020-01-01", "datetime64[D]")):
            with pytest.raises(ValueError, match=f"a {type(value).__name__} cannot be saved: only arrays"):
                saved.save(2, {"f": value})
        assert saved.latest == 1


@pytest.mark.parametrize(("keep", "left"), [(1, [7]), (2, [5, 7]), (9, [0, 1, 2, 5, 7])])
def test_numbers_count_upwards_and_only_the_newest_stay(keep, left, tmp_path):
    with opened(tmp_path, keep=keep) as saved:
        for place, number in enumerate((0, 1, 2, 5, 7)):
            saved.save(number, number)
            kept = sorted(int(path.stem[5:]) for path in tmp_path.glob("step_*"))
            assert kept == [0, 1, 2, 5, 7][: place + 1][-keep:]
        (tmp_path / "step_x.npz").touch()  # is no checkpoint
        assert [saved.latest, saved.restore(0)] == [7, 7]
        assert [saved.restore(0, number=number) for number in left] == left
        with pytest.raises(ValueError, match=rf"number=3 is not among the checkpoints \[{left[0]}"):
            saved.restore(0, number=3)
        for number in (7, 3):
            with pytest.raises(ValueError, match=f"number={number} does not come after checkpoint 7: count"):
                saved.save(number, 0)
        with pytest.raises(ValueError, match="number=-1"):
            saved.save(-1, 0)
        (tmp_path / "step_00000007.npz").write_bytes(b"PK")
        with pytest.raises(ValueError, match=r"step_00000007.npz: cannot be read .*: delete it to go on"):
            saved.restore(0)
    assert "keep=0" in refused(tmp_path, keep=0)
    with opened(tmp_path / "many", keep=keep) as saved:
        for number in (99_999_999, 100_000_000):  # as text they are the other way round
            saved.save(number, number)
        assert [saved.latest, saved.restore(0)] == [100_000_000] * 2


def test_what_a_failure_or_a_kill_left_is_removed_later_and_one_run_at_a_time_is_let_in(tmp_path, monkeypatch):
    unlink, removed = Path.unlink, []

    def fails(path):
        assert (tmp_path / "step_00000004.npz").exists()  # the new one is there before an old one goes
        removed.append(path.name)
        if len(removed) == 2:
            raise OSError("it cannot be removed")
        unlink(path)

    with opened(tmp_path, keep=3) as saved:
        for number in (1, 2, 3):
            saved.save(number, number)
    with opened(tmp_path, keep=1) as saved:
        monkeypatch.setattr(Path, "unlink", fails)
        with pytest.raises(OSError, match="cannot be removed"):
            saved.save(4, 4)
        monkeypatch.undo()
        assert removed == ["step_00000001.npz", "step_00000002.npz"]  # the oldest first
        assert [saved.latest, saved.restore(0), saved.restore(0, number=3)] == [4, 4, 3]
        saved.save(5, 5)
        assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000005.npz"]
        assert f"another process: wait for it (process {os.getpid()})" in refused(tmp_path)
    for name in (".step_00000006.npz.x4f_2ab9", ".step_00000005.npz.0"):  # of a process that was killed
        (tmp_path / name).write_bytes(b"PK")
    with opened(tmp_path) as saved:
        assert saved.latest == 5
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock", "step_00000005.npz"]


def test_lines_of_a_journal(tmp_path):
    path = tmp_path / "rounds.jsonl"
    checkpoint.keep_lines(path, 0)
    assert (checkpoint.read_lines(path), path.exists()) == ([], False)
    with pytest.raises(ValueError, match="holds 0 lines, but 1 belong to the checkpoint"):
        checkpoint.keep_lines(path, 1)
    for i in range(3):
        checkpoint.append_line(str(path), {"i": i, "values": np.array([0.1, np.nan], np.float32)})
    assert checkpoint.read_lines(path)[2] == {"i": 2, "values": [float(np.float32(0.1)), None]}
    checkpoint.keep_lines(path, 2)
    assert [line["i"] for line in checkpoint.read_lines(path)] == [0, 1]
    lines = path.read_bytes().splitlines(keepends=True)
    long = {"i": 2, "text": "x" * 500}
    checkpoint.append_line(path, {})
    checkpoint.append_line(path, long)
    with path.open("ab") as file:
        file.write(b'{"i": 3, "text": "' + b"y" * 500)  # of a process that died
    assert checkpoint.read_lines(path)[2:] == [{}, long]
    checkpoint.append_line(path, {"i": 3})
    assert checkpoint.read_lines(path)[2:] == [{}, long, {"i": 3}]
    checkpoint.append_line(path, {"crc": 1})
    assert checkpoint.read_lines(path)[5] == {"crc": 1}
    for wrong, number in ((lines[::-1], 1), (lines[1:], 1), ([lines[0], *lines], 2), ([lines[0], b'{"i": \n'], 2)):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(
            ValueError, match=rf"rounds.jsonl, line {number}: cannot be read .*: delete the file and its ch"
        ):
            checkpoint.keep_lines(path, 2)


def test_what_json_holds_is_plain():
    value = {1: np.float32(0.5), "a": (Path("x"), jnp.arange(2), float("-inf")), "b": [None, True, "s", np.nan, {}]}
    expected = {"1": 0.5, "a": ["x", [0, 1], None], "b": [None, True, "s", None, {}]}
    same(files.plain(value), expected)
    assert json.dumps(files.plain(value), allow_nan=False) == json.dumps(expected)
