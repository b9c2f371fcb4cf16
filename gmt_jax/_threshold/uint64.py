"""Unsigned integers of 64 bits as pairs of 32 bits: 64-bit integers are off in jax by default."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
