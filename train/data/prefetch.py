"""Batches on the devices before they are needed; each process brings its own rows."""

from collections.abc import Callable
from typing import Any, Generic, SupportsIndex, TypeVar

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError
from ..sharding import batch_sharding, microbatch_sharding
from ..step import Batch
from .batches import Arrays

AHEAD = 2  # Batches that are made ahead, and as many that are put on the devices ahead.

T = TypeVar("T")
U = TypeVar("U")


def local_rows(mesh: Mesh, num_rows: int) -> np.ndarray:
    """The rows of a batch [B, ...] that this process's devices hold."""
    spans = batch_sharding(mesh).addressable_devices_indices_map((num_rows,)).values()
    return np.unique(np.concatenate([np.arange(num_rows)[span[0]] for span in spans if span]))


def row_group(mesh: Mesh, num_rows: int) -> tuple[int, int]:
    """This process's group, and the number of groups: the processes of a group hold the same rows.

    Raises:
      UserError: if two groups have some rows in common, but not all.
    """
    rows_of: dict[int, set[int]] = {}
    spans: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((num_rows,)))
    for device, (span, *_) in spans.items():
        rows_of.setdefault(device.process_index, set()).update(range(*span.indices(num_rows)))
    groups = sorted({tuple(sorted(rows)) for rows in rows_of.values()})
    if sum(map(len, groups)) != num_rows:
        raise UserError(
            "mesh: processes share some of their rows; make data and fsdp together a multiple or a "
            "divisor of the number of processes"
        )
    return groups.index(tuple(sorted(rows_of[jax.process_index()]))), len(groups)


def microbatch_rows(mesh: Mesh, num_microbatches: int, num_rows: int) -> np.ndarray:
    """The rows of an update that this process's devices hold; a microbatch has `num_rows`."""
    starts = num_rows * np.arange(num_microbatches)
    return (starts[:, None] + local_rows(mesh, num_rows)).ravel()


def to_devices(arrays: Arrays, mesh: Mesh, num_microbatches: int | None = None) -> Batch:
    """Puts this process's rows into the global batch: [B, T], or [N, B/N, T] in microbatches."""
    sharding = batch_sharding(mesh) if num_microbatches is None else microbatch_sharding(mesh)
    lead = () if num_microbatches is None else (num_microbatches,)
    return {
        name: jax.make_array_from_process_local_data(
            sharding,
            array.reshape(*lead, -1, *array.shape[1:]),
        )
        for name, array in arrays.items()
    }


class _Computed(Generic[T]):
    """A function's values for 0, 1, …, as a data source for grain."""

    def __init__(self, function: Callable[[int], T], count: int) -> None:
        self._function, self._count = function, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: SupportsIndex) -> T:
        return self._function(int(index))


def prefetch(
    make: Callable[[int], T], put: Callable[[T], U], count: int
) -> grain.DatasetIterator[U]:
    """An iterator over put(make(i)) for i from 0 up to `count`, computed ahead in threads.

    Its state holds the next i under "next_index". Close it after use.

    Threads suffice: rows come from memory-mapped files, and NumPy and the copy to the device
    release the interpreter.
    """
    values = grain.MapDataset.source(_Computed(make, count)).to_iter_dataset(
        grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    )
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(values.map(put), prefetch_buffer_size=AHEAD)
    )
