"""The selected entries, against sorting, for trees, dtypes, shardings and ratios from a search."""

import math
import os
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax.report import by_leaf
from gmt_jax.selection import LargestScores, apply_mask


class Leaf(NamedTuple):
    """A leaf of a gradient, and its sharding on a mesh of 4 by 2 devices, x and y."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    spec: P = P()
    stacked_axes: int | tuple[int, ...] | None = None


TREES: dict[str, dict[str, Leaf]] = {
    "one leaf": {"w": Leaf((100_000,), spec=P("x"))},
    "dtypes": {
        "single": Leaf((8, 7), "float32", P("x")),
        "brain": Leaf((16, 8), "bfloat16", P("y", "x")),
        "half": Leaf((8, 5), "float16", P(("x", "y"))),
        "scalar": Leaf((), "bfloat16"),
    },
    "stacks": {
        "layers": Leaf((3, 8, 10), "float32", P(None, "x"), 0),
        "split layers": Leaf((8, 9), "float32", P("x"), 0),
        "experts": Leaf((2, 2, 8), "float16", P(None, "y", "x"), (0, 1)),
        "embed": Leaf((24, 4), "float32", P(None, "x")),
    },
    "uneven": {
        "w": Leaf((13, 7), spec=P("x")),
        "layers": Leaf((3, 5, 3), spec=P(None, "y"), stacked_axes=0),
    },
    "float64": {"w": Leaf((99,), "float64"), "layers": Leaf((3, 20), stacked_axes=0)},
}
# Each case is compiled once.
QUICK = [("dtypes", AxisType.Auto), ("stacks", AxisType.Explicit), ("float64", None)]
# An explicit mesh takes no uneven sharding; float64 is searched on one device.
LEFT_OUT = [
    ("uneven", AxisType.Explicit),
    ("float64", AxisType.Auto),
    ("float64", AxisType.Explicit),
]
CASES = [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
    for case in product(TREES, (None, AxisType.Auto, AxisType.Explicit))
    if case not in LEFT_OUT
]

Rng = np.random.Generator
# Values among which a threshold is hard to find, n of a dtype; what overflows becomes infinite.
FAMILIES: dict[str, Callable[[Rng, int, Any], Any]] = {
    "normal": lambda rng, n, _: rng.standard_normal(n),
    "cauchy": lambda rng, n, _: rng.standard_cauchy(n),
    "constant": lambda rng, n, _: np.full(n, rng.standard_normal()),
    "ties": lambda rng, n, _: rng.integers(-3, 4, n),
    "zeros of both signs": lambda rng, n, _: rng.choice([0.0, -0.0], n),
    "mostly zeros": lambda rng, n, _: rng.standard_normal(n) * (rng.random(n) < 0.05),
    "one outlier": lambda rng, n, _: np.where(np.arange(n) == rng.integers(n), 1e30, 1e-30),
    "two scales": lambda rng, n, _: rng.standard_normal(n) * rng.choice([1e-6, 1e4], n),
    "all scales": lambda rng, n, _: 10.0 ** rng.uniform(-45, 38, n),
    "powers of two": lambda rng, n, _: 2.0 ** rng.integers(-149, 128, n),
    "subnormal": lambda rng, n, dtype: (
        rng.integers(-9, 10, n) * np.float64(jnp.finfo(dtype).smallest_subnormal)
    ),
    "neighbours": lambda rng, n, dtype: (
        1 + rng.integers(0, 9, n) * np.float64(jnp.finfo(dtype).eps)
    ),
    "infinities": lambda rng, n, _: rng.choice([1.0, 2.0, np.inf, -np.inf], n),
    "NaN among others": lambda rng, n, _: rng.choice([0.0, 1.0, -2.0, np.inf, np.nan], n),
    "NaN alone": lambda rng, n, _: np.full(n, np.nan),
    "any bits": lambda rng, n, dtype: np.frombuffer(rng.bytes(n * dtype.itemsize), dtype),
}
ratios = st.integers(0, 1000).map(lambda n: Fraction(n, 1000)) | st.sampled_from(
    [Fraction(0), Fraction(1)]
)


def stack_of(leaf: Leaf) -> tuple[int, ...]:
    """The lengths of the leading axes that are stacked."""
    count = {None: 0, 0: 1, (0, 1): 2}[leaf.stacked_axes]
    return leaf.shape[:count]


@st.composite
def gradients(draw: Callable[..., Any], tree: str) -> dict[str, np.ndarray]:
    """A gradient of a tree, each tensor of a stack from a family of its own."""
    found = {}
    for name, leaf in TREES[tree].items():
        dtype, stack = jnp.dtype(leaf.dtype), stack_of(leaf)
        tensors = math.prod(stack)
        size = math.prod(leaf.shape) // max(tensors, 1)
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        families = [FAMILIES[draw(st.sampled_from([*FAMILIES]))] for _ in range(tensors)]
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [np.asarray(family(rng, size, dtype)).astype(dtype) for family in families]
        found[name] = np.concatenate(parts).reshape(leaf.shape)
    return found


@cache
def compiled(tree: str, axis_type: AxisType | None) -> tuple[Any, Any, Any]:
    """Functions that shard a gradient, make the first state, and select with a traced ratio."""
    leaves = TREES[tree]
    stacked = {name: leaf.stacked_axes for name, leaf in leaves.items()}

    def select(g: Any, state: Any, ratio: Any) -> Any:
        if axis_type == AxisType.Auto:
            g = jax.lax.with_sharding_constraint(g, shardings)
        mask, state = LargestScores(ratio, "tensor", 0.0, stacked).select(g, state)
        return jax.tree.map(apply_mask, g, mask), state

    def to_devices(g: Any) -> Any:
        if axis_type == AxisType.Explicit:
            return jax.device_put(g, shardings)
        return jax.tree.map(jnp.asarray, g)

    if axis_type is not None:
        mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
        shardings = {name: NamedSharding(mesh, leaf.spec) for name, leaf in leaves.items()}
    return to_devices, LargestScores(0.0, "tensor", 0.0, stacked).init, jax.jit(select)


def canonical(array: Any) -> np.ndarray:
    """The array as it is; without optimisation, XLA's CPU changes NaNs where it slices an array."""
    array = np.asarray(array)
    if "GMT_JAX_TEST_OPTIMISED" in os.environ:
        return array
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.where(np.isnan(array), np.full_like(array, np.nan), array)


