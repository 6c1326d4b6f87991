"""Sums that do not depend on how their terms came: in one batch or in many, in whatever order, on however many devices.

Three kinds of leaves, each with zeros as the empty sum: integers, which are added; :class:`DoubleSum`, a float32 beside
its rounding error; :class:`FixedSum`, exact, for values between 0 and 1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from baal_jax.typing import Array, PyTree

_CHUNK = 2**23  # so many terms of at most 2**8 fit into a uint32


class DoubleSum(NamedTuple):
    """A sum in twice the precision of float32; infinite and NaN terms make it so.

    Attributes:
        high: ``float32[…]``, the sum.
        low: ``float32[…]``, what ``high`` has lost to rounding.
    """

    high: Array
    low: Array


class FixedSum(NamedTuple):
    """An exact sum of numbers between 0 and 1, each rounded to a multiple of ``2**-24``.

    Attributes:
        words: ``uint32[4, …]``, digits of 8 bits from the lowest; the last one holds whole numbers, of any size.
        num_nan: ``int32[…]``, NaN terms.
    """

    words: Array
    num_nan: Array


def double_sum(values: Array) -> DoubleSum:
    """Sum of all ``values``."""
    values = values.astype(jnp.float32).ravel()
    zero = jnp.zeros((), jnp.float32)
    return DoubleSum(*jax.lax.reduce((values, jnp.zeros_like(values)), (zero, zero), _add_pairs, (0,)))


def double_value(total: DoubleSum) -> Array:
    """``float32[…]``."""
    return total.high + total.low


def fixed_sum(values: Array, cells: Array, num_cells: int) -> FixedSum:
    """Sums of ``values [n]`` by cell; a cell outside of ``0 … num_cells − 1`` takes no part."""
    total = FixedSum(jnp.zeros((4, num_cells), jnp.uint32), jnp.zeros(num_cells, jnp.int32))
    for start in range(0, values.shape[0], _CHUNK):
        part = slice(start, start + _CHUNK)
        total = _add_fixed(total, _fixed_chunk(values[part], cells[part], num_cells))
    return total


def minus_fixed(number: Array, total: FixedSum) -> Array:
    """``float32[…]``: an integer minus the sum, rounded once."""
    difference = (number - _whole(total)).astype(jnp.float32) - _fraction(total)
    return jnp.where(total.num_nan > 0, jnp.nan, difference)


def fixed_value(total: FixedSum) -> Array:
    """``float32[…]``."""
    return jnp.where(total.num_nan > 0, jnp.nan, _whole(total).astype(jnp.float32) + _fraction(total))


def add(one: PyTree, other: PyTree) -> PyTree:
    """Sum of two pytrees of sums."""
    return jax.tree.map(_add, one, other, is_leaf=lambda node: isinstance(node, DoubleSum | FixedSum))


def _add(one: PyTree, other: PyTree) -> PyTree:
    if isinstance(one, DoubleSum):
        return DoubleSum(*_add_pairs(one, other))
    return _add_fixed(one, other) if isinstance(one, FixedSum) else one + other


def _add_pairs(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """Knuth's two-sum of the high parts; what it loses joins the low ones."""
    (high, low), (other_high, other_low) = one, other
    total = high + other_high
    part = total - high
    lost = (high - (total - part)) + (other_high - part) + (low + other_low)
    lost = jnp.where(jnp.isfinite(total), lost, 0.0)
    exact = total + lost
    rest = jnp.where(jnp.isfinite(exact), lost - (exact - total), 0.0)
    return exact, rest


def _add_fixed(one: FixedSum, other: FixedSum) -> FixedSum:
    return FixedSum(_carry(one.words + other.words), one.num_nan + other.num_nan)


def _fixed_chunk(values: Array, cells: Array, num_cells: int) -> FixedSum:
    cells = jnp.where(cells < 0, num_cells, cells)
    missing = jnp.isnan(values)
    units = jnp.round(jnp.clip(jnp.where(missing, 0.0, values), 0.0, 1.0) * 2.0**24).astype(jnp.uint32)
    digits = jnp.stack([(units >> shift) & 0xFF for shift in (0, 8, 16)] + [units >> 24])
    words = jnp.zeros((4, num_cells), jnp.uint32).at[:, cells].add(digits, mode="drop")
    return FixedSum(
        _carry(words), jnp.zeros(num_cells, jnp.int32).at[cells].add(missing.astype(jnp.int32), mode="drop")
    )


def _carry(words: Array) -> Array:
    carry, digits = jnp.zeros_like(words[0]), []
    for word in words[:3]:
        word = word + carry
        digits.append(word & 0xFF)
        carry = word >> 8
    return jnp.stack([*digits, words[3] + carry])


def _whole(total: FixedSum) -> Array:
    return total.words[3].astype(jnp.int32)


def _fraction(total: FixedSum) -> Array:
    low, middle, high, _ = total.words
    return (low | (middle << 8) | (high << 16)).astype(jnp.float32) / 2.0**24
