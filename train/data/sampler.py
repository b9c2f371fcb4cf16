"""Which rows are in the batch of a step: a pure function of the seed and the step."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Batches whose rows are sorted by length together, where a batch's rows are of about one length.
WINDOW = 64


class SourceRows(NamedTuple):
    """The number of rows of one source, and how many times an epoch holds each of them."""

    num_rows: int
    weight: float = 1.0

    @property
    def rows_per_epoch(self) -> int:
        """Rows of this source in an epoch."""
        return max(1, round(self.num_rows * self.weight))


def permutation(count: int, *seed: int) -> np.ndarray:
    """A permutation of range(count), the same with every version of NumPy."""
    # NumPy promises stable raw bits from version to version, which it does not for shuffles; a run
    # may be resumed with a newer version.
    draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(draws, kind="stable")


class Sampler:
    """The order of the rows in training.

    An epoch holds the rows of every source as often as its weight says, in an order of its own:
    with weight 0.5 it holds half of them, and the next epoch the other half. Epochs follow each
    other without a gap: a batch that begins in one may end in the next.

    Args:
      sources: rows are numbered on from one source to the next.
      lengths: tokens in each row; if given, the rows of a batch are of about one length: rows are
        sorted by length within WINDOW batches.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        batch_size: int,
        seed: int,
        lengths: np.ndarray | None = None,
    ) -> None:
        self._sources, self._size, self._seed, self._lengths = sources, batch_size, seed, lengths
        self.rows_per_epoch = sum(source.rows_per_epoch for source in sources)
        self._epoch = lru_cache(2)(self._make_epoch)
        self._window = lru_cache(2)(self._make_window)

    def rows(self, step: int) -> np.ndarray:
        """The rows of an update's batch, counting updates from 0: [B]."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        if self._lengths is None:
            return self._sequence(step * self._size, (step + 1) * self._size)
        window, index = divmod(step, WINDOW)
        return self._window(window)[index]

    def _sequence(self, start: int, stop: int) -> np.ndarray:
        """The rows from start up to stop in the endless sequence of epochs."""
        epochs, indices = np.divmod(np.arange(start, stop), self.rows_per_epoch)
        return np.concatenate(
            [self._epoch(int(epoch))[indices[epochs == epoch]] for epoch in np.unique(epochs)]
        )

    def _make_epoch(self, epoch: int) -> np.ndarray:
        rows, first = [], 0
        for number, source in enumerate(self._sources):
            count = source.rows_per_epoch
            indices = np.arange(epoch * count, (epoch + 1) * count) % source.num_rows
            cycle = permutation(source.num_rows, self._seed, number, 1)
            rows.append(first + np.sort(cycle[indices]))
            first += source.num_rows
        return np.concatenate(rows)[permutation(self.rows_per_epoch, self._seed, epoch)]

    def _make_window(self, window: int) -> np.ndarray:
        """The rows of WINDOW batches [WINDOW, B]."""
        assert self._lengths is not None
        span = WINDOW * self._size
        rows = self._sequence(window * span, (window + 1) * span)
        rows = rows[np.argsort(self._lengths[rows], kind="stable")].reshape(WINDOW, self._size)
        return rows[permutation(WINDOW, self._seed, window, 2)]
