"""Groups of 128 entries, and the few of each that are trained: their positions and values.

The last axis of an array is cut into groups of 128, the lanes of a TPU; the last group may have
fewer. Each group has k slots, and a slot is a position in its group and a value. A position never
leaves its group, so an array of slots `[..., G k]` is sharded as the array `[..., n]` is, wherever
the parts of a mesh are whole groups: nothing is exchanged.

On TPUs slots are read and written by comparing every entry with the positions of its group, which
vector units do at the speed of memory; elsewhere by gathers and scatters within the groups.
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

GROUP = 128
# On TPUs rows are written a tile at a time: the positions, repeated for each lane, take as much
# memory as the matrix, and are written out where they do not fit the chip's own.
ROWS = 8  # of a TPU's tile, which stays whole
TILE, MAX_TILES = 1 << 20, 16  # The least entries of a device's tile.
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

    Args:
      array: `[..., n]`.
      positions: uint8 `[..., G k]`, different ones within a group.
      values: `[..., G k]`, rounded to the dtype of the array.
    """
    values = values.astype(array.dtype)
    written: jax.Array = lax.platform_dependent(
        array, positions, values, tpu=_write_by_lanes, default=_write_by_index
    )
    return written


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


def _num_devices() -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


def _has_few_groups(shape: tuple[int, ...]) -> bool:
    """Whether a device may have fewer groups of a row than a TPU's tile has rows."""
    devices = _num_devices()  # Over all of which either axis may be split.
    rows = math.prod(shape[:-1])
    return num_groups(shape[-1]) < ROWS * devices and rows % (ROWS * devices) == 0


def _rows_inside(groups: jax.Array) -> jax.Array:
    """`[..., G, x]` → `[rows / 8, G, 8, x]`: tiles of a TPU, which few groups would leave empty."""
    return groups.reshape(-1, ROWS, *groups.shape[-2:]).swapaxes(1, 2)


def _num_tiles(shape: tuple[int, ...]) -> int:
    """The tiles into which the rows of a matrix are cut, whole on every device of the mesh."""
    devices = _num_devices()  # Rows may be split over all of them.
    tiles = 1
    while (
        tiles < MAX_TILES
        and shape[0] % (2 * tiles * ROWS * devices) == 0
        and math.prod(shape) >= 2 * tiles * TILE * devices
    ):
        tiles *= 2
    return tiles


def _tiled(array: jax.Array, tiles: int) -> jax.Array:
    """`[O, n]` → `[O / (8 tiles), tiles, 8, n]`: a tile is in all parts of a row axis."""
    return array.reshape(-1, tiles, ROWS, array.shape[-1])


def _tile(array: jax.Array, number: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(array, number, 1, keepdims=False)


def _read_by_lanes(array: jax.Array, positions: jax.Array) -> jax.Array:
    if array.ndim > 2:
        return lax.map(lambda pair: _read_by_lanes(*pair), (array, positions))
    # As a whole, though tiles take half the time: of tiles the compiler makes an array of slots
    # whose rows are padded to 128 lanes, five times as large.
    groups, by_group = _grouped(array), _by_group(positions, array.shape[-1])
    few = _has_few_groups(array.shape)
    if few:
        groups, by_group = _rows_inside(groups), _rows_inside(by_group)
    lane = lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)
    columns = []
    for slot in range(by_group.shape[-1]):
        chosen = lane == by_group[..., slot : slot + 1].astype(jnp.int32)
        columns.append(jnp.sum(jnp.where(chosen, groups, 0).astype(jnp.float32), axis=-1))
    values = jnp.stack(columns, axis=-1)
    return (values.swapaxes(1, 2) if few else values).reshape(positions.shape)


def _write_by_lanes(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    tiles = _num_tiles(array.shape) if array.ndim == 2 else 1
    if tiles == 1:
        return _write_tile(array, positions, values)
    parts = _tiled(positions, tiles), _tiled(values, tiles)

    def write(number: jax.Array, cut: jax.Array) -> jax.Array:
        new = _write_tile(_tile(cut, number), *(_tile(part, number) for part in parts))
        return lax.dynamic_update_index_in_dim(cut, new, number, 1)

    return lax.fori_loop(0, tiles, write, _tiled(array, tiles)).reshape(array.shape)


def _write_tile(array: jax.Array, positions: jax.Array, values: jax.Array) -> jax.Array:
    size, word = array.shape[-1], f"uint{8 * array.dtype.itemsize}"
    # Chosen between the bits, so that a weight that is not chosen keeps them, whatever it is.
    bits, new = (lax.bitcast_convert_type(x, word) for x in (array, values))
    if array.dtype.itemsize == 2:
        bits = _write_pairs(bits.astype(jnp.uint32), positions, new).astype(word)
        return lax.bitcast_convert_type(bits, array.dtype)
    parts = _grouped(bits), _by_group(positions, size).astype(jnp.int32), _by_group(new, size)
    few = array.ndim == 2 and _has_few_groups(array.shape)
    groups, by_group, new = map(_rows_inside, parts) if few else parts
    lane = lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)
    for slot in range(by_group.shape[-1]):
        chosen = lane == by_group[..., slot : slot + 1]
        groups = jnp.where(chosen, new[..., slot : slot + 1], groups)
    bits = _ungrouped(groups, few, array.shape)
    return lax.bitcast_convert_type(bits, array.dtype)


def _write_pairs(bits: jax.Array, positions: jax.Array, new: jax.Array) -> jax.Array:
    """`_write_tile` of 16 bits, each in a uint32.

    A position and its value are one word, so that half as much is repeated for each lane. Their
    exclusive or with the lane is the value where the position is the lane, else larger.
    """
    size = bits.shape[-1]
    pairs = positions.astype(jnp.uint32) << 16 | new.astype(jnp.uint32)
    parts = _grouped(bits), _by_group(pairs, size)
    few = bits.ndim == 2 and _has_few_groups(bits.shape)
    groups, by_group = map(_rows_inside, parts) if few else parts
    lane = lax.broadcasted_iota(jnp.uint32, groups.shape, groups.ndim - 1) << 16
    for slot in range(by_group.shape[-1]):
        found = by_group[..., slot : slot + 1] ^ lane
        groups = jnp.where(found < 1 << 16, found, groups)
    return _ungrouped(groups, few, bits.shape)


def _ungrouped(groups: jax.Array, few: bool, shape: tuple[int, ...]) -> jax.Array:
    """The array of which `_grouped`, and for few groups `_rows_inside`, made groups."""
    groups = groups.swapaxes(1, 2) if few else groups
    return groups.reshape(*shape[:-1], -1)[..., : shape[-1]]


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
