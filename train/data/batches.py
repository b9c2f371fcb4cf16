"""From rows to the arrays that a step takes."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from .packing import Plan
from .sampler import Group, Order
from .tokenize import Example

# One example a row; the same with batches of rows of one length; or several examples a row.
PackingMode = Literal["none", "bucketed", "packed"]
Arrays = dict[str, np.ndarray]

_BUCKETS = 8  # Lengths of batches: each is compiled.


class Examples(Protocol):
    """Tokenised examples by number."""

    def __getitem__(self, index: int, /) -> Example: ...


class Batches:
    """Batches of rows, padded on the right.

    Every batch has `tokens` and `targets` (each position's next token in its document), int32
    [B, T], and `weights`, float32 [B, T]: 1 where the target is learned, 0 elsewhere and on
    padding. Packed ones also have `segment_ids`, int32 [B, T], which number a row's documents from
    1 (0: padding), and `positions` in the document, int32 [B, T]. T is max_length, or less for
    bucketed batches.

    Args:
      lengths: tokens of each example, not above max_length; what is longer is cut.
      groups: how the rows are shared among sources; by default there is one.
    """

    def __init__(
        self,
        examples: Examples,
        rows: Plan,
        lengths: np.ndarray,
        *,
        batch_size: int,
        max_length: int,
        seed: int,
        packing: PackingMode = "none",
        groups: Sequence[Group] | None = None,
    ) -> None:
        self._examples, self._rows, self._lengths = examples, rows, lengths
        self._size, self._max_length, self._packing = batch_size, max_length, packing
        self._row_lengths = np.add.reduceat(lengths[rows.members], rows.offsets[:-1])
        self._order = Order(
            groups or [Group(rows.num_rows)],
            batch_size=batch_size,
            seed=seed,
            lengths=self._row_lengths if packing == "bucketed" else None,
        )

    @property
    def rows_in_epoch(self) -> int:
        """Rows of one pass over the data."""
        return self._order.in_epoch

    def batch(self, step: int, at: np.ndarray | slice = slice(None)) -> Arrays:
        """The batch of an update, counting from 0: the same whichever were asked for before.

        Args:
          at: which of its rows are wanted.
        """
        rows = self._order.rows(step)
        return self._arrays(rows[at], self._batch_length(rows))

    def num_tokens(self, step: int) -> int:
        """Tokens in that batch, padding left out."""
        return int(self._row_lengths[self._order.rows(step)].sum())

    @property
    def num_eval_batches(self) -> int:
        """Batches that hold every row once."""
        return -(-self._rows.num_rows // self._size)

    def eval_batch(self, number: int, at: np.ndarray | slice = slice(None)) -> Arrays:
        """One of the batches that hold every row once, in order.

        Rows without weight fill up the last one.
        """
        rows = np.arange(number * self._size, (number + 1) * self._size)
        return self._arrays(rows[at], self._batch_length(rows[rows < self._rows.num_rows]))

    def _batch_length(self, rows: np.ndarray) -> int:
        if self._packing != "bucketed":
            return self._max_length
        bucket = -(-self._max_length // _BUCKETS)
        longest = int(self._row_lengths[rows].max())
        return min(self._max_length, -(-longest // bucket) * bucket)

    def _arrays(self, rows: np.ndarray, length: int) -> Arrays:
        shape = (len(rows), length)
        names = ["tokens", "targets"]
        if self._packing == "packed":
            names += ["segment_ids", "positions"]
        made: dict[str, Any] = {name: np.zeros(shape, np.int32) for name in names}
        made["weights"] = np.zeros(shape, np.float32)
        for at, row in enumerate(rows.tolist()):
            if row < self._rows.num_rows:
                self._fill({name: array[at] for name, array in made.items()}, row)
        return made

    def _fill(self, out: Arrays, row: int) -> None:
        members = self._rows.members[self._rows.offsets[row] : self._rows.offsets[row + 1]]
        end = 0
        for number, member in enumerate(members.tolist(), 1):
            ids, target = self._examples[member]
            begin, end = end, end + int(self._lengths[member])
            ids, target = ids[: end - begin], target[: end - begin]
            out["tokens"][begin:end] = ids
            out["targets"][begin : end - 1] = ids[1:]
            out["weights"][begin : end - 1] = target[1:]
            if self._packing == "packed":
                out["segment_ids"][begin:end] = number
                out["positions"][begin:end] = np.arange(end - begin)
