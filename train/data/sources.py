"""Where records come from: JSONL, JSON and Parquet files, and data sets on the Hugging Face hub."""

import glob
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from train.errors import UserError

# What a record may hold: a conversation, a prompt and its completion, or plain text.
FIELDS = ("messages", "prompt", "completion", "text")

_SUFFIXES = (".jsonl", ".json", ".parquet")
# Files that a mistyped or unsupported path ends in, and a hub name does not.
_OTHER_FILES = (".csv", ".tsv", ".txt", ".gz", ".bz2", ".xz", ".zip", ".zst", ".arrow", ".yaml")
_KINDS = "a .jsonl, .json or .parquet file or pattern, a hub data set or python-stdlib"


class Records(Protocol):
    """Records by number, read when asked for; each says under "where" where it stands."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


def load_records(
    source: str,
    split: str = "train",
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Records:
    """Opens files or a hub data set.

    Args:
      source: a path or pattern of .jsonl, .json (one object a line, or one list) and .parquet
        files; or a hub name, NAME, OWNER/NAME or OWNER/NAME/CONFIGURATION.
      split: of a hub data set.
      revision: the commit or tag of a hub data set.
      columns: the column that each of FIELDS is taken from; where given, no other is looked at.

    Raises:
      UserError: where there is nothing to read or it cannot be read; for JSONL at once, with the
        line, whichever it is.
    """
    columns = columns or {}
    unknown = sorted(set(columns) - set(FIELDS))
    if unknown:
        raise UserError(
            f"data.columns: {unknown[0]!r} is no field of a record; fields are {', '.join(FIELDS)}"
        )
    rows = _hub(source, split, revision) if is_hub_name(source) else _files(source)
    if len(rows) == 0:
        raise UserError(f"{source}: holds no records; name {_KINDS}")
    return _Renamed(rows, columns) if columns else rows


def is_hub_name(source: str) -> bool:
    """Whether a source is to be looked for on the hub rather than among files."""
    if Path(source).exists() or source.lower().endswith(_SUFFIXES + _OTHER_FILES):
        return False
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*){0,2}", source) is not None


def _files(source: str) -> Records:
    pattern = str(Path(source).expanduser())
    paths = [Path(pattern)]
    if not paths[0].exists():
        paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise UserError(f"{source}: no such file; name {_KINDS}")
    return _Joined([_file(path) for path in paths])


def _file(path: Path) -> Records:
    suffix = path.suffix.lower()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name its files, such as {path}/*.jsonl")
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: is of an unknown kind; name {_KINDS}")
    try:
        if suffix == ".parquet":
            return _parquet(path)
        if suffix == ".json" and (records := _json_list(path)) is not None:
            return records
        return _Lines(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the file") from None


class _Joined:
    """The records of several files, one file after the other."""

    def __init__(self, parts: list[Records]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]


class _Renamed:
    """Records whose fields are taken from other columns."""

    def __init__(self, rows: Records, columns: Mapping[str, str]) -> None:
        self._rows, self._columns = rows, columns

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        where = row.pop("where")
        for field, column in self._columns.items():
            if column not in row:
                raise UserError(
                    f"{where}: has no column {column!r}, which data.columns takes {field} from; "
                    f"it has {', '.join(map(repr, row)) or 'none'}"
                )
        return {field: row[column] for field, column in self._columns.items()} | {"where": where}


class _Lines:
    """A JSONL file. Every line is checked at once, and kept as text: objects take far more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._lines = list(_numbered(path, file))
        for at in range(len(self._lines)):
            self[at]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, line = self._lines[index]
        where = f"{self._path}:{number}"
        row = _object(_decode(line, where), where)
        return row | {"where": where}


def _numbered(path: Path, lines: Any) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, without blank ones at the end of the file."""
    blank = None
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")  # A byte order mark.
        if not line.strip():
            blank = blank or number
        elif blank:
            raise UserError(f"{path}:{blank}: is blank; delete the line")
        else:
            yield number, line


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} ({data[error.start]:#04x}) is not UTF-8; "
            "save the file as UTF-8"
        ) from None


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {_fault(error)}; write one JSON object a line") from None
    if not isinstance(row, dict):
        raise UserError(
            f"{where}: is {_kind(row)}, not an object; write one JSON object a line, "
            'such as {"text": "…"}'
        )
    return row


def _fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error.msg}, column {error.colno})"
    return f"cannot be read as JSON ({error})"


def _kind(value: Any) -> str:
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), repr(value))


def _json_list(path: Path) -> list[dict[str, Any]] | None:
    """The records of a file that is one JSON list, or None where it is not."""
    with path.open("rb") as file:
        if not file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            return None
    try:
        rows = json.loads(_decode(path.read_bytes(), str(path)).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{line}: {_fault(error)}; write a list of objects") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path} item {number}: is {_kind(row)}, not an object; write a list of objects"
            )
    return [row | {"where": f"{path} item {number}"} for number, row in enumerate(rows, 1)]


class _Table:
    """Rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self._dataset[index]
        return row | {"where": f"{self._name} row {index + 1}"}


def _parquet(path: Path) -> Records:
    from datasets import Dataset  # Slow to import: only where it is used.

    with path.open("rb") as file:
        head, size = file.read(4), file.seek(0, 2)
        file.seek(max(0, size - 4))
        # Looked at first, since the reader reports a broken file to stderr by itself.
        if size < 12 or head != b"PAR1" or file.read() != b"PAR1":
            raise UserError(f"{path}: is not a whole Parquet file; write or fetch it again")
    try:
        return _Table(Dataset.from_parquet(str(path)), str(path))
    except Exception as error:  # Its readers raise what they like.
        raise UserError(
            f"{path}: cannot be read as Parquet ({_brief(error)}); write it again"
        ) from None


def _hub(source: str, split: str, revision: str | None) -> Records:
    from datasets import load_dataset

    owner, name, *configuration = source.split("/") if source.count("/") == 2 else ("", source)
    hub_name = f"{owner}/{name}" if owner else name
    try:
        dataset = load_dataset(hub_name, *configuration, split=split, revision=revision)
    except Exception as error:  # Network, access, names, splits: each fails in its own class.
        raise UserError(
            f"{source}[{split}]: cannot be loaded from the hub ({_brief(error)}); check the name, "
            "the split and the connection, or name a file"
        ) from None
    return _Table(dataset, f"{source}[{split}]")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
