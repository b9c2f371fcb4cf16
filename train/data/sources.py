"""Sources of records: files, Arrow folders, and data sets on the Hugging Face hub."""

import glob
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from ..buckets.address import is_address
from ..buckets.fetch import fetch_files
from ..errors import UserError
from ..files import expand
from .compressed import SUFFIXES as COMPRESSED
from .compressed import open_compressed
from .digest import digest
from .jsonl import JsonListSource, JsonlSource, read_json_list
from .tables import open_arrow_folder, open_csv, open_hub, open_parquet

_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Suffixes of mistyped or unsupported paths; the name of a hub data set does not end in one.
_OTHER_SUFFIXES = (*COMPRESSED, ".tsv", ".txt", ".tar", ".arrow", ".yaml")
_KINDS = (
    "a .jsonl, .json, .parquet or .csv file or pattern (or its .gz, .bz2, .xz, .zst or .zip), an "
    "Arrow folder, a hub data set, python-stdlib or python-stdlib-preferences"
)


class RecordSource(Protocol):
    """Records by number, each read when it is asked for.

    A record that cannot be read raises a UserError without its position, which `where` gives.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def where(self, index: int, /) -> str:
        """The record's position as a user would look it up, such as FILE:LINE."""
        ...

    def digest(self) -> str:
        """A digest of the contents: it changes when a record does."""
        ...


def open_source(source: str, split: str = "train", revision: str | None = None) -> RecordSource:
    """Opens files, a folder or a hub data set.

    Args:
      source: a path or pattern of .jsonl, .json (one object a line, or one list), .parquet and .csv
        files, also compressed; a folder written by `datasets`; or a hub name, NAME, OWNER/NAME or
        OWNER/NAME/CONFIGURATION.
      split: of a hub data set, or of a folder with several.
      revision: the commit or tag of a hub data set.

    Raises:
      UserError: if there is nothing to read or it cannot be read.
    """
    if is_hub_name(source):
        records: RecordSource = open_hub(source, split, revision)
    else:
        records = _open_files(source, split)
    if len(records) == 0:
        raise UserError(f"{source}: holds no records; name {_KINDS}")
    return records


def is_hub_name(source: str) -> bool:
    """Whether a source is a data set on the hub rather than files."""
    if Path(source).exists() or source.lower().endswith(_SUFFIXES + _OTHER_SUFFIXES):
        return False
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*){0,2}", source) is not None


def find_files(source: str) -> list[Path]:
    """The files of a path or pattern, sorted by name."""
    if is_address(source):
        return fetch_files(source)
    path = expand(source)
    if path.exists():
        return _refuse_pipes([path])
    paths = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not paths:
        raise UserError(f"{source}: no such file; name {_KINDS}")
    return _refuse_pipes(paths)


def _refuse_pipes(paths: list[Path]) -> list[Path]:
    """Refuses what would be waited for without end, or cannot be read twice."""
    for path in paths:
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path}: is a pipe or a device; write its content to a file")
    return paths


def _open_files(source: str, split: str) -> RecordSource:
    files = [_open_file(path, split) for path in find_files(source)]
    return files[0] if len(files) == 1 else JoinedSource(files)


def _open_file(path: Path, split: str) -> RecordSource:
    suffix = path.suffix.lower()
    if path.is_dir():
        return open_arrow_folder(path, split)
    if suffix in COMPRESSED:
        parts = open_compressed(path, lambda unpacked: _open_file(unpacked, split))
        return parts[0] if len(parts) == 1 else JoinedSource(parts)
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: is of an unknown kind; name {_KINDS}")
    try:
        if suffix == ".parquet":
            return open_parquet(path)
        if suffix == ".csv":
            return open_csv(path)
        if suffix == ".json" and (items := read_json_list(path)) is not None:
            return JsonListSource(path, items)
        return JsonlSource(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the file") from None


class JoinedSource:
    """The records of several sources, one source after the other."""

    def __init__(self, parts: Sequence[RecordSource]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(len(part) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, index = self._find(index)
        return part[index]

    def where(self, index: int) -> str:
        part, index = self._find(index)
        return part.where(index)

    def digest(self) -> str:
        return digest(*(part.digest() for part in self._parts))

    def _find(self, index: int) -> tuple[RecordSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._starts, index) - 1
        return self._parts[part], index - self._starts[part]


class ListSource:
    """Records in memory, each with its position in the field "where"."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self._records[index].items() if key != "where"}

    def where(self, index: int) -> str:
        return str(self._records[index]["where"])

    def digest(self) -> str:
        return digest(json.dumps(self._records, sort_keys=True, default=str))
