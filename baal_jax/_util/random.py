"""Keys whose bits are cheap on a CPU, keys of single examples, and shuffling without a table.

jax lowers threefry on a CPU to a loop over whole arrays, several times slower than the same twenty rounds in one fused
expression, and dropout masks are the most expensive part of a small network's step. So keys change implementation where
they enter a model; the bits stay those of jax (``jax_threefry_partitionable``). Masks per example are hundreds of times
as many bits: the keys of examples are made by threefry, but their bits are a hash of the key and a counter.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.random import define_prng_impl

from baal_jax._util import checks

_SHUFFLE_ROUNDS = 24
_MANY = 512  # words, for which a loop is cheap


def vectorised(key: Array) -> Array:
    """The same key with bits that compile into one loop; keys of any other kind come back unchanged."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_VECTORISED)


def split(key: Array, num: int, number: Array | None = None) -> Array:
    """``jax.random.split`` of a key, or of its ``fold_in`` of a number: the same keys, compiled faster on a CPU."""
    begun = vectorised(key) if number is None else jax.random.fold_in(vectorised(key), number)
    data = jax.random.key_data(jax.random.split(begun, num))
    return jax.random.wrap_key_data(_once(data), impl=jax.random.key_impl(key))


def _once(data: Array) -> Array:
    """The same words, behind a branch: a compiler for CPUs writes what made them anew into all that reads them."""
    if checks.is_concrete(data):
        return data
    # Of two branches that are written alike nothing would be left.
    alone = lambda data: jax.lax.cond(data.ravel()[0] == 0, lambda data: data + np.uint32(0), lambda data: data, data)  # noqa: E731
    return jax.lax.platform_dependent(data, cpu=alone, default=lambda data: data)


def of_example(key: Array, example: Any) -> Array:
    """The key that ``key`` gives to one example, by its values alone. Two examples share one with chance ``2**-32``."""
    words = jax.random.bits(vectorised(key), (2,), jnp.uint32)
    return jax.random.fold_in(jax.random.wrap_key_data(words, impl=_HASHED), hashed(example))


def hashed(tree: Any) -> Array:
    """``uint32[]`` of every bit of a tree of numbers or booleans; the order of summation does not matter."""
    total = jnp.zeros((), jnp.uint32)
    for salt, leaf in enumerate(jax.tree.leaves(tree)):
        leaf = jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else jnp.asarray(leaf)
        leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
        words = jax.lax.bitcast_convert_type(leaf, f"uint{min(8 * leaf.dtype.itemsize, 32)}").reshape(-1)
        places = _mix(jax.lax.iota(jnp.uint32, words.size) ^ np.uint32(0x9E3779B9 * (salt + 1) % 2**32))
        total += jnp.sum(_mix(words.astype(jnp.uint32) ^ places) * (places | np.uint32(1)), dtype=jnp.uint32)
    return _mix(total)


def shuffled(key: Array, position: Array, size: Array) -> Array:
    """Where ``position`` of ``range(size)`` stands after the shuffle of ``key`` (Hoang, Morris and Rogaway 2012)."""
    words = jax.random.bits(vectorised(key), (_SHUFFLE_ROUNDS, 2), jnp.uint32)
    size = size.astype(jnp.uint32)

    # Swap-or-not: in every round i meets k − i (mod size), which meets i, and a coin of the pair says whether the two
    # change places. Whatever the coins are, that is a permutation: nothing of the length of the data is sorted or
    # stored, and `size` may be traced, so that a labelled set grows without another compilation.
    def one_round(i: Array, index: Array) -> Array:
        offset = words[i, 0] % size
        partner = jnp.where(offset >= index, offset - index, offset + (size - index))
        coin = _mix(jnp.maximum(index, partner) ^ words[i, 1]) >> np.uint32(31)
        return jnp.where(coin == 1, partner, index)

    # A loop, because compilers take exponential time over this many nested choices written out.
    return jax.lax.fori_loop(0, _SHUFFLE_ROUNDS, one_round, position.astype(jnp.uint32)).astype(jnp.int32)


def _mix(x: Array) -> Array:
    """Finaliser of MurmurHash3: every input bit reaches the top bit."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def _threefry(key: Array, counter: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*)."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = jnp.broadcast_to(schedule[0], counter.shape), counter + schedule[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn)))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    # Fused into what uses them, twenty rounds can keep a compiler busy for minutes.
    return jax.lax.optimization_barrier((x, y))


def _counter(shape: tuple[int, ...]) -> Array:
    if math.prod(shape) >= 2**32:
        raise ValueError(f"shape {shape} asks one key for 2**32 words or more: split the key")
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


def _threefry_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    def words(key: Array, counter: Array) -> Array:
        high, low = _threefry(key, counter)
        return _joined(high, low) if bit_width == 64 else (high ^ low).astype(f"uint{bit_width}")

    def in_halves(key: Array, counter: Array) -> Array:
        half = -(-counter.size // 2)
        places = jax.lax.iota(jnp.uint32, half)
        starts = jnp.array([0, half], jnp.uint32)
        return jax.lax.map(lambda start: words(key, start + places), starts).reshape(-1)[: counter.size].reshape(shape)

    counter = _counter(shape)
    if counter.size < _MANY:
        return words(key, counter)
    # A compiler for CPUs writes twenty rounds anew into everything that reads them, in a pass of training and in its
    # gradient, but not those of a loop.
    return jax.lax.platform_dependent(_once(key), counter, cpu=in_halves, default=words)


def _hashed_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    if bit_width == 64:
        return _joined(*_hashed_bits(key, 32, (2, *shape)))
    return _mix(_mix(_counter(shape) ^ key[0]) + key[1]).astype(f"uint{bit_width}")


def _joined(high: Array, low: Array) -> Array:
    return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)


_VECTORISED, _HASHED = (
    define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl="threefry2x32")),
        split=lambda key, shape: jnp.stack(_threefry(key, _counter(shape)), axis=-1),
        random_bits=bits,
        fold_in=lambda key, number: jnp.stack(_threefry(key, jnp.asarray(number).astype(jnp.uint32))),
        name=name,
        tag=tag,
    )
    for name, tag, bits in (("baal_jax_threefry2x32", "bry", _threefry_bits), ("baal_jax_hashed", "bha", _hashed_bits))
)
