"""The entries with the smallest scores: how many of each tensor, and which those are."""

import numbers
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax._threshold.float_bits import magnitude, magnitude_bits
from gmt_jax._threshold.layout import TensorLayout, key_dtypes
from gmt_jax._threshold.replication import mesh_of, replicate
from gmt_jax._threshold.search import select
from gmt_jax._threshold.uint64 import UInt64, share, uint64
from gmt_jax.tree_paths import path_name

# An int for all leaves, a function of a leaf's path, a tree prefix of ints, or None for 0.
NumStackedAxes: TypeAlias = int | Callable[[KeyPath], int] | Any
# One for all leaves, or by regular expressions that are searched in their paths.
Ratio: TypeAlias = float | jax.Array | optax.Schedule
MaskRatio: TypeAlias = Ratio | Mapping[str, Ratio]
Flat: TypeAlias = list[tuple[KeyPath, Any]]


class GmtMaskState(NamedTuple):
    """State of `gmt_mask`; shapes and dtypes are the same from update to update."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar: updates done
    # The latest T, float32, or float64 for float64: a leaf, shaped as its stack; or one for all.
    threshold: Any
    masked_fraction: jax.Array  # float32 scalar: masked by the latest update, of all entries


@dataclass(frozen=True)
class Smallest:
    """The rule of `gmt_mask`, whose arguments these are: what is masked of a tree of scores."""

    mask_ratio: MaskRatio
    scope: str
    tolerance: float | jax.Array
    num_stacked_axes: NumStackedAxes

    def __post_init__(self) -> None:
        by_path = isinstance(self.mask_ratio, Mapping)
        ratios: Any = self.mask_ratio
        for ratio in ratios.values() if by_path else [ratios]:
            if not callable(ratio):
                _check_fraction(_MASK_RATIO, ratio)
        if self.scope not in ("tensor", "global"):
            raise ValueError(f"scope is 'tensor' or 'global', got {self.scope!r}")
        if self.scope == "global" and self.num_stacked_axes is not None:
            raise ValueError(
                "scope='global' has one threshold for all tensors: leave out num_stacked_axes"
            )
        if self.scope == "global" and by_path:
            raise ValueError("scope='global' has one threshold for all tensors: name one ratio")
        _check_fraction(_TOLERANCE, self.tolerance)

    def init(self, params: optax.Params) -> GmtMaskState:
        """The state before the first update, of parameters or their shapes."""
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        layout, mesh = self._layout(flat), mesh_of([leaf for _, leaf in flat])
        dtypes = [_threshold_dtype(leaf.dtype) for _, leaf in flat]
        if layout.shared:
            thresholds = jnp.zeros((), jnp.result_type(jnp.float32, *dtypes))
        else:
            stacks = zip(layout.shapes, layout.num_stacked_axes, dtypes, strict=True)
            zeros = [jnp.zeros(shape[:k], dtype) for shape, k, dtype in stacks]
            thresholds = jax.tree.unflatten(treedef, zeros)
        return GmtMaskState(
            count=jnp.zeros((), jnp.int32),
            threshold=replicate(thresholds, mesh),
            masked_fraction=replicate(jnp.zeros((), jnp.float32), mesh),
        )

    def select(self, scores: Any, state: GmtMaskState) -> tuple[Any, GmtMaskState]:
        """For each array of scores, as bool, what is not masked; and the state after it."""
        flat, treedef = jax.tree_util.tree_flatten_with_path(scores)
        layout, leaves = self._layout(flat), [jnp.asarray(leaf) for _, leaf in flat]
        ranks = self._ranks(flat, layout, state.count)
        thresholds, fraction, kept = state.threshold, state.masked_fraction, []
        if leaves:
            keys = key_dtypes([leaf.dtype for leaf in leaves], layout)
            exact = not isinstance(self.tolerance, jax.Array) and self.tolerance == 0
            slack = None if exact else _parts(self.tolerance, layout.sizes)
            bits, below, _ = select(leaves, ranks, layout, slack)
            fraction = below / np.float32(max(layout.entries, 1))
            found = [magnitude(part, key) for part, key in zip(bits, keys, strict=True)]
            if layout.shared:
                thresholds = found[0].astype(thresholds.dtype)
            else:
                held, treedef_of = jax.tree.flatten(thresholds)
                found = [new.astype(old.dtype) for new, old in zip(found, held, strict=True)]
                thresholds = jax.tree.unflatten(treedef_of, found)
            kept = list(map(_reaches, leaves, bits, keys))
        return jax.tree.unflatten(treedef, kept), GmtMaskState(
            optax.safe_increment(state.count), thresholds, fraction
        )

    def _layout(self, flat: Flat) -> TensorLayout:
        return TensorLayout(
            tuple(tuple(leaf.shape) for _, leaf in flat),
            tuple(stacked_axes(self.num_stacked_axes, path, leaf) for path, leaf in flat),
            self.scope == "global",
        )

    def _ranks(self, flat: Flat, layout: TensorLayout, count: jax.Array) -> UInt64:
        """m of every size; a schedule is called with the count."""

        def ranks(ratio: Any, sizes: list[int]) -> UInt64:
            ratio = ratio(count) if callable(ratio) else ratio
            _check_fraction(_MASK_RATIO, ratio)
            return _parts(ratio, sizes)

        if not isinstance(self.mask_ratio, Mapping):
            return ranks(self.mask_ratio, layout.sizes)
        ratios = [_ratio_at(self.mask_ratio, path) for path, _ in flat]
        each = [ranks(r, [size]) for r, size in zip(ratios, layout.sizes, strict=True)]
        return UInt64(*map(jnp.concatenate, zip(*each, strict=True))) if each else uint64([])


@jax.jit
def apply_mask(update: jax.Array, kept: jax.Array, zero: float = 0.0) -> jax.Array:
    """The update, with the zero where `kept`, which may be broadcast, is False."""
    none = jnp.asarray(zero, update.real.dtype)
    if jnp.iscomplexobj(update):
        return jnp.where(kept, update, lax.complex(none, none))
    # On the bits, because a backend may choose between bfloat16s by way of float32, which changes
    # the payload of a NaN.
    word = f"uint{jnp.finfo(update.dtype).bits}"
    old, none = (lax.bitcast_convert_type(x, word) for x in (update, none))
    return lax.bitcast_convert_type(jnp.where(kept, old, none), update.dtype)


@partial(jax.jit, static_argnames="key")
def _reaches(leaf: jax.Array, bits: jax.Array, key: Any) -> jax.Array:
    """Where |g|, as a float of dtype `key`, has no lower bits than T."""
    return magnitude_bits(leaf, key) >= jnp.expand_dims(bits, tuple(range(bits.ndim, leaf.ndim)))


def _threshold_dtype(dtype: Any) -> Any:
    """float64 for float64 and complex128 where 64 bits are enabled, else float32."""
    return jax.dtypes.canonicalize_dtype(
        np.float64 if jnp.finfo(dtype).dtype == np.float64 else np.float32
    )


_MASK_RATIO = "mask_ratio is the fraction of gradient entries to mask"
_TOLERANCE = "tolerance is the fraction of entries that may stay unmasked"


def _check_fraction(meaning: str, value: Any) -> None:
    """Refuses what is no fraction. An array's value is not looked at: it may be traced."""
    if isinstance(value, (jax.Array, np.ndarray)):
        valid = value.ndim == 0
    else:
        number = isinstance(value, numbers.Real) and type(value) is not bool
        valid = number and 0 <= float(value) <= 1
    if not valid:
        raise ValueError(f"{meaning}, one number in [0, 1]; got {value!r}")


