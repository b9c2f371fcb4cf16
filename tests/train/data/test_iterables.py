"""Batches of a caller as microbatches on a mesh, with a position."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from train.data.iterables import number_of, open_batches
from train.errors import UserError
from train.sharding import make_mesh


def _batch(number: int) -> dict[str, np.ndarray]:
    return {"x": np.full((8, 2), number, np.float32), "y": np.arange(8, dtype=np.int32)}


class Positioned:
    """An iterator with a position of its own, as grain's are."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.next += 1
        return _batch(self.next - 1)

    def get_state(self) -> dict[str, int]:
        return {"at": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["at"]


SOURCES = {
    "function": lambda: _batch,
    "list": lambda: [_batch(n) for n in range(4)],
    "generator": lambda: (_batch(n) for n in range(4)),
    "positioned": Positioned,
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_loader_goes_on_where_another_was(source: str) -> None:
    def open_() -> Any:
        return open_batches(SOURCES[source](), make_mesh(fsdp=8), None, 1, 4)

    first, second = open_(), open_()
    for _ in range(2):
        next(first)
    second.set_state(first.get_state())
    batch, num_rows = next(second)
    assert num_rows == 8
    assert batch["x"][0, 0, 0] == 2


def test_rows_are_split_over_data_and_fsdp_in_microbatches() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    batch, _ = next(open_batches(_batch, mesh, None, 2, 1))
    assert batch["y"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch["y"].sharding.spec == PartitionSpec(None, ("data", "fsdp"))


def test_a_sharding_can_be_given_for_a_part_of_a_batch() -> None:
    specs = {"x": PartitionSpec("data", "tensor"), "y": PartitionSpec()}
    batch, _ = next(open_batches(_batch, make_mesh(data=4, fsdp=1, tensor=2), specs, 1, 1))
    assert batch["x"].sharding.spec == PartitionSpec(None, "data", "tensor")
    assert batch["y"].sharding.is_fully_replicated


def test_a_batch_may_hold_keys() -> None:
    keys = jax.random.split(jax.random.key(0), 8)
    parts, _ = next(open_batches([keys], make_mesh(fsdp=4, tensor=2), None, 2, 1))
    np.testing.assert_array_equal(jax.random.key_data(parts)[1], jax.random.key_data(keys[4:]))


@pytest.mark.parametrize(
    ("batches", "num_microbatches", "message"),
    [
        ([_batch(0)], 3, r"x of a batch has the shape \[8, 2\].*3 microbatches"),
        ([np.float32(1)], 1, r"the array of a batch has the shape \[\]"),
        ([_batch(0)], 2, r"x of a batch, \[2, 4, 2\] in microbatches, cannot be split"),
        ([], 1, "the batches end after 0 updates of 5"),
    ],
)
def test_batches_that_do_not_fit_are_refused(
    batches: Any, num_microbatches: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        next(open_batches(batches, make_mesh(fsdp=8), None, num_microbatches, 5))


def test_the_number_of_batches_is_that_of_a_sequence() -> None:
    assert number_of([1, 2]) == 2
    with pytest.raises(UserError, match="steps is needed"):
        number_of(_batch)
