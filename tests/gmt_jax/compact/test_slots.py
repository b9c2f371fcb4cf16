"""Slots against NumPy: the best of each group, read and written bit for bit, in both forms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax.compact import slots

SHAPES = [(3, 256), (2, 3, 300)]


def _array(shape: tuple[int, ...], dtype: Any = "f4") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def best_of_groups(scores: np.ndarray, ratio: float) -> np.ndarray:
    """The balanced mask, by sorting: the first of the largest in each group of 128."""
    mask = np.zeros(scores.shape, bool)
    for start in range(0, scores.shape[-1], 128):
        group = scores[..., start : start + 128]
        count = int((1 - ratio) * group.shape[-1] + 0.5)
        best = np.argsort(-group, axis=-1, kind="stable")[..., :count]
        np.put_along_axis(mask[..., start : start + 128], best, True, axis=-1)
    return mask


def positions_to_mask(positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    groups = -(-shape[-1] // 128)
    by_group = positions.reshape(*shape[:-1], groups, -1)
    for index in np.ndindex(by_group.shape):
        if by_group[index] != slots.EMPTY:
            mask[(*index[:-2], 128 * index[-2] + int(by_group[index]))] = True
    return mask


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ratio", [0.95, 0.5])
def test_the_largest_of_each_group_are_chosen(shape: tuple[int, ...], ratio: float) -> None:
    scores = np.round(np.abs(_array(shape)), 1)  # With ties.
    positions = np.asarray(slots.choose_slots(jnp.asarray(scores), ratio))
    np.testing.assert_array_equal(
        positions_to_mask(positions, shape), best_of_groups(scores, ratio)
    )
    by_group = positions.reshape(*shape[:-1], slots.num_groups(shape[-1]), -1)
    assert (np.diff(by_group.astype(int), axis=-1) >= 0).all()


def test_nan_is_chosen_first_and_no_score_at_all_chooses_the_first_entries() -> None:
    scores = np.zeros((1, 128), "f4")
    scores[0, [100, 7]] = np.nan, np.inf
    positions = slots.choose_slots(jnp.asarray(scores), 0.97)
    np.testing.assert_array_equal(positions, [[0, 1, 7, 100]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_positions_of_a_mask_are_its_entries_in_order(shape: tuple[int, ...]) -> None:
    mask = best_of_groups(np.abs(_array(shape)), 0.95)
    mask[0] = False  # Groups of which some or all slots stay empty.
    mask[-1, ..., :64] = False
    positions = np.asarray(slots.mask_slots(jnp.asarray(mask), 7))
    np.testing.assert_array_equal(positions_to_mask(positions, shape), mask)
    by_group = positions.reshape(*shape[:-1], slots.num_groups(shape[-1]), 7).astype(int)
    assert (np.diff(by_group, axis=-1) >= 0).all()
    assert (by_group[..., -1] == slots.EMPTY).all()


def _write_by_lanes(array: jax.Array, *slots_of: jax.Array) -> jax.Array:
    flat = (x.reshape(-1, x.shape[-1]) for x in (array, *slots_of))
    return slots._write_by_lanes(*flat).reshape(array.shape)


FORMS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "lanes": (slots._read_by_lanes, _write_by_lanes),
    "index": (slots._read_by_index, slots._write_by_index),
    "here": (slots.read_slots, slots.write_slots),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "dtype"), list(zip(SHAPES, [jnp.float32, jnp.bfloat16], strict=True)), ids=str
)
def test_slots_are_read_and_written_bit_for_bit(
    shape: tuple[int, ...], dtype: Any, form: str
) -> None:
    read, write = FORMS[form]
    array = jnp.asarray(_array(shape)).astype(dtype)
    array = array.at[..., 3].set(jnp.nan).at[..., 4].set(-0.0)
    positions = slots.choose_slots(jnp.abs(jnp.asarray(_array(shape))), 0.9)
    mask = positions_to_mask(np.asarray(positions), shape)
    values = jax.jit(read)(array, positions)
    assert values.dtype == jnp.float32
    filled = np.asarray(positions) != slots.EMPTY
    np.testing.assert_array_equal(np.asarray(values)[filled], np.asarray(array)[mask].astype("f4"))
    assert not np.asarray(values)[~filled].any()
    word = f"u{array.dtype.itemsize}"
    written = np.asarray(jax.jit(write)(array, positions, (values + 1).astype(dtype)))
    np.testing.assert_array_equal(written[~mask].view(word), np.asarray(array)[~mask].view(word))
    expected = np.asarray((values + 1).astype(dtype))[filled].astype("f4")
    np.testing.assert_array_equal(written[mask].astype("f4"), expected)


def test_nothing_of_the_arrays_size_is_exchanged_where_parts_are_whole_groups() -> None:
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, P(None, "x", "y"))
    array = jax.device_put(_array((2, 4, 512)), sharding)
    positions = jax.device_put(slots.choose_slots(jnp.abs(jnp.asarray(array)), 0.95), sharding)

    def change(array: jax.Array, positions: jax.Array) -> jax.Array:
        return slots.write_slots(array, positions, slots.read_slots(array, positions) + 1)

    compiled = jax.jit(change, out_shardings=sharding).lower(array, positions).compile()
    text = compiled.as_text()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all") if f" {word}(" in text]
    chosen = jax.jit(lambda a: slots.choose_slots(jnp.abs(a), 0.95), out_shardings=sharding)
    np.testing.assert_array_equal(chosen(array), positions)


@pytest.mark.parametrize("spec", [P("x", "y"), P("y", None), P(None, "x")], ids=str)
@pytest.mark.parametrize(("part", "parts"), [(1 << 10, 4), (1 << 20, 1)])
def test_parts_of_rows_are_written_where_they_are(
    monkeypatch: pytest.MonkeyPatch, spec: P, part: int, parts: int
) -> None:
    monkeypatch.setattr(slots, "PART", part)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, spec)
    array = jax.device_put(_array((256, 512), "bfloat16"), sharding)
    found = slots.choose_slots(jnp.abs(jnp.asarray(_array((256, 512)))), 0.95)
    positions = jax.device_put(found, sharding)

    def change(array: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = slots._read_by_lanes(array, positions)
        new = (values + 1).astype(array.dtype)
        return values, slots.write_slots(array, positions, new)

    values = slots.read_slots(array, positions)
    written = slots.write_slots(array, positions, values + 1)
    monkeypatch.setattr(slots, "_write_by_index", slots._write_by_lanes)  # As on TPUs.
    with jax.set_mesh(mesh):
        assert slots._num_parts(array.shape) == parts
        step = jax.jit(change, out_shardings=(sharding, sharding)).lower(array, positions).compile()
        ours = step(array, positions)
    text = step.as_text()
    assert not [word for word in ("all-gather", "all-reduce", "all-to-all") if f" {word}(" in text]
    np.testing.assert_array_equal(ours[0], values)
    np.testing.assert_array_equal(ours[1].view("u2"), written.view("u2"))


@pytest.mark.parametrize(("ratio", "count"), [(0.95, 6), (0.94, 8), (0.999, 0), (0.5, 64)])
def test_the_number_of_slots_is_rounded_to_the_nearest(ratio: float, count: int) -> None:
    assert slots.slots_per_group(ratio) == count
