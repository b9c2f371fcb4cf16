"""Thresholds of leaves of several dtypes, in the order of the tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold.find import find
from gmt_jax._threshold.float_bits import absolute_bits
from gmt_jax._threshold.layout import TensorLayout, comparison_dtypes
from gmt_jax._threshold.packing import FEWEST
from gmt_jax._threshold.uint64 import as_float, uint64


@pytest.mark.parametrize("guess", [0.0, 1.0, np.inf, np.nan])
def test_thresholds_are_in_the_order_of_the_tree(guess: float) -> None:
    """Although small leaves are stacked, and whatever is guessed."""
    rng = np.random.default_rng(0)
    shapes = [(3,), (60, 50), *[(3,)] * FEWEST, (2, 40)]
    dtypes = ["bfloat16", "float32", *["bfloat16"] * FEWEST, "float16"]
    leaves = [
        jnp.asarray(rng.standard_normal(shape), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    layout = TensorLayout(tuple(shapes), (*[()] * (len(shapes) - 1), (0,)))
    ranks = [size // 2 for size in layout.sizes]
    found = find(
        leaves,
        comparison_dtypes(dtypes, layout),
        layout,
        layout.expand(uint64(ranks)),
        jnp.full(layout.num_tensors, guess, jnp.float32),
        None,
    )
    tensors = [np.abs(np.asarray(leaf, np.float32)).ravel() for leaf in leaves[:-1]]
    tensors += list(np.abs(np.asarray(leaves[-1], np.float32)))
    right = [np.sort(tensor)[len(tensor) // 2] for tensor in tensors]
    np.testing.assert_array_equal(found.threshold, right)
    below = [np.sum(tensor < t) for tensor, t in zip(tensors, right, strict=True)]
    np.testing.assert_array_equal(as_float(found.below), below)


def test_a_subnormal_threshold_is_widened_as_it_is() -> None:
    with jax.enable_x64(True):
        leaves = [jnp.full(3, 1e-310), jnp.full(3, 1e-40, jnp.float32)]
        layout = TensorLayout(((3,), (3,)), ((), ()))
        dtypes = comparison_dtypes([leaf.dtype for leaf in leaves], layout)
        found = find(leaves, dtypes, layout, uint64([1, 1]), jnp.zeros(2, jnp.float64), None)
        assert found.threshold.tolist() == [1e-310, float(np.float32(1e-40))]


def test_nans_of_all_kinds_are_one_value() -> None:
    kinds = np.array([0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800123], np.uint32)
    leaf = np.concatenate([kinds.view(np.float32), np.arange(4, dtype=np.float32)])
    layout = TensorLayout((leaf.shape,), ((),))
    for rank, below in ((3, 3), (4, 4), (6, 4), (7, 4), (8, 8)):
        ranks, guess = uint64([rank]), jnp.zeros(1)
        found = find([jnp.asarray(leaf)], [np.dtype(np.float32)], layout, ranks, guess, None)
        assert as_float(found.below).tolist() == [below]
        assert np.isnan(found.threshold).tolist() == [3 < rank < 8]
        kept = absolute_bits(jnp.asarray(leaf), np.float32) > found.last_masked
        assert int(kept.sum()) == 8 - below
