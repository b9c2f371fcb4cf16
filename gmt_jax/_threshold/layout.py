"""The tensors of a tree as rows: counts and bounds of all of them are arrays with R rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gmt_jax._threshold import reductions
from gmt_jax._threshold.float_bits import (
    float32_or_wider,
    magnitude_bits,
    magnitude_dtype,
    nan_bits,
    unsigned_dtype,
)
from gmt_jax._threshold.replication import AnyMesh, replicate
from gmt_jax._threshold.uint64 import UInt64, add

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class TensorLayout:
    """How the leaves of a tree are divided into tensors: one or more for each leaf, or one for all.

    Attributes:
      shapes: the shapes of the leaves.
      num_stacked_axes: the number of leading axes of each leaf that index tensors.
      shared: whether all leaves share one threshold; `num_stacked_axes` is then 0 everywhere.
    """

    shapes: tuple[tuple[int, ...], ...]
    num_stacked_axes: tuple[int, ...]
    shared: bool = False

    @property
    def stacks(self) -> list[tuple[int, ...]]:
        """The leading axes of each leaf that index its tensors."""
        return [shape[:k] for shape, k in zip(self.shapes, self.num_stacked_axes, strict=True)]

    @property
    def sizes(self) -> list[int]:
        """The number of entries of a tensor: one number for each leaf, or one for all."""
        sizes = [
            math.prod(shape[k:])
            for shape, k in zip(self.shapes, self.num_stacked_axes, strict=True)
        ]
        return [sum(sizes)] if self.shared else sizes

    @property
    def counts(self) -> list[int]:
        """The number of tensors of each of `sizes`."""
        return [1] if self.shared else list(map(math.prod, self.stacks))

    @property
    def entries(self) -> int:
        """The number of entries of all leaves."""
        return sum(map(math.prod, self.shapes))

    def expand(self, per_size: Tree) -> Tree:
        """[sizes] → [R]."""
        size_of_row = np.repeat(np.arange(len(self.sizes)), self.counts)
        return jax.tree.map(lambda part: part[size_of_row], per_size)

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """[..., R] → [..., *stack] for each leaf."""
        if self.shared:
            return [rows[..., 0]] * len(self.shapes)
        ends = np.cumsum(self.counts).tolist()
        return [
            rows[..., end - count : end].reshape(*rows.shape[:-1], *stack)
            for end, count, stack in zip(ends, self.counts, self.stacks, strict=True)
        ]


def key_dtypes(dtypes: Sequence[DTypeLike], layout: TensorLayout) -> tuple[np.dtype, ...]:
    """The dtype in which |g| of each leaf is compared; one dtype, if they share a threshold."""
    keys = [magnitude_dtype(dtype) for dtype in dtypes]
    if not layout.shared or len(set(keys)) == 1:
        return tuple(keys)
    return (max(map(float32_or_wider, keys), key=lambda dtype: dtype.itemsize),) * len(keys)


def _widened(leaf: jax.Array, bits: reductions.Bits, dtype: DTypeLike) -> jax.Array:
    return bits(leaf).astype(dtype)


@dataclass(frozen=True)
class TensorRows:
    """Reads the tensors of leaves as rows.

    Attributes:
      layout: how the leaves are divided into tensors.
      dtypes: the dtype in which |g| of each leaf is compared.
      mesh: the mesh of the leaves, if it is known.
    """

    layout: TensorLayout
    dtypes: tuple[np.dtype, ...]
    mesh: AnyMesh | None

    @property
    def tops(self) -> jax.Array:
        """The bits above those of NaN, [R], in the widest unsigned dtype in use."""
        dtypes = self.dtypes[: len(self.layout.sizes)]
        widest = max(map(unsigned_dtype, dtypes), key=lambda dtype: dtype.itemsize)
        return jnp.asarray(self.layout.expand(np.array([nan_bits(d) + 1 for d in dtypes], widest)))

    @property
    def mantissas(self) -> np.ndarray:
        """The number of mantissa bits, [R]: an octave has two to that power of floats."""
        dtypes = self.dtypes[: len(self.layout.sizes)]
        return np.asarray(self.layout.expand(np.array([jnp.finfo(d).nmant for d in dtypes])))

    def count(self, leaves: Sequence[jax.Array], candidates: jax.Array, done: jax.Array) -> UInt64:
        """The number of entries below each of the candidates, [K, R]; anything where done [R]."""
        active: list[jax.Array | None] = [None] * len(leaves)
        if self.mesh is None:
            # Not over a mesh, where a count ends in a sum over the devices: all must take part.
            active = [~jnp.all(part) for part in self.layout.split(done)]
        leaves_with = zip(leaves, self._bits, self.layout.num_stacked_axes, strict=True)
        parts = zip(leaves_with, self.split(candidates), active, strict=True)
        counts = []
        for (leaf, bits, k), part, wanted in parts:
            counts.append(self._replicate(reductions.count_below(leaf, bits, part, k, wanted)))
        return self._replicate(self._join_counts(counts))

    def inside(
        self, leaves: Sequence[jax.Array], low: jax.Array, high: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The smallest, largest and sum of the entries in [low, high) as offsets from low, [R]."""
        starts, ends = (self.layout.split(self._replicate(bound)) for bound in (low, high))
        stacked = self.layout.num_stacked_axes
        leaves_with = zip(leaves, self._bits, stacked, starts, ends, strict=True)
        found = []
        for leaf, bits, k, start, end in leaves_with:
            # In one dtype, so that all of them are exchanged in one collective.
            wide_bits = partial(_widened, bits=bits, dtype=low.dtype)
            whole = self._replicate(reductions.inside(leaf, wide_bits, start, end, k))
            found.append([part.reshape(-1) for part in whole])
        smallest, largest, total = (jnp.concatenate(part) for part in zip(*found, strict=True))
        if self.layout.shared:
            return jnp.min(smallest)[None], jnp.max(largest)[None], jnp.sum(total)[None]
        return smallest, largest, total

    def sample(self, leaves: Sequence[jax.Array]) -> tuple[jax.Array, np.ndarray]:
        """Bits of a sample of the entries of each tensor, [R, S], and its length, [R].

        A row is filled up with bits above those of NaN.
        """
        layout, tensors, tops = self.layout, max(sum(self.layout.counts), 1), self.tops
        # As many as take little memory beside a device's part of the leaves: three times their own
        # size while they are exchanged.
        copies = 1 if self.mesh is None else 3 * self.mesh.size
        drawn = min(max(layout.entries // (256 * copies * tensors), 256), 2**12)
        parts = []
        for leaf, bits, k in zip(leaves, self._bits, layout.num_stacked_axes, strict=True):
            own = -(-drawn * leaf.size // max(layout.entries, 1)) if layout.shared else drawn
            taken = self._replicate(reductions.sample(leaf, k, own, self.mesh))
            parts.append(bits(taken).astype(tops.dtype))
        if layout.shared:
            parts = [jnp.concatenate(parts, axis=1)]
        lengths = np.repeat([part.shape[1] for part in parts], layout.counts)
        most, top = max(1, *(part.shape[1] for part in parts)), jnp.max(tops, initial=0)
        padded = [
            jnp.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=top)
            for part in parts
        ]
        return self._replicate(jnp.concatenate(padded)), lengths.astype(np.float32)

    @property
    def _bits(self) -> list[reductions.Bits]:
        return [partial(magnitude_bits, dtype=dtype) for dtype in self.dtypes]

    def _replicate(self, tree: Tree) -> Tree:
        return replicate(tree, self.mesh)

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """The part of the rows that belongs to each leaf, [..., *stack], in its unsigned dtype."""
        parts = zip(self.layout.split(self._replicate(rows)), self.dtypes, strict=True)
        return [part.astype(unsigned_dtype(dtype)) for part, dtype in parts]

    def _join_counts(self, counts: Sequence[UInt64]) -> UInt64:
        """[K, *stack] for each leaf → [K, R]: concatenated, or added up if shared."""
        if self.layout.shared:
            total = counts[0]
            for count in counts[1:]:
                total = add(total, count)
            return jax.tree.map(lambda part: part[:, None], total)
        parts = [jax.tree.map(lambda c: c.reshape(c.shape[0], -1), count) for count in counts]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *parts)
