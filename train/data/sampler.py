"""Which rows are in the batch of a step: a pure function of the seed and the step."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Batches whose rows are sorted by length together, where rows are to be of one length.
WINDOW = 64


class Group(NamedTuple):
    """The rows of one source, and how many times an epoch holds each of them."""

    rows: int
    weight: float = 1.0

    @property
    def in_epoch(self) -> int:
        """Rows of this source in an epoch."""
        return max(1, round(self.rows * self.weight))


def permutation(count: int, *seed: int) -> np.ndarray:
    """A permutation of range(count), the same with every version of NumPy."""
    # NumPy promises that raw bits stay the same from version to version, which it does not of
    # shuffles; a run may be resumed with a newer one.
    draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
    return np.argsort(draws, kind="stable")


class Order:
    """The order in which rows are learned.

    An epoch holds the rows of every group as often as its weight says, in an order of its own: with
    weight 0.5 one half of them, and the next epoch the other. Epochs follow each other without a
    gap: a batch that begins in one may end in the next.

    Args:
      groups: rows are numbered through, one group after the other.
      lengths: tokens in each row; given, batches are of rows of about one length: rows are sorted
        by it within WINDOW batches.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        batch_size: int,
        seed: int,
        lengths: np.ndarray | None = None,
    ) -> None:
        self._groups, self._size, self._seed, self._lengths = groups, batch_size, seed, lengths
        self.in_epoch = sum(group.in_epoch for group in groups)
        self._epoch = lru_cache(2)(self._make_epoch)
        self._window = lru_cache(2)(self._make_window)

    def rows(self, step: int) -> np.ndarray:
        """The rows of the batch of an update, counting from 0: [B]."""
        if step < 0:
            raise ValueError(f"steps are counted from 0, got {step}")
        if self._lengths is None:
            return self._places(step * self._size, (step + 1) * self._size)
        window, at = divmod(step, WINDOW)
        return self._window(window)[at]

    def _places(self, start: int, stop: int) -> np.ndarray:
        """The rows at these places of the endless sequence of epochs."""
        epochs, places = np.divmod(np.arange(start, stop), self.in_epoch)
        return np.concatenate([self._epoch(int(e))[places[epochs == e]] for e in np.unique(epochs)])

    def _make_epoch(self, epoch: int) -> np.ndarray:
        chosen, first = [], 0
        for number, group in enumerate(self._groups):
            count = group.in_epoch
            places = np.arange(epoch * count, (epoch + 1) * count) % group.rows
            cycle = permutation(group.rows, self._seed, number, 1)
            chosen.append(first + np.sort(cycle[places]))
            first += group.rows
        return np.concatenate(chosen)[permutation(self.in_epoch, self._seed, epoch)]

    def _make_window(self, window: int) -> np.ndarray:
        """[WINDOW, B]"""
        assert self._lengths is not None
        span = WINDOW * self._size
        rows = self._places(window * span, (window + 1) * span)
        rows = rows[np.argsort(self._lengths[rows], kind="stable")].reshape(WINDOW, self._size)
        return rows[permutation(WINDOW, self._seed, window, 2)]
