"""Sparse weight deltas: which entries of a tensor changed, and what they are now.

Where a mask was fixed, a tuned tensor is its base but for a few entries. Of these the positions
and the new values are kept, not differences: adding a difference rounds, a value does not, so
that applying a delta gives the tuned tensor bit for bit.

Positions are stored as the gaps between them, Rice-coded: of each gap the `low` lowest bits, all
gaps' lowest bits first, then all the second lowest and so on, then what remains of each gap in
unary, as that many zeros and a one; the lowest bit of a byte comes first. `low` is the one that
takes the fewest bytes, and is itself the first byte. A random twentieth of the entries takes
5.8 bits a position, where a byte a gap takes 8; from two fifths upwards it is a bitmap.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from gmt_jax.tree_paths import path_name


class TensorDelta(NamedTuple):
    """The entries of one tensor that changed, in row-major order."""

    positions: np.ndarray  # uint8 [bytes]: where they lie, as encode_positions writes it
    values: np.ndarray  # [changed]: what they are now, of the tensor's dtype


def extract(base: Any, tuned: Any) -> Any:
    """The delta of a tree of arrays: a `TensorDelta` in the place of each array.

    An entry has changed if its bits have: 0.0 and -0.0 differ, and a NaN equals itself.

    Args:
      base: any tree of arrays.
      tuned: a tree of the same structure, shapes and dtypes.

    Raises:
      ValueError: naming a tensor whose shape or dtype differs, or if the structures do.

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


def apply(base: Any, delta: Any) -> Any:
    """The tuned tree, as NumPy arrays, of a base and the delta that `extract` made of both.

    Raises:
      ValueError: naming a tensor to which its delta does not fit.
    """

    def one(path: Any, base: Any, delta: TensorDelta) -> np.ndarray:
        array = np.asarray(base)
        if delta.values.dtype != array.dtype:
            raise ValueError(
                f"{path_name(path)}: the delta is {delta.values.dtype}, but the base {array.dtype}"
            )
        try:
            at = decode_positions(delta.positions, delta.values.size, array.size)
        except ValueError as error:
            raise ValueError(f"{path_name(path)}: {error}") from None
        tuned = array.copy(order="C")
        _bits(tuned)[at] = _bits(delta.values)
        return tuned

    return jax.tree_util.tree_map_with_path(one, base, delta)


def encode_positions(positions: np.ndarray) -> np.ndarray:
    """Rising positions [changed], int64, as bytes (uint8)."""
    gaps = np.diff(positions, prepend=-1) - 1
    low = _cheapest(gaps)
    ends = np.cumsum((gaps >> low) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if ends.size else 0, bool)
    unary[ends] = True
    planes = [_pack(gaps >> bit & 1) for bit in range(low)]
    return np.concatenate([np.array([low], np.uint8), *planes, _pack(unary)])


def decode_positions(code: np.ndarray, count: int, size: int) -> np.ndarray:
    """The `count` positions in a tensor of `size` entries that were written as these bytes.

    Raises:
      ValueError: if the bytes are not such a code.
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


def _extract(path: Any, base: Any, tuned: Any) -> TensorDelta:
    old, new = np.asarray(base), np.asarray(tuned)
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        raise ValueError(
            f"{path_name(path)}: the base is {old.dtype}{list(old.shape)}, "
            f"the tuned tensor {new.dtype}{list(new.shape)}"
        )
    at = np.flatnonzero(_bits(old) != _bits(new))
    return TensorDelta(encode_positions(at), new.reshape(-1)[at])


def _cheapest(gaps: np.ndarray) -> int:
    """How many low bits to keep of the gaps, for the fewest bytes in all."""
    best, fewest = 0, int(gaps.sum())
    for low in range(1, 63):
        bits = low * gaps.size + int((gaps >> low).sum())
        if bits >= fewest:
            break
        best, fewest = low, bits
    return best


def _bits(array: np.ndarray) -> np.ndarray:
    """The entries as unsigned integers, [size]; a view where the array is contiguous."""
    return array.reshape(-1).view(f"u{array.dtype.itemsize}")


def _pack(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(bool), bitorder="little")
