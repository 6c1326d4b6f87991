"""Vectorised keys give jax's bits, keys of examples good ones; shuffling without a table is a uniform permutation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from baal_jax._util import random

KEYS = [jax.random.key(0), jax.random.key(2**32 - 1), jax.random.fold_in(jax.random.key(7), 123)]
every_key = pytest.mark.parametrize("key", KEYS, ids=["zero", "ones", "folded"])


def data(key):
    return np.asarray(jax.random.key_data(key))


def assert_same(function, key):
    """Bit for bit, with the implementation really changed."""
    fast = random.vectorised(key)
    assert jax.random.key_impl(fast) != jax.random.key_impl(key)
    np.testing.assert_array_equal(function(fast), function(key))


@every_key
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5, 2)])
def test_bits_are_those_of_jax(key, dtype, shape):
    bits = jax.random.bits(random.vectorised(key), shape, dtype)
    assert (bits.shape, bits.dtype) == (shape, dtype)
    assert_same(lambda key: jax.random.bits(key, shape, dtype), key)


def test_wide_bits_are_those_of_jax():
    with jax.enable_x64(True):
        assert_same(lambda key: jax.random.bits(key, (3, 5), jnp.uint64), jax.random.key(3))


@every_key
@pytest.mark.parametrize("shape", [2, 5, (2, 3)])
def test_split_is_that_of_jax(key, shape):
    assert_same(lambda key: data(jax.random.split(key, shape)), key)


@every_key
@pytest.mark.parametrize("number", [0, 1, 2**31 - 1, np.uint32(2**32 - 1)])
def test_fold_in_is_that_of_jax(key, number):
    assert_same(lambda key: data(jax.random.fold_in(key, number)), key)


def test_fold_in_of_a_traced_number():
    fold = jax.jit(lambda key, number: jax.random.key_data(jax.random.fold_in(key, number)))
    for number in (0, 3, -1):
        assert_same(lambda key, number=number: fold(key, jnp.int32(number)), KEYS[2])


@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_distributions_are_those_of_jax(shape):
    draws = jax.jit(
        lambda key: (
            jax.random.uniform(jax.random.fold_in(key, 0), shape),
            jax.random.bernoulli(jax.random.fold_in(key, 1), 0.3, shape),
            jax.random.randint(jax.random.split(key)[1], shape, -5, 9),
        )
    )
    for key in KEYS:
        for kind in range(3):
            assert_same(lambda key, kind=kind: draws(key)[kind], key)


def test_normal_numbers_are_those_of_jax(key):
    assert_same(lambda key: jax.random.normal(key, (50,)), key)


def test_bits_do_not_depend_on_vmap_or_jit():
    keys = jax.random.split(jax.random.key(4), 6).reshape(2, 3)
    fast = random.vectorised(keys)
    assert fast.shape == (2, 3)
    functions = [
        lambda key: jax.random.bits(key, (3, 2)),
        lambda key: jax.random.bits(key, (), jnp.uint8),
        lambda key: jax.random.key_data(jax.random.split(key, 3)),
        lambda key: jax.random.key_data(jax.random.fold_in(key, 9)),
    ]
    for function in functions:
        truth = np.array([[function(key) for key in row] for row in keys])
        np.testing.assert_array_equal(jax.vmap(jax.vmap(function))(fast), truth)
        inside = jax.jit(jax.vmap(jax.vmap(lambda key, function=function: function(random.vectorised(key)))))
        np.testing.assert_array_equal(inside(keys), truth)


def test_one_key_for_a_whole_batch():
    numbers = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(random.vectorised(KEYS[0]), i)))(jnp.arange(5))
    np.testing.assert_array_equal(numbers, [jax.random.bits(jax.random.fold_in(KEYS[0], i)) for i in range(5)])


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_keys_come_back_unchanged(impl):
    key = jax.random.key(0, impl=impl)
    assert random.vectorised(key) is key


def test_changing_twice_is_changing_once(key):
    fast = random.vectorised(key)
    assert random.vectorised(fast) is fast


def test_too_many_words_are_an_error(key):
    with pytest.raises(ValueError, match="split the key"):
        jax.jit(lambda key: jax.random.bits(random.vectorised(key), (2**16, 2**16))).lower(key)


def test_no_key_is_used_twice(key, key_reuse):
    jax.jit(lambda key: jax.random.bernoulli(random.vectorised(key), 0.5, (3,)))(key)

    def twice(key):
        key = random.vectorised(key)
        return jax.random.bits(key) + jax.random.bits(key)

    with pytest.raises(jax.errors.KeyReuseError):
        jax.jit(twice)(jax.random.key(1))


# keys of examples


EXAMPLES = np.random.default_rng(0).normal(size=(512, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=2)
def words_of_examples(key, examples, length):
    return jax.vmap(lambda example: jax.random.bits(random.of_example(key, example), (length,)))(examples)


def signs(words):
    """Every bit as −1 or 1: ``[keys, words · 32]``."""
    bits = (np.asarray(words)[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1
    return bits.reshape(len(words), -1) * 2.0 - 1


def test_every_bit_of_an_example_is_fair_and_independent_of_the_others():
    """All pairs of the bits of 32 words, over 4,096 keys: their correlations are a standard normal sample."""
    found = np.concatenate([signs(words_of_examples(jax.random.key(seed), EXAMPLES, 32)) for seed in range(8)])
    scale = math.sqrt(len(found))
    assert np.abs(found.sum(axis=0) / scale).max() < 5
    z = (found.T @ found / scale)[np.triu_indices(found.shape[1], 1)]
    assert np.abs(z).max() < 6.2
    assert abs(z.var() - 1) < 0.01
    assert abs(stats.kurtosis(z)) < 0.05


def test_bits_of_neighbouring_examples_and_keys_are_independent():
    first, second = (signs(words_of_examples(key, EXAMPLES, 64)) for key in jax.random.split(jax.random.key(2)))
    close_by = signs(words_of_examples(jax.random.split(jax.random.key(2))[0], np.nextafter(EXAMPLES, np.inf), 64))
    for other in (second, close_by, np.roll(first, 1, axis=0), np.roll(first, 32, axis=1)):
        assert abs((first * other).sum()) / math.sqrt(first.size) < 4
        assert np.abs((first * other).sum(axis=1)).max() / math.sqrt(first.shape[1]) < 5


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_bytes_of_examples_are_uniform(shift):
    found = (np.asarray(words_of_examples(jax.random.key(3), EXAMPLES, 512)) >> shift) & 255
    assert stats.chisquare(np.bincount(found.ravel(), minlength=256)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32])
def test_bits_of_examples_have_every_width(key, dtype):
    narrow = jax.random.bits(random.of_example(key, EXAMPLES[0]), (3, 5), dtype)
    wide = jax.random.bits(random.of_example(key, EXAMPLES[0]), (3, 5))
    np.testing.assert_array_equal(narrow, np.asarray(wide).astype(dtype))


def test_bits_of_examples_are_64_wide(key):
    with jax.enable_x64(True):
        found = np.asarray(jax.random.bits(random.of_example(key, EXAMPLES[0]), (400,), jnp.uint64))
    both = found.view(np.uint32).reshape(400, 2)
    assert (np.abs(signs(both).sum(axis=0)) / math.sqrt(len(both)) < 5).all()
    assert abs((signs(both[:, :1]) * signs(both[:, 1:])).sum()) / math.sqrt(32 * len(both)) < 4


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_examples_depend_on_key_and_example_only(impl):
    keys = [jax.random.key(seed, impl=impl) for seed in (0, 1)]
    alone = [data(random.of_example(key, example)) for key in keys for example in EXAMPLES[:5]]
    together = jax.jit(jax.vmap(lambda example, key: random.of_example(key, example), (0, None)))
    np.testing.assert_array_equal(np.concatenate([data(together(EXAMPLES[:5], key)) for key in keys]), alone)
    assert len(np.unique(alone, axis=0)) == 10


def test_too_many_words_of_an_example_are_an_error(key):
    with pytest.raises(ValueError, match="split the key"):
        jax.jit(lambda key: jax.random.bits(random.of_example(key, EXAMPLES[0]), (2**16, 2**16))).lower(key)


def test_a_key_of_an_example_is_used_once(key, key_reuse):
    jax.jit(lambda key: jax.random.bernoulli(random.of_example(key, EXAMPLES[0]), 0.5, (3,)))(key)


DTYPES = ["bool", "int8", "uint8", "int16", "float16", "int32", "uint32", "float32", "complex64", "int64", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_changes_the_hash(dtype):
    with jax.enable_x64(True):
        hashed = jax.jit(random.hashed)
        example = np.arange(6).reshape(2, 3).astype(dtype)
        found = {int(hashed(jnp.asarray(example)))}
        width = 1 if dtype == "bool" else 8 * example.dtype.itemsize
        for place in range(6):
            for bit in range(width):
                changed = example.reshape(-1).copy()
                changed.view(np.uint8)[place * example.dtype.itemsize + bit // 8] ^= np.uint8(1 << bit % 8)
                found.add(int(hashed(jnp.asarray(changed.reshape(2, 3)))))
    assert len(found) == 1 + 6 * width


def test_places_and_leaves_matter_to_the_hash():
    one, two = np.float32([1, 2, 3]), np.float32([3, 2, 1])
    trees = [one, two, (one, two), (two, one), (one, one), {"a": one, "b": jnp.zeros(3)}, np.zeros(3), np.zeros(4)]
    assert len({int(random.hashed(tree)) for tree in trees}) == len(trees)
    assert random.hashed(one).dtype == jnp.uint32


def test_hashes_of_examples_spread_evenly():
    images = np.random.default_rng(1).integers(0, 2, (40_000, 64), np.uint8)
    found = np.asarray(jax.jit(jax.vmap(random.hashed))(images))
    for shift in (0, 8, 16, 24):
        assert stats.chisquare(np.bincount((found >> shift) & 255, minlength=256)).pvalue > 1e-3
    assert len(np.unique(found)) > 40_000 - 6  # 0.2 pairs are expected to meet


def example_key():
    return random.of_example(jax.random.key(7), EXAMPLES[0])


def test_new_keys_of_a_key_of_an_example_are_those_of_jax():
    hashed = example_key()
    plain = jax.random.wrap_key_data(jax.random.key_data(hashed))
    np.testing.assert_array_equal(data(jax.random.split(hashed, 3)), data(jax.random.split(plain, 3)))
    np.testing.assert_array_equal(data(jax.random.fold_in(hashed, 5)), data(jax.random.fold_in(plain, 5)))
    assert not np.array_equal(jax.random.bits(hashed, (8,)), jax.random.bits(plain, (8,)))
    assert random.vectorised(hashed) is hashed


def test_bits_of_an_example_are_the_hash_as_written():
    def mix(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    first, second = (int(word) for word in data(example_key()))
    expected = [mix((mix(counter ^ first) + second) % 2**32) for counter in range(12)]
    np.testing.assert_array_equal(jax.random.bits(example_key(), (3, 4)).ravel(), expected)


def test_bits_of_an_example_do_not_depend_on_vmap_or_jit():
    keys = jax.random.split(example_key(), 5)
    alone = [jax.random.bits(key, (3, 2)) for key in keys]
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda key: jax.random.bits(key, (3, 2))))(keys), alone)


# shuffled


@functools.partial(jax.jit, static_argnums=2)
def places(key, size, length):
    """Where positions ``0 … length − 1`` stand; ``size`` is traced, so one compilation serves many sizes."""
    return jax.vmap(lambda position: random.shuffled(key, position, size))(jnp.arange(length))


def test_shuffled_is_a_bijection_of_every_small_size():
    for size in range(1, 65):
        for seed in range(3):
            found = np.asarray(places(jax.random.key(seed), jnp.int32(size), 64))[:size]
            assert sorted(found.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1_000, 65_536, 100_003])
def test_shuffled_is_a_bijection_of_a_large_size(size):
    found = np.asarray(places(jax.random.key(5), jnp.int32(size), 100_003))[:size]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found), np.arange(size))
    # A random permutation is uncorrelated with the identity and has about one fixed point.
    assert abs(np.corrcoef(found, np.arange(size))[0, 1]) < 4 / math.sqrt(size)
    assert np.sum(found == np.arange(size)) < 8


def test_shuffled_stays_in_the_largest_range(key):
    size = 2**31 - 1
    positions = jnp.array([0, 1, 2**30, size - 2, size - 1])
    found = jax.vmap(lambda position: random.shuffled(key, position, jnp.int32(size)))(positions)
    assert len(set(found.tolist())) == 5
    assert ((found >= 0) & (found < size)).all()


@functools.cache
def shuffles(size, num_keys=24_000):
    keys = jax.random.split(jax.random.key(6), num_keys)
    return np.asarray(jax.vmap(lambda key: places(key, jnp.int32(size), size))(keys))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_permutation_is_as_likely(size):
    permutations, counts = np.unique(shuffles(size), axis=0, return_counts=True)
    assert len(permutations) == math.factorial(size)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_every_place_is_as_likely():
    found = shuffles(7)
    for position in range(7):
        assert stats.chisquare(np.bincount(found[:, position], minlength=7)).pvalue > 1e-3
    pairs = np.bincount(found[:, 2] * 7 + found[:, 5], minlength=49)
    assert (pairs[::8] == 0).all()
    assert stats.chisquare(pairs[pairs > 0]).pvalue > 1e-3
    assert np.sum(pairs > 0) == 42


def test_keys_decide_the_shuffle():
    one, same, other = (places(jax.random.key(seed), jnp.int32(64), 64) for seed in (8, 8, 9))
    np.testing.assert_array_equal(one, same)
    assert np.sum(np.asarray(one) == np.asarray(other)) < 10


def test_shuffled_does_not_depend_on_jit_or_vmap(key):
    alone = [int(random.shuffled(key, jnp.int32(i), jnp.int32(11))) for i in (0, 4, 10)]
    assert alone == np.asarray(places(key, jnp.int32(11), 64))[[0, 4, 10]].tolist()


def test_shuffled_uses_its_key_once(key, key_reuse):
    shuffle = jax.jit(lambda key, size: random.shuffled(key, jnp.int32(0), size))
    assert 0 <= int(shuffle(key, jnp.int32(3))) < 3
