"""Sums and minima over the entries of an array, without a copy of it.

XLA reduces each shard of a sharded array on its device, and combines as many numbers as the result
has. It merges the sums of many arrays into one exchange between the devices.
"""

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gmt_jax._threshold.replication import is_explicit
from gmt_jax._threshold.uint64 import UInt64, add_up

# Gives the entries of a leaf, an array or a tree of arrays of one shape, as integers.
Bits = Callable[[Any], jax.Array]
Operand = TypeVar("Operand")


class Reading(NamedTuple):
    """What one reading of L leaves finds in each of their tensors, for K candidates.

    Attributes:
      counts: the number of entries below each candidate, uint32 [K, L, *stack].
      counts_high: their multiples of 2**32; None where a tensor has fewer entries.
      minima: the smallest entry that is not below each candidate, and ~x of the largest entry x
        that is not above the last integer, [K + 1, L, *stack]. Where there is none, the largest
        integer.
    """

    counts: jax.Array
    counts_high: jax.Array | None
    minima: jax.Array


def read(
    leaves: Sequence[Any],
    bits: Bits,
    bounds: Sequence[jax.Array],
    stacked_axes: tuple[int, ...],
) -> Reading:
    """Reads L leaves that are alike, each once.

    Args:
      leaves: what `bits` takes: arrays or trees of arrays, all of one shape.
      bits: gives the entries of a leaf as integers of at least 0, with a sign: TPUs compare those
        much faster.
      bounds: [K + 1, *stack] for each leaf, of the dtype of `bits`: K candidates and the last
        integer.
      stacked_axes: the axes of the stack.
    """

    def arrays(entries: jax.Array, bounds: Sequence[jax.Array]) -> list[jax.Array]:
        *candidates, last = bounds
        none = lax.full_like(entries, jnp.iinfo(entries.dtype).max)
        below = [entries < candidate for candidate in candidates]
        following = [lax.select(x, none, entries) for x in below]
        largest = lax.select(entries > last, none, ~entries)
        return [*(x.astype(jnp.uint32) for x in below), *following, largest]

    entries = list(map(jax.jit(bits), leaves))
    axes, later = _counted_at_once(entries[0].shape, stacked_axes)
    candidates = len(bounds[0]) - 1
    kinds = ("sum",) * candidates + ("min",) * (candidates + 1)
    counts, minima = reduce(kinds, arrays, entries, axes, bounds, stacked_axes)
    left = tuple(2 + other - sum(axis < other for axis in axes) for other in later)
    if not left:
        return Reading(counts, None, minima)
    high, low = map(jnp.asarray, add_up(UInt64(jnp.zeros_like(counts), counts), left))
    return Reading(low, high, jnp.min(minima, left))


