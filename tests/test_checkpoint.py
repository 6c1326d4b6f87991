"""Checkpoints: everything comes back bit for bit or an error says what is wrong; a kill at any moment loses nothing."""

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import checkpoint, heuristics, posteriors, selection
from baal_jax._util import files
from baal_jax._util import random as random_util

CONFIG = {"rate": 0.1, "layers": (1, 2), "out": Path("x")}


def assert_identical(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, jax.Array) and jnp.issubdtype(theirs.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(ours) == jax.random.key_impl(theirs)
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        assert np.shape(ours) == np.shape(theirs)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def example_key(seed):
    """A key of an implementation that jax has no name for."""
    return random_util.of_example(jax.random.key(seed), jnp.ones(3))


def everything():
    return {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), (2, 3)),
        "other keys": jax.random.split(jax.random.key(5, impl="rbg"), 2),
        "keys of an example": jax.random.split(example_key(6), 2),
        "half": jnp.array([1.5, -0.0, jnp.nan], jnp.bfloat16),
        "bits": jnp.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
        "doubles": np.array([0.1, np.inf]),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.int32(7),
        "nothing": None,
        "numbers": (1, 2.5, True),
        "optimizer": optax.adam(1e-3).init({"w": jnp.ones((2, 2))}),
        "empty tuple": (),
        "strange/name.with ['signs']": jnp.ones(1),
    }


def test_everything_comes_back_bit_for_bit(tmp_path):
    state = everything()
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        assert saved.latest is None
        saved.save(0, state)
        assert saved.latest == 0
        assert_identical(saved.restore(state), state)
    like = jax.tree.map(lambda leaf: leaf if isinstance(leaf, int | float | np.ndarray) else jnp.zeros_like(leaf), {
        name: leaf for name, leaf in state.items() if "key" not in name
    })  # fmt: skip
    with (
        checkpoint.checkpointer(tmp_path, CONFIG) as saved,
        pytest.raises(ValueError, match=r"\['key'\] key<fry> \(\) is saved"),
    ):
        saved.restore(like)


@pytest.mark.parametrize("make_key", [jax.random.key, example_key])
def test_shapes_alone_are_enough(make_key, tmp_path):
    def make():
        return {"key": jax.random.split(make_key(0), 2), "w": jnp.arange(6.0).reshape(2, 3)}

    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(5, make())
        assert_identical(saved.restore(jax.eval_shape(make)), make())


def test_keys_of_another_implementation_are_refused(tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, jax.random.key(0))
        with pytest.raises(
            ValueError, match=r"key<fry> \(\) is saved, but not expected; .* key<bha> \(\) is expected, but not"
        ):
            saved.restore(example_key(0))


def test_a_placement_is_kept(tmp_path, mesh):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pool"))
    state = jax.device_put(jnp.arange(8.0), sharding)
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, state)
        restored = saved.restore(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding))
    assert restored.sharding == sharding
    assert_identical(restored, state)


@pytest.fixture(scope="module")
def loop():
    net = nn.Sequential([nn.Dense(4), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(2)])
    trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=3, batch_size=4)
    posterior = posteriors.mc_dropout(baal.from_linen(net), trainer)
    return baal.active_loop(posterior, selection.power(heuristics.bald), query_size=2, num_samples=3)


