"""Vectorised keys give jax's bits, keys of examples good ones; shuffling without a table is a uniform permutation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from baal_jax._util import random
from tests.fixtures import same

KEYS = [jax.random.key(0), jax.random.key(2**32 - 1), jax.random.fold_in(jax.random.key(7), 123)]


def data(key):
    return np.asarray(jax.random.key_data(key))


# vectorised


@jax.jit
def everything(key):
    """What a key is used for, in one program: bits of every width and shape, and further keys."""
    fold, dtypes = functools.partial(jax.random.fold_in, key), ("uint8", "uint16", "uint32")
    return {
        "bits": [jax.random.bits(key, shape, dtype) for shape in ((), (0,), (3, 5, 2)) for dtype in dtypes],
        "split": [jax.random.key_data(jax.random.split(key, shape)) for shape in (2, 5, (2, 3))],
        "fold": [jax.random.key_data(fold(number)) for number in (0, 1, 2**31 - 1, np.uint32(2**32 - 1))],
        "uniform": jax.random.uniform(fold(2), (4, 3)),
    }


def test_whatever_is_drawn_is_what_jax_draws_mapped_and_compiled_or_not(key):
    together = jax.jit(jax.vmap(lambda key: everything(random.vectorised(key))))(jnp.stack(KEYS))
    for place, alone in enumerate(KEYS):
        same(jax.tree.map(lambda leaf, place=place: np.asarray(leaf)[place], together), everything(alone))
    fast = random.vectorised(KEYS[1])
    assert jax.random.key_impl(fast) != jax.random.key_impl(KEYS[1])
    same(everything(fast), everything(KEYS[1]))
    fold = jax.jit(lambda key, number: jax.random.key_data(jax.random.fold_in(key, number)))
    for number in (3, -1):  # traced
        same(fold(random.vectorised(KEYS[2]), np.int32(number)), fold(KEYS[2], np.int32(number)))
    # One key for a whole batch.
    many = jax.jit(jax.vmap(lambda key, i: jax.random.bits(jax.random.fold_in(key, i)), (None, 0)))
    same(many(random.vectorised(KEYS[0]), np.arange(5)), many(KEYS[0], np.arange(5)))
    with jax.enable_x64(True):
        bits = jax.jit(lambda key: jax.random.bits(key, (3, 5), jnp.uint64))
        wide = bits(random.vectorised(KEYS[2]))
        assert wide.dtype == jnp.uint64
        same(wide, bits(KEYS[2]))
    for other in (jax.random.key(0, impl="rbg"), jax.random.key(0, impl="unsafe_rbg"), fast):
        assert random.vectorised(other) is other


def test_too_many_words_of_one_key_are_an_error(key):
    for make in (random.vectorised, lambda key: random.of_example(key, EXAMPLES[0])):
        with pytest.raises(ValueError, match="split the key"):
            jax.jit(lambda key, make=make: jax.random.bits(make(key), (2**16, 2**16))).lower(key)


def test_no_key_is_used_twice(key, key_reuse):
    jax.jit(lambda key: jax.random.bernoulli(random.vectorised(key), 0.5, (3,)))(jax.random.key(2))
    jax.jit(lambda key: jax.random.bernoulli(random.of_example(key, EXAMPLES[0]), 0.5, (3,)))(jax.random.key(3))
    jax.jit(lambda key: random.shuffled(key, jnp.int32(0), jnp.int32(3)))(jax.random.key(4))


# keys of examples


EXAMPLES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
of_example = jax.jit(random.of_example)


def test_bits_of_an_example_are_the_hash_as_written_in_every_width(key):
    def mix(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    hashed = of_example(key, EXAMPLES[0])
    first, second = (int(word) for word in data(hashed))
    expected = np.array([mix((mix(counter ^ first) + second) % 2**32) for counter in range(24)], np.uint32)
    bits = lambda key: [jax.random.bits(key, (3, 4), dtype) for dtype in (jnp.uint8, jnp.uint16, jnp.uint32)]  # noqa: E731
    for alone, mapped in zip(*jax.jit(lambda key: (bits(key), jax.vmap(bits)(key[None])))(hashed), strict=True):
        same(alone, expected[:12].astype(alone.dtype).reshape(3, 4))
        same(mapped, alone[None])
    with jax.enable_x64(True):  # of two words, the first half of them high
        wide = jax.jit(lambda key: jax.random.bits(key, (12,), jnp.uint64))(hashed)
    same(wide, (expected[:12].astype(np.uint64) << np.uint64(32)) | expected[12:])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_examples_depend_on_key_and_example_only(impl):
    keys = [jax.random.key(seed, impl=impl) for seed in (0, 1)]
    expected = [[data(of_example(key, example)) for example in EXAMPLES] for key in keys]
    together = jax.jit(jax.vmap(lambda key, row: jax.random.key_data(random.of_example(key, row)), (None, 0)))
    same(np.stack([together(key, EXAMPLES) for key in keys]), np.array(expected))
    assert len(np.unique(np.reshape(expected, (10, 2)), axis=0)) == 10


def test_a_key_of_an_example_and_its_new_keys_are_those_of_jax():
    hashed = of_example(KEYS[2], EXAMPLES[0])
    plain = jax.random.wrap_key_data(jax.random.bits(KEYS[2], (2,), jnp.uint32))
    plain = jax.random.fold_in(plain, random.hashed(EXAMPLES[0]))
    same(data(hashed), data(plain))
    ours, theirs = everything(hashed), everything(plain)
    for part in ("split", "fold"):
        same(ours[part], theirs[part])
    assert not np.array_equal(ours["bits"][-1], theirs["bits"][-1])
    assert random.vectorised(hashed) is hashed
    one, two = np.float32([1, 2, 3]), np.float32([3, 2, 1])  # places and leaves matter
    trees = [one, two, (one, two), (two, one), (one, one), {"a": one, "b": 0 * one}, np.zeros(3), np.zeros(4)]
    assert len({int(random.hashed(tree)) for tree in trees}) == 8


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "float32", "complex64", "int64"])
def test_every_bit_changes_the_hash(dtype):
    example = np.arange(6).reshape(2, 3).astype(dtype)
    width = 1 if dtype == "bool" else 8 * example.dtype.itemsize
    rows = [example]
    for place in range(6):
        for bit in range(width):
            changed = example.reshape(-1).copy()
            changed.view(np.uint8)[place * example.dtype.itemsize + bit // 8] ^= np.uint8(1 << bit % 8)
            rows.append(changed.reshape(2, 3))
    with jax.enable_x64(True):
        hashes = np.asarray(jax.jit(jax.vmap(random.hashed))(np.stack(rows)))
    assert hashes.dtype == np.uint32
    assert len(np.unique(hashes)) == 1 + 6 * width


# shuffled


@functools.partial(jax.jit, static_argnums=2)
def places(seeds, size, length):
    """Where positions ``0 … length − 1`` stand, by seed; ``size`` is traced, so one program serves many sizes."""
    keys, positions = jax.vmap(jax.random.key)(seeds), jnp.arange(length)
    return jax.vmap(lambda key: jax.vmap(lambda position: random.shuffled(key, position, size))(positions))(keys)


def test_shuffled_is_a_bijection_of_every_small_size_and_stays_in_the_largest_range(key):
    for size in range(1, 65):
        for found in np.asarray(places(np.arange(3), np.int32(size), 64)):
            assert sorted(found[:size].tolist()) == list(range(size))
    size = 2**31 - 1
    positions = np.array([0, 1, 2**30, size - 2, size - 1])
    found = jax.jit(jax.vmap(lambda position: random.shuffled(key, position, jnp.int32(size))))(positions)
    assert len(set(found.tolist())) == 5
    assert ((found >= 0) & (found < size)).all()


def test_every_permutation_and_every_pair_of_places_is_as_likely():
    for size in (2, 3, 4, 7):
        shuffles = np.asarray(places(np.arange(24_000), np.int32(size), 7))[:, :size]
        if size == 7:
            shuffles = shuffles[:, [2, 5]]
        found, counts = np.unique(shuffles, axis=0, return_counts=True)
        assert len(found) == (math.factorial(size) if size < 7 else 42)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_keys_that_are_split_are_computed_once():
    """The branch that keeps a compiler for CPUs from copying the rounds into all that reads them is still there."""
    program = jax.jit(lambda key: [jax.random.bits(each, (8,)) for each in random.split(key, 3)])
    assert "conditional(" in program.lower(jax.random.key(0)).compile().as_text()
