"""What is trained of one array: all of it, nothing, some slots of each group, or some rows."""

import math
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from gmt_jax.compact.slots import (
    choose_slots,
    mask_slots,
    read_slots,
    slots_per_group,
    write_slots,
)


class Frozen(NamedTuple):
    """Nothing is trained: there are no values."""


class Whole(NamedTuple):
    """Everything is trained: the values are the array, in float32."""


class Slots(NamedTuple):
    """k entries of each group of 128 of the last axis are trained.

    Attributes:
      positions: uint8 `[..., G k]`, ascending in each group; 255 for an empty slot. The values are
        shaped alike.
    """

    positions: jax.Array


class Rows(NamedTuple):
    """Some rows of a matrix are trained.

    Attributes:
      indices: int32 `[R]`, ascending. The values are `[R, D]`.
    """

    indices: jax.Array


Choice: TypeAlias = Frozen | Whole | Slots | Rows


def is_choice(node: object) -> bool:
    """Whether a node of a tree is a choice; a predicate for `is_leaf`."""
    return isinstance(node, (Frozen, Whole, Slots, Rows))


def num_rows(mask_ratio: float, size: int) -> int:
    """The number of rows that are chosen of a matrix with `size` rows."""
    return size - math.floor(Fraction(str(mask_ratio)) * size)


def choose_rows(scores: jax.Array, mask_ratio: float) -> jax.Array:
    """The indices of the rows `[R]` with the largest scores `[V]`; of equal scores the first."""
    chosen: jax.Array = lax.top_k(scores, num_rows(mask_ratio, scores.shape[0]))[1]
    return jnp.sort(chosen.astype(jnp.int32))


def choose(scores: jax.Array, form: type[Choice], mask_ratio: float) -> Choice:
    """The choice of this form with the largest scores.

    Args:
      scores: at least 0. The score of a row is the sum of the squares of its entries' scores.
      mask_ratio: the fraction that is not chosen.
    """
    if form is Slots and scores.ndim < 3:
        return Slots(choose_slots(scores, mask_ratio))
    if form is Slots:  # One matrix after another: the search holds a copy of what it searches.
        return Slots(lax.map(lambda matrix: choose_slots(matrix, mask_ratio), scores))
    if form is Rows:
        return Rows(choose_rows(row_scores(scores), mask_ratio))
    return Whole() if form is Whole else Frozen()


def choose_mask(mask: jax.Array, form: type[Choice], mask_ratio: float) -> Choice:
    """The choice of the entries of a mask, bool, which must fit the form."""
    if form is Slots:
        search = partial(mask_slots, k=slots_per_group(mask_ratio))
        return Slots(search(mask) if mask.ndim < 3 else lax.map(search, mask))
    if form is Rows:
        size = num_rows(mask_ratio, mask.shape[0])
        return Rows(jnp.flatnonzero(jnp.any(mask, axis=-1), size=size).astype(jnp.int32))
    return Whole() if form is Whole else Frozen()


def row_scores(scores: jax.Array) -> jax.Array:
    """The score of each row `[V]` of a matrix `[V, D]`."""
    return jnp.sum(jnp.square(scores.astype(jnp.float32)), axis=-1)


def read(choice: Choice, array: jax.Array) -> jax.Array | None:
    """The chosen entries of an array, float32; None if nothing is chosen."""
    if jnp.iscomplexobj(array):
        raise TypeError(f"values are float32, which has no room for {array.dtype}")
    if isinstance(choice, Slots):
        return read_slots(array, choice.positions)
    if isinstance(choice, Rows):
        return jnp.take(array, choice.indices, axis=0, mode="clip").astype(jnp.float32)
    return array.astype(jnp.float32) if isinstance(choice, Whole) else None


def write(
    choice: Choice,
    array: jax.Array,
    values: jax.Array | None,
    sharding: NamedSharding | None = None,
) -> jax.Array:
    """The array with these values, rounded to its dtype; other entries keep their bits.

    Args:
      sharding: of array and slots alike. Every device then writes its own part.
    """
    if values is None:
        return array
    if sharding is not None and isinstance(choice, Slots):
        spec: Any = sharding.spec
        specs = Slots(spec), spec, spec
        part = jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=spec)
        written: jax.Array = part(choice, array, values)
        return written
    if isinstance(choice, Rows):
        return array.at[choice.indices].set(values.astype(array.dtype))
    if not isinstance(choice, Slots):
        return values.astype(array.dtype)
    return write_slots(array, choice.positions, values)


def mask(choice: Choice, shape: tuple[int, ...]) -> jax.Array:
    """The choice as a mask of the library's family, bool: True where an entry is trained."""
    if isinstance(choice, Slots):
        ones = jnp.ones(choice.positions.shape, jnp.float32)
        return write(choice, jnp.zeros(shape, jnp.uint8), ones).astype(bool)
    if isinstance(choice, Rows):
        return jnp.zeros(shape, bool).at[choice.indices].set(True)
    return jnp.full(shape, isinstance(choice, Whole))
