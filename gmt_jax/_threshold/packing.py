"""Stacks the small leaves of a tree, so that XLA compiles one program for many of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold.layout import TensorLayout

# The most that may be copied, as a fraction of all entries.
COPIED = 1 / 16
# Fewer leaves of one shape are not worth a copy.
FEWEST = 8


def pack(
    leaves: Sequence[jax.Array], layout: TensorLayout
) -> tuple[list[jax.Array], list[int], TensorLayout, np.ndarray]:
    """The leaves, with small ones of equal shape stacked along a new first axis.

    Returns:
      The new leaves; for each of them, the index of a leaf of its kind; their layout; and for each
      row of the layout before, where it is now, [R].
    """
    groups = _groups(leaves, layout)
    kinds = [group[0] for group in groups]
    packed = [
        leaves[group[0]] if len(group) == 1 else jnp.stack([leaves[i] for i in group])
        for group in groups
    ]
    axes = [
        layout.stacked_axes[group[0]]
        if len(group) == 1
        else (0, *(axis + 1 for axis in layout.stacked_axes[group[0]]))
        for group in groups
    ]
    shards = layout.num_shards or (1,) * len(leaves)
    patterns = tuple(layout.patterns[kind] for kind in kinds) if layout.patterns else ()
    new = replace(
        layout,
        shapes=tuple(tuple(leaf.shape) for leaf in packed),
        stacked_axes=tuple(axes),
        num_shards=tuple(shards[kind] for kind in kinds),
        patterns=patterns,
    )
    if layout.shared:
        return packed, kinds, replace(new, stacked_axes=((),) * len(groups)), np.zeros(1, np.int32)
    starts = np.cumsum([0, *layout.counts])
    moved = np.concatenate([np.arange(starts[i], starts[i + 1]) for group in groups for i in group])
    return packed, kinds, new, np.argsort(moved).astype(np.int32)


def _groups(leaves: Sequence[jax.Array], layout: TensorLayout) -> list[list[int]]:
    """The indices of leaves to stack, or of one leaf alone."""
    alike: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        kind = (jax.typeof(leaf), layout.stacked_axes[i])
        alike.setdefault(kind, []).append(i)
    patterns = layout.patterns or ("",) * len(leaves)
    left = COPIED * sum(math.prod(leaf.shape) for leaf in leaves)
    groups: list[list[int]] = []
    for group in sorted(alike.values(), key=lambda group: leaves[group[0]].size):
        entries = len(group) * leaves[group[0]].size
        if len(group) >= FEWEST and entries <= left:
            left -= entries
            groups.append(group)
        else:
            # Beside those that they are read with.
            groups += [[i] for i in sorted(group, key=patterns.__getitem__)]
    return groups
