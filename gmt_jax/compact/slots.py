"""Groups of 128 entries, and the few of each that are trained: their positions and values.

The last axis of an array is cut into groups of 128, the lanes of a TPU; the last group may have
fewer. Each group has k slots, and a slot is a position in its group and a value. A position never
leaves its group, so an array of slots `[..., G k]` is sharded as the array `[..., n]` is, wherever
the parts of a mesh are whole groups: nothing is exchanged.

On TPUs slots are read and written in the transpose, where a group lies within a lane, by comparing
every entry with the positions of its group, which vector units do at the speed of memory. Elsewhere
it is done by gathers and scatters within the groups.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

GROUP = 128
# On TPUs rows are written a part at a time, which fits a chip's own memory with its transpose.
ROWS = 8  # of a TPU's tile, which stays whole
PART = 1 << 23  # The least entries of a device's part.
EMPTY = 255  # The position of a slot without an entry: its group has fewer chosen entries.


def num_groups(size: int) -> int:
    """The number of groups of an axis."""
    return math.ceil(size / GROUP)


def slots_per_group(mask_ratio: float, size: int = GROUP) -> int:
    """The number of entries that are chosen of a group of this size, rounded to the nearest.

    >>> slots_per_group(0.95)
    6
    """
    return math.floor((1 - Fraction(str(mask_ratio))) * size + Fraction(1, 2))


def choose_slots(scores: jax.Array, mask_ratio: float) -> jax.Array:
    """The positions of the entries with the largest scores of each group, in ascending order.

    Of equal scores the first are chosen; NaN counts as larger than infinity.

    Args:
      scores: at least 0, or NaN, `[..., n]`.
      mask_ratio: the fraction of each group that is not chosen.

    Returns:
      uint8 `[..., G k]`.
    """
    size, k = scores.shape[-1], slots_per_group(mask_ratio)
    positions = _largest(_grouped(scores, -1.0), k)
    # A last group that is shorter has fewer entries to choose: its last slots stay empty.
    slot = lax.broadcasted_iota(jnp.int32, positions.shape, positions.ndim - 1)
    group = lax.broadcasted_iota(jnp.int32, positions.shape, positions.ndim - 2)
    chosen = slots_per_group(mask_ratio, size - GROUP * (num_groups(size) - 1))
    unused = (group == num_groups(size) - 1) & (slot >= chosen)
    positions = jnp.sort(jnp.where(unused, jnp.uint8(EMPTY), positions), axis=-1)
    return positions.reshape(*scores.shape[:-1], -1)


def mask_slots(mask: jax.Array, k: int) -> jax.Array:
    """The positions of the entries of a mask, in ascending order, `EMPTY` where a group has fewer.

    Args:
      mask: bool `[..., n]`, with at most k entries in each group.
      k: the number of slots of a group.

    Returns:
      uint8 `[..., G k]`.
    """
    groups = _grouped(mask.astype(jnp.int8))
    count = jnp.sum(groups, axis=-1, keepdims=True, dtype=jnp.int32)
    slot = lax.broadcasted_iota(jnp.int32, (*groups.shape[:-1], k), groups.ndim - 1)
    positions = jnp.where(slot < count, _largest(groups, k), jnp.uint8(EMPTY))
    return jnp.sort(positions, axis=-1).reshape(*mask.shape[:-1], -1)


def read_slots(array: jax.Array, positions: jax.Array) -> jax.Array:
    """The entries at these positions, float32 `[..., G k]`; 0 for an empty slot.

    Args:
      array: `[..., n]`, of any float dtype.
      positions: uint8 `[..., G k]`.
    """
    values: jax.Array = lax.platform_dependent(
        array, positions, tpu=_read_by_lanes, default=_read_by_index
    )
    return values


def write_slots(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    """The array with these values at these positions; all other entries keep their bits.

    Matrices of a stack, and parts of their rows, are written one after another, in place if the
    array is donated: a scan that returned new ones would hold both.

    Args:
      array: `[..., n]`.
      positions: uint8 `[..., G k]`, different ones within a group.
      values: `[..., G k]`, rounded to the dtype of the array.
    """
    arrays = array, positions, values
    shape = (1, 1, *array.shape)[-3:] if array.ndim < 3 else (-1, *array.shape[-2:])
    parts = _num_parts(shape[1:])
    stack, *slots = (_cut(x.reshape(*shape[:2], x.shape[-1]), parts) for x in arrays)

    def write(number: jax.Array, stack: jax.Array) -> jax.Array:
        part, at, new = (_part(x, number) for x in (stack, *slots))
        new = new.astype(array.dtype)
        part = lax.platform_dependent(part, at, new, tpu=_write_by_lanes, default=_write_by_index)
        return _with_part(stack, part, number)

    count = stack.shape[0] * parts
    written = write(jnp.int32(0), stack) if count == 1 else lax.fori_loop(0, count, write, stack)
    return written.reshape(array.shape)


def _grouped(array: jax.Array, fill: float = 0.0) -> jax.Array:
    """`[..., n]` → `[..., G, 128]`."""
    size = array.shape[-1]
    short = num_groups(size) * GROUP - size
    if short:
        widths = [(0, 0)] * (array.ndim - 1) + [(0, short)]
        array = jnp.pad(array, widths, constant_values=np.array(fill, array.dtype))
    return array.reshape(*array.shape[:-1], num_groups(size), GROUP)


def _largest(groups: jax.Array, k: int) -> jax.Array:
    """The positions of the k largest entries of each group, from the largest on, uint8."""
    lane = lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)
    positions = jnp.zeros((*groups.shape[:-1], k), jnp.uint8)

    def choose(slot: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, positions = carry
        best = jnp.argmax(left, axis=-1)
        positions = lax.dynamic_update_index_in_dim(
            positions, best.astype(jnp.uint8), slot, positions.ndim - 1
        )
        return jnp.where(lane == best[..., None], -1, left), positions

    found: jax.Array = lax.fori_loop(0, k, choose, (groups, positions))[1]
    return found


def _by_group(slots: jax.Array, size: int) -> jax.Array:
    """`[..., G k]` → `[..., G, k]`."""
    return slots.reshape(*slots.shape[:-1], num_groups(size), -1)


def _splits() -> list[int]:
    """Into how many parts each axis of the mesh may split an array, where it may at all."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:  # An array may be split along both axes.
        return [jax.device_count(), 1] if jax.device_count() > 1 else []
    return [n for axis, n in mesh.shape.items() if axis not in mesh.manual_axes and n > 1]