def _parts(ratio: Any, sizes: list[int]) -> UInt64:
    """⌊ratio · size⌋ of every size, with the ratio read as a decimal."""
    if isinstance(ratio, (jax.Array, np.ndarray)):
        return share(jnp.asarray(ratio), sizes)
    return uint64([int(Fraction(str(ratio)) * size) for size in sizes])


def _ratio_at(ratios: Mapping[str, Any], path: KeyPath) -> Any:
    """The ratio of the first pattern that is found in a leaf's path."""
    name = path_name(path)
    for pattern, ratio in ratios.items():
        if re.search(pattern, name):
            return ratio
    raise ValueError(f"no pattern of mask_ratio is found in {name}; end with '.*' for the rest")


def stacked_axes(num_stacked_axes: NumStackedAxes, path: KeyPath, leaf: Any) -> int:
    """How many leading axes of a leaf index tensors. Refuses a leaf that cannot be masked."""
    name = path_name(path)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise TypeError(
            f"gmt_mask needs float or complex gradients, but {name} is {leaf.dtype}; "
            "leave it out with optax.masked or optax.partition"
        )
    axes: Any
    if num_stacked_axes is None:
        axes = 0
    elif callable(num_stacked_axes):
        axes = num_stacked_axes(path)
    else:
        # By path, and not by mapping over both trees, because parts of the gradient may be
        # missing: optax.masked and optax.partition put other nodes in their place.
        prefix = dict(jax.tree_util.tree_leaves_with_path(num_stacked_axes))
        axes = next((prefix[path[:n]] for n in range(len(path) + 1) if path[:n] in prefix), None)
    if not isinstance(axes, (int, np.integer)) or not 0 <= axes <= len(leaf.shape):
        raise ValueError(
            "num_stacked_axes is the number of leading axes that index tensors, but gives "
            f"{axes!r} for {name}, which has shape {tuple(leaf.shape)} (under "
            "optax.inject_hyperparams, name it in static_args)"
        )
    return int(axes)
