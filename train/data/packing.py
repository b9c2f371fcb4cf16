"""Which examples share a row, computed from their lengths alone."""

import contextlib
import hashlib
import zipfile
from bisect import bisect_left, insort
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import atomic_file


class Packing(NamedTuple):
    """Row r holds the examples members[offsets[r] : offsets[r + 1]], in that order.

    Attributes:
      members: int64 [N], the numbers of examples.
      offsets: int64 [R + 1].
    """

    members: np.ndarray
    offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.offsets) - 1

    def row_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens in each row [R], given those of each example [N]."""
        return np.add.reduceat(lengths[self.members], self.offsets[:-1])

    def padding(self, lengths: np.ndarray, capacity: int) -> float:
        """The fraction of the rows that is padding."""
        return 1 - float(lengths[self.members].sum(dtype=np.int64)) / (self.num_rows * capacity)


def one_per_row(count: int) -> Packing:
    """Every example in a row of its own."""
    return Packing(np.arange(count), np.arange(count + 1))


def concatenate(packings: list[Packing]) -> Packing:
    """The rows of several packings, whose examples are numbered on from one to the next."""
    firsts = np.cumsum([0, *(len(packing.members) for packing in packings)])
    members = [packing.members + first for packing, first in zip(packings, firsts, strict=False)]
    offsets = [
        packing.offsets[:-1] + first for packing, first in zip(packings, firsts, strict=False)
    ]
    return Packing(np.concatenate(members), np.concatenate([*offsets, firsts[-1:]]))


class _OpenRows:
    """Rows that still have room, found by how much they have."""

    def __init__(self) -> None:
        self._by_room: dict[int, list[np.ndarray]] = {}  # Room -> arrays of rows that have it.
        self._rooms: list[int] = []  # The keys, ascending.

    def put(self, rows: np.ndarray, room: int) -> None:
        if len(rows) and room:
            if room not in self._by_room:
                insort(self._rooms, room)
                self._by_room[room] = []
            self._by_room[room].append(rows)

    def take(self, length: int) -> tuple[np.ndarray, int] | None:
        """The fullest rows with room for `length` tokens, and their room."""
        index = bisect_left(self._rooms, length)
        if index == len(self._rooms):
            return None
        room = self._rooms[index]
        rows = self._by_room[room].pop()
        if not self._by_room[room]:
            del self._by_room[room], self._rooms[index]
        return rows, room


def best_fit(lengths: np.ndarray, capacity: int) -> Packing:
    """Packs by best-fit-decreasing (Johnson 1973), exactly; a million examples take seconds.

    Examples are taken from the longest to the shortest, and each goes into the fullest row that has
    room for it. Examples of one length and rows with the same room are interchangeable, so they are
    handled together: the time grows with the number of different lengths rather than of examples.

    Args:
      lengths: [N], each from 1 to capacity.
      capacity: tokens in a row.

    Example:
      >>> rows = best_fit(np.array([3, 9, 4, 2, 1]), 10)
      >>> [rows.members[a:b].tolist() for a, b in zip(rows.offsets[:-1], rows.offsets[1:])]
      [[1, 4], [2, 0, 3]]
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths must be from 1 to {capacity}")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    row_of = np.empty(len(lengths), np.int64)  # The row of each example, in that order.
    open_rows = _OpenRows()
    num_rows = num_packed = 0
    unique, counts = np.unique(lengths[order], return_counts=True)
    for length, left in zip(unique[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            rows, room = open_rows.take(length) or (np.empty(0, np.int64), capacity)
            if not len(rows):  # As many new rows as the examples of this length need.
                rows = np.arange(num_rows, num_rows - -left // (capacity // length))
                num_rows += len(rows)
            # The best fit fills a row with as many as it holds before it turns to the next.
            per_row = room // length
            full = min(len(rows), left // per_row)
            end = num_packed + full * per_row
            row_of[num_packed:end] = np.repeat(rows[:full], per_row)
            num_packed, left = end, left - full * per_row
            open_rows.put(rows[:full], room - per_row * length)
            if left and full < len(rows):
                row_of[num_packed : num_packed + left] = rows[full]
                open_rows.put(rows[full : full + 1], room - left * length)
                num_packed, left, full = num_packed + left, 0, full + 1
            open_rows.put(rows[full:], room)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=num_rows))])
    return Packing(order[np.argsort(row_of, kind="stable")], offsets)


_METHOD = 1  # Version of `best_fit`'s result; part of the digest.


def pack(lengths: np.ndarray, capacity: int, cache: Path) -> Packing:
    """`best_fit`, kept on disk for the same lengths and capacity.

    A packing depends on nothing else: a change of the data, the tokenizer or the settings either
    changes the lengths or leaves the packing as it was.
    """
    content = np.concatenate([[_METHOD, capacity], lengths]).astype("<i8")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    file = cache / f"{digest}.rows.npz"
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with file.open("rb") as opened, np.load(opened) as saved:  # Arrays have checksums.
            packing = Packing(saved["members"], saved["offsets"])
        if np.array_equal(np.sort(packing.members), np.arange(len(lengths))):
            return packing
    packing = best_fit(lengths, capacity)
    with atomic_file(file) as partial, partial.open("wb") as out:
        np.savez(out, members=packing.members, offsets=packing.offsets)
    return packing
