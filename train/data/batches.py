"""Batches of examples as a pure function of the seed and the step."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Examples:
    """Rendered examples one after the other in flat arrays."""

    tokens: np.ndarray  # int32, of all examples
    learned: np.ndarray  # bool, of the same length
    ends: np.ndarray  # int64 [N]: where each example ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and learned of one example."""
        start = self.ends[number - 1] if number else 0
        piece = slice(start, self.ends[number])
        return self.tokens[piece], self.learned[piece]


@dataclass(frozen=True)
class Batches:
    """Batches of fixed shape [batch_size, max_length], padded on the right.

    A batch has `tokens` and `targets` (the next tokens), int32, and `weights`, float32: 1 where
    the target is learned. Each epoch has an order of its own; a batch that reaches past the end
    of one goes on in the next. Any batch can be made without those before it.
    """

    examples: Examples
    batch_size: int
    max_length: int
    pad_id: int
    seed: int = 0
    _orders: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def batch(self, step: int) -> Arrays:
        """The batch of an update, counting from 0."""
        return self._rows(self._numbers(step))

    def num_tokens(self, step: int) -> int:
        """Tokens in the batch, without padding."""
        lengths = np.diff(self.examples.ends, prepend=0)
        return int(lengths[self._numbers(step)].sum())

    def in_order(self) -> Iterator[Arrays]:
        """Every example once; the last batch is filled up with rows that weigh nothing."""
        for start in range(0, len(self.examples), self.batch_size):
            stop = min(start + self.batch_size, len(self.examples))
            yield self._rows(np.arange(start, stop))

    def _numbers(self, step: int) -> np.ndarray:
        """Which examples the batch of a step holds."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, at = np.divmod(places, len(self.examples))
        return np.array(
            [self._order(epoch)[i] for epoch, i in zip(epochs.tolist(), at.tolist(), strict=True)]
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders.clear()  # A batch reaches over two epochs at most, or over tiny ones.
            generator = np.random.Generator(np.random.Philox([self.seed, epoch]))
            self._orders[epoch] = generator.permutation(len(self.examples))
        return self._orders[epoch]

    def _rows(self, numbers: np.ndarray) -> Arrays:
        shape = (self.batch_size, self.max_length)
        tokens = np.full(shape, self.pad_id, np.int32)
        targets = np.full(shape, self.pad_id, np.int32)
        weights = np.zeros(shape, np.float32)
        for row, number in enumerate(numbers):
            ids, learned = self.examples[number]
            n = len(ids)
            tokens[row, :n] = ids
            targets[row, : n - 1] = ids[1:]
            weights[row, : n - 1] = learned[1:]
        return {"tokens": tokens, "targets": targets, "weights": weights}
