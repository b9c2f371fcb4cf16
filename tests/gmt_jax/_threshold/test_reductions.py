"""Counts and extremes, against NumPy."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax._threshold import reductions

BITS = partial(jnp.asarray, dtype=jnp.int32)
LEAF = np.random.default_rng(0).integers(0, 1000, (16, 30, 24), np.int32)
BOUNDS = np.array([[10] * 30, [500] * 30, [1000] * 30, [200] * 30, [800] * 30], np.int32)


@pytest.mark.parametrize(
    ("shape", "stacked_axes", "at_once", "later"),
    [
        ((80, 28672, 8192), (0,), (1, 2), ()),
        ((28672, 80, 8192), (1,), (0, 2), ()),
        ((80, 28672, 8192), (), (1, 2), (0,)),
        ((2**16, 2**16), (), (1,), (0,)),
        ((2**16 - 1, 2**16), (), (0, 1), ()),
        ((2**33,), (), (), (0,)),
        ((), (), (), ()),
        ((3, 0), (), (0, 1), ()),
    ],
)
def test_a_count_is_split_where_it_could_pass_32_bits(
    shape: tuple[int, ...], stacked_axes: tuple[int, ...], at_once: Any, later: Any
) -> None:
    assert reductions._counted_at_once(shape, stacked_axes) == (at_once, later)
    stack = tuple(shape[axis] for axis in stacked_axes)
    reading = jax.eval_shape(
        lambda leaf, bounds: reductions.read(leaf, BITS, bounds, stacked_axes),
        jax.ShapeDtypeStruct(shape, "int32"),
        jax.ShapeDtypeStruct((5, *stack), "int32"),
    )
    assert [part.shape for part in jax.tree.leaves(reading)] == [stack] * (9 if later else 6)


def expected(low: int, high: int) -> tuple[Any, Any, Any]:
    """The smallest, the largest and the sum inside, as offsets, for each index of axis 1."""
    tensors = [part[(part >= low) & (part < high)] - low for part in LEAF.swapaxes(0, 1)]
    return tuple([f(part) for part in tensors] for f in (np.min, np.max, np.sum))


@pytest.mark.parametrize("later", [(), (0,), (2,), (0, 2)])
def test_a_tensor_read_in_parts_is_read_right(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    split = (tuple(axis for axis in (0, 2) if axis not in later), later)
    monkeypatch.setattr(reductions, "_counted_at_once", lambda *_: split)
    check(reductions.read(jnp.asarray(LEAF), BITS, jnp.asarray(BOUNDS), (1,)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None, "y"), P(None, "y"), P(None, None, ("x", "y"))])
def test_a_sharded_tensor_is_read_right(axis_type: AxisType, spec: P) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    leaf = jax.device_put(LEAF, NamedSharding(mesh, spec))
    read = jax.jit(lambda leaf, bounds: reductions.read(leaf, BITS, bounds, (1,)))
    with jax.set_mesh(mesh):
        bounds = jax.device_put(BOUNDS, NamedSharding(mesh, P(None, *spec[1:2])))
        check(read(leaf, bounds))


def check(reading: reductions.Reading) -> None:
    for count, candidate in zip(reading.counts, (10, 500, 1000), strict=True):
        np.testing.assert_array_equal(count, (candidate > LEAF).sum((0, 2)))
    found = reading.smallest, reading.largest, reading.total
    for part, right in zip(found, expected(200, 800), strict=True):
        np.testing.assert_array_equal(part, right)


def test_of_an_empty_bracket_the_smallest_is_above_the_largest() -> None:
    bounds = jnp.array([5, 2000, 3000], jnp.int32)
    reading = reductions.read(jnp.asarray(LEAF), BITS, bounds, ())
    assert (int(reading.smallest), int(reading.largest)) == (2**31 - 1, 0)
