"""Data too large to index: read in order, shuffled in a buffer and packed on the fly.

Where a stream stands is saved with the checkpoint; grain's iterators carry it from step to step.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from ..config.data import DataSection, Source
from ..errors import UserError
from .batches import Arrays
from .chat import render
from .jsonl import read_lines, read_object
from .prefetch import AHEAD
from .records import Pair, read_record
from .sources import find_files, is_hub_name
from .tables import streamed_table
from .tokenize import Example, encode

Row = tuple[str, dict[str, Any] | bytes]  # Its place, and what it holds or the line that says so.

_TOGETHER = 64  # Rows that are tokenised at a time.
_BINS = 64  # Rows that are filled at a time.


@dataclass(frozen=True)
class Share:
    """Which of a stream's rows are a process's: every count-th, from this one on."""

    process: int = 0
    count: int = 1


ALL = Share()


def _check_share(state: dict[str, Any], share: Share) -> None:
    if state["processes"] != share.count:
        raise UserError(
            f"the stream was saved by {state['processes']} processes and cannot go on with "
            f"{share.count}: each has its own place; use as many, or start another run"
        )


class _Lines(grain.DatasetIterator[Row]):
    """The lines of JSONL files, again and again."""

    def __init__(self, paths: Sequence[Path], share: Share) -> None:
        super().__init__()
        self._paths, self._share = paths, share
        self._ahead: list[bytes] = []  # Lines from the place that the state tells.
        self._state = {"file": 0, "byte": 0, "line": 0, "found": 0}

    def __next__(self) -> Row:
        while True:
            state, path = self._state, self._paths[self._state["file"]]
            if not self._ahead:
                self._ahead = read_lines(path, state["byte"])
            if not self._ahead:
                self._next_file()
                continue
            line = self._ahead.pop(0)
            state["byte"] += len(line)
            state["line"] += 1
            state["found"] = 1
            if (state["line"] - 1) % self._share.count == self._share.process:
                return f"{path}:{state['line']}", line

    def _next_file(self) -> None:
        state = self._state
        following = (state["file"] + 1) % len(self._paths)
        if following == 0 and not state["found"]:
            raise UserError(f"{self._paths[0]}: holds no records; name other data")
        state.update(file=following, byte=0, line=0)

    def get_state(self) -> dict[str, Any]:
        return self._state | {"processes": self._share.count}

    def set_state(self, state: dict[str, Any]) -> None:
        _check_share(state, self._share)
        self._state, self._ahead = dict(state), []


class _TableRows(grain.DatasetIterator[Row]):
    """The rows of a streamed data set, again and again."""

    def __init__(self, dataset: Any, name: str, share: Share) -> None:
        super().__init__()
        self._dataset, self._name, self._share = dataset, name, share
        self._rows, self._number = iter(dataset), 0
        self._first = copy.deepcopy(dataset.state_dict())

    def __next__(self) -> Row:
        while True:
            try:
                row = next(self._rows)
            except StopIteration:
                if self._number == 0:
                    raise UserError(f"{self._name}: holds no records; name other data") from None
                again = {"dataset": copy.deepcopy(self._first), "number": 0}
                self.set_state(again | {"processes": self._share.count})
                continue
            self._number += 1
            if (self._number - 1) % self._share.count == self._share.process:
                return f"{self._name} row {self._number}", row

    def get_state(self) -> dict[str, Any]:
        place = {"dataset": copy.deepcopy(self._dataset.state_dict()), "number": self._number}
        return place | {"processes": self._share.count}

    def set_state(self, state: dict[str, Any]) -> None:
        _check_share(state, self._share)
        self._dataset.load_state_dict(copy.deepcopy(state["dataset"]))
        self._rows, self._number = iter(self._dataset), state["number"]


class _Rows(grain.IterDataset[Row]):
    """A source as grain knows it."""

    def __init__(self, source: Source, share: Share) -> None:
        super().__init__()
        self._source, self._share = source, share
        self._paths = [] if is_hub_name(source.path) else find_files(source.path)
        self._lines = bool(self._paths) and all(p.suffix == ".jsonl" for p in self._paths)
        if self._paths and not self._lines and any(p.suffix != ".parquet" for p in self._paths):
            raise UserError(
                f"{source.path}: cannot be streamed; name .jsonl or .parquet files, or a hub set"
            )

    def __iter__(self) -> grain.DatasetIterator[Row]:
        if self._lines:
            return _Lines(self._paths, self._share)
        source = self._source
        table = streamed_table(self._paths or source.path, source.split or "train", source.revision)
        return _TableRows(table, source.path, self._share)


class _Encode(grain.experimental.FlatMapTransform):
    """Rows → examples that fit; counts the others."""

    max_fan_out = _TOGETHER

    def __init__(self, data: DataSection, source: Source, tokenizer: Any, counts: Any) -> None:
        self._data, self._source, self._tokenizer, self._counts = data, source, tokenizer, counts

    def flat_map(self, element: Sequence[Row]) -> list[Arrays]:
        texts = []
        for where, row in element:
            try:
                texts += self._rendered(row)
            except UserError as fault:
                raise UserError(f"{where}: {fault}") from None
        examples = encode(texts, self._tokenizer)
        kept = []
        for (where, _), example in zip(element, examples, strict=True):
            if not example.target[1:].any():
                raise UserError(f"{where}: has no token to learn; take it out")
            kept += self._fitted(where, example)
        return kept

    def _rendered(self, row: dict[str, Any] | bytes) -> Any:
        row = read_object(row) if isinstance(row, bytes) else row
        record = read_record(row, self._source.format, self._source.columns)
        if isinstance(record, Pair):
            raise UserError("is a preference pair, and sft learns from one answer")
        return render(record, self._tokenizer, self._data.loss_on)

    def _fitted(self, where: str, example: Example) -> list[Arrays]:
        length, tokens = self._data.max_length, len(example.tokens)
        if tokens > length and self._data.overlong == "error":
            raise UserError(f"{where}: {tokens:,} tokens, over data.max_length {length:,}")
        cuttable = self._data.overlong == "truncate" and example.target[1:length].any()
        if tokens > length and not cuttable:
            self._counts["dropped"] += 1
            return []
        self._counts["cut" if tokens > length else "kept"] += 1
        ids, target = example.tokens[:length], example.target[:length]
        after = np.append(ids[1:], np.int32(0))
        weights = np.append(target[1:], False).astype(np.float32)
        return [{"tokens": ids, "targets": after, "weights": weights}]


def _padded(example: Arrays, length: int) -> Arrays:
    room = length - len(example["tokens"])
    padded = {key: np.pad(array, (0, room)) for key, array in example.items()}
    return padded | {"used": np.asarray(length - room)}


def _packed(row: Arrays) -> Arrays:
    return {key: row[key] for key in ("tokens", "targets", "weights")} | {
        "segment_ids": row["tokens_segment_ids"],
        "positions": row["tokens_positions"],
        "used": np.count_nonzero(row["tokens_segment_ids"], keepdims=True)[0],
    }


class Stream:
    """Batches of a stream: this process's rows of each, and its iterator's state.

    Args:
      rows: of a batch, this process's.
      share: which of the data's rows are this process's.
    """

    def __init__(
        self, data: DataSection, tokenizer: Any, *, rows: int, seed: int, share: Share = ALL
    ) -> None:
        self.counts = {"kept": 0, "cut": 0, "dropped": 0}  # Since it was opened, read ahead too.
        sources = data.train_sources()
        streams = [
            grain.experimental.FlatMapIterDataset(
                grain.experimental.WindowShuffleIterDataset(
                    _Rows(source, share), window_size=data.shuffle_buffer, seed=seed + number
                ).batch(_TOGETHER, batch_fn=list),
                _Encode(data, source, tokenizer, self.counts),
            )
            for number, source in enumerate(sources)
        ]
        examples = grain.IterDataset.mix(streams, [source.weight for source in sources])
        length = data.max_length
        if data.packing == "packed":
            made = grain.experimental.BestFitPackIterDataset(
                examples,
                length_struct=dict.fromkeys(("tokens", "targets", "weights"), length),
                num_packing_bins=_BINS,
                seed=seed,
            ).map(_packed)
        else:
            made = examples.map(lambda example: _padded(example, length))
        self._batches = made.batch(rows, drop_remainder=True)

    @contextmanager
    def prefetched(
        self, put: Callable[[Arrays], Any], restore: Callable[[Any], None] = lambda _: None
    ) -> Iterator[Any]:
        """An iterator of put(batch), worked out ahead, that orbax saves and restores.

        Args:
          put: is given tokens, targets, weights and, packed, segment_ids and positions [B, T], as
            in `Batches`, and with them the tokens that are no padding: used [B].
          restore: called with the iterator before it is used.
        """
        ahead = grain.experimental.ThreadPrefetchIterDataset(
            self._batches.map(put), prefetch_buffer_size=AHEAD
        )
        iterator: Any = iter(ahead)
        restore(iterator)
        try:
            yield iterator
        finally:
            iterator.close()

    def __str__(self) -> str:
        said = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        return f"training data: {said} of the examples read"
