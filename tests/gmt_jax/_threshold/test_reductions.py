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

BITS, BITS16 = (partial(jnp.asarray, dtype=dtype) for dtype in (jnp.int32, jnp.int16))
LEAF = np.random.default_rng(0).integers(0, 1000, (16, 30, 24), np.int32)
CANDIDATES, LAST = (210, 500, 790), 799
BOUNDS = np.repeat(np.array([*CANDIDATES, LAST], np.int32), 30).reshape(4, 30)


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
        lambda leaf, bounds: reductions.read([leaf], BITS, [bounds], stacked_axes),
        jax.ShapeDtypeStruct(shape, "int32"),
        jax.ShapeDtypeStruct((4, *stack), "int32"),
    )
    sizes = [3, 3, 4] if later else [3, 4]
    assert [part.shape for part in jax.tree.leaves(reading)] == [(n, 1, *stack) for n in sizes]


@pytest.mark.parametrize("later", [(), (0,), (2,), (0, 2)])
def test_a_tensor_read_in_parts_is_read_right(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    split = (tuple(axis for axis in (0, 2) if axis not in later), later)
    monkeypatch.setattr(reductions, "_counted_at_once", lambda *_: split)
    check(reductions.read([jnp.asarray(LEAF)], BITS, [jnp.asarray(BOUNDS)], (1,)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None, "y"), P(None, "y"), P(None, None, ("x", "y"))])
def test_a_sharded_tensor_is_read_right(axis_type: AxisType, spec: P) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    leaf = jax.device_put(LEAF, NamedSharding(mesh, spec))
    read = jax.jit(lambda leaf, bounds: reductions.read([leaf, leaf], BITS, [bounds, bounds], (1,)))
    with jax.set_mesh(mesh):
        bounds = jax.device_put(BOUNDS, NamedSharding(mesh, P(None, *spec[1:2])))
        check(read(leaf, bounds))


def check(reading: reductions.Reading) -> None:
    """Compares figures for each index of axis 1 with NumPy's."""
    tensors = LEAF.swapaxes(0, 1).reshape(30, -1)
    following = [np.where(tensors < c, np.inf, tensors).min(1) for c in CANDIDATES]
    largest = np.where(tensors > LAST, -np.inf, tensors).max(1)
    for leaf in range(reading.counts.shape[1]):
        for k, candidate in enumerate(CANDIDATES):
            np.testing.assert_array_equal(reading.counts[k, leaf], (tensors < candidate).sum(1))
            np.testing.assert_array_equal(reading.minima[k, leaf], following[k])
        np.testing.assert_array_equal(~reading.minima[-1, leaf], largest)


def test_where_no_entry_follows_the_largest_integer_does() -> None:
    leaf, largest = jnp.array([449, 461], jnp.int16), np.iinfo(np.int16).max
    reading = reductions.read([leaf], BITS16, [jnp.array([450, 462, 448], jnp.int16)], ())
    assert reading.counts.ravel().tolist() == [1, 2]
    assert reading.minima.ravel().tolist() == [461, largest, largest]


def test_results_are_stacked_by_their_kind() -> None:
    def arrays(x: jax.Array, bounds: Any) -> list[jax.Array]:
        below = (x < bounds[0]).astype(jnp.uint32)
        return [below, x, x.astype(jnp.float32) / 2, x]

    seven = jnp.full(30, 7, jnp.uint32)
    kinds, leaf = ("sum", "sum", "sum", "min"), jnp.asarray(LEAF, jnp.uint32)
    stacks = reductions.reduce(kinds, arrays, [leaf, leaf], (0, 2), [seven[None]] * 2, (1,))
    below = (LEAF < 7).sum((0, 2))
    right = [np.stack([below, LEAF.sum((0, 2))]), LEAF.sum((0, 2))[None] / 2]
    for found, expected in zip(stacks, [*right, LEAF.min((0, 2))[None]], strict=True):
        np.testing.assert_allclose(found, np.stack([expected] * 2, 1), rtol=1e-6)
