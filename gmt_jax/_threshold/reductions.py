"""Sums and minima over the entries of an array, without a copy of it.

XLA reduces each shard of a sharded array on its device, and combines as many numbers as the result
has. It merges the sums of many arrays into one exchange between the devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gmt_jax._threshold.replication import is_explicit
from gmt_jax._threshold.uint64 import UInt64, add_up

# Gives the entries of a leaf, an array or a tree of arrays of one shape, as integers.
Bits = Callable[[Any], jax.Array]
Operand = TypeVar("Operand")
Bounds = TypeVar("Bounds")


class Reading(NamedTuple):
    """What one reading of a leaf finds in each of its tensors.

    Attributes:
      counts: the number of entries below each candidate, uint32 [*stack] for each of K.
      counts_high: their multiples of 2**32, likewise; None where a tensor has fewer entries.
      smallest, largest, total: the smallest, the largest and the sum of the entries in the bracket,
        as offsets from its low end, [*stack]. The sum is modulo the width of the integers. In an
        empty bracket, the smallest is the largest integer and the largest is 0.
    """

    counts: list[jax.Array]
    counts_high: list[jax.Array] | None
    smallest: jax.Array
    largest: jax.Array
    total: jax.Array


def read(leaf: jax.Array, bits: Bits, bounds: jax.Array, stacked_axes: tuple[int, ...]) -> Reading:
    """Reads a leaf once.

    Args:
      leaf: an array.
      bits: gives the entries of the leaf as integers of at least 0.
      bounds: [K + 2, *stack], of the dtype of `bits`: the candidates, and the bracket as its first
        entry and the one after its last.
      stacked_axes: the axes of the stack.
    """

    def arrays(leaf: jax.Array, bounds: jax.Array) -> list[jax.Array]:
        entries = bits(leaf)
        *candidates, low, high = (along(bound, entries.ndim, stacked_axes) for bound in bounds)
        inside, offset = (low <= entries) & (entries < high), entries - low
        absent = jnp.array(jnp.iinfo(entries.dtype).max, entries.dtype)
        # Three offsets may wrap around: integers as wide as those of other leaves wrap likewise.
        wide = np.int64 if entries.dtype == np.int64 else np.int32
        total = jnp.where(inside, offset, 0).astype(wide)
        return [
            *((entries < candidate).astype(jnp.uint32) for candidate in candidates),
            jnp.where(inside, offset, absent),
            jnp.where(inside, absent - offset, absent),  # The largest, as the smallest complement.
            total,
        ]

    kinds = ("sum",) * (len(bounds) - 2) + ("min", "min", "sum")
    shape = jax.eval_shape(bits, leaf).shape
    axes, later = _counted_at_once(shape, stacked_axes)
    *counts, smallest, complement, total = reduce(kinds, arrays, leaf, bounds, axes)
    left = tuple(later_axis - sum(axis < later_axis for axis in axes) for later_axis in later)
    absent = jnp.array(jnp.iinfo(complement.dtype).max, complement.dtype)
    if not left:
        return Reading(counts, None, smallest, absent - complement, total)
    wide = [add_up(UInt64(jnp.zeros_like(count), count), left) for count in counts]
    return Reading(
        [jnp.asarray(count.low) for count in wide],
        [jnp.asarray(count.high) for count in wide],
        jnp.min(smallest, left),
        absent - jnp.min(complement, left),
        jnp.sum(total, left, dtype=total.dtype),
    )


def along(values: jax.Array, ndim: int, stacked_axes: Sequence[int]) -> jax.Array:
    """[*stack] → an array of `ndim` axes that broadcasts against the leaf."""
    return jnp.expand_dims(values, [axis for axis in range(ndim) if axis not in stacked_axes])


def _counted_at_once(
    shape: Sequence[int], stacked_axes: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a tensor over which a count stays below 2**32, and the remaining axes."""
    axes: list[int] = []
    of_tensor = [axis for axis in range(len(shape)) if axis not in stacked_axes]
    for axis in reversed(of_tensor):
        if math.prod(shape[a] for a in [*axes, axis]) < 2**32:
            axes.append(axis)
    return tuple(sorted(axes)), tuple(axis for axis in of_tensor if axis not in axes)


