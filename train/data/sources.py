"""Where rows come from: files, Arrow folders, and data sets on the Hugging Face hub."""

import glob
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from .digest import digest, digest_files
from .jsonl import Lines, an_object, json_list
from .tables import arrow_folder, csv_table, hub, parquet

_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Files that a mistyped or unsupported path ends in, and a hub name does not.
_OTHER_FILES = (".tsv", ".txt", ".gz", ".bz2", ".xz", ".zip", ".zst", ".arrow", ".yaml")
_KINDS = (
    "a .jsonl, .json, .parquet or .csv file or pattern, an Arrow folder, a hub data set or "
    "python-stdlib"
)


class Rows(Protocol):
    """Rows by number, read when asked for.

    What is wrong with a row is raised as a UserError without its place, which `where` gives.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...

    def where(self, index: int, /) -> str:
        """The row's place, for people."""
        ...

    def digest(self) -> str:
        """What changes when a row does."""
        ...


def open_rows(source: str, split: str = "train", revision: str | None = None) -> Rows:
    """Opens files, a folder or a hub data set.

    Args:
      source: a path or pattern of .jsonl, .json (one object a line, or one list), .parquet and .csv
        files; a folder written by `datasets`; or a hub name, NAME, OWNER/NAME or
        OWNER/NAME/CONFIGURATION.
      split: of a hub data set, or of a folder with several.
      revision: the commit or tag of a hub data set.

    Raises:
      UserError: where there is nothing to read or it cannot be read.
    """
    rows = hub(source, split, revision) if is_hub_name(source) else _files(source, split)
    if len(rows) == 0:
        raise UserError(f"{source}: holds no records; name {_KINDS}")
    return rows


def is_hub_name(source: str) -> bool:
    """Whether a source is to be looked for on the hub rather than among files."""
    if Path(source).exists() or source.lower().endswith(_SUFFIXES + _OTHER_FILES):
        return False
    return re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*){0,2}", source) is not None


def find_files(source: str) -> list[Path]:
    """The files of a path or pattern, by name."""
    path = Path(source).expanduser()
    paths = (
        [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    )
    if not paths:
        raise UserError(f"{source}: no such file; name {_KINDS}")
    return paths


def _files(source: str, split: str) -> Rows:
    files = [_file(path, split) for path in find_files(source)]
    return files[0] if len(files) == 1 else Joined(files)


def _file(path: Path, split: str) -> Rows:
    suffix = path.suffix.lower()
    if path.is_dir():
        return arrow_folder(path, split)
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: is of an unknown kind; name {_KINDS}")
    try:
        if suffix == ".parquet":
            return parquet(path)
        if suffix == ".csv":
            return csv_table(path)
        if suffix == ".json" and (items := json_list(path)) is not None:
            return _Items(path, items)
        return _JsonLines(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; check the file") from None


class Joined:
    """The rows of several sources, one source after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
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

    def _find(self, index: int) -> tuple[Rows, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._starts, index) - 1
        return self._parts[part], index - self._starts[part]


class Listed:
    """Rows in memory, each with its place under "where"."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self._rows[index].items() if key != "where"}

    def where(self, index: int) -> str:
        return str(self._rows[index]["where"])

    def digest(self) -> str:
        return digest(json.dumps(self._rows, sort_keys=True, default=str))


class _JsonLines(Lines):
    def digest(self) -> str:
        return digest_files([self.path])


class _Items:
    """The items of a JSON list."""

    def __init__(self, path: Path, items: list[Any]) -> None:
        self._path, self._items = path, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return an_object(self._items[index], "write a list of objects")

    def where(self, index: int) -> str:
        return f"{self._path} item {index + 1}"

    def digest(self) -> str:
        return digest_files([self._path])
