"""The records of a source in the order in which it has them, without end."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain

from ..config.data import Source
from ..errors import UserError
from .jsonl import read_lines
from .sources import find_files, is_hub_name
from .tables import stream_table, unreadable, without_nulls

# A record's position, and its fields or the line that holds them.
RawRecord = tuple[str, dict[str, Any] | bytes]


@dataclass(frozen=True)
class Shard:
    """A process's share of a stream's records: every `count`-th, beginning with number `index`."""

    index: int = 0
    count: int = 1

    def holds(self, record: int) -> bool:
        """Whether a record, counting from 0, is in this share."""
        return record % self.count == self.index

    def check_state(self, state: dict[str, Any]) -> None:
        """Checks that a position was saved by as many shards as there are now.

        Raises:
          UserError: if not.
        """
        if state["num_shards"] != self.count:
            raise UserError(
                f"the stream was saved by {state['num_shards']} processes and cannot go on with "
                f"{self.count}: each has a position of its own; use as many, or start another run"
            )


class _JsonlIterator(grain.DatasetIterator[RawRecord]):
    """The lines of JSONL files, repeated without end."""

    def __init__(self, paths: Sequence[Path], shard: Shard) -> None:
        super().__init__()
        self._paths, self._shard = paths, shard
        self._lines: list[bytes] = []  # Those that were read, from the state's position on.
        self._state = {"file": 0, "byte": 0, "line": 0, "found": 0}

    def __next__(self) -> RawRecord:
        while True:
            state, path = self._state, self._paths[self._state["file"]]
            self._lines = self._lines or read_lines(path, state["byte"])
            if not self._lines:
                self._next_file()
                continue
            line = self._lines.pop(0)
            state["byte"] += len(line)
            state["line"] += 1
            state["found"] = 1
            if self._shard.holds(state["line"] - 1):
                return f"{path}:{state['line']}", line

    def _next_file(self) -> None:
        state = self._state
        following = (state["file"] + 1) % len(self._paths)
        if following == 0 and not state["found"]:
            raise UserError(f"{self._paths[0]}: holds no records; name other data")
        state.update(file=following, byte=0, line=0)

    def get_state(self) -> dict[str, Any]:
        return self._state | {"num_shards": self._shard.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self._shard.check_state(state)
        self._state, self._lines = dict(state), []


class _TableIterator(grain.DatasetIterator[RawRecord]):
    """The rows of a `datasets.IterableDataset`, repeated without end."""

    def __init__(self, dataset: Any, name: str, shard: Shard) -> None:
        super().__init__()
        self._dataset, self._name, self._shard = dataset, name, shard
        self._rows, self._count = iter(dataset), 0
        self._beginning = copy.deepcopy(dataset.state_dict())

    def __next__(self) -> RawRecord:
        while True:
            try:
                row = next(self._rows)
            except StopIteration:
                if self._count == 0:
                    raise UserError(f"{self._name}: holds no records; name other data") from None
                self._go_to(self._beginning, 0)
                continue
            except Exception as error:  # Its readers raise exceptions of many classes.
                raise unreadable(f"{self._name} row {self._count + 1}", error) from None
            self._count += 1
            if self._shard.holds(self._count - 1):
                return f"{self._name} row {self._count}", without_nulls(row)

    def _go_to(self, state: dict[str, Any], count: int) -> None:
        self._dataset.load_state_dict(copy.deepcopy(state))
        self._rows, self._count = iter(self._dataset), count

    def get_state(self) -> dict[str, Any]:
        state = {"dataset": copy.deepcopy(self._dataset.state_dict()), "count": self._count}
        return state | {"num_shards": self._shard.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self._shard.check_state(state)
        self._go_to(state["dataset"], state["count"])


class RawRecords(grain.IterDataset[RawRecord]):
    """A source as a grain dataset: this process's records, in order and repeated without end."""

    def __init__(self, source: Source, shard: Shard) -> None:
        super().__init__()
        self._source, self._shard = source, shard
        self._paths = [] if is_hub_name(source.path) else find_files(source.path)
        suffixes = {path.suffix for path in self._paths}
        self._is_jsonl = suffixes == {".jsonl"}
        if suffixes - {".parquet"} and not self._is_jsonl:
            message = "cannot be streamed; name .jsonl or .parquet files, or a hub set"
            raise UserError(f"{source.path}: {message}")

    def __iter__(self) -> grain.DatasetIterator[RawRecord]:
        if self._is_jsonl:
            return _JsonlIterator(self._paths, self._shard)
        path, split, revision = self._source.path, self._source.split, self._source.revision
        table = stream_table(self._paths or path, split or "train", revision)
        return _TableIterator(table, path, self._shard)
