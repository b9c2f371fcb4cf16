"""Counts, extremes and samples, against NumPy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold import reductions
from gmt_jax._threshold.uint64 import UInt64

BITS = partial(jnp.asarray, dtype=jnp.uint32)


def integers(numbers: UInt64) -> np.ndarray:
    high, low = (np.asarray(part).astype(np.int64) for part in numbers)
    return (high << 32) + low


def test_partial_counts_add_up_past_32_bits() -> None:
    parts = np.random.default_rng(0).integers(0, 2**32, (3, 70_000), np.uint32)
    total = reductions._add_up(UInt64(jnp.zeros_like(parts), jnp.asarray(parts)), (1,))
    np.testing.assert_array_equal(integers(total), parts.sum(1, dtype=np.int64))
    assert integers(total).min() > 2**32


@pytest.mark.parametrize(
    ("shape", "num_stacked_axes", "at_once", "later"),
    [
        ((80, 28672, 8192), 1, (1, 2), ()),
        ((80, 28672, 8192), 0, (1, 2), (0,)),
        ((2**16, 2**16), 0, (1,), (0,)),
        ((2**16 - 1, 2**16), 0, (0, 1), ()),
        ((2**33,), 0, (), (0,)),
        ((), 0, (), ()),
        ((3, 0), 0, (0, 1), ()),
    ],
)
def test_a_count_is_split_where_it_could_pass_32_bits(
    shape: tuple[int, ...], num_stacked_axes: int, at_once: Any, later: Any
) -> None:
    assert reductions._counted_at_once(shape, num_stacked_axes) == (at_once, later)
    stack = shape[:num_stacked_axes]
    counts = jax.eval_shape(
        lambda leaf, candidates: reductions.count_below(
            leaf, BITS, candidates, num_stacked_axes, None
        ),
        jax.ShapeDtypeStruct(shape, "uint32"),
        jax.ShapeDtypeStruct((7, *stack), "uint32"),
    )
    assert counts.low.shape == (7, *stack)


@pytest.mark.parametrize("later", [(), (0,), (1,), (0, 1)])
def test_a_tensor_counted_in_parts_is_counted_right(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    leaf = np.random.default_rng(0).integers(0, 1000, (2, 30, 40), np.uint32)
    candidates = np.array([[10, 20], [500, 1], [1000, 0]], np.uint32)
    rest = tuple(axis + 1 for axis in (0, 1) if axis not in later)
    split = (rest, tuple(axis + 1 for axis in later))
    monkeypatch.setattr(reductions, "_counted_at_once", lambda *_: split)
    counts = reductions.count_below(jnp.asarray(leaf), BITS, jnp.asarray(candidates), 1, None)
    expected = np.sum(leaf[None] < candidates[:, :, None, None], axis=(2, 3))
    np.testing.assert_array_equal(integers(counts), expected)


def test_the_extremes_and_the_sum_inside_a_bracket_are_offsets_from_its_low_end() -> None:
    leaf = jnp.array([[3, 7, 9, 20], [3, 3, 3, 3]], jnp.uint32)
    low, high = (jnp.array(bound, jnp.uint32) for bound in ([5, 4], [20, 9]))
    smallest, largest, total = reductions.inside(leaf, BITS, low, high, 1)
    assert (int(smallest[0]), int(largest[0]), int(total[0])) == (2, 4, 6)
    assert (int(smallest[1]), int(largest[1]), int(total[1])) == (2**32 - 1, 0, 0)


def test_a_sample_is_spread_over_each_tensor() -> None:
    leaf = jnp.arange(2 * 64 * 64).reshape(2, 64, 64)
    sample = np.asarray(reductions.sample(leaf, 1, 256, None))
    assert sample.shape == (2, 256)
    np.testing.assert_array_equal(sample[1] - 64 * 64, sample[0])
    rows, columns = np.divmod(sample[0], 64)
    for index in (rows, columns):  # Every eighth of each axis has its part.
        assert (np.histogram(index, 8, (0, 64))[0] >= 16).all()


def test_a_sample_of_a_small_tensor_is_all_of_it_and_of_a_long_one_nothing() -> None:
    leaf = jnp.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(reductions.sample(leaf, 1, 4, None), leaf)
    long = jax.ShapeDtypeStruct((2**31,), "float32")
    assert jax.eval_shape(lambda g: reductions.sample(g, 0, 256, None), long).shape == (1, 0)
