"""Pairs of 32 bits compare and add as integers of 64 bits."""

import numpy as np

from gmt_jax._threshold.uint64 import UInt64, add, as_float, at_most, subtract, uint64

NUMBERS = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 3 * 2**32 - 1, 2**50 + 5]


def integers(numbers: UInt64) -> list[int]:
    parts = zip(*map(np.ravel, numbers), strict=True)
    return [(int(high) << 32) + int(low) for high, low in parts]


def test_pairs_compare_add_and_subtract_as_integers() -> None:
    pairs = [(a, b) for a in NUMBERS for b in NUMBERS]
    a, b = (uint64(side) for side in zip(*pairs, strict=True))
    assert np.asarray(at_most(a, b)).tolist() == [x <= y for x, y in pairs]
    assert integers(add(a, b)) == [x + y for x, y in pairs]
    assert integers(subtract(add(a, b), b)) == [x for x, _ in pairs]


def test_a_float_is_the_nearest_float32() -> None:
    np.testing.assert_allclose(as_float(uint64(NUMBERS)), NUMBERS, rtol=1e-7)
