"""The tensors of a tree as rows of integers, and what one reading of all of them finds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmt_jax._threshold import reductions
from gmt_jax._threshold.float_bits import absolute_bits, bits_dtype, nan_bits
from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.replication import AnyMesh, is_explicit, replicate, shard_axes
from gmt_jax._threshold.uint64 import UInt64, add_up, sum_over_shards


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

    def read(self, leaves: Sequence[Any], candidates: jax.Array, high: jax.Array) -> "RowsRead":
        """Figures of the entries, for candidates [K, R] and brackets that end at high, [R]."""
        # All integers from the largest entry on are NaNs, which are one value.
        last = jnp.where(high == self.rows(self.ends), self.rows(self.largest), high - 1)
        bounds = replicate(jnp.concatenate([candidates, last[None]]), self.mesh)
        split = zip(self.layout.split(bounds), self.dtypes, strict=True)
        of_leaves = [part.astype(dtype) for part, dtype in split]
        found = [
            _over_shards(
                _read(leaves[run], of_leaves[run], self.bits[run.start], axes), leaves[run.start]
            )
            for run, axes in self._alike(leaves)
        ]
        if is_explicit(self.mesh):  # Those of a sharded stack are sharded as it is.
            found = replicate(found, self.mesh)
        counts, minima = self._join(found)
        most = self.rows(self.ends) - 1  # Of NaNs, the first.
        following, largest = jnp.minimum(minima[:-1], most[None]), jnp.minimum(~minima[-1], most)
        return replicate(RowsRead(counts, following, largest), self.mesh)

    def _alike(self, leaves: Sequence[Any]) -> Iterator[tuple[slice, tuple[int, ...]]]:
        """The runs of leaves that are read together, and their stacked axes."""
        patterns = self.layout.patterns or range(len(leaves))
        kinds = zip(
            map(_types, leaves),
            self.layout.stacked_axes,
            self.bits,
            self.dtypes,
            patterns,
            strict=True,
        )
        start = 0
        for (_, axes, *_), run in groupby(kinds):
            end = start + len(list(run))
            yield slice(start, end), axes
            start = end

    def _join(self, found: Sequence[reductions.Reading]) -> tuple[UInt64, jax.Array]:
        """[N, L, *stack] for each run of leaves → [N, R]: counts, and minima."""
        low = _concatenate([part.counts for part in found])
        high = jnp.zeros_like(low)
        if any(part.counts_high is not None for part in found):
            high = _concatenate([_high(part) for part in found])
        counts, minima = UInt64(high, low), _concatenate([part.minima for part in found])
        if self.layout.shared:
            counts = jax.tree.map(lambda part: part[:, None], add_up(counts, (1,)))
            minima = jnp.min(minima, 1, keepdims=True)
        return counts, minima


class RowsRead(NamedTuple):
    """What one reading of the leaves finds.

    Attributes:
      counts: the number of entries below each candidate, [K, R].
      following: the smallest entry that is not below each candidate, [K, R]: any where all are.
      largest: the largest entry of those before the end of the bracket, [R].
    """

    counts: UInt64
    following: jax.Array
    largest: jax.Array


def _concatenate(parts: Sequence[jax.Array]) -> jax.Array:
    """[N, L, *stack] for each run of leaves → [N, R], in the widest of their dtypes."""
    dtype = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    rows = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    return jnp.concatenate([part.astype(dtype) for part in rows], 1)


def _high(reading: reductions.Reading) -> jax.Array:
    """The multiples of 2**32 in the counts."""
    high = reading.counts_high
    return jnp.zeros_like(reading.counts) if high is None else high


@partial(jax.jit, static_argnames=("bits", "stacked_axes"))
def _read(
    leaves: Sequence[Any],
    bounds: Sequence[jax.Array],
    bits: reductions.Bits,
    stacked_axes: tuple[int, ...],
) -> reductions.Reading:
    return reductions.read(leaves, bits, bounds, stacked_axes)


def _types(leaf: Any) -> tuple[Any, ...]:
    """The types of a leaf's arrays, with their shardings as far as those are known."""
    return tuple(map(jax.typeof, jax.tree.leaves(leaf)))


def _over_shards(reading: reductions.Reading, leaf: jax.Array) -> reductions.Reading:
    """The reading of all shards of leaves, of which this device sees one inside jax.shard_map."""
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
