"""Counts, extremes and a sample of the entries of an array, without a copy of it.

Each is a reduction, or a gather of single entries. XLA reduces each shard of a sharded array on its
device, and combines as many integers as the result has.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gmt_jax._threshold.replication import AnyMesh, is_explicit, replicate
from gmt_jax._threshold.uint64 import UInt64, add

# Gives the entries of a leaf as unsigned integers.
Bits = Callable[[jax.Array], jax.Array]
Operand = TypeVar("Operand")
Bounds = TypeVar("Bounds")


def count_below(
    leaf: jax.Array,
    bits: Bits,
    candidates: jax.Array,
    num_stacked_axes: int,
    active: jax.Array | None,
) -> UInt64:
    """The number of entries of each tensor below each of its candidates, [K, *stack].

    Args:
      leaf: [*stack, *shape of a tensor].
      bits: gives the entries of the leaf as unsigned integers.
      candidates: [K, *stack], of the dtype of `bits`.
      num_stacked_axes: the number of axes of the stack.
      active: a bool scalar; where it is False, the counts are not needed and may be anything.
    """
    axes, later = _counted_at_once(leaf.shape, num_stacked_axes)

    def arrays(leaf: jax.Array, candidates: jax.Array) -> list[jax.Array]:
        entries = bits(leaf)
        return [(entries < _per_tensor(c, leaf)).astype(jnp.uint32) for c in candidates]

    counts = jnp.stack(reduce(("sum",) * len(candidates), arrays, leaf, candidates, axes, active))
    # The remaining axes follow the candidates and the stack.
    left = tuple(range(1 + num_stacked_axes, 1 + num_stacked_axes + len(later)))
    return _add_up(UInt64(jnp.zeros_like(counts), counts), left)


def inside(
    leaf: jax.Array, bits: Bits, low: jax.Array, high: jax.Array, num_stacked_axes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The smallest, the largest and the sum of the entries in [low, high), each [*stack].

    They are offsets from `low`, and the sum is modulo the width of the integers. Where a tensor has
    no such entry, the smallest is the largest integer and the largest is 0.
    """

    def arrays(leaf: jax.Array, bounds: jax.Array) -> list[jax.Array]:
        low, high = (_per_tensor(bound, leaf) for bound in bounds)
        entries = bits(leaf)
        within, offset = (low <= entries) & (entries < high), entries - low
        absent = jnp.array(jnp.iinfo(entries.dtype).max, entries.dtype)
        return [
            jnp.where(within, offset, absent),
            jnp.where(within, ~offset, absent),
            jnp.where(within, offset, 0),
        ]

    axes = tuple(range(num_stacked_axes, leaf.ndim))
    kinds = ("min", "min", "sum")  # The largest is the smallest complement.
    smallest, complement, total = reduce(kinds, arrays, leaf, jnp.stack([low, high]), axes, None)
    return smallest, ~complement, total


def sample(leaf: jax.Array, num_stacked_axes: int, size: int, mesh: AnyMesh | None) -> jax.Array:
    """Entries spread over each tensor, [tensors, size], at the same positions in every call.

    All entries, if a tensor has at most `size` of them; none, if it has an axis that int32 cannot
    index.
    """
    stack, shape = leaf.shape[:num_stacked_axes], leaf.shape[num_stacked_axes:]
    if math.prod(shape) <= size:
        return replicate(leaf, mesh).reshape(math.prod(stack), math.prod(shape))
    if max(shape) >= 2**31:
        return replicate(jnp.zeros((math.prod(stack), 0), leaf.dtype), mesh)
    tensors = np.unravel_index(np.arange(math.prod(stack))[:, None], stack) if stack else ()
    positions = [index[None, :] for index in _spread(shape, size)]
    replicated = NamedSharding(mesh, PartitionSpec()) if mesh and is_explicit(mesh) else None
    # Single entries: slices of several would make XLA gather the leaf onto every device first.
    index = tuple(jnp.asarray(i, jnp.int32) for i in (*tensors, *positions))
    taken = leaf.at[index].get(
        mode="promise_in_bounds", wrap_negative_indices=False, out_sharding=replicated
    )
    return taken.reshape(math.prod(stack), size)