def reduce(
    kinds: Sequence[str],
    arrays: Callable[[Operand, Bounds], list[jax.Array]],
    leaf: Operand,
    bounds: Bounds,
    axes: tuple[int, ...],
) -> list[jax.Array]:
    """Sums or minima of arrays of one shape, in the form that is fast on the backend.

    XLA's CPU backend vectorises one reduction of many operands, but not many reductions. If it is
    partitioned, though, its parts are gathered one by one: there each axis is first reduced within
    as many blocks as it may have shards. The other backends fuse many reductions into one.

    Args:
      kinds: "sum" or "min" for each array; minima are of integers.
      arrays: makes the arrays from a leaf and its bounds.
      leaf: an array or a tree of arrays.
      bounds: likewise.
      axes: the axes to reduce.
    """
    combine = [{"sum": lax.add, "min": lax.min}[kind] for kind in kinds]

    def start(kind: str, dtype: np.dtype) -> np.generic:
        return dtype.type(0 if kind == "sum" else jnp.iinfo(dtype).max)

    def apart(operands: Sequence[jax.Array], axes: Sequence[int]) -> tuple[jax.Array, ...]:
        reductions = zip(operands, kinds, combine, strict=True)
        return tuple(lax.reduce(x, start(k, x.dtype), f, axes) for x, k, f in reductions)

    def together(leaf: Operand, bounds: Bounds) -> tuple[jax.Array, ...]:
        operands = arrays(leaf, bounds)
        starts = tuple(start(k, x.dtype) for k, x in zip(kinds, operands, strict=True))
        split, within, between = _blocks(operands[0], axes)

        def join(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(f(x, y) for f, x, y in zip(combine, a, b, strict=True))

        blocks = lax.reduce(tuple(map(split, operands)), starts, join, within)
        return apart(blocks, between) if between else tuple(blocks)

    def default(leaf: Operand, bounds: Bounds) -> tuple[jax.Array, ...]:
        return apart(arrays(leaf, bounds), axes)

    return list(lax.platform_dependent(leaf, bounds, cpu=together, default=default))


def _blocks(
    x: jax.Array, axes: Sequence[int]
) -> tuple[Callable[[jax.Array], jax.Array], list[int], list[int]]:
    """How arrays like x are cut into blocks of which none crosses the edge of a shard.

    Returns:
      A function that splits each of the axes into blocks and the entries of a block; the axes of
      its result within blocks; and those between blocks, in the result of a reduction within them.
    """
    sharding = jax.typeof(x).sharding
    shape: list[int] = []
    spec: list[object] = []
    within, between = [], []
    for axis, size in enumerate(x.shape):
        if is_explicit(sharding.mesh):
            names = sharding.spec[axis]
            names = names if isinstance(names, tuple) else (names,) if names else ()
            blocks = math.prod(sharding.mesh.shape[name] for name in names)
            spec.append(sharding.spec[axis])
        else:
            # A mesh of all devices, whose axes divide both numbers, is the most that may be there.
            blocks = math.gcd(size, jax.device_count())
        if axis not in axes:
            shape.append(size)
        elif blocks <= 1:
            within.append(len(shape))
            shape.append(size)
        else:
            between.append(len(shape) - len(within))
            within.append(len(shape) + 1)
            shape += [blocks, size // blocks]
            spec.append(None)
    if not between:
        return lambda x: x, list(axes), []
    out = NamedSharding(sharding.mesh, PartitionSpec(*spec)) if is_explicit(sharding.mesh) else None
    return lambda x: lax.reshape(x, shape, out_sharding=out), within, between
