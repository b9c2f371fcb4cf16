"""The tensors of a tree, one a row: what is asked of all leaves, put into arrays of R rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold import reductions as counting
from gmt_jax._threshold.float_bits import magnitude_bits, magnitude_dtype, nan_bits, unsigned_dtype
from gmt_jax._threshold.replication import AnyMesh, replicate
from gmt_jax._threshold.uint64 import UInt64, add


@dataclass(frozen=True)
class TensorLayout:
    """Which tensors a tree of leaves has: one or more a leaf, or all leaves as one.

    Attributes:
      shapes: of the leaves.
      num_stacked_axes: how many leading axes of each leaf index tensors.
      shared: one threshold for all leaves; `num_stacked_axes` is then 0 everywhere.
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
        """The entries of a tensor: one number a leaf, or the one of all."""
        each = [
            math.prod(shape[k:])
            for shape, k in zip(self.shapes, self.num_stacked_axes, strict=True)
        ]
        return [sum(each)] if self.shared else each

    @property
    def counts(self) -> list[int]:
        """How many tensors have each of `sizes`."""
        return [1] if self.shared else list(map(math.prod, self.stacks))

    @property
    def entries(self) -> int:
        """The entries of all leaves."""
        return sum(map(math.prod, self.shapes))

    def expand(self, per_size: Any) -> Any:
        """[sizes] → [R]."""
        of_row = np.repeat(np.arange(len(self.sizes)), self.counts)
        return jax.tree.map(lambda part: part[of_row], per_size)

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """[..., R] → [..., *stack], a leaf."""
        if self.shared:
            return [rows[..., 0]] * len(self.shapes)
        ends = np.cumsum(self.counts).tolist()
        return [
            rows[..., end - count : end].reshape(*rows.shape[:-1], *stack)
            for end, count, stack in zip(ends, self.counts, self.stacks, strict=True)
        ]


def key_dtypes(dtypes: Sequence[Any], layout: TensorLayout) -> tuple[Any, ...]:
    """The dtypes in which each leaf's |g| are compared: one for all, where they share one."""
    each = [magnitude_dtype(dtype) for dtype in dtypes]
    return (jnp.result_type(*each),) * len(each) if layout.shared else tuple(each)


def _widened(leaf: jax.Array, bits: counting.Bits, dtype: Any) -> jax.Array:
    return bits(leaf).astype(dtype)


@dataclass(frozen=True)
class TensorRows:
    """How leaves are read as rows."""

    layout: TensorLayout
    dtypes: tuple[Any, ...]  # in which the leaves' |g| are compared
    mesh: AnyMesh | None

    @property
    def tops(self) -> jax.Array:
        """The bits above every NaN's, [R], as the widest of the unsigned integers in use."""
        dtypes = self.dtypes[: len(self.layout.sizes)]
        widest = max(map(unsigned_dtype, dtypes), key=lambda dtype: dtype.itemsize)
        return jnp.asarray(self.layout.expand(np.array([nan_bits(d) + 1 for d in dtypes], widest)))

    @property
    def mantissas(self) -> np.ndarray:
        """The bits of a mantissa, [R]: an octave of floats is two to their power."""
        dtypes = self.dtypes[: len(self.layout.sizes)]
        return np.asarray(self.layout.expand(np.array([jnp.finfo(d).nmant for d in dtypes])))

    def count(self, leaves: Sequence[jax.Array], candidates: jax.Array, done: jax.Array) -> UInt64:
        """How many entries lie below each of the candidates, [K, R]; where done, anything."""
        active: list[jax.Array | None] = [None] * len(leaves)
        if self.mesh is None:
            # Over a mesh a count ends in a sum over the devices: they must not part at a branch.
            active = [~jnp.all(part) for part in self.layout.split(done)]
        leaves_with = zip(leaves, self._bits, self.layout.num_stacked_axes, strict=True)
        parts = zip(leaves_with, self.split(candidates), active, strict=True)
        counts = []
        for (leaf, bits, k), part, wanted in parts:
            counts.append(self._whole(counting.count_below(leaf, bits, part, k, wanted)))
        return self._whole(self._join_counts(counts))

    def inside(
        self, leaves: Sequence[jax.Array], low: jax.Array, high: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The smallest, largest and sum of the entries in [low, high), from `low`, each [R]."""
        bounds = zip(*(self.layout.split(self._whole(bound)) for bound in (low, high)), strict=True)
        leaves_with = zip(leaves, self._bits, self.layout.num_stacked_axes, bounds, strict=True)
        found = []
        for leaf, bits, k, (start, end) in leaves_with:
            # All in one dtype, so that they can travel together.
            wide_bits = partial(_widened, bits=bits, dtype=low.dtype)
            whole = self._whole(counting.inside(leaf, wide_bits, start, end, k))
            found.append([part.reshape(-1) for part in whole])
        smallest, largest, total = (jnp.concatenate(part) for part in zip(*found, strict=True))
        if self.layout.shared:
            return jnp.min(smallest)[None], jnp.max(largest)[None], jnp.sum(total)[None]
        return smallest, largest, total

    def sample(self, leaves: Sequence[jax.Array]) -> tuple[jax.Array, np.ndarray]:
        """Bits of entries from all over each tensor, [R, S], and how many of S they are, [R].

        The rest is above every NaN's bits.
        """
        layout, tensors, tops = self.layout, max(sum(self.layout.counts), 1), self.tops
        # So many that they take little memory beside a device's part of the leaves: thrice their
        # own size while they travel.
        copies = 1 if self.mesh is None else 3 * self.mesh.size
        drawn = min(max(layout.entries // (256 * copies * tensors), 256), 2**12)
        parts = []
        for leaf, bits, k in zip(leaves, self._bits, layout.num_stacked_axes, strict=True):
            own = -(-drawn * leaf.size // max(layout.entries, 1)) if layout.shared else drawn
            taken = self._whole(counting.sample(leaf, k, own, self.mesh))
            parts.append(bits(taken).astype(tops.dtype))
        if layout.shared:
            parts = [jnp.concatenate(parts, axis=1)]
        lengths = np.repeat([part.shape[1] for part in parts], layout.counts)
        most, top = max(1, *(part.shape[1] for part in parts)), jnp.max(tops, initial=0)
        padded = [
            jnp.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=top)
            for part in parts
        ]
        return self._whole(jnp.concatenate(padded)), lengths.astype(np.float32)

    @property
    def _bits(self) -> list[counting.Bits]:
        return [partial(magnitude_bits, dtype=dtype) for dtype in self.dtypes]

    def _whole(self, tree: Any) -> Any:
        return replicate(tree, self.mesh)

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """Each leaf's part of the rows, as its own unsigned integers."""
        parts = zip(self.layout.split(self._whole(rows)), self.dtypes, strict=True)
        return [part.astype(unsigned_dtype(dtype)) for part, dtype in parts]

    def _join_counts(self, counts: Sequence[UInt64]) -> UInt64:
        """[K, *stack] a leaf → [K, R]: one after the other, or added up."""
        if self.layout.shared:
            total = counts[0]
            for count in counts[1:]:
                total = add(total, count)
            return jax.tree.map(lambda part: part[:, None], total)
        parts = [jax.tree.map(lambda c: c.reshape(c.shape[0], -1), count) for count in counts]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *parts)
