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
LOW, HIGH, CANDIDATES = 200, 800, (210, 500, 790)
BOUNDS = np.repeat(np.array([*CANDIDATES, 2 * LOW, HIGH - 1], np.int32) - LOW, 30).reshape(5, 30)


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
        jax.ShapeDtypeStruct((5, *stack), "int32"),
    )
    sizes = [3, 3, 2] if later else [3, 2]
    assert [part.shape for part in jax.tree.leaves(reading)] == [(1, *stack, n) for n in sizes]


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
    for counts in reading.counts:
        for k, candidate in enumerate(CANDIDATES):
            np.testing.assert_array_equal(counts[:, k], (tensors < candidate).sum(1))
    inside = np.ma.masked_outside(tensors, LOW, HIGH - 1)
    distances = np.stack([inside.min(1) - LOW, HIGH - 1 - inside.max(1)], 1)
    for minima in reading.minima:
        np.testing.assert_array_equal(minima, distances)


@pytest.mark.parametrize(("low", "high"), [(2000, 3000), (0, 5), (450, 460)])
def test_in_an_empty_bracket_distances_are_more_than_its_width(low: int, high: int) -> None:
    leaf = jnp.array([np.iinfo(np.int32).max, 1500, 461, 449, 5], jnp.int32)
    bounds = jnp.array([5, low, high - 1 - low], jnp.int32)
    assert np.all(reductions.read([leaf], BITS, [bounds], ()).minima >= high - low)


def test_results_are_stacked_by_their_kind() -> None:
    def arrays(x: jax.Array, bounds: Any) -> list[jax.Array]:
        below = (x < bounds[0]).astype(jnp.uint32)
        return [below, x, x.astype(jnp.float32) / 2, x]

    seven = jnp.full(30, 7, jnp.uint32)
    kinds, leaf = ("sum", "sum", "sum", "min"), jnp.asarray(LEAF, jnp.uint32)
    stacks = reductions.reduce(kinds, arrays, [leaf, leaf], (0, 2), [(seven,)] * 2, (1,))
    below = (LEAF < 7).sum((0, 2))
    right = [np.stack([below, LEAF.sum((0, 2))], -1), LEAF.sum((0, 2))[:, None] / 2]
    for found, expected in zip(stacks, [*right, LEAF.min((0, 2))[:, None]], strict=True):
        np.testing.assert_allclose(found, np.stack([expected] * 2), rtol=1e-6)
