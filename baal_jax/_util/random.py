"""Threefry keys whose bits a CPU compiler can vectorise, keys for single examples, and shuffling without a table.

jax lowers threefry on a CPU to a loop over whole arrays, several times slower than the same twenty rounds written out
in one fused expression. Dropout masks are the dearest part of a small network's step, so keys change implementation
where they enter a model. The bits are the same as jax's (``jax_threefry_partitionable``), only faster.

Where every example of a pool has masks of its own, there are hundreds of times as many bits, and threefry would take
longer than the network. Those keys are made by threefry, and their bits by a hash of the key and a counter. A run may
have such keys throughout: ``fast_key``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

from baal_jax.typing import Array, Key, PyTree

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_SHUFFLE_ROUNDS = 24


def _threefry(key: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*)."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    x, y = high + schedule[0], low + schedule[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn)))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + np.uint32(group + 1)
    # Fused into what uses them, twenty rounds can keep a compiler busy for minutes.
    return jax.lax.optimization_barrier((x, y))


def _counted(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    low = jax.lax.iota(jnp.uint32, _size(shape)).reshape(shape)
    return _threefry(key, jnp.zeros_like(low), low)


def _size(shape: tuple[int, ...]) -> int:
    size = math.prod(shape)
    if size >= 2**32:
        raise ValueError(f"shape {shape} asks one key for 2**32 words or more: split the key")
    return size


def _seed(seed: Array) -> Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_counted(key, shape), axis=-1)


def _fold_in(key: Array, data: Any) -> Array:
    low = jnp.asarray(data).astype(jnp.uint32)
    return jnp.stack(_threefry(key, jnp.zeros_like(low), low))


def _random_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    high, low = _counted(key, shape)
    if bit_width == 64:
        return _joined(high, low)
    return (high ^ low).astype(f"uint{bit_width}")


def _hashed_bits(key: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    if bit_width == 64:
        return _joined(*_hashed_bits(key, 32, (2, *shape)))
    counter = jax.lax.iota(jnp.uint32, _size(shape)).reshape(shape)
    return _mix(_mix(counter ^ key[0]) + key[1]).astype(f"uint{bit_width}")


def _joined(high: Array, low: Array) -> Array:
    return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)


def _threefry_with(random_bits: Callable[[Array, int, tuple[int, ...]], Array], name: str, tag: str) -> Any:
    """Threefry's seeds, splits and fold-ins with other bits."""
    return define_prng_impl(
        key_shape=(2,), seed=_seed, split=_split, random_bits=random_bits, fold_in=_fold_in, name=name, tag=tag
    )


_VECTORISED = _threefry_with(_random_bits, "baal_jax_threefry2x32", "bry")
_HASHED = _threefry_with(_hashed_bits, "baal_jax_hashed", "bha")


def fast_key(seed: int | Array) -> Key:
    """A typed key whose bits cost a CPU a fraction of threefry's; whatever takes ``jax.random.key(seed)`` takes it.

    New keys, by ``split`` and ``fold_in``, are those of threefry. Bits are two finalisers of MurmurHash3 over a counter
    and the key, the construction of SplitMix (Steele, Lea and Flood 2014, *Fast splittable pseudorandom number
    generators*): good enough for masks and noise, not for secrets, and no 32-bit word of a key comes twice. They do not
    depend on ``vmap`` or ``jit``, so a run is as reproducible as with jax's keys, but has other numbers.

    Args:
        seed: integer or ``int[]``.

    Returns:
        One typed key.

    Example:
        >>> import jax
        >>> key = fast_key(0)
        >>> jax.random.bernoulli(key, 0.5, (3, 2)).shape
        (3, 2)
    """
    return jax.random.key(seed, impl=_HASHED)


def implementation(keys: Key | jax.ShapeDtypeStruct) -> Any:
    """What to give to ``impl=`` for keys like these; only tracing tells it of a shape."""
    found = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), keys)
    return found[0]


def zeros(shapes: PyTree) -> PyTree:
    """Arrays of zeros of these shapes, keys included."""

    def zero(leaf: jax.ShapeDtypeStruct) -> Array:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros(leaf.shape, leaf.dtype)
        data = jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=implementation(leaf))

    return jax.tree.map(zero, shapes)


def vectorised(key: Key) -> Key:
    """The same key with bits that compile into one loop; keys of any other kind come back unchanged."""
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_VECTORISED)


def of_example(key: Key, example: PyTree) -> Key:
    """The key that ``key`` gives to one example: it depends on the values of the example and on nothing else.

    Args:
        key: one typed key of any kind.
        example: arrays of numbers or booleans.

    Returns:
        A typed key whose bits are cheap. Equal examples have equal keys; different ones share a key with probability
        ``2**-32``.
    """
    words = jax.random.bits(vectorised(key), (2,), jnp.uint32)
    return jax.random.wrap_key_data(_fold_in(words, hashed(example)), impl=_HASHED)


def hashed(tree: PyTree) -> Array:
    """A number that depends on every bit of ``tree``, and on nothing else: not on the order of summation.

    Args:
        tree: arrays of numbers or booleans.

    Returns:
        ``uint32[]``.
    """
    total = jnp.zeros((), jnp.uint32)
    for salt, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(jnp.asarray(leaf)).reshape(-1)
        places = _mix(jax.lax.iota(jnp.uint32, words.size) ^ np.uint32(0x9E3779B9 * (salt + 1) % 2**32))
        total += jnp.sum(_mix(words ^ places) * (places | np.uint32(1)), dtype=jnp.uint32)
    return _mix(total)


def _words(leaf: Array) -> Array:
    """The bits of an array as ``uint32``."""
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag])
    width = min(8 * leaf.dtype.itemsize, 32)
    return jax.lax.bitcast_convert_type(leaf, f"uint{width}").astype(jnp.uint32)


def shuffled(key: Key, position: Array, size: Array) -> Array:
    """Where one ``position`` of ``range(size)`` stands after a shuffle, without building the permutation.

    Swap-or-not (Hoang, Morris and Rogaway 2012): in every round a position meets its partner ``k − i (mod size)``, and
    a hash that both share decides whether they change places. ``size`` may be traced, so the labelled set can grow
    without another compilation, and no array of its length is sorted.

    Args:
        key: one typed key; the same key gives one permutation of ``range(size)``.
        position: ``int32[]`` with ``0 <= position < size``.
        size: ``int32[]``.

    Returns:
        ``int32[]``.
    """
    words = jax.random.bits(vectorised(key), (_SHUFFLE_ROUNDS, 2), jnp.uint32)
    size = size.astype(jnp.uint32)

    # A loop, because compilers take exponential time over this many nested choices written out.
    def one_round(i: Array, index: Array) -> Array:
        offset = words[i, 0] % size
        partner = jnp.where(offset >= index, offset - index, offset + (size - index))
        coin = _mix(jnp.maximum(index, partner) ^ words[i, 1]) >> np.uint32(31)
        return jnp.where(coin == 1, partner, index)

    return jax.lax.fori_loop(0, _SHUFFLE_ROUNDS, one_round, position.astype(jnp.uint32)).astype(jnp.int32)


def _mix(x: Array) -> Array:
    """Finaliser of MurmurHash3: every input bit reaches the top bit."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
