"""JSON and JSONL files: a row is read when it is asked for, and a fault is told with its line."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

_MARK = b"\xef\xbb\xbf"  # A byte order mark.
_BLOCK = 1 << 24  # Bytes that are searched for line breaks at a time.
_TOGETHER = 64  # Lines that are read at a time.


class Lines:
    """A JSONL file, of which only the places of the line breaks are held."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = _line_starts(path)
        self._at, self._block = -1, b""  # The lines that were read last, and which they are.
        count = len(self._starts) - 1
        while count and not self._line(count - 1).strip():
            count -= 1  # Blank lines at the end.
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return read_object(self._line(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{index + 1}"

    def _line(self, index: int) -> bytes:
        block = index // _TOGETHER
        starts = self._starts[block * _TOGETHER : (block + 1) * _TOGETHER + 1].tolist()
        if block != self._at:
            with self.path.open("rb") as file:
                file.seek(starts[0])
                self._at, self._block = block, file.read(starts[-1] - starts[0])
        begin, end = starts[index % _TOGETHER : index % _TOGETHER + 2]
        return self._block[begin - starts[0] : end - starts[0]]


def _line_starts(path: Path) -> np.ndarray:
    """Where each line begins, and where the last one ends: int64 [N + 1]."""
    breaks, size = [], 0
    with path.open("rb") as file:
        skip = len(_MARK) if file.read(len(_MARK)) == _MARK else 0
        file.seek(0)
        while block := file.read(_BLOCK):
            breaks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + size + 1)
            size += len(block)
    starts = np.concatenate([[skip], *breaks, [size]]).astype(np.int64)
    return starts[: len(starts) - (len(starts) > 1 and starts[-1] == starts[-2])]


def json_list(path: Path) -> list[Any] | None:
    """What a file that is one JSON list holds, or None where it is not one."""
    with path.open("rb") as file:
        if not file.read(4096).removeprefix(_MARK).lstrip().startswith(b"["):
            return None
    try:
        rows = json.loads(_decode(path.read_bytes().removeprefix(_MARK)))
    except UserError as fault:
        raise UserError(f"{path}: {fault}") from None
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: {_fault(error)}; write a list of objects") from None
    return list(rows)


def read_lines(path: Path, offset: int) -> list[bytes]:
    """Some whole lines of a file, from a byte on at which a line begins; none at its end."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.readlines(_BLOCK)


def read_object(line: bytes) -> dict[str, Any]:
    """The object that a line holds."""
    line = line.removeprefix(_MARK)
    if not line.strip():
        raise UserError("is blank; delete the line")
    return _object(_decode(line))


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start + 1} ({data[error.start]:#04x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{_fault(error)}; write one JSON object a line") from None
    return an_object(row, 'write one JSON object a line, such as {"text": "…"}')


def an_object(row: Any, remedy: str) -> dict[str, Any]:
    """The row, if it is one."""
    if not isinstance(row, dict):
        names = {list: "a list", str: "a string", type(None): "null"}
        raise UserError(f"is {names.get(type(row), repr(row))}, not an object; {remedy}")
    return row


def _fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error.msg}, column {error.colno})"
    return f"cannot be read as JSON ({error})"
