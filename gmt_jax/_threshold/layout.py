"""The tensors of a tree as rows: counts and bounds of all of them are arrays with R rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from gmt_jax._threshold import reductions
from gmt_jax._threshold.float_bits import (
    absolute_bits,
    bits_dtype,
    float32_or_wider,
    magnitude_dtype,
    nan_bits,
)
from gmt_jax._threshold.replication import AnyMesh, is_explicit, replicate, shard_axes
from gmt_jax._threshold.uint64 import UInt64, add_up, sum_over_shards

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class TensorLayout:
    """How the leaves of a tree are divided into tensors: one or more for each leaf, or one for all.

    Attributes:
      shapes: the shapes of the leaves.
      stacked_axes: the axes of each leaf that index tensors, ascending.
      shared: whether all leaves share one threshold; no axes are stacked then.
      num_shards: in how many shards each leaf is, of which this device sees one, inside
        jax.shard_map; 1 elsewhere.
    """

    shapes: tuple[tuple[int, ...], ...]
    stacked_axes: tuple[tuple[int, ...], ...]
    shared: bool = False
    num_shards: tuple[int, ...] = ()

    @cached_property
    def stacks(self) -> list[tuple[int, ...]]:
        """The lengths of the axes of each leaf that index its tensors."""
        leaves = zip(self.shapes, self.stacked_axes, strict=True)
        return [tuple(shape[axis] for axis in axes) for shape, axes in leaves]

    @cached_property
    def sizes(self) -> list[int]:
        """The number of entries of a tensor: one number for each leaf, or one for all."""
        shards = self.num_shards or (1,) * len(self.shapes)
        leaves = zip(self.shapes, self.stacks, shards, strict=True)
        sizes = [
            math.prod(shape) // max(math.prod(stack), 1) * shards for shape, stack, shards in leaves
        ]
        return [sum(sizes)] if self.shared else sizes

    @cached_property
    def counts(self) -> list[int]:
        """The number of tensors of each of `sizes`."""
        return [1] if self.shared else list(map(math.prod, self.stacks))

    @property
    def num_tensors(self) -> int:
        """R."""
        return sum(self.counts)

    @property
    def entries(self) -> int:
        """The number of entries of all leaves."""
        return sum(size * count for size, count in zip(self.sizes, self.counts, strict=True))

    def expand(self, per_size: Tree) -> Tree:
        """[sizes] → [R]."""
        if all(count == 1 for count in self.counts):
            return per_size
        size_of_row = np.repeat(np.arange(len(self.sizes)), self.counts)
        return jax.tree.map(lambda part: part[size_of_row], per_size)

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """[..., R] → [..., *stack] for each leaf."""
        if self.shared:
            return [rows[..., 0]] * len(self.shapes)
        ends = np.cumsum(self.counts).tolist()
        alone = [end - 1 for end, stack in zip(ends, self.stacks, strict=True) if not stack]
        scalars = iter(_scalars(rows[..., np.array(alone)]) if alone else ())
        parts = zip(ends, self.counts, self.stacks, strict=True)
        return [
            rows[..., end - count : end].reshape(*rows.shape[:-1], *stack)
            if stack
            else next(scalars)
            for end, count, stack in parts
        ]


# XLA sums up more numbers in two programs.
_AT_ONCE = 16


def _scalars(rows: jax.Array) -> list[jax.Array]:
    """[..., N] → N arrays [...].

    XLA compiles slices of one array that many programs read into each of them, and takes long. Sums
    under masks are not, and are one program for all masks that are arrays.
    """
    number = rows.shape[-1]
    if number <= _AT_ONCE:
        masks = np.eye(number, dtype=bool)
        return [_masked_sum(rows, mask) for mask in masks]
    groups = -(-number // _AT_ONCE)
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, groups * _AT_ONCE - number)]
    by_group = jnp.pad(rows, padding).reshape(*rows.shape[:-1], groups, _AT_ONCE)
    of_groups = _scalars(jnp.swapaxes(by_group, -1, -2))
    return [x for group in of_groups for x in _scalars(group)][:number]


@jax.jit
def _masked_sum(rows: jax.Array, here: np.ndarray) -> jax.Array:
    """The only one of the rows that is `here`, bool [N]."""
    return jnp.sum(jnp.where(here, rows, 0), axis=-1, dtype=rows.dtype)


def comparison_dtypes(dtypes: Sequence[DTypeLike], layout: TensorLayout) -> tuple[np.dtype, ...]:
    """The dtype in which |g| of each leaf is compared; one dtype, if they share a threshold."""
    compared = [magnitude_dtype(dtype) for dtype in dtypes]
    if not layout.shared or len(set(compared)) == 1:
        return tuple(compared)
    widest = max(map(float32_or_wider, compared), key=lambda dtype: dtype.itemsize)
    return (widest,) * len(compared)


@dataclass(frozen=True)
class TensorRows:
    """Reads the tensors of leaves as rows of integers.

    Attributes:
      layout: how the leaves are divided into tensors.
      bits: gives the entries of each leaf as integers of at least 0.
      dtypes: the dtype of each leaf's integers.
      ends: the first integer above the entries of each of `layout.sizes`.
      octaves: the number of integers, for each of `layout.sizes`, over which entries may be taken
        to be spread evenly: those between two powers of two.
      mesh: the mesh of the leaves, if it is known.
    """

    layout: TensorLayout
    bits: tuple[reductions.Bits, ...]
    dtypes: tuple[np.dtype, ...]
    ends: tuple[int, ...]
    octaves: tuple[int, ...]
    mesh: AnyMesh | None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of rows: the widest in use."""
        return max(self.dtypes, key=lambda dtype: dtype.itemsize)

    @property
    def largest(self) -> list[int]:
        """The largest integer of the dtype of each of `layout.sizes`."""
        return [int(jnp.iinfo(dtype).max) for dtype in self.dtypes[: len(self.layout.sizes)]]

    def rows(self, per_size: Sequence[int]) -> np.ndarray:
        """A number for each of `layout.sizes` → [R]."""
        return np.asarray(self.layout.expand(np.array(per_size, self.dtype)))

    def read(
        self, leaves: Sequence[Any], candidates: jax.Array, low: jax.Array, high: jax.Array
    ) -> "RowsRead":
        """Figures of the entries in the brackets [R], for candidates [K, R]: one reading."""
        # All integers from the largest entry on are NaNs, which are one value.
        last = jnp.where(high == self.rows(self.ends), self.rows(self.largest), high - 1)
        bounds = jnp.concatenate([candidates - low[None], low[None], (last - low)[None]])
        bounds = replicate(bounds, self.mesh)
        split, axes = self.layout.split(bounds), self.layout.stacked_axes
        parts = zip(leaves, split, self.bits, self.dtypes, axes, strict=True)
        found = [
            _over_shards(_read(leaf, bounds.astype(dtype), bits, axes), leaf)
            for leaf, bounds, bits, dtype, axes in parts
        ]
        if is_explicit(self.mesh):  # Those of a sharded stack are sharded as it is.
            found = replicate(found, self.mesh)
        counts, (from_low, to_last) = self._join(found)
        largest = (last - low).astype(to_last.dtype) - to_last
        most = (self.rows(self.ends) - 1 - low).astype(to_last.dtype)  # Of NaNs, the first.
        offsets = [jnp.minimum(offset, most).astype(self.dtype) for offset in (from_low, largest)]
        return replicate(RowsRead(counts, *offsets), self.mesh)

    def _join(self, found: Sequence[reductions.Reading]) -> tuple[UInt64, jax.Array]:
        """[*stack, N] for each leaf → [N, R]: counts and minima, without a sign."""
        low = _concatenate([part.counts for part in found])
        high = jnp.zeros_like(low)
        if any(part.counts_high is not None for part in found):
            high = _concatenate([_high(part) for part in found])
        counts = UInt64(high, low)
        minima = _concatenate([part.minima for part in found]).astype(f"u{self.dtype}")
        if self.layout.shared:
            counts = jax.tree.map(lambda part: part[:, None], add_up(counts, (1,)))
            minima = jnp.min(minima, 1, keepdims=True)
        return counts, minima


