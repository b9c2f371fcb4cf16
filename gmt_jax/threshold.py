"""Exact order statistics of |g|, by counting on the bits of the floats.

The bits of |g|, read as an unsigned integer, are in the order of |g|. The m-th smallest |g|,
counted from 0, is the largest T with no more than m entries below it; it is found by counting the
entries below a few candidates at a time, until the bracket around T holds one integer. A count is
a sum: of a gradient sharded over a mesh, a pass moves a few integers between the devices and
nothing else.

The tensors of all leaves are searched in one loop. Their brackets lie one after the other in
arrays of R rows: a row a tensor, and of a stacked leaf as many rows as it holds tensors.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# Candidates a pass. Each pass divides the brackets by one more than this: float32 takes 11 passes.
CANDIDATES = 7


class Wide(NamedTuple):
    """The integers high · 2**32 + low, for 64-bit integers are off in jax by default."""

    high: Any  # uint32
    low: Any  # uint32, of the same shape


def wide(numbers: Sequence[int]) -> Wide:
    """Python integers, one after the other."""
    return Wide(
        np.array([n >> 32 for n in numbers], np.uint32),
        np.array([n % 2**32 for n in numbers], np.uint32),
    )


def add(a: Wide, b: Wide) -> Wide:
    """a + b."""
    low = a.low + b.low
    return Wide(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def at_most(a: Wide, b: Wide) -> jax.Array:
    """a <= b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low <= b.low))


def as_float(a: Wide) -> jax.Array:
    """a, rounded to float32."""
    return jnp.float32(2**32) * a.high.astype(jnp.float32) + a.low.astype(jnp.float32)


def share(ratio: jax.Array, sizes: Sequence[int]) -> Wide:
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
    quotient = Wide(*(jnp.zeros(len(sizes), jnp.uint32) for _ in range(2)))
    remainder = jnp.zeros(len(sizes), jnp.uint32)
    for shift in range(56, -1, -7):
        digits = np.array([n >> shift & 127 for n in sizes], np.uint32)
        digit, remainder = jnp.divmod(remainder * 128 + units * digits, jnp.uint32(scale))
        quotient = Wide(quotient.high << 7 | quotient.low >> 25, quotient.low << 7)
        quotient = add(quotient, Wide(jnp.zeros_like(digit), digit))
    return quotient


def magnitude_dtype(dtype: Any) -> Any:
    """The dtype whose bits are compared: that of |g|, but float32 for the floats of 8 bits.

    Those disagree on which bits are NaN; float32 holds them all exactly.
    """
    real = jnp.finfo(dtype).dtype
    return real if real.itemsize > 1 else jnp.dtype(jnp.float32)


def unsigned_dtype(dtype: Any) -> Any:
    """The unsigned integer as wide as |g|."""
    return jnp.dtype(f"uint{8 * magnitude_dtype(dtype).itemsize}")


def magnitude_bits(g: jax.Array) -> jax.Array:
    """The bits of |g| as unsigned integers: they order as |g| does, with NaN above infinity."""
    if jnp.iscomplexobj(g):
        g = jnp.abs(g)
    bits = lax.bitcast_convert_type(g.astype(magnitude_dtype(g.dtype)), unsigned_dtype(g.dtype))
    # Clearing the sign bit treats subnormals as any number; comparisons of floats may flush them.
    return bits & jnp.array(jnp.iinfo(bits.dtype).max >> 1, bits.dtype)


def magnitude(bits: jax.Array, dtype: Any) -> jax.Array:
    """The |g| with these bits, of a gradient of this dtype; infinity where all is masked."""
    value = lax.bitcast_convert_type(bits, magnitude_dtype(dtype))
    all_ones = jnp.array(jnp.iinfo(bits.dtype).max, bits.dtype)
    return jnp.where(bits == all_ones, jnp.array(jnp.inf, value.dtype), value)