def bits(array: Any) -> np.ndarray:
    array = np.atleast_1d(np.asarray(array))
    return array.view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize(("tree", "axis_type"), CASES, ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_gradient_is_masked_otherwise_than_by_sorting(
    tree: str, axis_type: AxisType | None, mask_by_sorting: Any, data: st.DataObject
) -> None:
    """Over two updates, of which the second starts from the state of the first."""
    with jax.enable_x64(tree == "float64"):
        to_devices, init, select = compiled(tree, axis_type)
        state = init(to_devices(data.draw(gradients(tree))))
        for _ in range(2):
            g, ratio = data.draw(gradients(tree)), data.draw(ratios)
            out, state = select(to_devices(g), state, jnp.float32(ratio))
            num_masked = num_entries = 0
            stacked = {name: leaf.stacked_axes for name, leaf in TREES[tree].items()}
            # As NumPy: XLA's CPU slices a sharded array by sums, and a sum loses subnormals.
            found_thresholds = by_leaf(np.asarray(state.threshold), out, stacked)
            for name, leaf in TREES[tree].items():
                stack = stack_of(leaf)
                thresholds = np.asarray(found_thresholds[name])
                with np.errstate(invalid="ignore"):  # signalling NaNs
                    size = np.abs(g[name].astype(np.float64))
                keep = np.empty(leaf.shape, bool)
                for index in np.ndindex(stack):
                    keep[index] = mask_by_sorting(size[index], ratio)
                    found = thresholds[index]
                    kept = size[index][keep[index]]
                    lowest = np.sort(kept)[0] if kept.size else np.inf
                    np.testing.assert_array_equal(found, lowest, name)
                expected = np.where(keep, g[name], np.zeros((), g[name].dtype))
                found, expected = canonical(out[name]), canonical(expected)
                np.testing.assert_array_equal(bits(found), bits(expected), name)
                num_masked, num_entries = num_masked + np.sum(~keep), num_entries + keep.size
            np.testing.assert_allclose(state.masked_fraction, num_masked / num_entries, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2"])
def test_a_mask_keeps_every_bit_and_fills_in_the_zero(dtype: str) -> None:
    itemsize = jnp.dtype(dtype).itemsize
    words = np.random.default_rng(0).integers(0, 256, 64 * itemsize, np.uint8)
    update = np.frombuffer(words.tobytes(), jnp.dtype(dtype))
    mask = np.arange(64) % 2 == 0
    for zero in (0.0, -0.0):
        out = bits(apply_mask(jnp.asarray(update), jnp.asarray(mask), zero))
        np.testing.assert_array_equal(out[mask], bits(update)[mask])
        np.testing.assert_array_equal(out[~mask], bits(np.full(32, zero, update.dtype)))


def test_a_mask_is_broadcast_to_its_update() -> None:
    update = jnp.ones((2, 3), jnp.complex64)
    rows = apply_mask(update, jnp.array([[True], [False]]))
    np.testing.assert_array_equal(rows, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(apply_mask(update, jnp.array([True, False, True])).sum(), 4)
    np.testing.assert_array_equal(apply_mask(update, jnp.array(False)), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, "tolerance is the fraction of entries"),
        ({"tolerance": 2}, "tolerance is the fraction of entries"),
        ({"mask_ratio": 2}, "mask_ratio is the fraction of gradient entries"),
        ({"scope": "layer"}, "scope is 'tensor' or 'global', got 'layer'"),
        ({"scope": "global", "stacked_axes": 0}, "leave out stacked_axes"),
        ({"scope": "global", "mask_ratio": {"a": 0.5}}, "give one ratio"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    defaults = {"mask_ratio": 0.5, "scope": "tensor", "tolerance": 0.0, "stacked_axes": None}
    with pytest.raises(ValueError, match=message):
        LargestScores(**(defaults | options))


def test_the_state_is_made_from_shapes_with_a_threshold_for_each_stacked_tensor() -> None:
    shapes = {"w": jax.ShapeDtypeStruct((3, 4), "bfloat16"), "b": jax.ShapeDtypeStruct((4,), "f4")}
    state = LargestScores(0.5, "tensor", 0.0, {"w": 0, "b": None}).init(shapes)
    assert state.threshold.shape == (1 + 3,)
    assert LargestScores(0.5, "global", 0.0, None).init(shapes).threshold.shape == (1,)
