"""Which entries an update trains: those with the largest scores; and how a mask is applied."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from gmt_jax._threshold.float_bits import float32_or_wider, magnitude, magnitude_bits
from gmt_jax._threshold.layout import TensorLayout, key_dtypes
from gmt_jax._threshold.replication import mesh_of, replicate
from gmt_jax._threshold.search import select
from gmt_jax.mask_ratio import (
    check_fraction,
    check_mask_ratio,
    fraction_of,
    num_masked,
    stacked_axes,
)
from gmt_jax.types import Leaf, Mask, MaskRatio, NumStackedAxes, PyTree

State = TypeVar("State")
_TOLERANCE = "tolerance is the fraction of entries that may stay unmasked"


class GmtMaskState(NamedTuple):
    """State of `gmt_mask`; shapes, dtypes and shardings are the same after every update.

    Attributes:
      count: int32 scalar: the number of updates done.
      threshold: the latest T, float32, or float64 for float64 and complex128: a tree with one
        array of shape `[*stacked axes]` for each leaf, or one scalar with a global scope.
      masked_fraction: float32 scalar: the fraction of all entries that the latest update masked.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count is a method
    threshold: PyTree
    masked_fraction: jax.Array


class Selector(NamedTuple, Generic[State]):
    """Computes the mask of each update.

    Attributes:
      init: a function of the parameters, or of their shapes, that returns the first state.
      select: a function of the gradient, the state and the parameters (or None) that returns the
        mask and the next state.
    """

    init: Callable[[optax.Params], State]
    select: Callable[[optax.Updates, State, optax.Params | None], tuple[Mask, State]]


@dataclass(frozen=True)
class LargestScores:
    """Selects the entries with the largest scores; the fields are the arguments of `gmt_mask`."""

    mask_ratio: MaskRatio
    scope: str
    tolerance: float | jax.Array
    num_stacked_axes: NumStackedAxes

    def __post_init__(self) -> None:
        check_mask_ratio(self.mask_ratio)
        check_fraction(
            "tolerance is the fraction of entries that may stay unmasked", self.tolerance
        )
        if self.scope not in ("tensor", "global"):
            raise ValueError(f"scope is 'tensor' or 'global', got {self.scope!r}")
        if self.scope == "global" and self.num_stacked_axes is not None:
            raise ValueError(
                "scope='global' has one threshold for all tensors: leave out num_stacked_axes"
            )
        if self.scope == "global" and isinstance(self.mask_ratio, Mapping):
            raise ValueError("scope='global' has one threshold for all tensors: give one ratio")

    def init(self, params: optax.Params) -> GmtMaskState:
        """The state before the first update, from parameters or their shapes."""
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        layout, mesh = self._layout(flat), mesh_of([leaf for _, leaf in flat])
        dtypes = [float32_or_wider(leaf.dtype) for _, leaf in flat]
        if layout.shared:
            widest = max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.float32)
            thresholds = jnp.zeros((), widest)
        else:
            stacks = zip(layout.stacks, dtypes, strict=True)
            thresholds = jax.tree.unflatten(treedef, [jnp.zeros(*stack) for stack in stacks])
        return GmtMaskState(
            count=jnp.zeros((), jnp.int32),
            threshold=replicate(thresholds, mesh),
            masked_fraction=replicate(jnp.zeros((), jnp.float32), mesh),
        )

    def select(self, scores: PyTree, state: GmtMaskState) -> tuple[Mask, GmtMaskState]:
        """The mask, True where |score| is at least the threshold of its tensor; the next state."""
        flat, treedef = jax.tree_util.tree_flatten_with_path(scores)
        layout, leaves = self._layout(flat), [jnp.asarray(leaf) for _, leaf in flat]
        thresholds, fraction, masks = state.threshold, state.masked_fraction, []
        if leaves:
            paths = [path for path, _ in flat]
            ranks = num_masked(self.mask_ratio, paths, layout.sizes, state.count)
            exact = not isinstance(self.tolerance, jax.Array) and self.tolerance == 0
            slack = None if exact else fraction_of(self.tolerance, layout.sizes)
            dtypes = key_dtypes([leaf.dtype for leaf in leaves], layout)
            bits, num_below, _ = select(leaves, ranks, layout, slack)
            fraction = num_below / np.float32(max(layout.entries, 1))
            found = [magnitude(part, dtype) for part, dtype in zip(bits, dtypes, strict=True)]
            if layout.shared:
                thresholds = found[0].astype(thresholds.dtype)
            else:
                old, old_treedef = jax.tree.flatten(thresholds)
                found = [new.astype(like.dtype) for new, like in zip(found, old, strict=True)]
                thresholds = jax.tree.unflatten(old_treedef, found)
            masks = list(map(_is_at_least, leaves, bits, dtypes))
        return jax.tree.unflatten(treedef, masks), GmtMaskState(
            jnp.asarray(optax.safe_increment(state.count)), thresholds, fraction
        )

    def _layout(self, flat: list[tuple[KeyPath, Leaf]]) -> TensorLayout:
        return TensorLayout(
            tuple(tuple(leaf.shape) for _, leaf in flat),
            tuple(stacked_axes(self.num_stacked_axes, path, leaf) for path, leaf in flat),
            self.scope == "global",
        )


@jax.jit
def apply_mask(update: jax.Array, mask: jax.Array, zero: float = 0.0) -> jax.Array:
    """The update, with `zero` where the mask, which is broadcast, is False."""
    fill = jnp.asarray(zero, update.real.dtype)
    mask = jnp.expand_dims(mask, tuple(range(update.ndim - mask.ndim)))
    if jnp.iscomplexobj(update):
        return jnp.where(mask, update, lax.complex(fill, fill))
    # Chosen between the bits, because a backend may choose between bfloat16s by way of float32,
    # which changes the payload of a NaN.
    word = f"uint{jnp.finfo(update.dtype).bits}"
    old, new = (lax.bitcast_convert_type(x, word) for x in (update, fill))
    return lax.bitcast_convert_type(jnp.where(mask, old, new), update.dtype)


@partial(jax.jit, static_argnames="dtype")
def _is_at_least(leaf: jax.Array, bits: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Where |leaf|, as a float of this dtype, has bits at least those of the threshold."""
    return magnitude_bits(leaf, dtype) >= jnp.expand_dims(bits, tuple(range(bits.ndim, leaf.ndim)))