def test_a_run_of_several_seeds_continues_bit_for_bit(loop, tmp_path):
    rng = np.random.default_rng(0)
    data = baal.Dataset(jnp.asarray(rng.normal(size=(16, 3)), jnp.float32), jnp.asarray(rng.integers(0, 2, 16)))
    keys = jax.random.split(jax.random.key(0), 2)

    def start():
        return jax.vmap(lambda key: loop.init(key, data, 4))(keys)

    advance = jax.jit(jax.vmap(lambda state: baal.run(loop, None, data, num_rounds=1, state=state)[0]))
    straight = advance(advance(advance(start())))
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, advance(start()))
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        resumed = saved.restore(jax.eval_shape(start))
    assert_identical(advance(advance(resumed)), straight)


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    @dataclasses.dataclass
    class Config:
        rate: float = 0.1
        inner: tuple = (1, 2)
        place: Path = Path("a")

    with checkpoint.checkpointer(tmp_path, Config()):
        pass
    with checkpoint.checkpointer(tmp_path, {"rate": 0.1, "inner": [1, 2], "place": "a"}):
        pass
    with (
        pytest.raises(ValueError, match="another configuration") as caught,
        checkpoint.checkpointer(tmp_path, {"rate": 0.2, "inner": [1, 2], "new": {"x": 1}}),
    ):
        pass
    message = str(caught.value)
    assert "rate: saved 0.1, now 0.2" in message
    assert 'place: saved "a", now nothing' in message
    assert "new.x: saved nothing, now 1" in message
    assert "inner" not in message
    assert "delete" in message


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_format_is_refused_and_another_jax_is_said(tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG):
        pass
    change_config(tmp_path, versions={"jax": "0.0.1", "jaxlib": "0.0.1"})
    with pytest.warns(UserWarning, match="0.0.1"), checkpoint.checkpointer(tmp_path, CONFIG):
        pass
    change_config(tmp_path, format=99)
    with pytest.raises(ValueError, match="format: saved 99, now 2"), checkpoint.checkpointer(tmp_path, CONFIG):
        pass


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"w": jnp.zeros((2, 2))}, r"\['w'\] float32 \(2, 2\) is expected, but not saved"),
        ({"w": jnp.zeros((2, 3), jnp.int32)}, r"\['w'\] int32 \(2, 3\) is expected"),
        ({"w": jax.random.key(0)}, r"\['w'\] key<fry> \(\) is expected"),
        ({"w": 1.0}, r"\['w'\] number float is expected"),
        ({"v": jnp.zeros((2, 3))}, r"\['v'\] float32 \(2, 3\) is expected, but not saved"),
    ],
)
def test_a_state_of_another_shape_is_named(like, message, tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, {"w": jnp.ones((2, 3))})
        with pytest.raises(ValueError, match=message) as caught:
            saved.restore(like)
        assert re.search(
            r"step_00000001.npz does not fit: \['w'\] float32 \(2, 3\) is saved, but not", str(caught.value)
        )
        with pytest.raises(ValueError, match=r"\['v'\] float32 \(1,\) is expected, but not saved"):
            saved.restore({"w": jnp.zeros((2, 3)), "v": jnp.ones(1)})


def test_numbers_count_upwards_and_only_the_newest_stay(tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG, keep=2) as saved:
        for number in (1, 2, 5):
            saved.save(number, jnp.int32(number))
        assert saved.latest == 5
        assert int(saved.restore(jnp.int32(0), number=2)) == 2
        with pytest.raises(ValueError, match=r"number=1 is not among the checkpoints \[2, 5\]"):
            saved.restore(jnp.int32(0), number=1)
        for number in (5, 3):
            with pytest.raises(ValueError, match=f"number={number} does not come after checkpoint 5"):
                saved.save(number, jnp.int32(0))
        with pytest.raises(ValueError, match="number=-1"):
            saved.save(-1, jnp.int32(0))
    with pytest.raises(ValueError, match="keep=0"), checkpoint.checkpointer(tmp_path, CONFIG, keep=0):
        pass


def test_what_cannot_be_saved_is_refused(tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        with pytest.raises(ValueError, match="cannot be saved"):
            saved.save(1, {"f": object()})
        for value in ("text", np.array(["text"]), 1j, np.array("2020-01-01", "datetime64[D]")):
            with pytest.raises(ValueError, match="cannot be saved"):
                saved.save(1, {"f": value})
        assert saved.latest is None


def test_numpy_scalars_and_foreign_byte_orders_keep_their_value(tmp_path):
    state = {
        "scalar": np.float64(1.5),
        "big endian": np.array([1, 2], ">i4"),
        "complex": np.array([1 + 2j], np.complex64),
    }
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, state)
        restored = saved.restore(state)
        assert restored["scalar"] == 1.5
        assert restored["scalar"].dtype == np.float64
        assert restored["big endian"].tolist() == [1, 2]
        assert restored["complex"].tolist() == [1 + 2j]
        with pytest.raises(ValueError, match=r"\['scalar'\] float64 \(\) becomes float32 .* jax_enable_x64"):
            saved.restore({**state, "scalar": jax.ShapeDtypeStruct((), np.float64)})


