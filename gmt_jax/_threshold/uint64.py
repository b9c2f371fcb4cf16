"""Unsigned integers of 64 bits as pairs of 32 bits: 64-bit integers are off in jax by default."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array | np.ndarray


class UInt64(NamedTuple):
    """The integers high · 2**32 + low.

    Attributes:
      high: uint32, of any shape.
      low: uint32, of the same shape.
    """

    high: Array
    low: Array


def uint64(numbers: Sequence[int]) -> UInt64:
    """Python integers as an array of pairs, [len(numbers)]."""
    return UInt64(
        np.array([n >> 32 for n in numbers], np.uint32),
        np.array([n % 2**32 for n in numbers], np.uint32),
    )


def add(a: UInt64, b: UInt64) -> UInt64:
    """a + b."""
    low = a.low + b.low
    return UInt64(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: UInt64, b: UInt64) -> UInt64:
    """a - b, where a >= b."""
    return UInt64(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def at_most(a: UInt64, b: UInt64) -> jax.Array:
    """a <= b."""
    return jnp.asarray((a.high < b.high) | ((a.high == b.high) & (a.low <= b.low)))


def as_float(a: UInt64) -> jax.Array:
    """a, rounded to float32."""
    return jnp.float32(2**32) * a.high.astype(jnp.float32) + a.low.astype(jnp.float32)


def add_up(a: UInt64, axes: tuple[int, ...]) -> UInt64:
    """The sums over some axes."""
    if not axes:
        return a
    zeros = (np.uint32(0), np.uint32(0))
    return UInt64(
        *lax.reduce(tuple(a), zeros, lambda a, b: tuple(add(UInt64(*a), UInt64(*b))), axes)
    )


def sum_over_shards(a: UInt64, axes: tuple[str, ...]) -> UInt64:
    """The sums over fewer than 2**16 devices inside jax.shard_map, along these mesh axes."""
    high, middle, low = lax.psum((a.high, a.low >> 16, a.low & 0xFFFF), axes)
    return add(UInt64(high + (middle >> 16), middle << 16), UInt64(jnp.zeros_like(low), low))
