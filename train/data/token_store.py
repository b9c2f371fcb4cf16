"""Tokenised examples on disk: written once for a source and its settings, then memory-mapped."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, warn
from ..files import DestinationExistsError, atomic_folder, discard_folder
from ..manifest import DamagedError, check_folder, write_manifest
from .chat import RecordReader, Rendered, Renderer, Understood
from .digest import digest
from .records import Reading
from .sources import RecordSource
from .template import time_read
from .tokenize import (
    INDEX,
    Example,
    Fault,
    encode_batch,
    index_examples,
    to_examples,
    without_loss,
)

_BATCH = 512  # Records that are tokenised together, unless they have more characters:
_CHARACTERS = 2**22  # A tokenizer's result takes some 35 bytes for each.
_LAYOUT = 4  # Version of the files; part of the digest.

Advance = Callable[[int], None]  # Called with the number of records that were just tokenised.


@dataclass(frozen=True)
class TokenStore:
    """One source's examples, one after the other; a preference pair is two of them.

    Attributes:
      tokens: int32 [sum of lengths].
      loss_mask: bool [sum of lengths].
      index: INDEX [N].
      faults: the records that have no example, and why.
      records: what the examples were made of.
      understood: how records were read, each way with the number of records.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    index: np.ndarray
    faults: Sequence[Fault]
    records: RecordSource
    understood: Sequence[tuple[Understood, int]] = ()

    @cached_property
    def offsets(self) -> np.ndarray:
        """Example i is stored from offsets[i] up to offsets[i + 1]: int64 [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.index["length"], dtype=np.int64)])

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each example [N, 1]."""
        return self.index["length"][:, None]

    def where(self, record: int) -> str:
        """A record's position as a user would look it up."""
        return self.records.where(record)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Example:
        span = slice(self.offsets[number], self.offsets[number + 1])
        return Example(self.tokens[span], self.loss_mask[span])


def open_store(
    records: RecordSource,
    tokenizer: Any,
    reader: RecordReader,
    cache: Path,
    advance: Advance = lambda _: None,
    stop: bool = False,
) -> TokenStore:
    """Opens the examples of a source's records, and tokenises those that are not in the cache.

    Only a few hundred records are held in memory at a time. What is in the cache is digested, and
    tokenised anew if it is not what was written.

    Raises:
      UserError: if `stop`, for the first record that cannot be used.
    """
    folder = cache / _digest(records, tokenizer, reader)
    if not _is_whole(folder):
        writer = _Writer(records, tokenizer, reader, stop)
        with (
            contextlib.suppress(DestinationExistsError),  # Another process was faster.
            atomic_folder(folder, replace=False) as partial,
        ):
            writer.write(partial, advance)
            write_manifest(partial, {})
    return TokenStore(
        _map(folder / "tokens", np.int32),
        _map(folder / "loss_mask", np.bool_),
        _map(folder / "index", INDEX),
        [(record, text) for record, text in _read_json(folder / "faults.json")],
        records,
        [
            (Understood(Reading(kind, tuple(used), tuple(unused)), templated), count)
            for kind, used, unused, templated, count in _read_json(folder / "understood.json")
        ],
    )


def _is_whole(folder: Path) -> bool:
    """Whether a store is there; one that is damaged is removed."""
    if not folder.is_dir():
        return False
    try:
        check_folder(folder)
    except DamagedError as fault:
        warn(f"{folder} is damaged ({fault}); its records are tokenised anew")
        discard_folder(folder)
        return False
    return True


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def _map(file: Path, dtype: Any) -> np.ndarray:
    if not file.stat().st_size:  # An empty file cannot be mapped.
        return np.empty(0, dtype)
    # A view as a plain array: its slices are ten times as quick to make.
    return np.memmap(file, dtype, "r").view(np.ndarray)


def _digest(records: RecordSource, tokenizer: Any, reader: RecordReader) -> str:
    return digest(
        _LAYOUT,
        version("transformers"),
        version("tokenizers"),
        records.digest(),
        repr(reader),
        tokenizer.chat_template,
        time_read(tokenizer.chat_template, reader.now) if reader.now else "",
        tokenizer.special_tokens_map,
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else "",
    )


@dataclass(frozen=True)
class _Batch:
    """Some records, their texts, each text's record, and the tokenizer's result to come."""

    numbers: range
    origins: list[int]
    texts: list[Rendered]
    encodings: Future[Any]


class _Writer:
    """Tokenises records and writes a store's files."""

    def __init__(
        self, records: RecordSource, tokenizer: Any, reader: RecordReader, stop: bool
    ) -> None:
        self._records, self._tokenizer = records, tokenizer
        self._renderer = Renderer(reader, tokenizer)
        self._stop = stop
        self._faults: list[Fault] = []

    def write(self, folder: Path, advance: Advance) -> None:
        with (
            (folder / "tokens").open("wb") as tokens,
            (folder / "loss_mask").open("wb") as loss_mask,
            (folder / "index").open("wb") as index_file,
        ):
            for batch in self._batches():
                examples = self._examples(batch)
                index = index_examples(batch.origins, batch.texts, examples)
                self._faults += without_loss(index)
                if self._stop and self._faults:
                    record, text = min(self._faults)
                    raise UserError(f"{self._records.where(record)}: {text}")
                # No half of a pair, and no part of a conversation, is used without the others.
                usable = ~np.isin(index["record"], [record for record, _ in self._faults])
                for number in np.flatnonzero(usable).tolist():
                    tokens.write(examples[number].tokens)
                    loss_mask.write(examples[number].loss_mask)
                index_file.write(index[usable])
                advance(len(batch.numbers))
        (folder / "faults.json").write_text(json.dumps(sorted(self._faults)))
        ways = [
            (*way.reading, way.templated, count)
            for way, count in self._renderer.understood.most_common()
        ]
        (folder / "understood.json").write_text(json.dumps(ways))

    def _batches(self) -> Iterator[_Batch]:
        """Batches of records in order.

        The tokenizer works on one batch in a thread while the next is read and rendered.
        """
        previous, stop = None, 0
        with ThreadPoolExecutor(1) as thread:
            while stop < len(self._records):
                numbers, origins, texts = self._render(stop)
                stop = numbers.stop
                encodings = thread.submit(self._encode, texts)
                if previous is not None:
                    yield previous
                previous = _Batch(numbers, origins, texts, encodings)
            if previous is not None:
                yield previous

    def _render(self, start: int) -> tuple[range, list[int], list[Rendered]]:
        """The texts of a batch of records from one on, and the record of each."""
        origins: list[int] = []
        texts: list[Rendered] = []
        size, number = 0, start
        while number < min(start + _BATCH, len(self._records)) and size < _CHARACTERS:
            try:
                rendered = self._renderer.render(self._records[number])
            except UserError as fault:
                self._faults.append((number, str(fault)))
                rendered = []
            texts += rendered
            origins += [number] * len(rendered)
            size += sum(len(text.text) for text in rendered)
            number += 1
        return range(start, number), origins, texts

    def _encode(self, texts: list[Rendered]) -> Any:
        return encode_batch(texts, self._tokenizer) if texts else []

    def _examples(self, batch: _Batch) -> list[Example]:
        return to_examples(batch.texts, batch.encodings.result(), self._tokenizer)
