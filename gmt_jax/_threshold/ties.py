"""Which of several equal entries are selected: the last ones, by their position in the tensor."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold import reductions
from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.replication import shard_count, shard_index
from gmt_jax._threshold.rows import TensorRows
from gmt_jax._threshold.search import select
from gmt_jax._threshold.uint64 import UInt64, add_up, at_most, subtract

# The position of an entry that is no tie, above all others, and the first integer above it.
NO_TIE = int(np.iinfo(np.int32).max) - 1
END = NO_TIE + 1
# A block has fewer entries.
LONGEST = NO_TIE


def first_selected(
    leaves: Sequence[jax.Array], ranks: UInt64, rows: TensorRows, bits: jax.Array, below: UInt64
) -> list[jax.Array]:
    """For each leaf, where the first entry equal to T that is selected is, as `is_from` takes it.

    The entries equal to T before it are masked, so that m entries of each tensor are.

    Args:
      leaves: as for `select`; so are the next two.
      ranks: m, [R].
      rows: reads the leaves.
      bits: T, [R].
      below: the number of entries below T, [R].
    """
    pairs = list(zip(leaves, rows.layout.split(bits), strict=True))
    layout = _blocks(rows.layout)
    ends = rows.ends * len(leaves) if rows.layout.shared else rows.ends
    readers = zip(rows.bits, ends, rows.layout.stacked_axes, layout.stacked_axes, strict=True)
    positions = TensorRows(
        layout,
        tuple(_positions_of_ties(*reader) for reader in readers),
        (np.dtype(np.int32),) * len(leaves),
        (END,) * len(leaves),
        (END,) * len(leaves),
        rows.mesh,
    )
    masked = subtract(ranks, below)
    if layout != rows.layout:
        masked = _allot(masked, pairs, positions, rows.layout)
    return layout.split(select(pairs, masked, positions).bits)


def is_from(leaf: jax.Array, first: jax.Array, stacked_axes: tuple[int, ...]) -> jax.Array:
    """Where a leaf is not before the position `first`, [*blocks], of its block of the tensor."""
    axes = _block_axes(leaf.shape, stacked_axes, shard_count(leaf))
    return _positions(leaf, axes) >= reductions.along(first, leaf.ndim, axes)


def _positions(leaf: jax.Array, block_axes: tuple[int, ...]) -> jax.Array:
    """The row-major position of each entry in its block, int32."""
    axes = [axis for axis in range(leaf.ndim) if axis not in block_axes]
    size = math.prod(leaf.shape[axis] for axis in axes)
    position = jnp.full((1,) * leaf.ndim, shard_index(leaf) * size, jnp.int32)
    for axis in axes:
        size //= max(leaf.shape[axis], 1)
        along = jnp.arange(leaf.shape[axis], dtype=jnp.int32) * size
        position += reductions.along(along, leaf.ndim, (axis,))
    return position


@cache
def _positions_of_ties(
    bits: reductions.Bits, end: int, stacked_axes: tuple[int, ...], block_axes: tuple[int, ...]
) -> reductions.Bits:
    """One function for each case, so that programs which read equal shapes are traced once."""

    def positions(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        leaf, threshold = pair
        entries = bits(leaf)
        entries = jnp.minimum(entries, jnp.array(end - 1, entries.dtype))  # All NaNs are tied.
        threshold = threshold.astype(entries.dtype)
        tied = entries == reductions.along(threshold, leaf.ndim, stacked_axes)
        return jnp.where(tied, _positions(leaf, block_axes), jnp.int32(NO_TIE))

    return positions


def _block_axes(
    shape: tuple[int, ...], stacked_axes: tuple[int, ...], num_shards: int
) -> tuple[int, ...]:
    """The axes that index blocks of a tensor: as few as leave positions that fit int32."""
    axes = set(stacked_axes)
    for axis in range(len(shape)):
        left = math.prod(n for other, n in enumerate(shape) if other not in axes)
        if left * num_shards >= LONGEST:
            axes.add(axis)
    return tuple(sorted(axes))


def _blocks(layout: TensorLayout) -> TensorLayout:
    shards = layout.num_shards or (1,) * len(layout.shapes)
    leaves = zip(layout.shapes, layout.stacked_axes, shards, strict=True)
    return replace(layout, stacked_axes=tuple(_block_axes(*leaf) for leaf in leaves), shared=False)


def _allot(
    masked: UInt64, pairs: Sequence[Any], positions: TensorRows, layout: TensorLayout
) -> UInt64:
    """The number of ties to mask in each block, from that in each tensor: the first blocks'."""
    tensors = iter(range(layout.num_tensors))
    owners: list[np.ndarray] = []
    blocks = zip(layout.stacked_axes, positions.layout.stacked_axes, layout.shapes, strict=True)
    for stacked, block_axes, shape in blocks:
        stack = tuple(shape[axis] for axis in stacked)
        owner = (
            np.zeros(stack, int)
            if layout.shared
            else np.fromiter(tensors, int, math.prod(stack)).reshape(stack)
        )
        inserted = [i for i, axis in enumerate(block_axes) if axis not in stacked]
        full = tuple(shape[axis] for axis in block_axes)
        owners.append(np.broadcast_to(np.expand_dims(owner, inserted), full).ravel())
    owner = np.concatenate(owners)
    end = jnp.full(len(owner), NO_TIE, jnp.int32)
    ties = jax.tree.map(lambda part: part[0], positions.read(pairs, end[None], end).counts)
    earlier = (owner[:, None] == owner) & np.tri(len(owner), k=-1, dtype=bool)
    before = add_up(jax.tree.map(lambda part: jnp.where(earlier, part[None], 0), ties), (1,))
    budget = jax.tree.map(lambda part: part[owner], masked)
    left = jax.tree.map(
        lambda part: jnp.where(at_most(before, budget), part, 0), subtract(budget, before)
    )
    return jax.tree.map(lambda own, most: jnp.where(at_most(ties, left), own, most), ties, left)
