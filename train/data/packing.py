"""Which examples share a row, planned from their lengths alone."""

import hashlib
from bisect import bisect_left, insort
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import atomic_file


class Plan(NamedTuple):
    """Row r holds the examples members[offsets[r] : offsets[r + 1]], in that order."""

    members: np.ndarray  # int64 [N]
    offsets: np.ndarray  # int64 [R + 1]

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.offsets) - 1


def one_a_row(count: int) -> Plan:
    """Every example by itself."""
    return Plan(np.arange(count), np.arange(count + 1))


def best_fit(lengths: np.ndarray, capacity: int) -> Plan:
    """Best-fit-decreasing bin packing (Johnson 1973), exact, for a million examples in seconds.

    The longest example comes first, and each goes into the fullest row that has room for it.
    Examples of one length and rows with the same room are interchangeable, so they are placed
    together: the time grows with the number of different lengths rather than of examples.

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
    row_of = np.empty(len(lengths), np.int64)  # Of the examples in that order.
    by_room: dict[int, list[np.ndarray]] = {}  # Room that is left -> the rows that have it.
    rooms: list[int] = []  # Its keys, ascending.
    count = 0

    def put(rows: np.ndarray, room: int) -> None:
        if len(rows) and room:
            if room not in by_room:
                insort(rooms, room)
                by_room[room] = []
            by_room[room].append(rows)

    def take() -> tuple[int, np.ndarray]:
        """The fullest rows with room for an example of the present length."""
        at = bisect_left(rooms, length)
        room = rooms[at]
        rows = by_room[room].pop()
        if not by_room[room]:
            del by_room[room], rooms[at]
        return room, rows

    groups = np.unique(lengths[order], return_counts=True)
    place = 0
    for length, left in zip(groups[0][::-1].tolist(), groups[1][::-1].tolist(), strict=True):
        while left:
            if rooms and rooms[-1] >= length:
                room, rows = take()
            else:
                room, rows = capacity, np.arange(count, count - -left // (capacity // length))
                count += len(rows)
            # The best fit fills a row with as many as it holds before it turns to the next.
            each = room // length
            full = min(len(rows), left // each)
            row_of[place : place + full * each] = np.repeat(rows[:full], each)
            place, left = place + full * each, left - full * each
            put(rows[:full], room - each * length)
            if left and full < len(rows):
                row_of[place : place + left] = rows[full]
                put(rows[full : full + 1], room - left * length)
                place, left, full = place + left, 0, full + 1
            put(rows[full:], room)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=count))])
    return Plan(order[np.argsort(row_of, kind="stable")], offsets)


def waste(rows: Plan, lengths: np.ndarray, capacity: int) -> float:
    """The share of the rows' room that is padding."""
    return 1 - float(lengths[rows.members].sum(dtype=np.int64)) / (rows.num_rows * capacity)


_METHOD = 1  # Changes with the plans that `best_fit` makes.


def plan_rows(lengths: np.ndarray, capacity: int, cache: Path) -> Plan:
    """`best_fit`, planned once for the same lengths and capacity.

    The lengths are all that a plan depends on: whatever changes in the data, the tokenizer or the
    settings changes them or leaves the plan as it was.
    """
    content = np.concatenate([[_METHOD, capacity], lengths]).astype("<i8")
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    file = cache / f"{digest}.rows.npz"
    if not file.exists():
        rows = best_fit(lengths, capacity)
        with atomic_file(file) as new, new.open("wb") as out:
            np.savez(out, members=rows.members, offsets=rows.offsets)
    with np.load(file) as saved:
        return Plan(saved["members"], saved["offsets"])