def _num_parts(shape: tuple[int, ...]) -> int:
    """The parts into which the rows of a matrix are cut, whole on every device of the mesh."""
    devices = math.prod(_splits())  # Rows may be split over all of them.
    parts = 1
    while (
        shape[0] % (2 * parts * ROWS * devices) == 0
        and math.prod(shape) >= 2 * parts * PART * devices
    ):
        parts *= 2
    return parts


def _cut(stack: jax.Array, parts: int) -> jax.Array:
    """`[L, O, n]` → `[L, O / (8 parts), parts, 8, n]`: a part has rows of all devices."""
    shape = stack.shape[0], -1, parts, ROWS, stack.shape[-1]
    return stack if parts == 1 else stack.reshape(shape)


def _part(cut: jax.Array, number: jax.Array) -> jax.Array:
    """A part of one of the matrices, `[O / parts, n]`."""
    if cut.ndim == 3:
        return lax.dynamic_index_in_dim(cut, number, keepdims=False)
    layer, part = jnp.divmod(number, cut.shape[2])
    matrix = lax.dynamic_slice(cut, (layer, 0, part, 0, 0), (1, cut.shape[1], 1, *cut.shape[3:]))
    return matrix.reshape(-1, cut.shape[-1])


def _with_part(cut: jax.Array, new: jax.Array, number: jax.Array) -> jax.Array:
    """What `_cut` returned, with a new part."""
    if cut.ndim == 3:
        return lax.dynamic_update_index_in_dim(cut, new, number, 0)
    layer, part = jnp.divmod(number, cut.shape[2])
    new = new.reshape(1, cut.shape[1], 1, *cut.shape[3:])
    return lax.dynamic_update_slice(cut, new, (layer, 0, part, 0, 0))


