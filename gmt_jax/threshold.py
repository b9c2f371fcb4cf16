"""Exact order statistics of |g|, by counting on the bits of the floats.

The bits of |g|, read as an unsigned integer, are in the order of |g|. The m-th smallest |g| is
the largest T of which no more than m entries lie below: its bits are found from the top down,
`BITS` a pass, by counting how many entries lie below each of 2**BITS - 1 candidates. A count is a
sum, so on a sharded gradient a pass moves a few integers between devices and nothing else.

Counts are pairs (millions, rest): they are right far past 2**32 entries without 64-bit integers,
and a ratio of six decimals has an exact share of them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

# Bits of the threshold found in a pass, by 2**BITS - 1 counts.
BITS = 3
MILLION = 1_000_000


class Count(NamedTuple):
    """The integer millions * 10**6 + rest, with 0 <= rest < 10**6; both parts int32."""

    millions: jax.Array
    rest: jax.Array


def count_of(number: int) -> Count:
    """A Python integer as a Count."""
    millions, rest = divmod(number, MILLION)
    return Count(jnp.int32(millions), jnp.int32(rest))


def at_most(a: Count, b: Count) -> jax.Array:
    """a <= b."""
    return (a.millions < b.millions) | ((a.millions == b.millions) & (a.rest <= b.rest))


def share_of(millionths: jax.Array, number: int) -> Count:
    """⌊millionths / 10**6 · number⌋, exactly, for 0 <= millionths <= 10**6 and number < 2·10**12.

    With number = q·10**6 + r, the share is millionths·q + ⌊millionths·r / 10**6⌋; splitting
    millionths into thousands keeps every product within 31 bits.
    """
    q, r = divmod(number, MILLION)
    if q >= 2 * MILLION:
        raise ValueError(f"a tensor of {number} entries is too large to count")
    high, low = jnp.divmod(millionths.astype(jnp.int32), 1000)
    small = (high * r + (low * r) // 1000) // 1000
    top, bottom = jnp.divmod(high * q, 1000)
    more, rest = jnp.divmod(low * q, MILLION)
    carry, rest = jnp.divmod(bottom * 1000 + rest + small, MILLION)
    return Count(top + more + carry, rest)


def as_float(count: Count) -> jax.Array:
    """The count, rounded to float32."""
    return count.millions.astype(jnp.float32) * MILLION + count.rest.astype(jnp.float32)


def magnitude_bits(g: jax.Array) -> jax.Array:
    """The bits of |g| as unsigned integers; they order as |g| does, NaN above infinity."""
    if jnp.iscomplexobj(g):
        g = jnp.abs(g)
    bits = lax.bitcast_convert_type(g, _unsigned(g.dtype))
    # Clearing the sign, unlike abs and a comparison of floats, treats subnormals as any number.
    return bits & jnp.asarray(2 ** (g.dtype.itemsize * 8 - 1) - 1, bits.dtype)


def real_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of |g|."""
    return jnp.finfo(dtype).dtype


