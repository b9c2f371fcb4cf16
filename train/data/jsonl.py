"""JSON and JSONL files; a record is read when it is asked for, and an error names its line."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .digest import digest_files

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_READ_BYTES = 1 << 24  # Bytes read at a time.
_LINES_PER_READ = 64
_LARGEST_OBJECT = 1 << 28
# Keys of an object that holds all records, as some tools write it.
_AROUND_A_LIST = ("data", "train", "rows", "records", "examples", "instances", "items")


class JsonlSource:
    """The records of a JSONL file, of which only the offsets of the lines are held in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = _line_starts(path)
        self._block_index, self._block = -1, b""  # The lines that were read last.
        count = len(self._starts) - 1
        while count and not self._line(count - 1).strip():
            count -= 1  # Blank lines at the end of the file are not records.
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return parse_line(self._line(index))

    def where(self, index: int) -> str:
        return f"{self.path}:{index + 1}"

    def digest(self) -> str:
        return digest_files([self.path])

    def _line(self, index: int) -> bytes:
        block, offset = divmod(index, _LINES_PER_READ)
        first = block * _LINES_PER_READ
        starts = self._starts[first : first + _LINES_PER_READ + 1].tolist()
        if block != self._block_index:
            with self.path.open("rb") as file:
                file.seek(starts[0])
                self._block_index, self._block = block, file.read(starts[-1] - starts[0])
        begin, end = starts[offset : offset + 2]
        return self._block[begin - starts[0] : end - starts[0]]


def _line_starts(path: Path) -> np.ndarray:
    """The offset at which each line begins, and the end of the last one: int64 [N + 1]."""
    breaks, size = [], 0
    with path.open("rb") as file:
        mark = file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
        file.seek(0)
        while block := file.read(_READ_BYTES):
            breaks.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + size + 1)
            size += len(block)
    first = len(_BYTE_ORDER_MARK) if mark else 0
    starts = np.concatenate([[first], *breaks, [size]]).astype(np.int64)
    return starts[: len(starts) - (len(starts) > 1 and starts[-1] == starts[-2])]


class JsonListSource:
    """The records of a JSON file that is one list; the whole of it is held in memory."""

    def __init__(self, path: Path, items: list[Any]) -> None:
        self._path, self._items = path, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _require_object(self._items[index], "write a list of objects")

    def where(self, index: int) -> str:
        return f"{self._path} item {index + 1}"

    def digest(self) -> str:
        return digest_files([self._path])


def read_json_list(path: Path) -> list[Any] | None:
    """The items of a file that is one JSON list, or None where it is not one."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if head.startswith(b"{"):
        _refuse_one_object(path)
    if not head.startswith(b"["):
        return None
    try:
        items = json.loads(_decode(path.read_bytes().removeprefix(_BYTE_ORDER_MARK)))
    except UserError as fault:
        raise UserError(f"{path}: {fault}") from None
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: {_describe(error)}; write a list of objects") from None
    return list(items)


def _refuse_one_object(path: Path) -> None:
    """Checks that a file is not one object over several lines, or around a list.

    A file too large to be read whole for a better message is left to the reader of lines.
    """
    if path.stat().st_size > _LARGEST_OBJECT:
        return
    with path.open("rb") as file:
        first, second = file.readline().removeprefix(_BYTE_ORDER_MARK), file.readline()
    value = _parse(first)
    over_lines = value is None
    if over_lines:
        value = _parse(path.read_bytes().removeprefix(_BYTE_ORDER_MARK))
    elif second.strip():
        return  # One object a line.
    if not isinstance(value, dict):
        return
    inner = next((name for name in _AROUND_A_LIST if isinstance(value.get(name), list)), None)
    if inner is not None:
        raise UserError(f"{path}: is one object, not a list of objects; write its {inner!r} alone")
    if over_lines:
        raise UserError(
            f"{path}: is one object over several lines; write a list of objects, or one object a "
            "line"
        )


def _parse(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def read_lines(path: Path, offset: int) -> list[bytes]:
    """Several whole lines of a file, from the byte at which a line begins; none at the end."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.readlines(_READ_BYTES)


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
      UserError: if it holds none; without the line's number.
    """
    line = line.removeprefix(_BYTE_ORDER_MARK)
    if not line.strip():
        raise UserError("is blank; delete the line")
    try:
        value = json.loads(_decode(line))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{_describe(error)}; write one JSON object a line") from None
    return _require_object(value, 'write one JSON object a line, such as {"text": "…"}')


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start + 1} ({data[error.start]:#04x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _require_object(value: Any, remedy: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        names = {list: "a list", str: "a string", type(None): "null"}
        raise UserError(f"is {names.get(type(value), repr(value))}, not an object; {remedy}")
    return value


def _describe(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error.msg}, column {error.colno})"
    return f"cannot be read as JSON ({error})"
