"""Sizes of batches: few, and such as the mesh can split."""

import doctest
from typing import Any

import jax
import pytest

from train.errors import UserError
from train.generate import batches
from train.generate.batches import rounded_length, rows_per_batch
from train.sharding import make_mesh


def test_lengths_grow_by_less_than_a_fourth_and_are_few() -> None:
    rounded = [rounded_length(length) for length in range(1, 5000)]
    assert all(0 <= new - old < max(16, old / 4) for old, new in enumerate(rounded, 1))
    assert len(set(rounded)) < 45
    assert doctest.testmod(batches).failed == 0


def test_batches_have_one_number_of_rows(all_devices: Any) -> None:
    assert [rows_per_batch(n, 6) for n in (0, 1, 3, 6, 7, 100)] == [1, 1, 4, 6, 6, 6]
    with jax.set_mesh(make_mesh(2, 2, 2, devices=all_devices)):
        assert [rows_per_batch(n, 6) for n in (1, 3, 5, 100)] == [4, 4, 8, 8]
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        rows_per_batch(3, 0)
