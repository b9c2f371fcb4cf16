"""How a tree is divided into tensors, each with its own rank and threshold: a row of R."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gmt_jax._threshold.float_bits import float32_or_wider, magnitude_dtype

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
      patterns: the path of each leaf without its numbers, as far as it is known: arrays of one
        pattern, such as those of a matrix in each layer, are taken to be sharded alike.
    """

    shapes: tuple[tuple[int, ...], ...]
    stacked_axes: tuple[tuple[int, ...], ...]
    shared: bool = False
    num_shards: tuple[int, ...] = ()
    patterns: tuple[str, ...] = ()

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
