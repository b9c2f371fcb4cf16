"""Batches on the devices before they are needed, each process bringing its own rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ..errors import UserError
from ..sharding import batch_sharding, microbatch_sharding
from ..step import Batch
from .batches import Arrays

AHEAD = 2  # Batches that are made, and as many that are on the devices, before they are asked for.


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Which rows of a batch [B, ...] this process's devices hold."""
    spans = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[span[0]] for span in spans if span]))


def row_groups(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Which group of processes this one is in, and how many there are: a group holds the same rows.

    Raises:
      UserError: where two groups have some rows in common, but not all.
    """
    held: dict[int, set[int]] = {}
    spans: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((rows,)))
    for device, (span, *_) in spans.items():
        held.setdefault(device.process_index, set()).update(range(*span.indices(rows)))
    groups = sorted({tuple(sorted(each)) for each in held.values()})
    if sum(map(len, groups)) != rows:
        raise UserError(
            "mesh: processes share some of their rows; make data and fsdp together a multiple or a "
            "divisor of the number of processes"
        )
    return groups.index(tuple(sorted(held[jax.process_index()]))), len(groups)


def microbatch_rows(mesh: Mesh, num_microbatches: int, rows: int) -> np.ndarray:
    """Which rows of an update this process's devices hold, where microbatches have `rows` each."""
    starts = rows * np.arange(num_microbatches)
    return (starts[:, None] + local_rows(mesh, rows)).ravel()


def place(arrays: Arrays, mesh: Mesh, num_microbatches: int | None = None) -> Batch:
    """This process's rows as part of the global batch, [B, T] or [N, B/N, T] in microbatches."""
    sharding = batch_sharding(mesh) if num_microbatches is None else microbatch_sharding(mesh)
    lead = () if num_microbatches is None else (num_microbatches,)
    return {
        key: jax.make_array_from_process_local_data(
            sharding, array.reshape(*lead, -1, array.shape[-1])
        )
        for key, array in arrays.items()
    }


class _Made:
    """What a function makes of numbers, as a source for grain."""

    def __init__(self, make: Callable[[int], Any], stop: int) -> None:
        self._make, self._stop = make, stop

    def __len__(self) -> int:
        return self._stop

    def __getitem__(self, index: Any) -> Any:
        return self._make(int(index))


@contextmanager
def prefetched(
    make: Callable[[int], Any], put: Callable[[Any], Any], start: int, stop: int
) -> Iterator[Iterator[Any]]:
    """put(make(i)) for i from start up to stop, worked out ahead in threads.

    Threads do: rows come from memory-mapped files, and NumPy and the copy to the device leave the
    interpreter to others.
    """
    made = grain.MapDataset.source(_Made(make, stop))[start:]
    ready = made.to_iter_dataset(grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD))
    ahead = grain.experimental.ThreadPrefetchIterDataset(ready.map(put), prefetch_buffer_size=AHEAD)
    iterator: Any = iter(ahead)
    try:
        yield iterator
    finally:
        iterator.close()