def test_every_damaged_file_is_noticed(tmp_path):
    state = {"w": jnp.arange(1000.0), "n": jnp.int32(3)}
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, state)
        saved.save(2, state)
        newest = tmp_path / "step_00000002.npz"
        content, noticed = newest.read_bytes(), 0
        places = [*range(len(content) // 2, len(content) // 2 + 3), *range(0, len(content), 41)]
        for place in places:
            newest.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
            try:
                restored = saved.restore(state)
            except ValueError as error:
                noticed += "step_00000002.npz is damaged" in str(error) and "Delete this file" in str(error)
            else:
                assert_identical(restored, state)  # a byte that is not read: nothing is wrong
        assert noticed > 0.9 * len(places)
        for damaged in (content[: len(content) // 2], b""):
            newest.write_bytes(damaged)
            with pytest.raises(ValueError, match="damaged"):
                saved.restore(state)
        assert_identical(saved.restore(state, number=1), state)


def test_left_overs_of_a_killed_save_are_ignored_and_removed(tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, jnp.int32(1))
    for name in (".step_00000002.npz.x4f_2ab9", ".step_00000001.npz.0"):
        (tmp_path / name).write_bytes(b"PK")
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        assert saved.latest == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "lock", "step_00000001.npz"]


def test_checkpoints_without_their_configuration_are_refused(tmp_path):
    with checkpoint.checkpointer(tmp_path, CONFIG) as saved:
        saved.save(1, jnp.int32(1))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"), checkpoint.checkpointer(tmp_path, CONFIG):
        pass


def test_one_run_at_a_time_in_one_process(tmp_path):
    again = pytest.raises(RuntimeError, match=rf"another run works in .*process {os.getpid()}")
    with checkpoint.checkpointer(tmp_path, CONFIG), again, checkpoint.checkpointer(tmp_path, CONFIG):
        pass
    with checkpoint.checkpointer(tmp_path, CONFIG):
        pass


SCRIPT = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np
from baal_jax import checkpoint
folder, journal, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
with checkpoint.checkpointer(folder, {"size": size}) as saved:
    like = {"round": np.zeros((), np.int64), "rows": np.zeros(size, np.int64)}
    number = saved.latest or 0
    if number:
        state = saved.restore(like)
        assert int(state["round"]) == number and (state["rows"] == np.arange(size) * number).all(), number
    checkpoint.keep_lines(journal, number)
    assert [line["number"] for line in checkpoint.read_lines(journal)] == list(range(1, number + 1))
    print("ready", number, flush=True)
    while True:
        number += 1
        checkpoint.append_line(journal, {"number": number, "filler": list(range(200))})
        saved.save(number, {"round": np.array(number), "rows": np.arange(size) * number})
"""


def start(folder, journal, size=20_000):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(journal), str(size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line.startswith("ready"):
        raise AssertionError(process.communicate()[1])
    return process, int(line.split()[1])


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_kills_lose_nothing_that_was_saved(tmp_path):
    chance, reached = random.Random(0), 0
    for _ in range(6):
        process, number = start(tmp_path / "run", tmp_path / "rounds.jsonl")  # asserts what it finds
        assert number >= reached
        reached = number
        time.sleep(chance.uniform(0.0, 0.6))
        kill(process)
    assert reached > 0


def test_a_second_process_is_kept_out_until_the_first_is_dead(tmp_path):
    process, _ = start(tmp_path / "run", tmp_path / "rounds.jsonl")
    try:
        with pytest.raises(RuntimeError, match=f"process {process.pid}"):
            checkpoint.checkpointer(tmp_path / "run", {"size": 20_000}).__enter__()
    finally:
        kill(process)
    with checkpoint.checkpointer(tmp_path / "run", {"size": 20_000}):
        pass


def test_journal_lines(tmp_path):
    path = tmp_path / "deeper" / "rounds.jsonl"
    assert checkpoint.read_lines(path) == []
    checkpoint.keep_lines(path, 0)
    with pytest.raises(ValueError, match="holds 0 lines, but 1"):
        checkpoint.keep_lines(path, 1)
    for i in range(3):
        checkpoint.append_line(path, {"i": i, "values": np.array([0.1, np.nan], np.float32)})
    assert checkpoint.read_lines(path)[2] == {"i": 2, "values": [float(np.float32(0.1)), None]}
    with path.open("a") as file:
        file.write('{"i": 3, "val')  # killed while writing
    assert len(checkpoint.read_lines(path)) == 3
    checkpoint.keep_lines(path, 2)
    assert path.read_text().endswith("\n")
    checkpoint.append_line(path, {"i": 9})
    assert [line["i"] for line in checkpoint.read_lines(path)] == [0, 1, 9]
    path.write_text('{"i": 1}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is not JSON"):
        checkpoint.read_lines(path)


def test_text_is_whole_or_not_there(tmp_path, monkeypatch):
    path = files.write_text(tmp_path / "a.txt", "one")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_text(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
