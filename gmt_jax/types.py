"""Names for the types that the library's functions take and return."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeGuard

import jax
import numpy as np
import optax
from jax.tree_util import KeyPath

# A leaf of a tree: an array, or a shape and dtype in the place of one.
Leaf: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct
# Any tree of leaves. Trees have no narrower type: any registered class may be a node.
PyTree: TypeAlias = Any
# A tree of bool arrays, each broadcastable to its parameter. True: the entry is trained.
Mask: TypeAlias = Any
# The number of updates done, which may be traced, to the mask of the next update.
MaskSchedule: TypeAlias = Callable[[jax.Array | int], Mask]
# A key of jax's default generator, or an integer n in the place of jax.random.key(n).
Key: TypeAlias = jax.Array | int

# One fraction for all leaves, or a mapping of regular expressions that are searched in their paths.
Ratio: TypeAlias = float | jax.Array | optax.Schedule
MaskRatio: TypeAlias = Ratio | Mapping[str, Ratio]
# The axis that indexes tensors, a tuple of them, or None: for all leaves, as a function of a leaf's
# path, or as a tree prefix.
StackedAxes: TypeAlias = int | tuple[int, ...] | Callable[[KeyPath], Any] | PyTree | None


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a real number of Python or NumPy; an array is none, as it may be traced."""
    return isinstance(value, numbers.Real)


def is_integer(value: object) -> TypeGuard[int]:
    """Whether this is an integer of Python or NumPy."""
    return isinstance(value, numbers.Integral)
