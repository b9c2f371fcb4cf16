"""Data too large to index: read in order, shuffled in a buffer, packed while training.

A stream's position is saved with each checkpoint; grain's iterators carry it along.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import grain
import numpy as np

from ..config.data import DataSection, Source
from ..errors import UserError
from .batches import Arrays, shift
from .chat import RecordReader, Renderer
from .datasets import DataContext
from .digest import digest, digest_samples
from .jsonl import parse_line, read_lines
from .prefetch import AHEAD
from .sources import find_files, is_hub_name
from .summary import describe
from .tables import stream_table, without_nulls
from .tokenize import encode, index_examples, without_loss
from .validate import find_pairs, find_unusable, fits

# A record's position, and its fields or the line that holds them.
RawRecord = tuple[str, dict[str, Any] | bytes]

_BATCH = 64  # Records that are tokenised together.
_PREVIEWED = 16  # Records from which it is told how a source is understood.
_BINS = 64  # Rows that are filled at the same time.


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
        self._lines: list[bytes] = []  # Lines that were read, from the position in the state on.
        self._state = {"file": 0, "byte": 0, "line": 0, "found": 0}

    def __next__(self) -> RawRecord:
        while True:
            state, path = self._state, self._paths[self._state["file"]]
            if not self._lines:
                self._lines = read_lines(path, state["byte"])
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


class _RawRecords(grain.IterDataset[RawRecord]):
    """A source as a grain dataset."""

    def __init__(self, source: Source, shard: Shard) -> None:
        super().__init__()
        self._source, self._shard = source, shard
        self._paths = [] if is_hub_name(source.path) else find_files(source.path)
        suffixes = {path.suffix for path in self._paths}
        self._is_jsonl = suffixes == {".jsonl"}
        if suffixes - {".parquet"} and not self._is_jsonl:
            raise UserError(
                f"{source.path}: cannot be streamed; name .jsonl or .parquet files, or a hub set"
            )

    def __iter__(self) -> grain.DatasetIterator[RawRecord]:
        if self._is_jsonl:
            return _JsonlIterator(self._paths, self._shard)
        source = self._source
        table = stream_table(self._paths or source.path, source.split or "train", source.revision)
        return _TableIterator(table, source.path, self._shard)


class _ToExamples(grain.experimental.FlatMapTransform):
    """Records as shifted examples that fit; counts the others."""

    max_fan_out = _BATCH

    def __init__(
        self, data: DataSection, source: Source, context: DataContext, counts: dict[str, int]
    ) -> None:
        self._data, self._context, self._counts = data, context, counts
        reader = RecordReader.of(source, data, context.now)
        self._renderer = Renderer(reader, context.tokenizer)

    def flat_map(self, element: Sequence[RawRecord]) -> list[Arrays]:
        texts, origins = [], []
        for number, (where, raw) in enumerate(element):
            try:
                fields = parse_line(raw) if isinstance(raw, bytes) else raw
                rendered = self._renderer.render(fields)
            except UserError as fault:
                raise UserError(f"{where}: {fault}") from None
            texts += rendered
            origins += [number] * len(rendered)
        examples = encode(texts, self._context.tokenizer)
        index = index_examples(origins, texts, examples)
        faults = without_loss(index) + find_pairs(index)
        faults += find_unusable(index, self._data, self._context.vocab_size)
        if faults:
            number, message = min(faults)
            raise UserError(f"{element[number][0]}: {message}")
        length, fit = self._data.max_length, fits(index, self._data)
        num_cut = int(np.count_nonzero(fit & (index["length"] > length)))
        num_fit = int(np.count_nonzero(fit))
        self._counts["kept"] += num_fit - num_cut
        self._counts["cut"] += num_cut
        self._counts["dropped"] += len(fit) - num_fit
        return [shift(example, length) for example, ok in zip(examples, fit, strict=True) if ok]


def preview(data: DataSection, context: DataContext) -> list[str]:
    """How the first records of each source are understood, a line a way; see `describe`.

    Raises:
      UserError: for the first of them that cannot be used.
    """
    lines = []
    for source in data.train_sources():
        renderer = Renderer(RecordReader.of(source, data, context.now), context.tokenizer)
        for where, raw in islice(_RawRecords(source, Shard()), _PREVIEWED):
            try:
                renderer.render(parse_line(raw) if isinstance(raw, bytes) else raw)
            except UserError as fault:
                raise UserError(f"{where}: {fault}") from None
        lines += describe(f"the beginning of {source.path}", renderer.understood.most_common())
    return lines


def _pad(example: Arrays, length: int) -> Arrays:
    num_tokens = len(example["tokens"])
    padded = {name: np.pad(array, (0, length - num_tokens)) for name, array in example.items()}
    return padded | {"num_tokens": np.asarray(num_tokens)}


def _rename_packed(row: Arrays) -> Arrays:
    return {name: row[name] for name in ("tokens", "targets", "weights")} | {
        "segment_ids": row["tokens_segment_ids"],
        "positions": row["tokens_positions"],
        "num_tokens": np.count_nonzero(row["tokens_segment_ids"], keepdims=True)[0],
    }


class Stream:
    """Batches of a stream: this process's rows of each.

    Attributes:
      counts: examples that were kept, cut and dropped since the stream was opened, including those
        that were only read ahead.

    Args:
      num_rows: this process's rows in a batch.
      shard: which of the data's records are this process's.
    """

    def __init__(
        self, data: DataSection, context: DataContext, *, num_rows: int, shard: Shard
    ) -> None:
        self.counts = {"kept": 0, "cut": 0, "dropped": 0}
        seed = context.seed
        self._sources = sources = data.train_sources()
        streams: list[grain.IterDataset[Arrays]] = [
            grain.experimental.FlatMapIterDataset(
                grain.experimental.WindowShuffleIterDataset(
                    _RawRecords(source, shard), window_size=data.shuffle_buffer, seed=seed + number
                ).batch(_BATCH, batch_fn=list),
                _ToExamples(data, source, context, self.counts),
            )
            for number, source in enumerate(sources)
        ]
        examples = grain.IterDataset.mix(streams, [source.weight for source in sources])
        length = data.max_length
        if data.packing == "packed":
            rows = grain.experimental.BestFitPackIterDataset(
                examples,
                length_struct=dict.fromkeys(("tokens", "targets", "weights"), length),
                num_packing_bins=_BINS,
                seed=seed,
            ).map(_rename_packed)
        else:
            rows = examples.map(lambda example: _pad(example, length))
        self._batches: grain.IterDataset[Arrays] = rows.batch(num_rows, drop_remainder=True)

    def prefetch(self, put: Callable[[Arrays], Any]) -> grain.DatasetIterator[Any]:
        """An iterator over put(batch), computed ahead; its state is the position in the stream.

        Args:
          put: takes tokens, targets, weights and, if packed, segment_ids and positions [B, T], as
            in `Batches`, and num_tokens [B]: the tokens of each row that are not padding.
        """
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(
                self._batches.map(put), prefetch_buffer_size=AHEAD
            )
        )

    def digest(self) -> str:
        """A digest of the files' sizes and of pieces of them; of hub sets, the revision."""
        return digest(
            *(
                source.revision
                if is_hub_name(source.path)
                else digest_samples(find_files(source.path))
                for source in self._sources
            )
        )

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        return f"training data: {counts} of the examples read"