def _spread(shape: Sequence[int], size: int) -> list[np.ndarray]:
    """Indices of positions that fill a box evenly: multiples of powers of a root, modulo 1.

    Source: M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018.
    """
    root = 2.0
    for _ in range(50):  # of x**(d + 1) = x + 1
        root = (1 + root) ** (1 / (len(shape) + 1))
    steps = [root ** -(axis + 1.0) for axis in range(len(shape))]
    numbers = np.arange(1, size + 1)
    return [
        np.minimum((numbers * step % 1 * extent).astype(np.int32), extent - 1)
        for step, extent in zip(steps, shape, strict=True)
    ]


def _per_tensor(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """[*stack] → [*stack, 1, ...], to be compared with the entries of the leaf."""
    return jnp.expand_dims(values, tuple(range(values.ndim, leaf.ndim)))


def _counted_at_once(
    shape: Sequence[int], num_stacked_axes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a tensor over which a count stays below 2**32, and the remaining axes."""
    axes: list[int] = []
    for axis in reversed(range(num_stacked_axes, len(shape))):
        if math.prod(shape[a] for a in [*axes, axis]) < 2**32:
            axes.append(axis)
    later = [axis for axis in range(num_stacked_axes, len(shape)) if axis not in axes]
    return tuple(sorted(axes)), tuple(later)


def _add_up(counts: UInt64, axes: tuple[int, ...]) -> UInt64:
    if not axes:
        return counts
    zeros = (np.uint32(0), np.uint32(0))
    return UInt64(
        *lax.reduce(tuple(counts), zeros, lambda a, b: tuple(add(UInt64(*a), UInt64(*b))), axes)
    )


def reduce(
    kinds: Sequence[str],
    arrays: Callable[[Operand, Bounds], list[jax.Array]],
    leaf: Operand,
    bounds: Bounds,
    axes: tuple[int, ...],
    active: jax.Array | None,
) -> list[jax.Array]:
    """Sums or minima of arrays of one shape, in the form that is fast on the backend.

    XLA's CPU backend vectorises one reduction of many operands but not many reductions, and can
    skip it by a branch; the other backends fuse many reductions into one.

    Args:
      kinds: "sum" or "min" for each array; minima are of unsigned integers.
      arrays: makes the arrays from a leaf and its bounds.
      leaf: an array or a tree of arrays.
      bounds: likewise.
      axes: the axes to reduce.
      active: a bool scalar; where it is False, the result is not needed and may be anything.
    """
    combine = [{"sum": lax.add, "min": lax.min}[kind] for kind in kinds]

    def start(kind: str, dtype: np.dtype) -> np.generic:
        return dtype.type(0 if kind == "sum" else jnp.iinfo(dtype).max)

    def together(leaf: Operand, bounds: Bounds) -> tuple[jax.Array, ...]:
        operands = tuple(arrays(leaf, bounds))
        starts = tuple(start(k, x.dtype) for k, x in zip(kinds, operands, strict=True))

        def join(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(f(x, y) for f, x, y in zip(combine, a, b, strict=True))

        return tuple(lax.reduce(operands, starts, join, axes))

    def apart(leaf: Operand, bounds: Bounds) -> tuple[jax.Array, ...]:
        reductions = zip(arrays(leaf, bounds), kinds, combine, strict=True)
        return tuple(lax.reduce(x, start(k, x.dtype), f, axes) for x, k, f in reductions)

    def if_active(leaf: Operand, bounds: Bounds) -> tuple[jax.Array, ...]:
        shapes = jax.eval_shape(together, leaf, bounds)
        nothing = tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)
        return lax.cond(active, together, lambda *_: nothing, leaf, bounds)

    cpu = together if active is None else if_active
    return list(lax.platform_dependent(leaf, bounds, cpu=cpu, default=apart))
