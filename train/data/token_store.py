"""Tokenised examples on disk: written once for a source and its settings, memory-mapped after."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import DestinationExistsError, atomic_folder
from .chat import LossOn, Rendered, render
from .digest import digest
from .records import read_record
from .sources import Rows
from .tokenize import Example, examples, tokenise

# What is known of an example without reading it.
INDEX = np.dtype(
    [
        ("record", "<i8"),  # The row that it was made of, counting from 0.
        ("length", "<i4"),
        ("targets", "<i4"),  # How many tokens are learned.
        ("first", "<i4"),  # Where the first of them is.
        ("highest", "<i4"),  # The highest token.
        ("digest", "<u8"),  # Equal for equal tokens.
    ]
)
_TOGETHER = 512  # Rows that are tokenised at a time.
_NO_TARGET = "has no token to learn; add an assistant turn or text, or take it out"
_LAYOUT = 1  # Of the files; part of the digest.

Advance = Callable[[int], None]  # Called with the number of rows that were just done.


@dataclass(frozen=True)
class Reading:
    """How a source's rows are understood."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    loss_on: LossOn = "assistant"


@dataclass(frozen=True)
class Store:
    """One source's examples, one after the other; a preference pair is two of them."""

    tokens: np.ndarray  # int32 [sum of lengths]
    target: np.ndarray  # bool, likewise
    index: np.ndarray  # INDEX [N]
    faults: Sequence[tuple[int, str]]  # Rows that cannot be used, and why.
    rows: Rows  # What they were made of.

    @cached_property
    def offsets(self) -> np.ndarray:
        """Example i lies from offsets[i] up to offsets[i + 1]: int64 [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.index["length"], dtype=np.int64)])

    def where(self, record: int) -> str:
        """The place of a row, for people."""
        return self.rows.where(record)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        piece = slice(self.offsets[index], self.offsets[index + 1])
        return Example(self.tokens[piece], self.target[piece])


def store(
    rows: Rows,
    tokenizer: Any,
    reading: Reading,
    cache: Path,
    advance: Advance = lambda _: None,
    stop: bool = False,
) -> Store:
    """The examples of a source's rows, from the cache where they are in it.

    Only a few hundred rows are held in memory at a time.

    Raises:
      UserError: for the first row that cannot be used, if `stop` says so.
    """
    folder = cache / _digest(rows, tokenizer, reading)
    if not folder.is_dir():
        # The folder exists where another process was faster.
        with (
            contextlib.suppress(DestinationExistsError),
            atomic_folder(folder, replace=False) as new,
        ):
            _write(new, rows, tokenizer, reading, advance, stop)
    faults = [(record, text) for record, text in json.loads((folder / "faults.json").read_text())]
    return Store(
        _mapped(folder / "tokens", np.int32),
        _mapped(folder / "target", np.bool_),
        _mapped(folder / "index", INDEX),
        faults,
        rows,
    )


def _mapped(file: Path, dtype: Any) -> np.ndarray:
    if not file.stat().st_size:  # Nothing cannot be mapped.
        return np.empty(0, dtype)
    # As a plain array, whose slices are ten times as quick to make.
    return np.memmap(file, dtype, "r").view(np.ndarray)


def _digest(rows: Rows, tokenizer: Any, reading: Reading) -> str:
    return digest(
        _LAYOUT,
        version("transformers"),
        version("tokenizers"),
        rows.digest(),
        repr(reading),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else "",
    )


def _write(
    folder: Path, rows: Rows, tokenizer: Any, reading: Reading, advance: Advance, stop: bool
) -> None:
    faults: list[tuple[int, str]] = []
    with (
        (folder / "tokens").open("wb") as tokens,
        (folder / "target").open("wb") as target,
        (folder / "index").open("wb") as index,
    ):
        for numbers, made in _examples(rows, tokenizer, reading, faults):
            for _, example in made:
                tokens.write(example.tokens)
                target.write(example.target)
            if stop and faults:
                number, text = min(faults)
                raise UserError(f"{rows.where(number)}: {text}")
            index.write(_entries(made))
            advance(len(numbers))
    (folder / "faults.json").write_text(json.dumps(sorted(faults)))


def _examples(
    rows: Rows, tokenizer: Any, reading: Reading, faults: list[tuple[int, str]]
) -> Iterator[tuple[range, list[tuple[int, Example]]]]:
    """Rows' numbers with their examples; adds to the faults.

    The tokenizer works on some rows while those after them are read and rendered.
    """
    waiting: Any = None
    with ThreadPoolExecutor(1) as ahead:
        for start in range(0, len(rows) + _TOGETHER, _TOGETHER):
            numbers = range(start, min(start + _TOGETHER, len(rows)))
            origins, texts = _rendered(rows, numbers, tokenizer, reading, faults)
            following = numbers, origins, texts, ahead.submit(_tokenised, texts, tokenizer)
            if waiting is not None:
                before, *those = waiting
                yield before, _learnable(*those, tokenizer=tokenizer, faults=faults)
            waiting = following


def _rendered(
    rows: Rows, numbers: range, tokenizer: Any, reading: Reading, faults: list[tuple[int, str]]
) -> tuple[list[int], list[Rendered]]:
    """The texts of rows, with the rows' numbers."""
    origins: list[int] = []
    texts: list[Rendered] = []
    for number in numbers:
        try:
            record = read_record(rows[number], reading.format, reading.columns)
            made = render(record, tokenizer, reading.loss_on)
        except UserError as fault:
            faults.append((number, str(fault)))
            continue
        texts += made
        origins += [number] * len(made)
    return origins, texts


def _tokenised(texts: list[Rendered], tokenizer: Any) -> Any:
    return tokenise(texts, tokenizer) if texts else None


def _learnable(
    origins: list[int],
    texts: list[Rendered],
    encoded: Future[Any],
    *,
    tokenizer: Any,
    faults: list[tuple[int, str]],
) -> list[tuple[int, Example]]:
    """Examples with something to learn, with their rows' numbers."""
    whole = examples(texts, encoded.result(), tokenizer) if texts else []
    made = []
    for number, example in zip(origins, whole, strict=True):
        if (
            example.target.tobytes().find(b"\1", 1) > 0
        ):  # The first token follows nothing: it cannot be learned.
            made.append((number, example))
        else:
            faults.append((number, _NO_TARGET))
    return made


def _entries(made: list[tuple[int, Example]]) -> np.ndarray:
    """INDEX [N] of examples with their rows' numbers."""
    index = np.empty(len(made), INDEX)
    for at, (number, (tokens, target)) in enumerate(made):
        learned = target.tobytes()  # Bytes are searched several times as fast as short arrays.
        content = int.from_bytes(hashlib.blake2b(tokens, digest_size=8).digest(), "little")
        first = learned.find(b"\1", 1)
        index[at] = (number, len(tokens), learned.count(b"\1"), first, tokens.max(), content)
    return index
