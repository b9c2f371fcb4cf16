"""Batches on the devices ahead of time, each process bringing its own rows."""

import threading
from typing import Any

import jax
import numpy as np
import pytest

from train.data.prefetch import local_rows, microbatch_rows, place, prefetched
from train.errors import UserError
from train.sharding import make_mesh


def test_numbers_come_in_order_from_where_they_begin() -> None:
    with prefetched(lambda n: n * n, lambda x: -x, 3, 8) as made:
        assert list(made) == [-9, -16, -25, -36, -49]


def test_the_next_ones_are_made_before_they_are_asked_for() -> None:
    made = [threading.Event() for _ in range(20)]

    def make(n: int) -> int:
        made[n].set()
        return n

    with prefetched(make, lambda x: x, 0, 20) as numbers:
        assert next(numbers) == 0
        assert made[3].wait(10), "nobody asked for it"
        assert not made[19].is_set(), "but not all at once"


def test_a_fault_comes_out_where_it_is_asked_for() -> None:
    def make(n: int) -> int:
        if n == 2:
            raise UserError("row 2 is bad")
        return n

    with prefetched(make, lambda x: x, 0, 4) as made:
        assert [next(made), next(made)] == [0, 1]
        with pytest.raises(UserError, match="row 2 is bad"):
            next(made)


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    with prefetched(lambda n: n, lambda x: x, 0, 1000) as made:
        next(made)
    assert threading.active_count() <= before + 2  # Idle ones of a pool may stay.


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("pieces", [1, 3])
def test_rows_lie_where_the_step_wants_them(shape: tuple[int, int, int], pieces: int) -> None:
    mesh = make_mesh(*shape)
    whole = np.arange(pieces * 8 * 5).reshape(-1, 5)
    mine = microbatch_rows(mesh, pieces, 8)
    assert mine.tolist() == list(range(pieces * 8)), "one process has all of them"
    placed = place({"tokens": whole[mine]}, mesh, pieces)["tokens"]
    np.testing.assert_array_equal(placed, whole.reshape(pieces, 8, 5))
    np.testing.assert_array_equal(place({"x": whole[:8]}, mesh)["x"], whole[:8])


class _FirstHalf:
    """A sharding of which this process holds the first four of eight devices."""

    def __init__(self, sharding: Any) -> None:
        self._all = sharding.devices_indices_map

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> Any:
        return {d: span for d, span in self._all(shape).items() if d in jax.devices()[:4]}


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((8, 1, 1), [0, 1, 2, 3]), ((2, 2, 2), [0, 1, 2, 3]), ((1, 1, 8), list(range(8)))],
)
def test_a_process_has_the_rows_of_its_devices(
    shape: tuple[int, int, int], rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.sharding import batch_sharding

    monkeypatch.setattr(
        "train.data.prefetch.batch_sharding", lambda m: _FirstHalf(batch_sharding(m))
    )
    mesh = make_mesh(*shape)
    assert local_rows(mesh, 8).tolist() == rows
    assert microbatch_rows(mesh, 2, 8).tolist() == [*rows, *(8 + row for row in rows)]