def _unsigned(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(f"uint{dtype.itemsize * 8}")


def _above_infinity(dtype: jnp.dtype) -> int:
    """Bits above those of every number and infinity, and not above those of any NaN."""
    infinity = np.asarray(np.inf, dtype)
    if not np.isinf(infinity):  # A dtype without infinity: NaN comes right after the numbers.
        infinity = np.asarray(jnp.finfo(dtype).max, dtype)
    return int(infinity.view(_unsigned(dtype))) + 1


def magnitude(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The number of which these are the bits; infinity for bits that are above NaN's."""
    value = lax.bitcast_convert_type(bits, dtype)
    return jnp.where(bits == jnp.iinfo(bits.dtype).max, jnp.asarray(jnp.inf, dtype), value)


def stack_zeros(leaf: jax.Array | jax.ShapeDtypeStruct, stacked: int, dtype: Any) -> jax.Array:
    """Zeros shaped as a leaf's leading axes and, on an Explicit mesh, sharded as they are."""
    sharding = getattr(jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf, "sharding", None)
    shape = leaf.shape[:stacked]
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return jnp.zeros(shape, dtype)
    spec = PartitionSpec(*tuple(sharding.spec)[:stacked])
    return jnp.zeros(shape, dtype, device=NamedSharding(sharding.mesh, spec))


class Selected(NamedTuple):
    """What was found for one leaf; every field has the shape of its stack."""

    bits: jax.Array  # unsigned: bits of the m-th smallest |g|; all ones where m is all of them
    below: Count  # entries whose bits are lower


def tensor_size(shape: Sequence[int], stacked: int) -> int:
    """Entries of one of the tensors that are stacked along the leading axes."""
    return math.prod(shape[stacked:])


@partial(jax.jit, static_argnames="stacked")
def select(
    leaves: Sequence[jax.Array], ranks: Sequence[Count], stacked: tuple[int, ...]
) -> list[Selected]:
    """The m-th smallest |g|, counting from 0, of every leaf at once.

    Args:
      leaves: float or complex arrays, none of them empty, on any mesh.
      ranks: m of each leaf, at most the size of one of its tensors.
      stacked: how many leading axes of each leaf index separate tensors.
    """
    start = [
        _Search(leaf, rank, axes) for leaf, rank, axes in zip(leaves, ranks, stacked, strict=True)
    ]
    passes = max((search.passes for search in start), default=0)

    def one_pass(number: jax.Array, found: list[Selected]) -> list[Selected]:
        return [search.narrow(number, f) for search, f in zip(start, found, strict=True)]

    found = lax.fori_loop(0, passes, one_pass, [search.begin() for search in start])
    return [search.finish(f) for search, f in zip(start, found, strict=True)]


class _Search:
    """The search in one leaf."""

    def __init__(self, leaf: jax.Array, rank: Count, stacked: int) -> None:
        self.leaf, self.rank, self.stacked = leaf, rank, stacked
        self.dtype = real_dtype(leaf.dtype)
        self.unsigned = _unsigned(self.dtype)
        self.top = self.dtype.itemsize * 8 - 1 - BITS  # the lowest bit found by the first pass
        self.passes = -(-self.top // BITS) + 1
        self.size = tensor_size(leaf.shape, stacked)

    def begin(self) -> Selected:
        zero = stack_zeros(self.leaf, self.stacked, jnp.int32)
        return Selected(zero.astype(self.unsigned), Count(zero, zero))

    def narrow(self, number: jax.Array, found: Selected) -> Selected:
        """One pass: of the candidates above what was found, the highest with at most m below."""
        # The barrier ties the leaf to the pass. Else XLA computes the bits once, before the loop,
        # and keeps them: a second copy of the gradient.
        leaf, low = lax.optimization_barrier((self.leaf, found.bits))
        shift = jnp.maximum(self.top - BITS * number, 0).astype(self.unsigned)
        limit = jnp.asarray(_above_infinity(self.dtype), self.unsigned)
        steps = [jnp.asarray(j, self.unsigned) << shift for j in range(1, 2**BITS)]
        candidates = [jnp.minimum(low + step, limit) for step in steps]
        for candidate, below in zip(
            candidates, _count_below(leaf, candidates, self.stacked), strict=True
        ):
            better = at_most(below, self.rank)
            found = jax.tree.map(
                lambda new, old, better=better: jnp.where(better, new, old),
                Selected(candidate, below),
                found,
            )
        return found

    def finish(self, found: Selected) -> Selected:
        """Where m is the tensor's size, everything lies below."""
        whole = at_most(count_of(self.size), self.rank)
        everything = Selected(
            jnp.asarray(jnp.iinfo(self.unsigned).max, self.unsigned), count_of(self.size)
        )
        return jax.tree.map(lambda a, b: jnp.where(whole, a, b), everything, found)


def _count_below(leaf: jax.Array, candidates: list[jax.Array], stacked: int) -> list[Count]:
    """For each candidate, shaped as the stack, how many entries' bits lie below it."""
    bits = magnitude_bits(leaf)
    wide = [jnp.expand_dims(c, tuple(range(stacked, leaf.ndim))) for c in candidates]
    hits = [(bits < c).astype(jnp.int32) for c in wide]
    axes = tuple(range(stacked, leaf.ndim))
    parts = _parts_axis(leaf.shape, stacked)
    if parts is None:
        return [Count(*jnp.divmod(total, MILLION)) for total in _sums(hits, axes)]
    sums = _sums(hits, tuple(axis for axis in axes if axis != parts))
    return [_add_up(partial_counts) for partial_counts in sums]


def _parts_axis(shape: Sequence[int], stacked: int) -> int | None:
    """The axis along which a tensor is counted in parts, each below 2**31; None: it needs none."""
    size = tensor_size(shape, stacked)
    if size < 2**31:
        return None
    fit = [axis for axis in range(stacked, len(shape)) if size // shape[axis] < 2**31]
    if not fit or min(shape[axis] for axis in fit) > 2**21:
        raise ValueError(f"a tensor of shape {tuple(shape[stacked:])} is too large to count")
    return min(fit, key=lambda axis: shape[axis])


def _add_up(parts: jax.Array) -> Count:
    """The sum of counts [..., P] below 2**31 each, P up to 2**21."""
    millions, rest = jnp.divmod(parts, MILLION)
    thousands, ones = jnp.divmod(rest, 1000)
    carry, ones = jnp.divmod(jnp.sum(ones, -1), 1000)
    thousands = jnp.sum(thousands, -1) + carry
    more, thousands = jnp.divmod(thousands, 1000)
    return Count(jnp.sum(millions, -1) + more, thousands * 1000 + ones)


def _sums(arrays: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Sums of several arrays along the same axes, in the form the backend is fast at.

    XLA's CPU backend vectorises one reduction of many operands, but not many reductions; the
    others fuse many reductions into one.
    """
    if not axes:
        return arrays

    def together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        zeros = (jnp.int32(0),) * len(arrays)
        return tuple(
            lax.reduce(arrays, zeros, lambda a, b: tuple(map(lax.add, a, b)), dimensions=axes)
        )

    def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(array, axes) for array in arrays)

    return list(lax.platform_dependent(*arrays, cpu=together, default=apart))
