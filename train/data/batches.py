"""Tokenised examples in flat arrays, and batches of them as a pure function of seed and step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from train.data.render import Example, render
from train.data.sources import Records
from train.errors import UserError

Overlong = Literal["drop", "truncate", "error"]


@dataclass(frozen=True)
class Examples:
    """Examples one after the other; example i lies from offsets[i] up to offsets[i + 1]."""

    tokens: np.ndarray  # int32 [sum of lengths]
    target: np.ndarray  # bool, likewise
    offsets: np.ndarray  # int64 [N + 1]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of one example."""
        piece = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[piece], self.target[piece]


@dataclass(frozen=True)
class DataReport:
    """What became of one side's records."""

    name: str
    kept: int
    dropped: int
    truncated: int
    tokens: int
    targets: int
    max_length: int

    def __str__(self) -> str:
        parts = [
            f"{self.name}: {self.kept:,} examples",
            f"{self.tokens:,} tokens ({self.targets:,} learned)",
        ]
        if self.dropped:
            parts.append(f"{self.dropped:,} dropped as over {self.max_length:,} tokens")
        if self.truncated:
            parts.append(f"{self.truncated:,} cut to {self.max_length:,} tokens")
        return ", ".join(parts)


def prepare(
    records: Records,
    tokenizer: Any,
    *,
    name: str,
    max_length: int,
    overlong: Overlong,
    vocab_size: int,
    order: Iterable[int] | None = None,
    limit: int | None = None,
) -> tuple[Examples, DataReport]:
    """Renders records and keeps those that fit.

    A record that is cut so short that nothing is left to learn counts as dropped.

    Args:
      name: of the data in the report.
      order: the numbers of the records to use, in the order to use them in; all by default.
      limit: stop when so many are kept.

    Raises:
      UserError: for a record that cannot be used, with its place; where none is left.
    """
    kept: list[Example] = []
    dropped = truncated = 0
    for index in range(len(records)) if order is None else order:
        if len(kept) == limit:
            break
        example = render(records[index], tokenizer)
        _check_vocabulary(example, vocab_size)
        whole = len(example.tokens)
        if whole > max_length:
            if overlong == "error":
                raise UserError(
                    f"{example.where}: {whole:,} tokens, over data.max_length {max_length:,}; "
                    "raise it, or set data.overlong to drop or truncate"
                )
            example = _cut(example, max_length)
            if overlong == "drop" or not example.target[1:].any():
                dropped += 1
                continue
            truncated += 1
        kept.append(example)
    if not kept:
        raise UserError(
            f"{name}: no example is left ({dropped:,} over data.max_length {max_length:,}); "
            "raise it, or name other data"
        )
    examples = _flat(kept)
    tokens, targets = len(examples.tokens), int(examples.target.sum())
    return examples, DataReport(name, len(kept), dropped, truncated, tokens, targets, max_length)


def _cut(example: Example, length: int) -> Example:
    return Example(example.tokens[:length], example.target[:length], example.where)


def _check_vocabulary(example: Example, vocab_size: int) -> None:
    highest = int(example.tokens.max())
    if highest >= vocab_size:
        raise UserError(
            f"{example.where}: has token {highest}, and the model's vocabulary ends at "
            f"{vocab_size - 1}; use the tokenizer that belongs to the model"
        )


def _flat(kept: list[Example]) -> Examples:
    lengths = [len(example.tokens) for example in kept]
    return Examples(
        np.concatenate([example.tokens for example in kept]),
        np.concatenate([example.target for example in kept]),
        np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
    )


class Batches:
    """Batches of examples, one a row, padded on the right to max_length.

    Every batch has `tokens` and `targets` (each position's next token), int32 [B, T], and
    `weights`, float32 [B, T]: 1 where the target is learned, 0 elsewhere and on padding.

    An epoch holds every example once, in an order of its own. Epochs follow each other without
    a gap: a batch that begins in one may end in the next.
    """

    def __init__(
        self, examples: Examples, *, batch_size: int, max_length: int, pad_id: int, seed: int
    ) -> None:
        if len(examples) == 0:
            raise UserError("the data holds no examples; name other data")
        self._examples = examples
        self._size, self._length, self._pad_id = batch_size, max_length, pad_id
        self._seed = seed
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))  # The last one used.

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of an update, counting from 0: the same whichever were asked for before."""
        return self._rows(self._indices(step))

    def num_tokens(self, step: int) -> int:
        """Tokens in that batch, padding left out."""
        at = self._indices(step)
        return int((self._examples.offsets[at + 1] - self._examples.offsets[at]).sum())

    def eval_batches(self) -> Iterator[dict[str, np.ndarray]]:
        """Every example once, in order; rows without weight fill up the last batch."""
        for start in range(0, len(self._examples), self._size):
            yield self._rows(range(start, min(start + self._size, len(self._examples))))

    def _indices(self, step: int) -> np.ndarray:
        """Which examples are in the batch of a step: [B]."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        places = np.arange(step * self._size, (step + 1) * self._size)
        epochs, places = np.divmod(places, len(self._examples))
        pieces = [self._permutation(int(e))[places[epochs == e]] for e in np.unique(epochs)]
        return np.concatenate(pieces)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            # NumPy promises that raw bits stay the same from version to version, which it does
            # not of shuffles; a run may be resumed with a newer one.
            bits = np.random.PCG64(np.random.SeedSequence([self._seed, epoch]))
            draws = bits.random_raw(len(self._examples))
            self._order = (epoch, np.argsort(draws, kind="stable"))
        return self._order[1]

    def _rows(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        shape = (self._size, self._length)
        tokens = np.full(shape, self._pad_id, np.int32)
        targets = np.full(shape, self._pad_id, np.int32)
        weights = np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            ids, target = self._examples[index]
            n = len(ids)
            tokens[row, :n] = ids
            targets[row, : n - 1] = ids[1:]
            weights[row, : n - 1] = target[1:]
        return {"tokens": tokens, "targets": targets, "weights": weights}
