"""Integers past 32 bits, as pairs: 64-bit integers are off in jax by default."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class UInt64(NamedTuple):
    """The integers high · 2**32 + low."""

    high: Any  # uint32
    low: Any  # uint32, of the same shape


def uint64(numbers: Sequence[int]) -> UInt64:
    """Python integers, one after the other."""
    return UInt64(
        np.array([n >> 32 for n in numbers], np.uint32),
        np.array([n % 2**32 for n in numbers], np.uint32),
    )


def add(a: UInt64, b: UInt64) -> UInt64:
    """a + b."""
    low = a.low + b.low
    return UInt64(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: UInt64, b: UInt64) -> UInt64:
    """a - b, of a that is no smaller."""
    return UInt64(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def at_most(a: UInt64, b: UInt64) -> jax.Array:
    """a <= b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low <= b.low))


def as_float(a: UInt64) -> jax.Array:
    """a, rounded to float32."""
    return jnp.float32(2**32) * a.high.astype(jnp.float32) + a.low.astype(jnp.float32)


def share(ratio: jax.Array, sizes: Sequence[int]) -> UInt64:
    """⌊ratio · size⌋ of every size, in integers, with the ratio read as a decimal.

    A float32 0.29 is not 0.29, but no other decimal of seven places is as near. So the ratio is
    clipped to [0, 1] and rounded to as many places as its dtype tells apart there: 7 for float32
    and wider, 3 for float16, 2 for bfloat16.
    """
    floating = jnp.issubdtype(ratio.dtype, jnp.floating)
    mantissa = min(jnp.finfo(ratio.dtype).nmant, 23) if floating else 23
    scale = 10 ** int(math.log10(2 ** (mantissa + 1)))
    units = jnp.round(jnp.clip(ratio.astype(jnp.float32), 0, 1) * scale).astype(jnp.uint32)
    # Long multiplication and division at once, seven bits of the sizes at a time: the remainder
    # is below 10**7 < 2**24, so that every intermediate fits 32 bits.
    quotient = UInt64(*(jnp.zeros(len(sizes), jnp.uint32) for _ in range(2)))
    remainder = jnp.zeros(len(sizes), jnp.uint32)
    for shift in range(56, -1, -7):
        digits = np.array([n >> shift & 127 for n in sizes], np.uint32)
        digit, remainder = jnp.divmod(remainder * 128 + units * digits, jnp.uint32(scale))
        quotient = UInt64(quotient.high << 7 | quotient.low >> 25, quotient.low << 7)
        quotient = add(quotient, UInt64(jnp.zeros_like(digit), digit))
    return quotient
