"""The thresholds of the tensors of a tree, as floats and as the integers they are compared as."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold.float_bits import bits_dtype, magnitude, magnitude_bits, nan_bits
from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.packing import pack
from gmt_jax._threshold.replication import mesh_of
from gmt_jax._threshold.rows import magnitude_rows
from gmt_jax._threshold.search import select
from gmt_jax._threshold.uint64 import UInt64


class Found(NamedTuple):
    """The thresholds T of all tensors, in the order of a layout.

    Attributes:
      bits: T as integers, [R]; those above the integers of NaN mask everything.
      last_masked: the integers up to which entries are masked, [R]; of `absolute_bits`.
      threshold: T as floats, [R].
      below: the number of entries below T, [R].
      passes: int32 scalar: how often the data was read.
    """

    bits: jax.Array
    last_masked: jax.Array
    threshold: jax.Array
    below: UInt64
    passes: jax.Array


def find(
    leaves: Sequence[jax.Array],
    dtypes: Sequence[np.dtype],
    layout: TensorLayout,
    ranks: UInt64,
    guess: jax.Array,
    slack: UInt64 | None,
) -> Found:
    """The m-th smallest |g| of every tensor, counting from 0; all NaNs are one value, the largest.

    Args:
      leaves: at least one real array, on any mesh.
      dtypes: those in which |g| of each leaf is compared.
      layout: how the leaves are divided into tensors.
      ranks: m, [R].
      guess: what T may be, [R], or 0. It changes how often the data is read, and not the exact T.
      slack: how far the number of entries below T may fall short of m, [R]; T need not be an entry
        then. None for the exact T.
    """
    packed, kinds, packed_layout, order = pack(leaves, layout)
    back = np.argsort(order)
    rows = magnitude_rows(packed_layout, [dtypes[i] for i in kinds], mesh_of(packed))
    of_rows = layout.expand(np.array(dtypes[: len(layout.sizes)]))
    guessed = _bits_of(guess, of_rows, rows.dtype)
    moved = jax.tree.map(lambda part: part[back], (ranks, guessed, slack))
    ranks, guessed, slack = moved
    bits, below, passes = select(packed, ranks, rows, guessed, slack)
    bits, below = jax.tree.map(lambda part: part[order], (bits, below))
    last = _last_masked(bits, of_rows)
    return Found(bits, last, _magnitude_of(bits, of_rows, guess.dtype), below, passes)


def _last_masked(bits: jax.Array, dtypes: np.ndarray) -> jax.Array:
    """The integers before T, but the last of all where everything is masked, NaNs too."""
    nans = np.array([nan_bits(dtype) for dtype in dtypes], bits.dtype)
    all_nans = np.array([jnp.iinfo(bits_dtype(dtype)).max for dtype in dtypes], bits.dtype)
    return jnp.where(bits > nans, all_nans, bits - 1)


def _bits_of(threshold: jax.Array, dtypes: np.ndarray, wide: np.dtype) -> jax.Array:
    """The bits of thresholds as floats of the dtype of their rows, [R], in the widest of them."""
    by_dtype = {
        dtype: magnitude_bits(threshold, dtype).astype(wide) for dtype in set(dtypes.tolist())
    }
    return _by_row(dtypes, by_dtype)


def _magnitude_of(bits: jax.Array, dtypes: np.ndarray, wide: np.dtype) -> jax.Array:
    """The thresholds with these bits, [R]."""

    def widened(dtype: np.dtype) -> jax.Array:
        found = magnitude(bits.astype(bits_dtype(dtype)), dtype).astype(wide)
        if wide != np.float64 or dtype != np.float32:
            return found
        # A CPU reads subnormals as zero where it widens them.
        subnormal = bits < 1 << jnp.finfo(dtype).nmant
        return jnp.where(subnormal, bits.astype(wide) * 2.0**-149, found)

    return _by_row(dtypes, {dtype: widened(dtype) for dtype in set(dtypes.tolist())})


def _by_row(dtypes: np.ndarray, by_dtype: dict[np.dtype, jax.Array]) -> jax.Array:
    """For each row the element of the array of its dtype, [R]."""
    (_, rows), *others = by_dtype.items()
    for dtype, found in others:
        rows = jnp.where(dtypes == dtype, found, rows)
    return rows