class RowsRead(NamedTuple):
    """What one reading of the leaves finds.

    Attributes:
      counts: the number of entries below each candidate, [K, R].
      smallest, largest: the smallest and the largest entry in the bracket, as offsets from its low
        end, [R].
    """

    counts: UInt64
    smallest: jax.Array
    largest: jax.Array


def _concatenate(parts: Sequence[jax.Array]) -> jax.Array:
    """[*stack, N] for each leaf → [N, R], in the widest of their dtypes."""
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    rows = jnp.concatenate([part.reshape(-1).astype(dtype) for part in parts])
    return rows.reshape(-1, parts[0].shape[-1]).T


def _high(reading: reductions.Reading) -> jax.Array:
    """The multiples of 2**32 in the counts of a leaf."""
    high = reading.counts_high
    return jnp.zeros_like(reading.counts) if high is None else high


@partial(jax.jit, static_argnames=("bits", "stacked_axes"))
def _read(
    leaf: jax.Array, bounds: jax.Array, bits: reductions.Bits, stacked_axes: tuple[int, ...]
) -> reductions.Reading:
    return reductions.read(leaf, bits, bounds, stacked_axes)


def _over_shards(reading: reductions.Reading, leaf: jax.Array) -> reductions.Reading:
    """The reading of all shards of a leaf, of which this device sees one inside jax.shard_map."""
    axes = shard_axes(jax.tree.leaves(leaf)[0])
    if not axes:
        return reading
    high, low = map(jnp.asarray, sum_over_shards(UInt64(_high(reading), reading.counts), axes))
    return reductions.Reading(low, high, lax.pmin(reading.minima, axes))


@cache
def _absolute_bits_as(dtype: np.dtype) -> reductions.Bits:
    """One function for each dtype, so that programs which read equal shapes are traced once."""
    return partial(absolute_bits, dtype=dtype)


def magnitude_rows(
    layout: TensorLayout, dtypes: Sequence[np.dtype], mesh: AnyMesh | None
) -> TensorRows:
    """The rows of |g|, compared in these dtypes."""
    of_sizes = list(dtypes[: len(layout.sizes)])
    return TensorRows(
        layout,
        tuple(map(_absolute_bits_as, dtypes)),
        tuple(map(bits_dtype, dtypes)),
        tuple(nan_bits(dtype) + 1 for dtype in of_sizes),
        tuple(1 << jnp.finfo(dtype).nmant for dtype in of_sizes),
        mesh,
    )
