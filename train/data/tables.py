"""Parquet, CSV, Arrow folders and hub data sets, through `datasets`."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from .digest import digest, digest_files

_BLOCK = 256  # Rows that are read together.


class Table:
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
        content = digest_files(files) if files else json.dumps(self._dataset[:], default=str)
        return digest(self._name, len(self), content)


def parquet(path: Path) -> Table:
    with path.open("rb") as file:
        head, size = file.read(4), file.seek(0, 2)
        file.seek(max(0, size - 4))
        # Looked at first, since the reader reports a broken file to stderr by itself.
        if size < 12 or head != b"PAR1" or file.read() != b"PAR1":
            raise UserError(f"{path}: is not a whole Parquet file; write or fetch it again")
    return _read("from_parquet", path, "Parquet")


def csv_table(path: Path) -> Table:
    from datasets import Features, Value

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    if not names:
        raise UserError(f"{path}: holds no records; write a line of column names and one a row")
    # Numbers and words such as "null" are text like any other.
    text = Features({name: Value("string") for name in names})
    return _read(
        "from_csv", path, "CSV", features=text, keep_default_na=False, encoding="utf-8-sig"
    )


def _read(method: str, path: Path, kind: str, **options: Any) -> Table:
    from datasets import Dataset  # Slow to import: only where it is used.

    _quiet()
    try:
        return Table(getattr(Dataset, method)(str(path), **options), str(path))
    except Exception as error:  # Its readers raise what they like.
        causes = f"{error} {error.__cause__ or error.__context__ or ''}"
        line = re.search(r"\bline (\d+)", causes)
        place = f"{path}:{line[1]}" if line else str(path)
        raise UserError(
            f"{place}: cannot be read as {kind} ({_brief(causes)}); write it again"
        ) from None


def arrow_folder(path: Path, split: str) -> Table:
    from datasets import DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(f"{path}: is a folder; name its files, such as {path}/*.jsonl")
    try:
        loaded = load_from_disk(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({_brief(error)}); write it again") from None
    if not isinstance(loaded, DatasetDict):
        return Table(loaded, str(path))
    if split not in loaded:
        raise UserError(f"{path}: has no split {split!r}; it has {', '.join(loaded)}")
    return Table(loaded[split], f"{path}[{split}]")


def hub_arguments(source: str) -> tuple[str, ...]:
    """What `datasets.load_dataset` is called with for NAME, OWNER/NAME or OWNER/NAME/CONFIG."""
    owner, name, *configuration = source.split("/") if source.count("/") == 2 else ("", source)
    return (f"{owner}/{name}" if owner else name, *configuration)


def hub(source: str, split: str, revision: str | None) -> Table:
    from datasets import load_dataset

    _quiet()
    try:
        dataset = load_dataset(*hub_arguments(source), split=split, revision=revision)
    except Exception as error:  # Network, access, names, splits: each fails in its own class.
        raise UserError(
            f"{source}[{split}]: cannot be loaded from the hub ({_brief(error)}); check the name, "
            "the split and the connection, or name a file"
        ) from None
    return Table(dataset, f"{source}[{split}]")


def _quiet() -> None:
    """Keeps the reader's progress out of logs and pipes."""
    from datasets import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def streamed_table(source: str | list[Path], split: str, revision: str | None) -> Any:
    """A hub data set or Parquet files, to be read in order; it knows where it stands."""
    from datasets import load_dataset

    _quiet()
    try:
        if isinstance(source, str):
            arguments = hub_arguments(source)
            return load_dataset(*arguments, split=split, revision=revision, streaming=True)
        files = [str(path) for path in source]
        return load_dataset("parquet", data_files=files, split="train", streaming=True)
    except Exception as error:
        name = source if isinstance(source, str) else source[0]
        raise UserError(
            f"{name}: cannot be streamed ({_brief(error)}); check the name and the connection"
        ) from None