def _columns(array: jax.Array) -> jax.Array:
    """`[O, n]` → `[n, O]`, in whose layout the rows lie along a TPU's lanes.

    Sums over a group, and what is repeated for it, go from lane to lane otherwise. A product makes
    its result in either layout. Of an array that is split along both axes the compiler would gather
    the whole for it, so there the layout is left to it.
    """
    if len(_splits()) > 1:
        return array.T
    return with_layout_constraint(array.T, Layout(major_to_minor=(0, 1)))


def _read_by_lanes(array: jax.Array, positions: jax.Array) -> jax.Array:
    if array.ndim > 2:
        return lax.map(lambda pair: _read_by_lanes(*pair), (array, positions))
    if array.ndim == 1:
        return _read_by_lanes(array[None], positions[None])[0]
    columns, groups = _columns(array), num_groups(array.shape[-1])
    columns = jnp.pad(columns, ((0, groups * GROUP - columns.shape[0]), (0, 0)))
    entries = columns.reshape(groups, GROUP, -1)
    of_group = positions.T.reshape(groups, -1, entries.shape[-1]).astype(jnp.int32)
    number = lax.broadcasted_iota(jnp.int32, entries.shape, 1)
    values = [
        jnp.sum(jnp.where(number == of_group[:, [slot]], entries, 0).astype(jnp.float32), axis=1)
        for slot in range(of_group.shape[1])
    ]
    return jnp.stack(values, axis=1).reshape(-1, entries.shape[-1]).T


def _write_by_lanes(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    word, groups = f"uint{8 * array.dtype.itemsize}", num_groups(array.shape[-1])
    columns = jnp.pad(_columns(array), ((0, groups * GROUP - array.shape[-1]), (0, 0)))
    # Barriers, or what is repeated for each entry of a group would be written out.
    columns = lax.optimization_barrier(columns.reshape(groups, GROUP, -1))
    # Chosen between the bits, so that a weight that is not chosen keeps them, whatever it is.
    bits, new = (lax.bitcast_convert_type(x, word).astype("uint32") for x in (columns, values))
    number = lax.broadcasted_iota(jnp.uint32, (1, GROUP, 1), 1)
    packed = array.dtype.itemsize < 4
    # A position and its value are one word, so that half as much is repeated. Their exclusive or
    # with the number of an entry is the value where the position is the number, else larger.
    at = positions.astype(jnp.uint32)
    slots = [at << 16 | new] if packed else [at, new]
    slots = [_columns(x).reshape(groups, -1, array.shape[0]) for x in slots]
    for slot in range(slots[0].shape[1]):
        if packed:
            found = slots[0][:, [slot]] ^ number << 16
            bits = jnp.where(found < 1 << 16, found, bits)
        else:
            position, value = (x[:, [slot]] for x in slots)
            bits = jnp.where(position == number, value, bits)
    columns = lax.optimization_barrier(lax.bitcast_convert_type(bits.astype(word), array.dtype))
    return columns.reshape(groups * GROUP, -1)[: array.shape[-1]].T


def _indices(array: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The array and the int32 indices along its last axis; those of empty slots are outside.

    Whole groups are indexed within themselves, so that they may be on different devices.
    """
    size = array.shape[-1]
    by_group = _by_group(positions, size).astype(jnp.int32)
    if size % GROUP == 0:
        return _grouped(array), by_group
    start = GROUP * lax.broadcasted_iota(jnp.int32, by_group.shape, by_group.ndim - 2)
    index = jnp.where(by_group == EMPTY, size, start + by_group)
    return array, index.reshape(positions.shape)


def _read_by_index(array: jax.Array, positions: jax.Array) -> jax.Array:
    entries, index = _indices(array, positions)
    values = jnp.take_along_axis(entries, index, axis=-1, mode="fill", fill_value=0)
    return values.reshape(positions.shape).astype(jnp.float32)


def _write_by_index(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    entries, index = _indices(array, positions)
    others, last = tuple(range(entries.ndim - 1)), entries.ndim - 1
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(last,),
        scatter_dims_to_operand_dims=(last,),
        operand_batching_dims=others,
        scatter_indices_batching_dims=others,
    )
    written = lax.scatter(
        entries, index[..., None], values.reshape(index.shape), numbers, mode="drop"
    )
    return written.reshape(array.shape)
