"""Parquet, CSV, Arrow folders and hub data sets, read through `datasets`."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError
from .digest import digest, digest_files

_ROWS_PER_READ = 256


class TableSource:
    """The records of a `datasets.Dataset`, memory-mapped where it is stored in files.

    Args:
      name: what positions call it.
      content: the digest of the file that it was read from, if that is known.
    """

    def __init__(self, dataset: Any, name: str, content: str | None = None) -> None:
        self._dataset, self._name, self._content = dataset, name, content
        self._block_index, self._block = -1, list[dict[str, Any]]()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        block, offset = divmod(index, _ROWS_PER_READ)
        if block != self._block_index:
            first = block * _ROWS_PER_READ
            numbers = range(first, min(len(self), first + _ROWS_PER_READ))
            self._block = [without_nulls(row) for row in self._read(numbers)]
            self._block_index = block
        return self._block[offset]

    def _read(self, numbers: range) -> list[dict[str, Any]]:
        try:
            return list(self._dataset.select(numbers).to_list())
        except Exception as error:  # A cell that is no value of Python, in one row or more.
            if len(numbers) == 1:
                raise unreadable(self.where(numbers[0]), error) from None
            half = len(numbers) // 2
            return self._read(numbers[:half]) + self._read(numbers[half:])

    def where(self, index: int) -> str:
        return f"{self._name} row {index + 1}"

    def digest(self) -> str:
        if self._content is not None:
            return digest(self._name, len(self), self._content)
        files = [Path(file["filename"]) for file in self._dataset.cache_files]
        content = digest_files(files) if files else json.dumps(self._dataset[:], default=str)
        return digest(self._name, len(self), content)


def unreadable(where: str, error: Exception) -> UserError:
    """A cell that a reader cannot give: a date beyond year 9999, text that is not UTF-8."""
    return UserError(
        f"{where}: cannot be read ({_shorten(error)}); correct or remove it, or drop its column"
    )


def without_nulls(value: Any) -> Any:
    """A row without the keys that are null.

    A table gives all objects of a column the keys that any of them has: a null in it cannot be told
    from a key that is not there, and next to always is one.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def open_parquet(path: Path) -> TableSource:
    """Opens a Parquet file."""
    with path.open("rb") as file:
        head, size = file.read(4), file.seek(0, 2)
        file.seek(max(0, size - 4))
        # Checked first, since the reader reports a broken file to stderr by itself.
        if size < 12 or head != b"PAR1" or file.read() != b"PAR1":
            raise UserError(f"{path}: is not a whole Parquet file; write or fetch it again")
    return _open_table("from_parquet", path, "Parquet")


def open_csv(path: Path) -> TableSource:
    """Opens a CSV file; every cell is text, including numbers and words such as "null"."""
    from datasets import Features, Value

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path}:1: is no line of column names ({error}); write one") from None
    if not names:
        raise UserError(
            f"{path}: holds no records; write a line of column names and one line a record"
        )
    features = Features({name: Value("string") for name in names})
    return _open_table(
        "from_csv", path, "CSV", features=features, keep_default_na=False, encoding="utf-8-sig"
    )


def _open_table(method: str, path: Path, kind: str, **options: Any) -> TableSource:
    from datasets import Dataset, config  # Slow to import: imported only where it is used.

    _hide_progress()
    # `datasets` knows a file by its path and time, which copies keep: it is given a cache of its
    # own for each content.
    content = digest_files([path])
    options["cache_dir"] = str(Path(config.HF_DATASETS_CACHE) / "by-content" / content)
    try:
        return TableSource(getattr(Dataset, method)(str(path), **options), str(path), content)
    except Exception as error:  # Its readers raise exceptions of many classes.
        causes = f"{error} {error.__cause__ or error.__context__ or ''}"
        line = re.search(r"\bline (\d+)", causes)
        where = f"{path}:{line[1]}" if line else str(path)
        raise UserError(
            f"{where}: cannot be read as {kind} ({_shorten(causes)}); write it again"
        ) from None


def open_arrow_folder(path: Path, split: str) -> TableSource:
    """Opens a folder written by `datasets`, or one split of it."""
    from datasets import DatasetDict, load_from_disk

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(f"{path}: is a folder; name its files, such as {path}/*.jsonl")
    try:
        loaded = load_from_disk(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({_shorten(error)}); write it again") from None
    if not isinstance(loaded, DatasetDict):
        return TableSource(loaded, str(path))
    if split not in loaded:
        raise UserError(f"{path}: has no split {split!r}; it has {', '.join(loaded)}")
    return TableSource(loaded[split], f"{path}[{split}]")


def open_hub(source: str, split: str, revision: str | None) -> TableSource:
    """Opens a data set of the Hugging Face hub."""
    from datasets import load_dataset

    _hide_progress()
    try:
        dataset = load_dataset(*_hub_arguments(source), split=split, revision=revision)
    except Exception as error:  # Network, access, names, splits: each raises a class of its own.
        raise UserError(
            f"{source}[{split}]: cannot be loaded from the hub ({_shorten(error)}); check the "
            "name, the split and the connection, or name a file"
        ) from None
    return TableSource(dataset, f"{source}[{split}]")


def stream_table(source: str | list[Path], split: str, revision: str | None) -> Any:
    """Opens a hub data set or Parquet files as a `datasets.IterableDataset`, read in order."""
    from datasets import load_dataset

    _hide_progress()
    try:
        if isinstance(source, str):
            arguments = _hub_arguments(source)
            return load_dataset(*arguments, split=split, revision=revision, streaming=True)
        files = [str(path) for path in source]
        return load_dataset("parquet", data_files=files, split="train", streaming=True)
    except Exception as error:
        name = source if isinstance(source, str) else source[0]
        raise UserError(
            f"{name}: cannot be streamed ({_shorten(error)}); check the name and the connection"
        ) from None


def _hub_arguments(source: str) -> tuple[str, ...]:
    """The arguments of `datasets.load_dataset` for NAME, OWNER/NAME or OWNER/NAME/CONFIG."""
    owner, name, *configuration = source.split("/") if source.count("/") == 2 else ("", source)
    return (f"{owner}/{name}" if owner else name, *configuration)


def _hide_progress() -> None:
    """Keeps the reader's progress bars out of logs and pipes."""
    from datasets import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def _shorten(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
