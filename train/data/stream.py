"""Data too large to index: read in order, shuffled in a buffer, packed while training.

A stream's position is saved with each checkpoint; grain's iterators carry it along.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import grain
import numpy as np

from ..config.data import DataSection, Source
from ..errors import UserError
from .batches import Arrays, shift
from .chat import RecordReader, Renderer
from .datasets import DataContext
from .digest import digest, digest_samples
from .jsonl import parse_line
from .prefetch import AHEAD
from .sources import find_files, is_hub_name
from .stream_records import RawRecord, RawRecords, Shard
from .summary import describe
from .tokenize import encode, index_examples, without_loss
from .validate import find_pairs, find_unusable, fits

_BATCH = 64  # Records that are tokenised together.
_IN_VAIN = 20_000  # Records in a row that do not fit: no other is expected to.
_PREVIEWED = 16  # Records from which it is told how a source is understood.
_BINS = 64  # Rows that are filled at the same time.


class _ToExamples(grain.experimental.FlatMapTransform):
    """Records as shifted examples that fit; counts the others."""

    max_fan_out = _BATCH

    def __init__(
        self, data: DataSection, source: Source, context: DataContext, counts: dict[str, int]
    ) -> None:
        self._data, self._context, self._counts = data, context, counts
        reader = RecordReader.of(source, data, context.now)
        self._renderer = Renderer(reader, context.tokenizer)
        self._in_vain = 0  # The latest records of which no example fits.

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
        self._in_vain = 0 if num_fit else self._in_vain + len(element)
        if self._in_vain >= _IN_VAIN:
            raise UserError(
                f"{element[-1][0]}: not one of the last {self._in_vain:,} records fits "
                f"data.max_length={length}; raise it, or set data.overlong=truncate"
            )
        return [shift(example, length) for example, ok in zip(examples, fit, strict=True) if ok]


def preview(data: DataSection, context: DataContext) -> list[str]:
    """How the first records of each source are understood, a line a way; see `describe`.

    Raises:
      UserError: for the first of them that cannot be used.
    """
    lines = []
    for source in data.train_sources():
        renderer = Renderer(RecordReader.of(source, data, context.now), context.tokenizer)
        for where, raw in islice(RawRecords(source, Shard()), _PREVIEWED):
            try:
                renderer.render(parse_line(raw) if isinstance(raw, bytes) else raw)
            except UserError as fault:
                raise UserError(f"{where}: {fault}") from None
        lines += describe(f"the beginning of {source.path}", renderer.understood.most_common())
    return lines


def _pad(row: Arrays, length: int) -> Arrays:
    padded = {name: np.pad(array, (0, length - len(array))) for name, array in row.items()}
    return padded | {"num_tokens": np.asarray(len(row["tokens"]))}


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
                    RawRecords(source, shard),
                    window_size=data.shuffle_buffer,
                    seed=seed + number,
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
        counts = [f"{count:,} {name}" for name, count in self.counts.items()]
        return f"training data: {', '.join(counts)} of the examples read"
