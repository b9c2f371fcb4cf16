"""Small leaves are stacked, and every row is found again."""

import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.packing import FEWEST, pack


def test_small_leaves_of_one_kind_are_stacked() -> None:
    big, small = jnp.zeros((100, 100)), jnp.zeros((2, 3))
    leaves = [small, big, *[small] * (FEWEST - 1), jnp.zeros((2, 3), jnp.bfloat16)]
    layout = TensorLayout(tuple(leaf.shape for leaf in leaves), ((1,), *[()] * (len(leaves) - 1)))
    packed, kinds, new, order = pack(leaves, layout)
    # The first is stacked itself, so that it is one fewer than is worth a copy.
    assert len(packed) == len(leaves)
    layout = TensorLayout(layout.shapes, ((),) * len(leaves))
    packed, kinds, new, order = pack(leaves, layout)
    assert sorted(leaf.shape for leaf in packed) == [(2, 3), (FEWEST, 2, 3), (100, 100)]
    assert [leaves[kind].dtype for kind in kinds] == [leaf.dtype for leaf in packed]
    assert new.num_tensors == layout.num_tensors
    sizes = new.expand(np.array(new.sizes))[order]
    np.testing.assert_array_equal(sizes, layout.expand(np.array(layout.sizes)))


def test_leaves_of_one_pattern_stand_beside_each_other() -> None:
    leaves = [jnp.full((2, 3), i) for i in range(4)]
    patterns = ("layer*/q", "layer*/o", "layer*/q", "layer*/o")
    layout = TensorLayout(((2, 3),) * 4, ((),) * 4, patterns=patterns)
    packed, _, new, order = pack(leaves, layout)
    assert new.patterns == ("layer*/o", "layer*/o", "layer*/q", "layer*/q")
    assert [int(packed[i][0, 0]) for i in order] == [0, 1, 2, 3]


def test_no_more_is_copied_than_a_part_of_all_entries() -> None:
    leaves = [jnp.zeros((2, 3))] * 2 * FEWEST
    layout = TensorLayout(((2, 3),) * len(leaves), ((),) * len(leaves))
    assert len(pack(leaves, layout)[0]) == len(leaves)
