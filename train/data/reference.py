"""A reference's log-probabilities on disk: computed once for a split, then memory-mapped."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..buckets.fetch import cache_path
from ..config import Config
from ..errors import UserError
from ..files import DestinationExistsError, atomic_folder
from ..step import Batch
from .batches import Batches
from .digest import digest
from .splits import Split

_LAYOUT = 1  # Version of the file; part of the digest.


class ReferenceValues:
    """The log-probabilities of a split's preference pairs, one for the target of each token.

    Values are there as soon as they were written, by this process or an earlier one.

    Args:
      folder: where they are stored, named by a digest of all that they depend on.
      sizes: tokens of both answers of each pair [N, 2].
    """

    def __init__(self, folder: Path, sizes: np.ndarray) -> None:
        self._file, self._sizes = folder / "logprobs", sizes
        self._offsets = np.concatenate([[0], np.cumsum(sizes.sum(1), dtype=np.int64)])

    @property
    def exist(self) -> bool:
        """Whether they are stored.

        Raises:
          UserError: if what is stored belongs to other pairs, or is not whole.
        """
        if not self._file.parent.exists():
            return False
        size, wanted = self._file.stat().st_size, 4 * int(self._offsets[-1])
        if size != wanted:
            raise UserError(
                f"{self._file.parent} holds {size:,} bytes of the reference's log-probabilities, "
                f"and the data has {wanted:,}; remove that folder to compute them again"
            )
        return True

    def empty(self) -> np.ndarray:
        """An array for all values, in the order in which they are stored."""
        return np.zeros(self._offsets[-1], np.float32)

    def put(self, values: np.ndarray, number: int, pair: np.ndarray) -> None:
        """Puts a pair's values [2, T] into such an array."""
        begin, middle, end = self._span(number)
        values[begin:middle] = pair[0, : middle - begin]
        values[middle:end] = pair[1, : end - middle]

    def write(self, values: np.ndarray) -> None:
        """Stores the values, unless another process was faster."""
        with (
            contextlib.suppress(DestinationExistsError),
            atomic_folder(self._file.parent, replace=False) as partial,
        ):
            values.astype("<f4").tofile(partial / self._file.name)

    def __getitem__(self, number: int) -> np.ndarray:
        """A pair's values [2, T], padded with 0."""
        begin, middle, end = self._span(number)
        pair = np.zeros((2, int(self._sizes[number].max())), np.float32)
        pair[0, : middle - begin] = self._values[begin:middle]
        pair[1, : end - middle] = self._values[middle:end]
        return pair

    @cached_property
    def _values(self) -> np.ndarray:
        return np.memmap(self._file, "<f4", "r").view(np.ndarray)

    def _span(self, number: int) -> tuple[int, int, int]:
        begin = int(self._offsets[number])
        return begin, begin + int(self._sizes[number, 0]), int(self._offsets[number + 1])


@dataclass(frozen=True)
class ReferencePass:
    """What the reference's log-probabilities of a split are computed from.

    Attributes:
      values: where they go.
      rows: the split's rows, without a reference.
      batches: opens an iterator over all of these rows once, on the devices.
    """

    name: str
    values: ReferenceValues
    rows: Batches
    batches: Callable[[], AbstractContextManager[Iterator[Batch]]]


def open_values(config: Config, split: Split, model_digest: str) -> ReferenceValues:
    """The place of a reference's log-probabilities of a split.

    Args:
      model_digest: equal for references with equal weights.
    """
    name = digest(
        "reference",
        _LAYOUT,
        model_digest,
        split.digest,
        config.data.max_length,
        config.data.packing,
        config.model.compute_dtype,
        config.model.attention,
    )
    return ReferenceValues(cache_path(config.cache) / name, split.sizes)
