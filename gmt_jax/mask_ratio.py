"""How many entries of each tensor are masked, from ratios, their paths and the stacked axes."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

from gmt_jax._threshold.uint64 import Array, UInt64, add, uint64
from gmt_jax.tree_paths import expression, first_found, path_name, without_box
from gmt_jax.types import Leaf, MaskRatio, Ratio, StackedAxes, is_integer, is_number

# The decimal places of a traced fraction: 10**7 is exact in float32.
PLACES = 7
_MASK_RATIO = "mask_ratio is the fraction of gradient entries to mask"


def check_mask_ratio(mask_ratio: MaskRatio) -> None:
    """Raises ValueError if a ratio is not a number in [0, 1]; schedules are checked when called."""
    by_pattern = mask_ratio if isinstance(mask_ratio, Mapping) else {"": mask_ratio}
    for pattern, ratio in by_pattern.items():
        expression("mask_ratio", pattern)
        if not callable(ratio):
            check_fraction(_MASK_RATIO, ratio)


def check_fraction(meaning: str, value: object) -> None:
    """Raises ValueError if `value` is not a number in [0, 1].

    Of jax's arrays only the shape is checked, because their values may be traced.
    """
    if isinstance(value, jax.Array):
        valid = value.ndim == 0
    else:
        number = value[()] if isinstance(value, np.ndarray) else value
        valid = is_number(number) and not isinstance(number, bool) and 0 <= float(number) <= 1
    if not valid:
        raise ValueError(f"{meaning}, one number in [0, 1]; got {value!r}")


def num_masked(
    mask_ratio: MaskRatio, paths: Sequence[KeyPath], sizes: Sequence[int], count: jax.Array
) -> UInt64:
    """The number m of entries to mask in a tensor of each size, [len(sizes)].

    Args:
      mask_ratio: one ratio for all sizes, or ratios by path.
      paths: the path of each leaf; with ratios by path, as many as sizes.
      sizes: the number of entries of a tensor.
      count: the number of updates done, with which schedules are called.
    """
    if not isinstance(mask_ratio, Mapping):
        return fraction_of(_at(mask_ratio, count), sizes)
    parts = [
        fraction_of(_at(first_found("mask_ratio", mask_ratio, path), count), [size])
        for path, size in zip(paths, sizes, strict=True)
    ]
    traced = any(isinstance(part.low, jax.Array) for part in parts)
    join: Callable[[Any], Array] = jnp.concatenate if traced else np.concatenate
    return UInt64(*map(join, zip(*parts, strict=True))) if parts else uint64([])


def fraction_of(fraction: ArrayLike, sizes: Sequence[int]) -> UInt64:
    """⌊fraction · size⌋ for each size, with the fraction read as a decimal."""
    if isinstance(fraction, (jax.Array, np.ndarray)):
        return _array_fraction_of(jnp.asarray(fraction), sizes)
    return uint64([int(Fraction(str(fraction)) * size) for size in sizes])


def _array_fraction_of(fraction: jax.Array, sizes: Sequence[int]) -> UInt64:
    """⌊fraction · size⌋ for each size, in integers, with a traced fraction read as a decimal.

    The fraction is clipped to [0, 1], NaN to 0, and read as the shortest decimal that its dtype
    rounds to it: a float32 0.29 is 0.29, and a bfloat16 0.99609375 is 0.996.
    """
    scale = 10**PLACES
    known = jnp.nan_to_num(fraction.astype(jnp.float32))
    units = _decimal_units(jnp.clip(known, 0, 1), fraction.dtype)
    # Long multiplication and division at once, seven bits of the sizes at a time: the remainder
    # is below 10**7 < 2**24, so that every intermediate fits 32 bits.
    quotient = UInt64(*(jnp.zeros(len(sizes), jnp.uint32) for _ in range(2)))
    remainder = jnp.zeros(len(sizes), jnp.uint32)
    for shift in range(56, -1, -7):
        digits = np.array([n >> shift & 127 for n in sizes], np.uint32)
        digit, remainder = jnp.divmod(remainder * 128 + units * digits, jnp.uint32(scale))
        quotient = UInt64(quotient.high << 7 | quotient.low >> 25, quotient.low << 7)
        quotient = add(quotient, UInt64(jnp.zeros_like(digit), digit))
    return quotient


def _decimal_units(value: jax.Array, dtype: np.dtype) -> jax.Array:
    """The shortest decimal that `dtype` rounds to this float32, in units of its last place."""
    units = jnp.round(value * 10**PLACES).astype(jnp.uint32)
    if not jnp.issubdtype(dtype, jnp.floating):
        return units
    for places in range(PLACES - 1, -1, -1):
        rounded = jnp.round(value * 10**places)
        same = (rounded / 10**places).astype(dtype) == value.astype(dtype)
        units = jnp.where(same, rounded.astype(jnp.uint32) * 10 ** (PLACES - places), units)
    return units


def axes_of(stacked_axes: StackedAxes, path: KeyPath, leaf: Leaf) -> tuple[int, ...]:
    """The axes of a leaf that index its tensors, ascending.

    Raises:
      TypeError: if the leaf is neither float nor complex.
      ValueError: if `stacked_axes` gives no axes that the leaf has.
    """
    name = path_name(path)
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise TypeError(
            f"gmt_mask needs float or complex gradients, but {name} is {leaf.dtype}; "
            "leave it out with optax.masked or optax.partition"
        )
    given: object = None
    if callable(stacked_axes):
        given = stacked_axes(without_box(path))
    else:
        # Looked up by path instead of mapped over both trees: optax.masked and optax.partition
        # replace parts of the gradient with other nodes.
        prefix = dict(jax.tree_util.tree_leaves_with_path(stacked_axes, is_leaf=_is_axes))
        given = next((prefix[path[:n]] for n in range(len(path) + 1) if path[:n] in prefix), False)
    ndim = len(leaf.shape)
    axes = given if isinstance(given, tuple) else () if given is None else (given,)
    if not all(_is_axis(axis) and -ndim <= axis < ndim for axis in axes):
        raise ValueError(
            "stacked_axes is the axis that indexes tensors, a tuple of axes, or None, but is "
            f"{given!r} for {name}, which has shape {tuple(leaf.shape)} (under "
            "optax.inject_hyperparams, name it in static_args)"
        )
    return tuple(sorted({int(axis) % ndim for axis in axes}))


def _is_axis(axis: object) -> bool:
    return is_integer(axis) and not isinstance(axis, bool)


def _is_axes(node: object) -> bool:
    """Whether a node of a prefix is the axes of what is below it."""
    return node is None or (isinstance(node, tuple) and all(map(_is_axis, node)))


def _at(ratio: Ratio, count: jax.Array) -> ArrayLike:
    """The ratio at this count of updates."""
    value = ratio(count) if callable(ratio) else ratio
    check_fraction(_MASK_RATIO, value)
    return value
