"""Best-fit packing against the plain algorithm, its waste, and its time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.packing import best_fit, one_per_row, pack


def _plain(lengths: list[int], capacity: int) -> list[int]:
    """The rooms left in the rows, by the algorithm as it is told."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(room, at) for at, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting)[1]] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_it_is_best_fit_decreasing(data: st.DataObject) -> None:
    capacity = data.draw(st.integers(1, 40))
    lengths = np.array(data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=80)))
    rows = best_fit(lengths, capacity)
    assert sorted(rows.members.tolist()) == list(range(len(lengths)))
    tokens = np.add.reduceat(lengths[rows.members], rows.offsets[:-1])
    assert sorted((capacity - tokens).tolist()) == _plain(lengths.tolist(), capacity)


def test_a_million_examples_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).gamma(2, 150, 1_000_000).astype(np.int32).clip(1, 2048)
    rows = best_fit(lengths, 2048)
    assert rows.padding(lengths, 2048) < 0.001


def test_it_is_the_same_every_time() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    first, second = best_fit(lengths, 128), best_fit(lengths, 128)
    np.testing.assert_array_equal(first.members, second.members)
    np.testing.assert_array_equal(first.offsets, second.offsets)


@pytest.mark.parametrize("length", [0, 11])
def test_lengths_out_of_bounds(length: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 10"):
        best_fit(np.array([3, length]), 10)


def test_the_padding_by_hand() -> None:
    lengths = np.array([5, 10, 3])
    assert one_per_row(3).padding(lengths, 10) == pytest.approx(0.4)
    assert best_fit(lengths, 10).padding(lengths, 10) == pytest.approx(0.1)


def test_a_plan_is_made_once(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    lengths = np.array([3, 9, 4, 2, 1], np.int32)
    planned = pack(lengths, 10, tmp_path)
    for made, expected in zip(planned, best_fit(lengths, 10), strict=True):
        np.testing.assert_array_equal(made, expected)
    monkeypatch.setattr("train.data.packing.best_fit", None)
    again = pack(lengths.astype(np.int64), 10, tmp_path)
    np.testing.assert_array_equal(again.members, planned.members)
    with pytest.raises(TypeError):  # Other lengths and another capacity are other plans.
        pack(lengths[:-1], 10, tmp_path)
    with pytest.raises(TypeError):
        pack(lengths, 11, tmp_path)


@pytest.mark.parametrize("damage", ["flipped", "cut", "other"])
def test_a_damaged_packing_is_computed_anew(tmp_path: Path, damage: str) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    expected = pack(lengths, 64, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        del content[-10:]
    else:
        pack(lengths[:100], 64, tmp_path)
        (other,) = set(tmp_path.iterdir()) - {file}
        content = bytearray(other.read_bytes())
    file.write_bytes(content)
    for _ in range(2):
        again = pack(lengths, 64, tmp_path)
        np.testing.assert_array_equal(again.members, expected.members)
        np.testing.assert_array_equal(again.offsets, expected.offsets)
