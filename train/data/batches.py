"""Rows as the arrays that a step takes."""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from .packing import Packing
from .sampler import Sampler, SourceRows
from .tokenize import Example

# One example a row; the same, in batches of rows of about one length; or several examples a row.
PackingMode = Literal["none", "bucketed", "packed"]
Arrays = dict[str, np.ndarray]

_BUCKETS = 8  # Lengths of bucketed batches: the step is compiled for each.


def shift(example: Example, length: int) -> Arrays:
    """An example cut to `length` tokens, with each position's next token.

    Returns:
      tokens and targets, int32 [T], and weights, float32 [T]: 1 where the target has a loss. The
      last position has no target: 0 with weight 0. Of a preference pair, all are [2, T].
    """
    tokens, loss_mask = example.tokens[..., :length], example.loss_mask[..., :length]
    targets, weights = np.zeros(tokens.shape, np.int32), np.zeros(tokens.shape, np.float32)
    targets[..., :-1], weights[..., :-1] = tokens[..., 1:], loss_mask[..., 1:]
    return {"tokens": tokens, "targets": targets, "weights": weights}


class Examples(Protocol):
    """Tokenised examples by number."""

    def __getitem__(self, number: int, /) -> Example: ...


class Reference(Protocol):
    """A reference's log-probabilities of each pair's targets, float32 [2, T], by number."""

    def __getitem__(self, number: int, /) -> np.ndarray: ...


class Batches:
    """Batches of rows, padded on the right.

    Every batch has `tokens` and `targets` (each position's next token in its document), int32
    [B, T], and `weights`, float32 [B, T]: 1 where the target has a loss, 0 elsewhere and on
    padding. Packed batches also have `segment_ids`, int32 [B, T], which number a row's documents
    from 1 (0: padding), and `positions` in the document, int32 [B, T]. T is max_length, or less for
    bucketed batches. With preference pairs, all are [B, 2, T]: chosen and rejected answers, whose
    documents begin at the same positions.

    Args:
      lengths: the length of each example in a row, not above max_length; a longer example is cut
        to it.
      sizes: tokens of each example [N, 1], or of both answers of each pair [N, 2]; by default
        the lengths.
      reference: the reference's log-probabilities of pairs; batches have them as `reference`.
      sources: how the rows are shared among sources; by default there is one.
    """

    def __init__(
        self,
        examples: Examples,
        rows: Packing,
        lengths: np.ndarray,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        packing: PackingMode = "none",
        sizes: np.ndarray | None = None,
        reference: Reference | None = None,
        sources: Sequence[SourceRows] = (),
    ) -> None:
        self._examples, self._rows, self._lengths = examples, rows, lengths
        self._reference = reference
        self._size, self._max_length, self._packing = batch_size, max_length, packing
        self._row_lengths = rows.row_lengths(lengths)
        sizes = lengths[:, None] if sizes is None else sizes
        self._row_tokens = rows.row_lengths(sizes.sum(1))
        self._sides = sizes.shape[1:] if sizes.shape[1] > 1 else ()
        self._sampler = Sampler(
            sources or [SourceRows(rows.num_rows)],
            batch_size=batch_size,
            seed=seed,
            lengths=self._row_lengths if packing == "bucketed" else None,
        )

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one pass over the data."""
        return self._sampler.rows_per_epoch

    def batch(self, step: int, local: np.ndarray | slice = slice(None)) -> Arrays:
        """The batch of an update, counting from 0, whatever batches were made before.

        Args:
          local: which of its rows are returned.
        """
        rows = self._sampler.rows(step)
        return self._arrays(rows[local], self._batch_length(rows))

    def examples(self, step: int) -> list[int]:
        """The numbers of the examples in that batch, row by row."""
        rows, offsets = self._sampler.rows(step).tolist(), self._rows.offsets
        members = [self._rows.members[offsets[row] : offsets[row + 1]] for row in rows]
        numbers: list[int] = np.concatenate(members).tolist()
        return numbers

    def num_tokens(self, step: int) -> int:
        """Tokens in that batch, padding left out."""
        return int(self._row_tokens[self._sampler.rows(step)].sum())

    @property
    def num_eval_batches(self) -> int:
        """The number of batches that together hold every row once."""
        return -(-self._rows.num_rows // self._size)

    def eval_batch(self, number: int, local: np.ndarray | slice = slice(None)) -> Arrays:
        """One of the batches that together hold every row once, in order.

        The last one is filled up with rows without weight.
        """
        rows = np.arange(number * self._size, (number + 1) * self._size)
        return self._arrays(rows[local], self._batch_length(rows[rows < self._rows.num_rows]))

    def eval_places(self, number: int) -> Iterator[tuple[int, int, slice]]:
        """Where such a batch holds which example: its number, its row, and its place in there."""
        first = number * self._size
        for row in range(first, min(first + self._size, self._rows.num_rows)):
            for member, begin, end in self._members(row):
                yield member, row - first, slice(begin, end)

    def _batch_length(self, rows: np.ndarray) -> int:
        if self._packing != "bucketed":
            return self._max_length
        bucket = -(-self._max_length // _BUCKETS)
        longest = int(self._row_lengths[rows].max())
        return min(self._max_length, -(-longest // bucket) * bucket)

    def _arrays(self, rows: np.ndarray, length: int) -> Arrays:
        names = ["tokens", "targets"]
        if self._packing == "packed":
            names += ["segment_ids", "positions"]
        shape = (len(rows), *self._sides, length)
        arrays: Arrays = {name: np.zeros(shape, np.int32) for name in names}
        floats = ["weights"] + ["reference"] * (self._reference is not None)
        arrays |= {name: np.zeros(shape, np.float32) for name in floats}
        for index, row in enumerate(rows.tolist()):
            if row < self._rows.num_rows:
                self._fill({name: array[index] for name, array in arrays.items()}, row)
        return arrays

    def _fill(self, out: Arrays, row: int) -> None:
        for segment, (member, begin, end) in enumerate(self._members(row), 1):
            if self._reference is not None:
                out["reference"][:, begin:end] = self._reference[member]
            for name, values in shift(self._examples[member], end - begin).items():
                out[name][..., begin:end] = values
            if self._packing == "packed":
                out["segment_ids"][..., begin:end] = segment
                out["positions"][..., begin:end] = np.arange(end - begin)

    def _members(self, row: int) -> Iterator[tuple[int, int, int]]:
        """A row's examples, and where each of them begins and ends."""
        end = 0
        for member in self._rows.members[self._rows.offsets[row] : self._rows.offsets[row + 1]]:
            begin, end = end, end + int(self._lengths[member])
            yield int(member), begin, end
