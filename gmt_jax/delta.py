"""Sparse weight deltas: which entries of a tensor changed, and their new values.

Under a fixed mask, a tuned tensor equals its base except for a few entries. A delta stores their
positions and new values, not differences: adding a difference rounds, so that only values give back
the tuned tensor bit for bit.

Positions are stored as the gaps between them, Rice-coded: the `low` lowest bits of each gap (the
lowest bits of all gaps first, then all second lowest and so on), then the rest of each gap in
unary, as that many zeros and a one. The lowest bit of a byte comes first. The first byte is `low`,
the number that takes the fewest bytes. A random twentieth of the entries takes 5.8 bits a position,
where one byte for each gap would take 8; from two fifths upwards the code is a bitmap.

A delta fits one base alone, so that each tensor's has its shape and a digest of its base: 16 bytes
of BLAKE2b over the tensor's bytes in row-major order. `changes` and `put` are the same without
shape and digest, for files that store their own.
"""

import hashlib
from typing import NamedTuple

import jax
import numpy as np
from jax.tree_util import KeyPath

from gmt_jax.tree_paths import path_name
from gmt_jax.types import Leaf, PyTree


class TensorDelta(NamedTuple):
    """The entries of one tensor that changed, in row-major order.

    Attributes:
      positions: uint8 [bytes]: their positions, encoded by `encode_positions`.
      values: [changed]: their new values, of the tensor's dtype.
      shape: int64 [dimensions]: the tensor's shape.
      base: uint8 [16]: the digest of the base's bytes.
    """

    positions: np.ndarray
    values: np.ndarray
    shape: np.ndarray
    base: np.ndarray


def extract(base: PyTree, tuned: PyTree) -> PyTree:
    """The delta between two trees of arrays, with a `TensorDelta` for each array.

    An entry has changed if its bits have: 0.0 and -0.0 differ, and a NaN equals itself.

    Args:
      base: any tree of arrays.
      tuned: a tree of the same structure, shapes and dtypes.

    Raises:
      ValueError: if a tensor (which is named) differs in shape or dtype, or the structures differ.

    Example:
      >>> import numpy as np
      >>> from gmt_jax import delta
      >>> base = {"w": np.array([1.0, 2.0, 3.0])}
      >>> changes = delta.extract(base, {"w": np.array([1.0, 2.5, 3.0])})
      >>> changes["w"].values
      array([2.5])
      >>> delta.apply(base, changes)["w"]
      array([1. , 2.5, 3. ])
    """
    return jax.tree_util.tree_map_with_path(_extract, base, tuned)


def apply(base: PyTree, delta: PyTree) -> PyTree:
    """The tuned tree, as NumPy arrays, from the base and the delta that `extract` returned.

    Raises:
      ValueError: if a delta is damaged or of another base than this tensor, which is named.
    """

    def tuned_of(path: KeyPath, base: Leaf, delta: TensorDelta) -> np.ndarray:
        array = np.asarray(base)
        expected = f"{delta.values.dtype}{np.asarray(delta.shape).tolist()}"
        found = f"{array.dtype}{list(array.shape)}"
        if found != expected:
            raise ValueError(f"{path_name(path)}: the delta is {expected}, but the base {found}")
        if not np.array_equal(_digest(array), delta.base):
            raise ValueError(
                f"{path_name(path)}: the delta was extracted from a base with other values"
            )
        try:
            return put(array, delta.positions, delta.values)
        except ValueError as error:
            raise ValueError(f"{path_name(path)}: {error}") from None

    return jax.tree_util.tree_map_with_path(tuned_of, base, delta)


def changes(base: np.ndarray, tuned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The encoded positions and new values of the entries whose bits differ.

    Args:
      base: an array.
      tuned: an array of the same shape and dtype.
    """
    positions = np.flatnonzero(_bits(base) != _bits(tuned))
    return encode_positions(positions), tuned.reshape(-1)[positions]


def put(base: np.ndarray, positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The tuned array, from its base and the `changes`.

    Raises:
      ValueError: if the positions are damaged.
    """
    tuned = base.copy(order="C")
    _bits(tuned)[decode_positions(positions, values.size, base.size)] = _bits(values)
    return tuned


def encode_positions(positions: np.ndarray) -> np.ndarray:
    """Ascending positions, int64 [changed], as uint8 [bytes]."""
    gaps = np.diff(positions, prepend=-1) - 1
    low = _cheapest(gaps)
    ends = np.cumsum((gaps >> low) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if ends.size else 0, bool)
    unary[ends] = True
    planes = [_pack(gaps >> bit & 1) for bit in range(low)]
    return np.concatenate([np.array([low], np.uint8), *planes, _pack(unary)])


def decode_positions(code: np.ndarray, count: int, size: int) -> np.ndarray:
    """The positions, int64 [count], that `encode_positions` wrote for a tensor of `size` entries.

    Raises:
      ValueError: if the bytes are damaged.
    """
    damaged = ValueError("the positions of its delta are damaged")
    if code.dtype != np.uint8 or not code.size:
        raise damaged
    low, width = int(code[0]), -(-count // 8)
    if 1 << low > max(size, 1) or code.size < 1 + low * width:
        raise damaged
    planes, unary = np.split(code[1:], [low * width])
    ends = np.flatnonzero(np.unpackbits(unary, bitorder="little"))
    if ends.size != count:
        raise damaged
    gaps = (np.diff(ends, prepend=-1) - 1) << low
    for bit, plane in enumerate(planes.reshape(low, width)):
        gaps |= np.unpackbits(plane, count=count, bitorder="little").astype(np.int64) << bit
    positions = np.cumsum(gaps + 1) - 1
    if count and not 0 <= positions[-1] < size:
        raise damaged
    return positions


def _extract(path: KeyPath, base: Leaf, tuned: Leaf) -> TensorDelta:
    old, new = np.asarray(base), np.asarray(tuned)
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        raise ValueError(
            f"{path_name(path)}: the base is {old.dtype}{list(old.shape)}, "
            f"the tuned tensor {new.dtype}{list(new.shape)}"
        )
    shape = np.array(old.shape, np.int64)
    return TensorDelta(*changes(old, new), shape=shape, base=_digest(old))


def _digest(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(
        hashlib.blake2b(_bits(array).view(np.uint8), digest_size=16).digest(), np.uint8
    )


def _cheapest(gaps: np.ndarray) -> int:
    """The number of low bits for which the code of the gaps is the shortest."""
    best, fewest = 0, int(gaps.sum())
    for low in range(1, 63):
        bits = low * gaps.size + int((gaps >> low).sum())
        if bits >= fewest:
            break
        best, fewest = low, bits
    return best


def _bits(array: np.ndarray) -> np.ndarray:
    """The entries as plain bits, [size]; a view if the array is contiguous."""
    size = array.dtype.itemsize
    return array.reshape(-1).view(f"u{size}" if size <= 8 else f"V{size}")


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(bool), bitorder="little")
