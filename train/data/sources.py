"""Where rows come from: files, Arrow folders, and data sets on the Hugging Face hub."""

import glob
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from train.data.jsonl import Lines, an_object, json_list
from train.errors import UserError

_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
# Files that a mistyped or unsupported path ends in, and a hub name does not.
_OTHER_FILES = (".tsv", ".txt", ".gz", ".bz2", ".xz", ".zip", ".zst", ".arrow", ".yaml")
_KINDS = (
    "a .jsonl, .json, .parquet or .csv file or pattern, an Arrow folder, a hub data set or "
    "python-stdlib"
)
_BLOCK = 256  # Rows of a table that are read together.


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
    rows = _hub(source, split, revision) if is_hub_name(source) else _files(source, split)
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
        return _folder(path, split)
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: is of an unknown kind; name {_KINDS}")
    try:
        if suffix == ".parquet":
            return _parquet(path)
        if suffix == ".csv":
            return _csv(path)
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
        return _digest(*(part.digest() for part in self._parts))

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
        return _digest(json.dumps(self._rows, sort_keys=True, default=str))


class _JsonLines(Lines):
    def digest(self) -> str:
        return _digest_files([self.path])


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
        return _digest_files([self._path])


class _Table:
    """Rows of a `datasets.Dataset`, memory-mapped where it lies in files."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        self._at, self._rows = -1, list[dict[str, Any]]()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, index = divmod(index, _BLOCK)
        if block != self._at:
            piece = range(block * _BLOCK, min(len(self), (block + 1) * _BLOCK))
            self._rows = self._dataset.select(piece).to_list()
            self._at = block
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"{self._name} row {index + 1}"

    def digest(self) -> str:
        files = [Path(file["filename"]) for file in self._dataset.cache_files]
        content = _digest_files(files) if files else json.dumps(self._dataset[:], default=str)
        return _digest(self._name, len(self), content)


def _parquet(path: Path) -> Rows:
    with path.open("rb") as file:
        head, size = file.read(4), file.seek(0, 2)
        file.seek(max(0, size - 4))
        # Looked at first, since the reader reports a broken file to stderr by itself.
        if size < 12 or head != b"PAR1" or file.read() != b"PAR1":
            raise UserError(f"{path}: is not a whole Parquet file; write or fetch it again")
    return _read("from_parquet", path, "Parquet")


def _csv(path: Path) -> Rows:
    if not path.read_bytes().strip():  # Its reader takes an empty file for a fault of its own.
        raise UserError(f"{path}: holds no records; name {_KINDS}")
    # Numbers and words such as "null" are text like any other.
    return _read("from_csv", path, "CSV", dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _read(method: str, path: Path, kind: str, **options: Any) -> Rows:
    from datasets import Dataset  # Slow to import: only where it is used.

    _quiet()
    try:
        return _Table(getattr(Dataset, method)(str(path), **options), str(path))
    except Exception as error:  # Its readers raise what they like.
        causes = f"{error} {error.__cause__ or error.__context__ or ''}"
        line = re.search(r"\bline (\d+)", causes)
        place = f"{path}:{line[1]}" if line else str(path)
        raise UserError(
            f"{place}: cannot be read as {kind} ({_brief(causes)}); write it again"
        ) from None


def _folder(path: Path, split: str) -> Rows:
    from datasets import DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(f"{path}: is a folder; name its files, such as {path}/*.jsonl")
    try:
        loaded = load_from_disk(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({_brief(error)}); write it again") from None
    if not isinstance(loaded, DatasetDict):
        return _Table(loaded, str(path))
    if split not in loaded:
        raise UserError(f"{path}: has no split {split!r}; it has {', '.join(loaded)}")
    return _Table(loaded[split], f"{path}[{split}]")


def hub_arguments(source: str) -> tuple[str, ...]:
    """What `datasets.load_dataset` is called with for NAME, OWNER/NAME or OWNER/NAME/CONFIG."""
    owner, name, *configuration = source.split("/") if source.count("/") == 2 else ("", source)
    return (f"{owner}/{name}" if owner else name, *configuration)


def _hub(source: str, split: str, revision: str | None) -> Rows:
    from datasets import load_dataset

    _quiet()
    try:
        dataset = load_dataset(*hub_arguments(source), split=split, revision=revision)
    except Exception as error:  # Network, access, names, splits: each fails in its own class.
        raise UserError(
            f"{source}[{split}]: cannot be loaded from the hub ({_brief(error)}); check the name, "
            "the split and the connection, or name a file"
        ) from None
    return _Table(dataset, f"{source}[{split}]")


def _quiet() -> None:
    """Keeps the reader's progress out of logs and pipes."""
    import sys

    from datasets import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _digest(*parts: object) -> str:
    return hashlib.blake2b(json.dumps([str(p) for p in parts]).encode(), digest_size=16).hexdigest()


def _digest_files(paths: Sequence[Path]) -> str:
    """Of what the files hold, wherever they lie and whenever they were written."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return _digest(*digests)