def mesh_of(leaves: Sequence[Any]) -> Mesh | AbstractMesh | None:
    """The mesh of more than one device on which the first such leaf lies, as far as it is known.

    Inside jit, and without jax.set_mesh, the mesh of an array of Auto axes may be unknown.
    """
    for leaf in leaves:
        traced = isinstance(leaf, jax.core.Tracer)
        sharding = getattr(jax.typeof(leaf) if traced else leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return sharding.mesh
    return None


def replicate(tree: Any, mesh: Mesh | AbstractMesh | None) -> Any:
    """The arrays whole on every device: else XLA shards the brackets as it does the leaves."""
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    if AxisType.Explicit in mesh.axis_types:
        return jax.sharding.reshard(tree, everywhere)
    return lax.with_sharding_constraint(tree, everywhere)


def tensor_sizes(leaves: Sequence[jax.Array], stacked: Sequence[int]) -> list[int]:
    """The number of entries of one tensor of each leaf."""
    return [math.prod(leaf.shape[k:]) for leaf, k in zip(leaves, stacked, strict=True)]


class Selected(NamedTuple):
    """What `select` found."""

    bits: list[jax.Array]  # a leaf: T as magnitude bits, shaped as its stack; all ones: mask all
    below: jax.Array  # float32 scalar: entries with |g| < T, over all leaves


@partial(jax.jit, static_argnames="stacked")
def select(leaves: Sequence[jax.Array], ranks: Wide, stacked: tuple[int, ...]) -> Selected:
    """The m-th smallest |g|, counted from 0, of every tensor of every leaf.

    All NaNs are one value, the largest. Where m is the size of a tensor, all of it lies below.

    Args:
      leaves: at least one float or complex array, each on any mesh.
      ranks: m for the tensors of each leaf, [leaves].
      stacked: how many leading axes of each leaf index separate tensors.
    """
    mesh = mesh_of(leaves)
    rows = [math.prod(leaf.shape[:k]) for leaf, k in zip(leaves, stacked, strict=True)]
    leaf_of_row = np.repeat(np.arange(len(leaves)), rows)
    sizes = jax.tree.map(lambda part: part[leaf_of_row], wide(tensor_sizes(leaves, stacked)))
    ranks = replicate(jax.tree.map(lambda part: part[leaf_of_row], ranks), mesh)
    unsigned = [unsigned_dtype(leaf.dtype) for leaf in leaves]
    widest = max(unsigned, key=lambda dtype: dtype.itemsize)

    def per_leaf(numbers: list[int]) -> np.ndarray:
        return np.array(numbers, widest)[leaf_of_row]

    everything = at_most(sizes, ranks)
    all_ones = per_leaf([jnp.iinfo(dtype).max for dtype in unsigned])
    above_nan = per_leaf([_infinity_bits(leaf.dtype) + 2 for leaf in leaves])
    low = jnp.where(everything, all_ones, jnp.zeros_like(all_ones))
    high = jnp.where(everything, all_ones, above_nan)
    below = jnp.where(everything, as_float(sizes), jnp.float32(0))

    def narrow(bracket: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # The barrier ties the leaves to the pass. Else XLA computes their bits once, before the
        # loop, and keeps them: a second copy of the gradient.
        (low, high, below), tied = lax.optimization_barrier((bracket, list(leaves)))
        width, j = high - low, jnp.arange(1, CANDIDATES + 1, dtype=widest)[:, None]
        whole, part = jnp.divmod(width, jnp.array(CANDIDATES + 1, widest))
        candidates = low + whole * j + part * j // (CANDIDATES + 1)
        counts = _count_rows(tied, candidates, stacked, mesh)
        fits = at_most(counts, ranks)
        bracket = (
            jnp.max(jnp.where(fits, candidates, low), 0),
            jnp.min(jnp.where(fits, high, candidates), 0),
            jnp.max(jnp.where(fits, as_float(counts), below), 0),
        )
        return replicate(bracket, mesh)

    low, _, below = lax.while_loop(
        lambda bracket: jnp.any(bracket[1] - bracket[0] > 1),
        narrow,
        replicate((low, high, below), mesh),
    )
    bits = [
        replicate(part, mesh).reshape(leaf.shape[:k]).astype(dtype)
        for part, leaf, k, dtype in zip(_split(low, rows), leaves, stacked, unsigned, strict=True)
    ]
    return Selected(bits, jnp.sum(below))


def _split(array: jax.Array, rows: Sequence[int]) -> list[jax.Array]:
    """[..., R] → [..., rows of the leaf], a leaf."""
    ends = np.cumsum(rows).tolist()
    return [array[..., end - count : end] for end, count in zip(ends, rows, strict=True)]


def _infinity_bits(dtype: Any) -> int:
    return int(np.array(np.inf, magnitude_dtype(dtype)).view(unsigned_dtype(dtype)))


def _count_rows(
    leaves: Sequence[jax.Array],
    candidates: jax.Array,
    stacked: tuple[int, ...],
    mesh: Mesh | AbstractMesh | None,
) -> Wide:
    """How many entries lie below each of the candidates, [CANDIDATES, R]."""
    counts = []
    rows = [math.prod(leaf.shape[:k]) for leaf, k in zip(leaves, stacked, strict=True)]
    for leaf, k, n, part in zip(leaves, stacked, rows, _split(candidates, rows), strict=True):
        own = replicate(part, mesh).reshape(CANDIDATES, *leaf.shape[:k])
        bits = magnitude_bits(leaf)
        count = replicate(_count_below(bits, own.astype(bits.dtype), k), mesh)
        counts.append(jax.tree.map(lambda c, n=n: c.reshape(CANDIDATES, n), count))
    return replicate(jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *counts), mesh)


def _count_below(bits: jax.Array, candidates: jax.Array, stacked: int) -> Wide:
    """The entries of each tensor that lie below its candidates, [CANDIDATES, *stack]."""
    axes, later = _counted_at_once(bits.shape, stacked)
    below = [
        (bits < jnp.expand_dims(c, tuple(range(stacked, bits.ndim)))).astype(jnp.uint32)
        for c in candidates
    ]
    counts = jnp.stack(_sums(below, axes))
    # The axes that are left come after the candidates and the stack.
    left = tuple(range(1 + stacked, 1 + stacked + len(later)))
    return _add_up(Wide(jnp.zeros_like(counts), counts), left)


def _counted_at_once(shape: Sequence[int], stacked: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a tensor along which a count stays below 2**32, and the other ones."""
    axes: list[int] = []
    for axis in reversed(range(stacked, len(shape))):
        if math.prod(shape[a] for a in [*axes, axis]) < 2**32:
            axes.append(axis)
    later = [axis for axis in range(stacked, len(shape)) if axis not in axes]
    return tuple(sorted(axes)), tuple(later)


def _add_up(counts: Wide, axes: tuple[int, ...]) -> Wide:
    if not axes:
        return counts
    zeros = (np.uint32(0), np.uint32(0))
    return Wide(
        *lax.reduce(tuple(counts), zeros, lambda a, b: tuple(add(Wide(*a), Wide(*b))), axes)
    )


def _sums(arrays: list[jax.Array], axes: tuple[int, ...]) -> list[jax.Array]:
    """Sums of uint32 arrays of one shape, in the form that the backend is fast at.

    XLA's CPU backend vectorises one reduction of many operands but not many reductions; the other
    backends fuse many reductions into one.
    """

    def together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        zeros = (np.uint32(0),) * len(arrays)
        return tuple(lax.reduce(arrays, zeros, lambda a, b: tuple(map(lax.add, a, b)), axes))

    def apart(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(array, axes, dtype=jnp.uint32) for array in arrays)

    return list(lax.platform_dependent(*arrays, cpu=together, default=apart))
