"""Tensors of leaves as rows, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold.layout import TensorLayout, comparison_dtypes

SHAPES = ((2, 3, 4), (5,), ())
APART = TensorLayout(SHAPES, ((1,), (), ()))
TOGETHER = TensorLayout(SHAPES, ((), (), ()), shared=True)


def test_a_leaf_has_as_many_tensors_as_its_stacked_axes_index() -> None:
    assert (APART.sizes, APART.counts, APART.entries) == ([8, 5, 1], [3, 1, 1], 30)
    assert (TOGETHER.sizes, TOGETHER.counts, TOGETHER.entries) == ([30], [1], 30)


def test_a_shard_counts_for_the_others_of_its_tensor() -> None:
    shards = TensorLayout(SHAPES, ((1,), (), ()), num_shards=(4, 1, 1))
    assert (shards.sizes, shards.entries) == ([32, 5, 1], 102)


def test_rows_are_expanded_from_sizes_and_split_by_leaf() -> None:
    np.testing.assert_array_equal(APART.expand(np.array([8, 5, 1])), [8, 8, 8, 5, 1])
    parts = APART.split(jnp.arange(10).reshape(2, 5))
    assert [part.tolist() for part in parts] == [[[0, 1, 2], [5, 6, 7]], [3, 8], [4, 9]]
    shared = TOGETHER.split(jnp.arange(2).reshape(2, 1))
    assert [part.tolist() for part in shared] == [[0, 1]] * 3


@pytest.mark.parametrize("leaves", [15, 16, 17, 300])
def test_each_of_many_leaves_gets_its_own_scalars(leaves: int) -> None:
    """Also between leaves that are stacks."""
    shapes = [(2, 3) if i == 7 else (3,) for i in range(leaves)]
    layout = TensorLayout(tuple(shapes), tuple((0,) if i == 7 else () for i in range(leaves)))
    rows = np.arange(2 * (leaves + 1)).reshape(2, leaves + 1)
    expected = [*rows.T[:7], rows[:, 7:9], *rows.T[9:]]
    for part, right in zip(layout.split(jnp.asarray(rows)), expected, strict=True):
        np.testing.assert_array_equal(part, right)


def test_leaves_that_share_a_threshold_are_compared_in_one_dtype() -> None:
    dtypes = [jnp.dtype("bfloat16"), jnp.dtype("float16")]
    apart = TensorLayout(((1,), (1,)), ((), ()))
    assert comparison_dtypes(dtypes, apart) == tuple(dtypes)
    shared = TensorLayout(((1,), (1,)), ((), ()), shared=True)
    assert comparison_dtypes(dtypes, shared) == (np.dtype("float32"),) * 2
    assert comparison_dtypes(dtypes[:1] * 2, shared) == (dtypes[0],) * 2
