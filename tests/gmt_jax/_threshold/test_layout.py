"""Tensors of leaves as rows, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold.float_bits import nan_bits
from gmt_jax._threshold.layout import TensorLayout, TensorRows, key_dtypes

LEAVES = [
    np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    np.arange(5, dtype=np.float32) - 9,
    np.float32(7),
]
APART = TensorLayout(((2, 3, 4), (5,), ()), (1, 0, 0))
TOGETHER = TensorLayout(((2, 3, 4), (5,), ()), (0, 0, 0), shared=True)


def rows_of(layout: TensorLayout) -> TensorRows:
    return TensorRows(layout, key_dtypes([g.dtype for g in LEAVES], layout), None)


def test_a_leaf_has_as_many_tensors_as_its_stacked_axes_index() -> None:
    assert (APART.sizes, APART.counts, APART.entries) == ([12, 5, 1], [2, 1, 1], 30)
    assert (TOGETHER.sizes, TOGETHER.counts, TOGETHER.entries) == ([30], [1], 30)


def test_rows_are_expanded_from_sizes_and_split_by_leaf() -> None:
    np.testing.assert_array_equal(APART.expand(np.array([12, 5, 1])), [12, 12, 5, 1])
    parts = APART.split(jnp.arange(8).reshape(2, 4))
    assert [part.shape for part in parts] == [(2, 2), (2,), (2,)]
    np.testing.assert_array_equal(parts[0], [[0, 1], [4, 5]])
    shared = TOGETHER.split(jnp.arange(2).reshape(2, 1))
    assert [part.tolist() for part in shared] == [[0, 1]] * 3


def test_leaves_that_share_a_threshold_are_compared_in_one_dtype() -> None:
    dtypes = [jnp.dtype("bfloat16"), jnp.dtype("float16")]
    shapes = TensorLayout(((1,), (1,)), (0, 0))
    assert key_dtypes(dtypes, shapes) == tuple(dtypes)
    shared = TensorLayout(((1,), (1,)), (0, 0), shared=True)
    assert key_dtypes(dtypes, shared) == (np.dtype("float32"),) * 2


def test_rows_are_counted_and_read_off_by_tensor_or_together() -> None:
    bits = [np.abs(g).view(np.uint32) for g in LEAVES]
    tensors = [*bits[0].reshape(2, 12), bits[1], bits[2].reshape(1)]
    for layout, parts in ((APART, tensors), (TOGETHER, [np.concatenate(tensors)])):
        rows = rows_of(layout)
        candidates = np.array([np.median(part) for part in parts], np.uint32)
        leaves = [jnp.asarray(g) for g in LEAVES]
        done = jnp.zeros(len(parts), bool)
        counts = rows.count(leaves, jnp.asarray(candidates)[None], done)
        expected = [np.sum(part < c) for part, c in zip(parts, candidates, strict=True)]
        np.testing.assert_array_equal(counts.low[0], expected)
        low = jnp.zeros(len(parts), jnp.uint32)
        smallest, largest, _ = rows.inside(leaves, low, rows.tops)
        np.testing.assert_array_equal(smallest, [part.min() for part in parts])
        np.testing.assert_array_equal(largest, [part.max() for part in parts])


def test_a_sample_of_small_tensors_is_all_of_them_filled_up_with_the_top() -> None:
    rows = rows_of(APART)
    sample, lengths = rows.sample([jnp.asarray(g) for g in LEAVES])
    assert lengths.tolist() == [12, 12, 5, 1]
    np.testing.assert_array_equal(rows.tops, [nan_bits("float32") + 1] * 4)
    np.testing.assert_array_equal(np.asarray(sample)[3, 1:], rows.tops[3])
    assert jax.tree.leaves(rows.mantissas)[0].tolist() == [23] * 4