def along(values: jax.Array, ndim: int, stacked_axes: Sequence[int]) -> jax.Array:
    """[*stack] → an array of `ndim` axes that broadcasts against the leaf."""
    if not values.ndim:
        return values  # It does so as it is.
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
    arrays: Callable[[Operand, Sequence[jax.Array]], list[jax.Array]],
    leaves: Sequence[Operand],
    axes: tuple[int, ...],
    bounds: Sequence[jax.Array] = (),
    stacked_axes: tuple[int, ...] = (),
) -> list[jax.Array]:
    """Sums or minima of arrays of one shape, in the form that is fast on the backend.

    XLA's CPU backend vectorises one reduction of many operands, but not many reductions. If it is
    partitioned, though, its parts are gathered one by one: there each axis is first reduced within
    as many blocks as it may have shards, and the blocks of all leaves are then reduced at once. The
    other backends fuse many reductions into one.

    Args:
      kinds: "sum" or "min" for each array; minima are of integers.
      arrays: makes the arrays from a leaf and its bounds, entry by entry.
      leaves: L arrays or trees of arrays, all of one shape and, best, sharded alike.
      axes: the axes to reduce.
      bounds: [bounds, *stack] for each leaf.
      stacked_axes: the axes of the stack.

    Returns:
      The results of each run of one kind, of integers or of floats, [results, L, ...]: operations
      on them are compiled, and run, once for all.
    """
    combine = [{"sum": lax.add, "min": lax.min}[kind] for kind in kinds]

    def starts(operands: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        each = [(kind, x.dtype) for kind, x in zip(kinds, operands, strict=True)]
        # One array for all that are equal, which is quicker to compile.
        start = {(k, d): lax.full((), 0 if k == "sum" else jnp.iinfo(d).max, d) for k, d in each}
        return tuple(start[kind] for kind in each)

    def stacks(of_leaves: Sequence[Sequence[jax.Array]]) -> list[tuple[str, jax.Array]]:
        def kind_of(pair: tuple[str, Sequence[jax.Array]]) -> tuple[str, bool]:
            return pair[0], jnp.issubdtype(pair[1][0].dtype, jnp.integer)

        runs = groupby(zip(kinds, zip(*of_leaves, strict=True), strict=True), kind_of)
        return [(kind, _stack([results for _, results in run])) for (kind, _), run in runs]

    @jax.jit
    def within_blocks(leaf: Operand, bounds: jax.Array | None) -> tuple[jax.Array, ...]:
        split, within, _, kept = _blocks(jax.tree.leaves(leaf)[0], axes)
        leaf = jax.tree.map(split, leaf)
        operands = arrays(leaf, _along(bounds, leaf, [kept[axis] for axis in stacked_axes]))

        def join(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(f(x, y) for f, x, y in zip(combine, a, b, strict=True))

        return tuple(lax.reduce(tuple(operands), starts(operands), join, within))

    @jax.jit
    def one_by_one(leaf: Operand, bounds: jax.Array | None) -> list[jax.Array]:
        leaf = jax.tree.map(lambda x: lax.expand_dims(x, [0]), leaf)
        operands = arrays(leaf, _along(bounds, leaf, [axis + 1 for axis in stacked_axes]))
        reductions = zip(operands, starts(operands), combine, strict=True)
        return [lax.reduce(x, x0, f, [axis + 1 for axis in axes]) for x, x0, f in reductions]

    def together(*parts: tuple[Operand, jax.Array | None]) -> tuple[jax.Array, ...]:
        blocks = stacks([within_blocks(*part) for part in parts])
        _, _, between, _ = _blocks(jax.tree.leaves(leaves[0])[0], axes)
        ends = {"sum": lax.reduce_sum, "min": lax.reduce_min}
        return tuple(ends[kind](stack, between) if between else stack for kind, stack in blocks)

    def default(*parts: tuple[Operand, jax.Array | None]) -> tuple[jax.Array, ...]:
        return tuple(stack for _, stack in stacks([one_by_one(*part) for part in parts]))

    parts = zip(leaves, bounds or (None,) * len(leaves), strict=True)
    return list(lax.platform_dependent(*parts, cpu=together, default=default))


def _along(bounds: jax.Array | None, leaf: Any, axes: Sequence[int]) -> list[jax.Array]:
    """Each of the bounds [bounds, *stack], in the shape of the leaf, which has these axes of it."""
    if bounds is None:
        return []
    like = jax.typeof(jax.tree.leaves(leaf)[0])
    out = like.sharding if is_explicit(like.sharding.mesh) else None
    each = [lax.slice_in_dim(bounds, i, i + 1) for i in range(len(bounds))]
    return [lax.broadcast_in_dim(x, like.shape, [0, *axes], out_sharding=out) for x in each]


def _stack(results: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """The results of all leaves, [1, ...] each, as [results, L, ...] in the widest dtype."""
    widest = max((x.dtype for of_one in results for x in of_one), key=lambda d: d.itemsize)
    flat = lax.concatenate([x.astype(widest) for of_one in results for x in of_one], 0)
    return flat.reshape(len(results), len(results[0]), *flat.shape[1:])


def _blocks(
    x: jax.Array, axes: Sequence[int]
) -> tuple[Callable[[jax.Array], jax.Array], list[int], list[int], dict[int, int]]:
    """How arrays like x are cut into blocks of which none crosses the edge of a shard.

    Returns:
      A function that splits each of the axes into blocks and the entries of a block, after a new
      first axis; the axes of its result within blocks; those between blocks, in a stack of results
      of a reduction within them; and where the other axes are in its result.
    """
    sharding = jax.typeof(x).sharding
    shape: list[int] = [1]
    spec: list[object] = [None]
    within, between = [], []
    kept: dict[int, int] = {}
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
            kept[axis] = len(shape)
            shape.append(size)
        elif blocks <= 1:
            within.append(len(shape))
            shape.append(size)
        else:
            between.append(len(shape) + 1 - len(within))
            within.append(len(shape) + 1)
            shape += [blocks, size // blocks]
            spec.append(None)
    out = NamedSharding(sharding.mesh, PartitionSpec(*spec)) if is_explicit(sharding.mesh) else None
    return lambda x: lax.reshape(x, shape, out_sharding=out), within, between, kept
