"""Batches that the caller of `fit` gives, as a loader: microbatches on devices, and a position."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import UserError
from ..sharding import as_shardings, path_name
from .loader import Loader

# A function of the number of updates done, or what yields a batch an update.
Batches: TypeAlias = Callable[[int], Any] | Iterable[Any]


def open_batches(
    batches: Batches | Loader, mesh: Mesh, sharding: Any, num_microbatches: int, steps: int
) -> Loader:
    """A loader of the batches; the arguments are those of `fit`."""
    if isinstance(batches, Loader):
        return batches
    source = _Computed(batches) if callable(batches) else iter(batches)
    return Loader(_Iterator(source, _Put(mesh, sharding, num_microbatches), steps))


def number_of(batches: Batches | Loader) -> int:
    """The number of batches of a sequence.

    Raises:
      UserError: if it is not known.
    """
    if isinstance(batches, Sequence):
        return len(batches)
    raise UserError("fit: steps is needed, because the number of batches is not known")


class _Computed:
    """A function's values for 0, 1, …, and the position among them."""

    def __init__(self, function: Callable[[int], Any]) -> None:
        self._function, self._next = function, 0

    def __next__(self) -> Any:
        self._next += 1
        return self._function(self._next - 1)

    def get_state(self) -> int:
        return self._next

    def set_state(self, state: int) -> None:
        self._next = state


class _Iterator:
    """An iterator's batches on the devices, with a position that can be saved.

    The position of an iterator without `get_state` is the number of batches taken, and to go there
    is to take as many.
    """

    def __init__(self, source: Any, put: "_Put", steps: int) -> None:
        self._source, self._put, self._steps, self._taken = source, put, steps, 0

    def __next__(self) -> tuple[Any, int]:
        with jax.transfer_guard("allow"):  # What the caller computes is their own affair.
            return self._put(self._take())

    def _take(self) -> Any:
        try:
            batch = next(self._source)
        except StopIteration:
            raise UserError(
                f"fit: the batches end after {self._taken} updates of {self._steps}; "
                "give more of them, or fewer steps"
            ) from None
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        has_state = hasattr(self._source, "get_state")
        position = self._source.get_state() if has_state else None
        return {"taken": self._taken, "position": position}

    def set_state(self, state: dict[str, Any]) -> None:
        if hasattr(self._source, "set_state"):
            self._source.set_state(state["position"])
            self._taken = state["taken"]
        while self._taken < state["taken"]:
            self._take()

    def close(self) -> None:
        """Nothing is computed ahead."""


class _Put:
    """Puts a batch [B, ...] on the devices, as microbatches [N, B/N, ...]; counts its rows."""

    def __init__(self, mesh: Mesh, sharding: Any, num_microbatches: int) -> None:
        self._mesh, self._sharding, self._num = mesh, sharding, num_microbatches
        rows = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
        self._by_default = PartitionSpec(rows) if rows else PartitionSpec()

    def __call__(self, batch: Any) -> tuple[Any, int]:
        given = self._by_default if self._sharding is None else self._sharding
        shardings = as_shardings(self._mesh, given, batch)
        on_devices = jax.tree_util.tree_map_with_path(self._put, batch, shardings)
        return on_devices, np.shape(jax.tree.leaves(batch)[0])[0]

    def _put(self, path: Any, leaf: Any, sharding: NamedSharding) -> jax.Array:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if array.ndim == 0 or array.shape[0] % self._num:
            raise UserError(
                f"fit: {path_name(path)} of a batch has the shape {list(array.shape)}, whose first "
                f"axis is not rows in {self._num} microbatches"
            )
        parts = array.reshape(self._num, -1, *array.shape[1:])
        spec = PartitionSpec(None, *sharding.spec)
        try:
            return jax.device_put(parts, NamedSharding(self._mesh, spec))
        except ValueError as error:
            raise UserError(
                f"fit: {path_name(path)} of a batch, {list(parts.shape)} in microbatches, cannot "
                f"be split as {spec} on this mesh; change its rows, batch_sharding or the mesh"
            ) from error
        except AssertionError:  # jax compares what processes put.
            raise UserError(
                f"fit: {path_name(path)} of a batch differs between processes; every process has "
                "to give the whole batch"
            ) from None
