"""Embeddings once: what they are, what a cache is of, and that an end at any moment changes no byte of it.

Kills, full disks, moved folders and damaged files are those of ``tests/contracts/test_files.py``.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax._util import files
from baal_jax.features import _encode
from tests.contracts.test_sources import OneByOne

ROWS = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)
EXPECTED = np.tanh(ROWS.astype(np.float64) @ WEIGHTS)


def apply(inputs):
    return jnp.tanh(inputs @ WEIGHTS)


def read_only(path):
    return np.load(path, mmap_mode="r")


def test_rows_are_those_of_the_function_whatever_holds_the_inputs_and_one_program_serves_all(tmp_path):
    np.save(tmp_path / "inputs.npy", ROWS)
    shapes = []

    def traced(inputs):
        shapes.append(jax.tree.map(np.shape, inputs))
        return apply(inputs["x"] if isinstance(inputs, dict) else inputs)

    in_all = [ROWS, jnp.asarray(ROWS), {"x": ROWS}, [*ROWS], OneByOne(ROWS), read_only(tmp_path / "inputs.npy")]
    for number, inputs in enumerate(in_all):
        for cache in (None, tmp_path / "runs" / f"{number}.npy"):  # whose folder is made
            shapes.clear()
            embeddings = baal.encode(traced, inputs, batch_size=4, cache=cache)
            assert len(shapes) == 2  # to look at it, and for batches of 4, of which the last one is padded
            np.testing.assert_allclose(embeddings, EXPECTED, rtol=1e-6, atol=1e-6)
            assert embeddings.dtype == np.float32
        assert isinstance(embeddings, np.memmap)
        assert not embeddings.flags.writeable
    contents = {path.read_bytes() for path in (tmp_path / "runs").glob("*.npy")}
    assert len(contents) == 1
    assert not [*(tmp_path / "runs").glob(".*.partial")]


def test_half_precision_is_widened_as_npy_holds_no_bfloat16(tmp_path):
    for dtype in (jnp.bfloat16, jnp.float16):
        cast = lambda inputs, dtype=dtype: inputs.astype(dtype)  # noqa: E731
        embeddings = baal.encode(cast, ROWS, cache=tmp_path / f"{jnp.dtype(dtype).name}.npy")
        assert embeddings.dtype == np.float32
        np.testing.assert_array_equal(embeddings, np.asarray(jnp.asarray(ROWS).astype(dtype), np.float32))


def test_a_finished_cache_is_read_and_nothing_is_computed(tmp_path, monkeypatch):
    cache = str(tmp_path / "rows.npy")
    first = baal.encode(apply, ROWS, cache=cache)
    source = OneByOne(ROWS)
    with monkeypatch.context() as patched:
        patched.setattr(_encode, "_encoded", None)
        for inputs, batch_size in ((ROWS, 256), (ROWS, 2), (jnp.asarray(ROWS), 256), (source, 5)):
            np.testing.assert_array_equal(baal.encode(apply, inputs, batch_size, cache=cache), first)
    assert len(source.read) == 16
    (tmp_path / "rows.npy").unlink()  # and without it all is computed again
    np.testing.assert_array_equal(baal.encode(apply, ROWS, cache=cache), first)


def closing_over(weights):
    """The same function of the same weights, hidden in different ways."""
    weights = jnp.asarray(weights)
    inner = jax.jit(lambda inputs: inputs @ weights)
    reference, key = jax.new_ref(weights), jax.random.key(int(1e4 * abs(weights[0, 0])))
    last = lambda inputs: jax.lax.scan(lambda carry, _: (carry, carry @ weights), inputs, None, length=2)[1][1]  # noqa: E731
    return {
        "closure": lambda inputs: inputs @ weights,
        "compiled before": inner,
        "compiled before, deeper": jax.jit(lambda inputs: jax.nn.relu(inner(inputs))),
        "numpy": lambda inputs: inputs @ np.asarray(weights),
        "reference": lambda inputs: inputs @ reference[...],
        "scan": last,
        "cond": lambda inputs: jax.lax.cond(inputs[0, 0] > 0, inner, lambda inputs: 2 * inner(inputs), inputs),
        "key": lambda inputs: inputs + jax.random.normal(key, (3,))[None],
    }


@pytest.mark.parametrize("how", closing_over(WEIGHTS))
def test_a_cache_of_other_weights_is_refused_wherever_they_hide(how, tmp_path):
    cache = tmp_path / "rows.npy"
    for _ in range(2):
        kept = baal.encode(closing_over(WEIGHTS)[how], ROWS, cache=cache)
    content = cache.read_bytes()
    other = WEIGHTS.copy()
    other[0, 0] = np.nextafter(other[0, 0], np.inf) if how != "key" else 0
    with pytest.raises(
        ValueError, match=r"rows.npy' .* another encoder .*\(encoder\): give another .* delete rows.npy"
    ):
        baal.encode(closing_over(other)[how], ROWS, cache=cache)
    assert cache.read_bytes() == content
    assert kept.shape == baal.encode(closing_over(other)[how], ROWS, cache=tmp_path / "another.npy").shape


def changed(row, column):
    rows = ROWS.copy()
    rows[row, column] += 1
    return rows


@pytest.mark.parametrize(
    ("apply_other", "inputs", "what"),
    [
        (lambda inputs: jnp.sinh(inputs @ WEIGHTS), ROWS, "encoder"),
        (lambda inputs: jnp.tanh(inputs @ WEIGHTS[:, :1]), ROWS, "shape"),
        (apply, changed(7, 1), "inputs"),
        (apply, ROWS[::-1], "inputs"),
        (apply, ROWS[:-1], "inputs"),
        (apply, ROWS.astype(np.float64), "inputs"),
        (apply, [*changed(20, 2)], "inputs"),  # of a source the last row is looked at
    ],
)
def test_a_cache_of_another_program_or_other_inputs_is_refused(apply_other, inputs, what, tmp_path):
    cache = tmp_path / "rows.npy"
    baal.encode(apply, ROWS, cache=cache)
    with pytest.raises(ValueError, match=rf"rows.npy' holds .*\({what}\): give another"):
        baal.encode(apply_other, inputs, cache=cache)
    np.testing.assert_allclose(baal.encode(apply, ROWS, cache=cache), EXPECTED, rtol=1e-6, atol=1e-6)


def test_weights_that_change_between_calls_are_seen(tmp_path):
    held = {"weights": jnp.asarray(WEIGHTS)}
    network = lambda inputs: inputs @ held["weights"]  # noqa: E731
    first = baal.encode(network, ROWS, cache=tmp_path / "rows.npy")
    held["weights"] = held["weights"] * 2
    np.testing.assert_allclose(baal.encode(network, ROWS), 2 * first, rtol=1e-6)
    with pytest.raises(ValueError, match="encoder"):
        baal.encode(network, ROWS, cache=tmp_path / "rows.npy")


def test_what_is_no_embedding_is_refused_with_the_cure():
    for wrong in (lambda x: x.sum(), lambda x: x[:, 0], lambda x: (x, x), lambda x: x[:5], lambda x: x[..., None]):
        with pytest.raises(ValueError, match=r"apply returns .* floats \[B, D\] are needed"):
            baal.encode(wrong, ROWS)
    with pytest.raises(ValueError, match=r"apply returns .*int32"):
        baal.encode(lambda x: x.astype(jnp.int32), ROWS)
    with pytest.raises(ValueError, match=r"non-finite embeddings of inputs \[13, 20\]"):
        baal.encode(lambda x: 1 / (x - ROWS[13:14]), ROWS[[*range(20), 13]], batch_size=21)
    with pytest.raises(TypeError, match="apply=3 must be a function"):
        baal.encode(3, ROWS)  # pyright: ignore[reportArgumentType]
    for empty in ([], ROWS[:0]):
        with pytest.raises(ValueError, match="inputs is empty"):
            baal.encode(apply, empty)
    with pytest.raises(ValueError, match="batch_size=0"):
        baal.encode(apply, ROWS, 0)
    with pytest.raises(ValueError, match="one common leading axis"):
        baal.encode(lambda x: x["a"], {"a": ROWS, "b": ROWS[1:]})


def test_rows_that_are_not_finite_end_it_and_are_never_kept(tmp_path):
    rows = ROWS.copy()
    rows[9] = np.nan
    with pytest.raises(ValueError, match=r"inputs \[9\]"):
        baal.encode(apply, rows, 4, cache=tmp_path / "rows.npy")
    assert not (tmp_path / "rows.npy").exists()


def test_a_cache_is_written_by_one_process_and_others_are_told(tmp_path):
    pytest.importorskip("fcntl")
    with files.lock(tmp_path, ".rows.npy.lock"):
        baal.encode(apply, ROWS, cache=tmp_path / "another.npy")
        with pytest.raises(ValueError, match="written to by another process: wait for it"):
            baal.encode(apply, ROWS, cache=tmp_path / "rows.npy")


def test_a_change_of_rows_that_were_read_before_the_end_is_refused(tmp_path, monkeypatch):
    """A process ended in the middle; what it had read is compared, what it had not may be anything."""
    monkeypatch.setattr(_encode, "_EVERY", -1.0)
    cache, reads = tmp_path / "rows.npy", []

    class Ends(OneByOne):
        def __getitem__(self, index):
            reads.append(index)
            if len(reads) > 16 + 12:
                raise EOFError
            return super().__getitem__(index)

    with pytest.raises(EOFError):
        baal.encode(apply, Ends(ROWS), 4, cache=cache)
    record = json.loads((tmp_path / "rows.npy.json").read_text())
    assert 0 < record["rows"] < len(ROWS)
    assert not cache.exists()
    looked_at = np.linspace(0, 20, 16).astype(int)
    unseen = [row for row in range(21) if row not in looked_at]
    with pytest.raises(ValueError, match=r"\(inputs\)"):
        baal.encode(apply, changed(unseen[0], 0), 4, cache=cache)
    again = OneByOne(ROWS)
    np.testing.assert_allclose(baal.encode(apply, again, 4, cache=cache), EXPECTED, rtol=1e-6, atol=1e-6)
    assert again.read[16:] == [*range(record["rows"], 21)]  # no row twice


def test_a_bar_is_shown_after_two_seconds_and_nothing_is_needed_for_it(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    baal.encode(apply, ROWS, 4)
    assert capsys.readouterr().err == ""
    clock = iter(np.arange(0.0, 1e4, 3.0).tolist())
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    baal.encode(apply, ROWS, 4)
    assert "encode" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    np.testing.assert_allclose(baal.encode(apply, ROWS, 4), EXPECTED, rtol=1e-6, atol=1e-6)
