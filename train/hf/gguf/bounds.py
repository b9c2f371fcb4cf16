"""Checks the lengths that a GGUF file's header states against the file, before it is read."""

import struct
from pathlib import Path
from typing import BinaryIO

from gguf import GGUFValueType

_SIZES = {
    **dict.fromkeys((GGUFValueType.UINT8, GGUFValueType.INT8, GGUFValueType.BOOL), 1),
    **dict.fromkeys((GGUFValueType.UINT16, GGUFValueType.INT16), 2),
    **dict.fromkeys((GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32), 4),
    **dict.fromkeys((GGUFValueType.UINT64, GGUFValueType.INT64, GGUFValueType.FLOAT64), 8),
}


def check_lengths(path: Path) -> None:
    """Checks that every array and string of the metadata ends within the file.

    The gguf package goes through an array entry by entry, also where the file has long ended: a
    length of 2**40 keeps it busy for days.

    Raises:
      ValueError: if one does not.
    """
    with path.open("rb") as file:
        version = file.read(8)[4:6]  # The reader checks it, and the magic number before it.
        header = _Header(file, path.stat().st_size, ">" if version == b"\0\0" else "<")
        tensors, keys = header.number("Q"), header.number("Q")
        header.check(tensors + keys)  # At least a byte each.
        for _ in range(keys):
            header.skip(header.number("Q"))
            header.value(header.number("I"))


class _Header:
    """A place in a file of numbers, whose bytes have an order as in `struct`."""

    def __init__(self, file: BinaryIO, size: int, order: str) -> None:
        self._file, self._size, self._order = file, size, order

    def number(self, kind: str) -> int:
        form = self._order + kind
        data = self._file.read(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise ValueError("its header ends early")
        return int(struct.unpack(form, data)[0])

    def check(self, length: int) -> None:
        left = self._size - self._file.tell()
        if length > left:
            raise ValueError(f"its header states {length:,} bytes where {left:,} are left")

    def skip(self, length: int) -> None:
        self.check(length)
        self._file.seek(length, 1)

    def value(self, kind: int) -> None:
        """Skips a value."""
        if kind == GGUFValueType.STRING:
            self.skip(self.number("Q"))
        elif kind == GGUFValueType.ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SIZES:
                self.skip(count * _SIZES[GGUFValueType(inner)])
                return
            self.check(count)
            for _ in range(count):
                self.value(inner)
        else:
            self.skip(_SIZES[GGUFValueType(kind)])
