"""What is asked of an array without copying it: counts, extremes and a sample of its entries.

Each is a reduction, or a gather of single entries. Of a sharded array, XLA does its share of them
on each device and adds up integers as many as the answer has.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gmt_jax._threshold.replication import AnyMesh, is_explicit, replicate
from gmt_jax._threshold.uint64 import UInt64, add

Bits = Callable[[jax.Array], jax.Array]  # a leaf's entries as unsigned integers


def count_below(
    leaf: jax.Array,
    bits: Bits,
    candidates: jax.Array,
    num_stacked_axes: int,
    active: jax.Array | None,
) -> UInt64:
    """How many entries of each tensor lie below its candidates, [K, *stack].

    Where `active` is given and False, the counts are not needed and may be anything.
    """
    axes, later = _counted_at_once(leaf.shape, num_stacked_axes)

    def arrays(leaf: jax.Array, candidates: jax.Array) -> list[jax.Array]:
        entries = bits(leaf)
        return [(entries < _per_tensor(c, leaf)).astype(jnp.uint32) for c in candidates]

    counts = jnp.stack(reduce(("sum",) * len(candidates), arrays, leaf, candidates, axes, active))
    # The axes that are left come after the candidates and the stack.
    left = tuple(range(1 + num_stacked_axes, 1 + num_stacked_axes + len(later)))
    return _add_up(UInt64(jnp.zeros_like(counts), counts), left)


def inside(
    leaf: jax.Array, bits: Bits, low: jax.Array, high: jax.Array, num_stacked_axes: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The smallest, the largest and the sum of the entries in [low, high), each [*stack].

    All counted from `low`, and the sum modulo the width of the integers. Where a tensor has no such
    entry, the smallest is the largest integer and the largest is 0.
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
    """Entries from all over each tensor, [tensors, size]; all of them, or none, where need be.

    The places are the same for every tensor of a stack, and the same each time.
    """
    stack, shape = leaf.shape[:num_stacked_axes], leaf.shape[num_stacked_axes:]
    if math.prod(shape) <= size:
        return replicate(leaf, mesh).reshape(math.prod(stack), math.prod(shape))
    if max(shape) >= 2**31:  # further than indices go
        return replicate(jnp.zeros((math.prod(stack), 0), leaf.dtype), mesh)
    tensors = np.unravel_index(np.arange(math.prod(stack))[:, None], stack) if stack else ()
    places = [place[None, :] for place in _spread(shape, size)]
    everywhere = NamedSharding(mesh, PartitionSpec()) if mesh and is_explicit(mesh) else None
    # Single entries: slices of several would make XLA gather the leaf onto every device first.
    index = tuple(jnp.asarray(i, jnp.int32) for i in (*tensors, *places))
    taken = leaf.at[index].get(
        mode="promise_in_bounds", wrap_negative_indices=False, out_sharding=everywhere
    )
    return taken.reshape(math.prod(stack), size)


def _spread(shape: Sequence[int], size: int) -> list[np.ndarray]:
    """Indices of places that fill a box evenly: multiples of powers of a root, modulo 1.

    Source: M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018.
    """
    root = 2.0
    for _ in range(50):  # of x**(d + 1) = x + 1
        root = (1 + root) ** (1 / (len(shape) + 1))
    steps = [root ** -(axis + 1.0) for axis in range(len(shape))]
    at = np.arange(1, size + 1)
    return [
        np.minimum((at * step % 1 * extent).astype(np.int32), extent - 1)
        for step, extent in zip(steps, shape, strict=True)
    ]


def _per_tensor(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """[*stack] → [*stack, 1, ...], to be compared with the leaf's entries."""
    return jnp.expand_dims(values, tuple(range(values.ndim, leaf.ndim)))


def _counted_at_once(
    shape: Sequence[int], num_stacked_axes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of a tensor along which a count stays below 2**32, and the other ones."""
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
    arrays: Callable[[Any, Any], list[jax.Array]],
    leaf: Any,
    bounds: Any,
    axes: tuple[int, ...],
    active: jax.Array | None,
) -> list[jax.Array]:
    """Sums or minima of arrays of one shape, in the form that the backend is fast at.

    The arrays are made of a leaf and its bounds, whatever these are; minima are of unsigned ones.

    XLA's CPU backend vectorises one reduction of many operands but not many reductions, and can
    leave one out; the other backends fuse many reductions into one.
    """
    combine = [{"sum": lax.add, "min": lax.min}[kind] for kind in kinds]

    def start(kind: str, dtype: Any) -> Any:
        return dtype.type(0 if kind == "sum" else jnp.iinfo(dtype).max)

    def together(leaf: jax.Array, bounds: jax.Array) -> tuple[jax.Array, ...]:
        operands = tuple(arrays(leaf, bounds))
        starts = tuple(start(k, x.dtype) for k, x in zip(kinds, operands, strict=True))

        def join(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(f(x, y) for f, x, y in zip(combine, a, b, strict=True))

        return tuple(lax.reduce(operands, starts, join, axes))

    def apart(leaf: jax.Array, bounds: jax.Array) -> tuple[jax.Array, ...]:
        reductions = zip(arrays(leaf, bounds), kinds, combine, strict=True)
        return tuple(lax.reduce(x, start(k, x.dtype), f, axes) for x, k, f in reductions)

    def if_active(leaf: jax.Array, bounds: jax.Array) -> tuple[jax.Array, ...]:
        shapes = jax.eval_shape(together, leaf, bounds)
        nothing = tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)
        return lax.cond(active, together, lambda *_: nothing, leaf, bounds)

    cpu = together if active is None else if_active
    return list(lax.platform_dependent(leaf, bounds, cpu=cpu, default=apart))
