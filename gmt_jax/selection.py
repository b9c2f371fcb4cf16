"""Which entries an update trains: those with the largest scores; and how a mask is applied."""

from collections.abc import Callable, Mapping, Sequence
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

from gmt_jax._threshold.find import find
from gmt_jax._threshold.float_bits import (
    absolute_bits,
    bits_dtype,
    float32_or_wider,
    magnitude_bits,
)
from gmt_jax._threshold.layout import TensorLayout, comparison_dtypes
from gmt_jax._threshold.reductions import along
from gmt_jax._threshold.replication import mesh_of, replicate, shard_count
from gmt_jax._threshold.rows import magnitude_rows
from gmt_jax._threshold.ties import first_selected, is_from
from gmt_jax._threshold.uint64 import UInt64, as_float, at_most, subtract
from gmt_jax.mask_ratio import (
    axes_of,
    check_fraction,
    check_mask_ratio,
    fraction_of,
    num_masked,
)
from gmt_jax.tree_paths import first_found, path_name, path_pattern
from gmt_jax.types import Leaf, Mask, MaskRatio, PyTree, StackedAxes

State = TypeVar("State")
_TOLERANCE = "tolerance is the fraction of entries that may stay unmasked"


class GmtMaskState(NamedTuple):
    """State of `gmt_mask`; shapes, dtypes and shardings are the same after every update.

    Attributes:
      count: int32 scalar: the number of updates done.
      threshold: the latest T of every tensor, float32, or float64 where a leaf is float64 or
        complex128, [R]: leaf by leaf in the order of the tree, and in row-major order of a leaf's
        stacked axes; of length 1 with a global scope. `gmt_jax.report.by_leaf` makes a tree of it.
      masked_fraction: float32 scalar: the fraction of all entries that the latest update masked.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count is a method
    threshold: jax.Array
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
    stacked_axes: StackedAxes

    def __post_init__(self) -> None:
        check_mask_ratio(self.mask_ratio)
        check_fraction(_TOLERANCE, self.tolerance)
        if self.scope not in ("tensor", "global"):
            raise ValueError(f"scope is 'tensor' or 'global', got {self.scope!r}")
        if self.scope == "global" and self.stacked_axes is not None:
            raise ValueError(
                "scope='global' has one threshold for all tensors: leave out stacked_axes"
            )
        if self.scope == "global" and isinstance(self.mask_ratio, Mapping):
            raise ValueError("scope='global' has one threshold for all tensors: give one ratio")

    def init(self, params: optax.Params) -> GmtMaskState:
        """The state before the first update, from parameters or their shapes."""
        flat = _flatten(params)[0]
        layout, mesh = self.layout(flat), mesh_of([leaf for _, leaf in flat])
        if isinstance(self.mask_ratio, Mapping):
            for path, _ in flat:  # Refuses a path without a ratio before anything is trained.
                first_found("mask_ratio", self.mask_ratio, path)
        dtypes = [float32_or_wider(leaf.dtype) for _, leaf in flat]
        widest = max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.float32)
        return GmtMaskState(
            count=jnp.zeros((), jnp.int32),
            threshold=replicate(jnp.zeros(layout.num_tensors, widest), mesh),
            masked_fraction=replicate(jnp.zeros((), jnp.float32), mesh),
        )

    def select(
        self, scores: PyTree, state: GmtMaskState, *, break_ties: bool = False
    ) -> tuple[Mask, GmtMaskState]:
        """The mask, True where |score| is at least the threshold of its tensor; the next state.

        Args:
          scores: a tree of float or complex arrays.
          state: the state before the update.
          break_ties: whether of entries equal to the threshold the first are masked, so that
            exactly m entries of each tensor are, but for the tolerance.
        """
        flat, treedef = _flatten(scores)
        count = jnp.asarray(optax.safe_increment(state.count))
        if not flat:
            return scores, state._replace(count=count)
        layout, leaves = self.layout(flat), [_real(leaf) for _, leaf in flat]
        dtypes = comparison_dtypes([leaf.dtype for leaf in leaves], layout)
        paths = [path for path, _ in flat]
        ranks = layout.expand(num_masked(self.mask_ratio, paths, layout.sizes, state.count))
        exact = not isinstance(self.tolerance, jax.Array) and self.tolerance == 0
        slack = None if exact else layout.expand(fraction_of(self.tolerance, layout.sizes))
        found = find(leaves, dtypes, layout, ranks, state.threshold, slack)
        masked = found.below
        bits = found.bits if break_ties else found.last_masked
        thresholds = zip(leaves, layout.split(bits), dtypes, layout.stacked_axes, strict=True)
        if break_ties:
            masked = ranks if slack is None else _within(slack, found.below, ranks)
            rows = magnitude_rows(layout, dtypes, mesh_of(leaves))
            firsts = first_selected(leaves, masked, rows, found.bits, found.below)
            masks = [
                _is_selected(*threshold, first)
                for threshold, first in zip(thresholds, firsts, strict=True)
            ]
        else:
            masks = [_is_above(*threshold) for threshold in thresholds]
        fraction = jnp.sum(as_float(masked)) / np.float32(max(layout.entries, 1))
        state = GmtMaskState(count, found.threshold, fraction)
        return jax.tree.unflatten(treedef, masks), state

    def layout(self, flat: Sequence[tuple[KeyPath, Leaf]]) -> TensorLayout:
        """How leaves and their paths are divided into tensors."""
        return TensorLayout(
            tuple(tuple(leaf.shape) for _, leaf in flat),
            tuple(axes_of(self.stacked_axes, path, leaf) for path, leaf in flat),
            self.scope == "global",
            tuple(shard_count(leaf) for _, leaf in flat),
            tuple(path_pattern(path) for path, _ in flat),
        )


def _within(slack: UInt64, below: UInt64, ranks: UInt64) -> UInt64:
    """The number of entries to mask, [R]: those below T if that is near enough to m, else m."""
    near = at_most(subtract(ranks, below), slack)
    return jax.tree.map(partial(jnp.where, near), below, ranks)


def as_arrays(tree: PyTree) -> PyTree:
    """The tree with arrays in the place of numbers, which optax takes too; shapes stay."""
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), tree)


def _flatten(tree: PyTree) -> tuple[list[tuple[KeyPath, Leaf]], jax.tree_util.PyTreeDef]:
    """The leaves, as arrays or shapes, with their paths."""
    return jax.tree_util.tree_flatten_with_path(as_arrays(tree))


def _real(leaf: Leaf) -> jax.Array:
    """What is compared of a leaf: itself, or the modulus of complex entries.

    The search and the mask must see the same bits of a modulus: computed in two programs, it may be
    rounded differently.
    """
    leaf = lax.stop_gradient(jnp.asarray(leaf))
    return lax.optimization_barrier(jnp.abs(leaf)) if jnp.iscomplexobj(leaf) else leaf


def check_mask(path: KeyPath, mask: Leaf | bool, like: Leaf) -> None:
    """Raises an error that names the leaf unless a mask is of bools and broadcasts to it."""
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"a mask is a tree of bools, but {path_name(path)} is {mask.dtype}")
    try:
        fits = np.broadcast_shapes(mask.shape, like.shape) == tuple(like.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"the mask of {path_name(path)} has shape {list(mask.shape)}, its parameter "
            f"{list(like.shape)}"
        )


def apply_mask(update: jax.Array, mask: jax.Array, zero: float = 0.0) -> jax.Array:
    """The update, with `zero` where the mask, which is broadcast, is False."""
    update, mask = jnp.asarray(update), jnp.asarray(mask)
    fill = jnp.asarray(zero, update.real.dtype)
    mask = jnp.expand_dims(mask, tuple(range(update.ndim - mask.ndim)))
    if jnp.iscomplexobj(update):
        return jnp.where(mask, update, lax.complex(fill, fill))
    return _choose(mask, update, fill)


@jax.custom_jvp
@jax.jit
def _choose(mask: jax.Array, update: jax.Array, fill: jax.Array) -> jax.Array:
    """The update where the mask is True, else `fill`.

    Between the bits of narrow floats, because a backend may choose between bfloat16s by way of
    float32, which changes the payload of a NaN.
    """
    if update.dtype.itemsize >= 4:
        return jnp.where(mask, update, fill)
    word = f"uint{jnp.finfo(update.dtype).bits}"
    old, new = (lax.bitcast_convert_type(x, word) for x in (update, fill))
    return lax.bitcast_convert_type(jnp.where(mask, old, new), update.dtype)


@_choose.defjvp
def _choose_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    mask, update, fill = primals
    return _choose(mask, update, fill), jnp.where(mask, tangents[1], 0)


@partial(jax.jit, static_argnames=("dtype", "stacked_axes"))
def _is_above(
    leaf: jax.Array, bits: jax.Array, dtype: DTypeLike, stacked_axes: tuple[int, ...]
) -> jax.Array:
    """Where |leaf|, as a float of this dtype, has bits above these, which are the last masked."""
    entries = absolute_bits(leaf, dtype)
    return entries > along(bits.astype(entries.dtype), leaf.ndim, stacked_axes)


@partial(jax.jit, static_argnames=("dtype", "stacked_axes"))
def _is_selected(
    leaf: jax.Array,
    bits: jax.Array,
    dtype: DTypeLike,
    stacked_axes: tuple[int, ...],
    first: jax.Array,
) -> jax.Array:
    """As `_is_above`, but of equal bits only from the position `first` on."""
    threshold = along(bits.astype(bits_dtype(dtype)), leaf.ndim, stacked_axes)
    found = magnitude_bits(leaf, dtype)
    return (found > threshold) | ((found == threshold) & is_from(leaf, first, stacked_axes))
