"""What one reading of a tree finds, against NumPy."""

import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold.float_bits import nan_bits
from gmt_jax._threshold.layout import TensorLayout, comparison_dtypes
from gmt_jax._threshold.rows import TensorRows, magnitude_rows

LEAVES = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.arange(5, dtype=np.float32) - 9,
    np.float32(7),
]
SHAPES = ((2, 3, 4), (5,), ())
APART = TensorLayout(SHAPES, ((1,), (), ()))
TOGETHER = TensorLayout(SHAPES, ((), (), ()), shared=True)


def rows_of(layout: TensorLayout) -> TensorRows:
    return magnitude_rows(layout, comparison_dtypes([g.dtype for g in LEAVES], layout), None)


def test_rows_are_read_by_tensor_or_together() -> None:
    bits = [np.abs(g).view(np.int32) for g in LEAVES]
    tensors = [*bits[0].swapaxes(0, 1).reshape(3, 8), bits[1], bits[2].reshape(1)]
    for layout, parts in ((APART, tensors), (TOGETHER, [np.concatenate(tensors)])):
        rows = rows_of(layout)
        candidates = np.array([np.median(part) for part in parts], np.int32)
        high = jnp.asarray(rows.rows(rows.ends))
        leaves = [jnp.asarray(g) for g in LEAVES]
        reading = rows.read(leaves, jnp.asarray(candidates)[None], high)
        expected = [np.sum(part < c) for part, c in zip(parts, candidates, strict=True)]
        np.testing.assert_array_equal(reading.counts.low[0], expected)
        following = [part[part >= c].min() for part, c in zip(parts, candidates, strict=True)]
        np.testing.assert_array_equal(reading.following[0], following)
        np.testing.assert_array_equal(reading.largest, [part.max() for part in parts])


def test_rows_end_above_nan_and_an_octave_has_as_many_integers_as_mantissas() -> None:
    rows = rows_of(APART)
    np.testing.assert_array_equal(rows.rows(rows.ends), [nan_bits("float32") + 1] * 5)
    np.testing.assert_array_equal(rows.rows(rows.octaves), [2**23] * 5)
