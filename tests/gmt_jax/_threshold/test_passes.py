"""A search for a tree, sharding, dtype or ratio on which the mask differs from sorting."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax import gmt_mask


class Leaf(NamedTuple):
    """A gradient's leaf, and where it lies on a mesh of 4 by 2 devices x and y."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    spec: P = P()
    num_stacked_axes: int = 0


# Few, for each is compiled once in each place.
TREES: dict[str, dict[str, Leaf]] = {
    "one leaf": {"w": Leaf((100_000,), spec=P("x"))},
    "dtypes": {
        "single": Leaf((8, 7), "float32", P("x")),
        "brain": Leaf((16, 8), "bfloat16", P("y", "x")),
        "half": Leaf((8, 5), "float16", P(("x", "y"))),
        "scalar": Leaf((), "bfloat16"),
    },
    "stacks": {
        "layers": Leaf((3, 8, 10), "float32", P(None, "x"), 1),
        "split layers": Leaf((8, 9), "float32", P("x"), 1),
        "experts": Leaf((2, 2, 8), "float16", P(None, "y", "x"), 2),
        "embed": Leaf((24, 4), "float32", P(None, "x")),
    },
    "uneven": {
        "w": Leaf((13, 7), spec=P("x")),
        "layers": Leaf((3, 5, 3), spec=P(None, "y"), num_stacked_axes=1),
    },
    "wide": {"w": Leaf((99,), "float64"), "layers": Leaf((3, 20), "float32", num_stacked_axes=1)},
}
PLACES: dict[str, AxisType | None] = {
    "one device": None,
    "auto mesh": AxisType.Auto,
    "explicit mesh": AxisType.Explicit,
}
# An explicit mesh takes no uneven sharding; 64 bits are searched on one device.
LEFT_OUT = {("uneven", "explicit mesh"), ("wide", "auto mesh"), ("wide", "explicit mesh")}
CASES = [(tree, place) for tree in TREES for place in PLACES if (tree, place) not in LEFT_OUT]

Rng = np.random.Generator
# Values that are hard to find a threshold in, n of a dtype; what overflows it becomes infinite.
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
ratios = st.integers(0, 1000).map(lambda n: Fraction(n, 1000)) | st.sampled_from([0, 1]).map(
    Fraction
)


@st.composite
def gradients(draw: Callable[..., Any], tree: str) -> dict[str, np.ndarray]:
    """A gradient of a tree, each tensor of a stack from a family of its own."""
    found = {}
    for name, leaf in TREES[tree].items():
        dtype = jnp.dtype(leaf.dtype)
        tensors = int(np.prod(leaf.shape[: leaf.num_stacked_axes], dtype=int))
        size = int(np.prod(leaf.shape[leaf.num_stacked_axes :], dtype=int))
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        families = [FAMILIES[draw(st.sampled_from([*FAMILIES]))] for _ in range(tensors)]
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [np.asarray(family(rng, size, dtype)).astype(dtype) for family in families]
        found[name] = np.concatenate(parts).reshape(leaf.shape)
    return found


def by_sorting(g: np.ndarray, ratio: Fraction) -> tuple[np.ndarray, float]:
    """What is masked of one tensor, and its threshold: a sort in float64, NaN after infinity."""
    m = int(ratio * g.size)
    if m == g.size:
        return np.ones(g.shape, bool), np.inf
    with np.errstate(invalid="ignore"):  # signalling NaNs
        size = np.abs(g.astype(np.float64))
    low = np.sort(size, axis=None)[m]
    return ~np.isnan(size) if np.isnan(low) else size < low, float(low)


@cache
def mesh_of(place: str) -> Any:
    kind = PLACES[place]
    return kind and jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)


@cache
def compiled(tree: str, place: str) -> tuple[Any, Any]:
    """init and update of the mask for one tree in one place, with a traced ratio."""
    leaves, mesh = TREES[tree], mesh_of(place)
    num_stacked_axes = {name: leaf.num_stacked_axes for name, leaf in leaves.items()}

    def update(g: Any, state: Any, ratio: Any) -> Any:
        if PLACES[place] == AxisType.Auto:
            for name, leaf in leaves.items():
                sharding = NamedSharding(mesh, leaf.spec)
                g = g | {name: jax.lax.with_sharding_constraint(g[name], sharding)}
        return gmt_mask(ratio, num_stacked_axes=num_stacked_axes).update(g, state)

    return gmt_mask(0.0, num_stacked_axes=num_stacked_axes).init, jax.jit(update)


def put(g: dict[str, np.ndarray], tree: str, place: str) -> Any:
    if PLACES[place] != AxisType.Explicit:
        return jax.tree.map(jnp.asarray, g)
    shardings = {
        name: NamedSharding(mesh_of(place), leaf.spec) for name, leaf in TREES[tree].items()
    }
    return jax.device_put(g, shardings)


def bits(array: Any) -> np.ndarray:
    array = np.atleast_1d(np.asarray(array))
    return array.view(f"uint{8 * array.dtype.itemsize}")


@pytest.mark.parametrize(("tree", "place"), CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_gradient_is_masked_otherwise_than_by_sorting(
    tree: str, place: str, data: st.DataObject
) -> None:
    """Two updates, for the second may begin where the first one ended."""
    with jax.enable_x64(tree == "wide"):
        init, update = compiled(tree, place)
        state = init(put(data.draw(gradients(tree)), tree, place))
        for _ in range(2):
            g, ratio = data.draw(gradients(tree)), data.draw(ratios)
            out, state = update(put(g, tree, place), state, jnp.float32(ratio))
            masked = entries = 0
            for name, leaf in TREES[tree].items():
                stack = leaf.shape[: leaf.num_stacked_axes]
                found = [by_sorting(g[name][at], ratio) for at in np.ndindex(stack)]
                drop = np.reshape([part for part, _ in found], leaf.shape)
                expected = np.where(drop, np.zeros((), g[name].dtype), g[name])
                np.testing.assert_array_equal(bits(out[name]), bits(expected), name)
                lows = np.reshape([low for _, low in found], stack)
                np.testing.assert_array_equal(state.threshold[name], lows, name)
                masked, entries = masked + drop.sum(), entries + drop.size
            np.testing.assert_allclose(state.masked_fraction, masked / entries, rtol=1e-6)
