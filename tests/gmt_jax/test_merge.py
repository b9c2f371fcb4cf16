"""Merges of trees: against NumPy, to the bit at the ends, and the same on every mesh."""

import doctest
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gmt_jax.merge
from gmt_jax import dare, interpolate

KEY = jax.random.key(3)
DTYPES = ["float32", "bfloat16", "float16"]


def weights(seed: int, dtype: str = "float32") -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed).standard_normal
    return {"a": jnp.asarray(draw((64, 48)), dtype), "b": jnp.asarray(draw(500), dtype)}


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_the_docstrings_run() -> None:
    result = doctest.testmod(gmt_jax.merge)
    assert result.attempted > 5
    assert result.failed == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_interpolation_is_numpys_rounded_once(dtype: str, weight: float) -> None:
    base, tuned = weights(0, dtype), weights(1, dtype)
    for name, merged in interpolate(base, tuned, weight).items():
        old, new = (np.asarray(tree[name]).astype(np.float64) for tree in (base, tuned))
        wanted = old + np.float32(weight).astype(np.float64) * (new - old)
        assert merged.dtype == dtype
        atol = 1e-6 if dtype == "float32" else float(jnp.finfo(dtype).eps) / 2 * 1.01
        np.testing.assert_allclose(np.asarray(merged, np.float64), wanted, rtol=atol, atol=1e-6)


def odd(dtype: str) -> tuple[jax.Array, jax.Array]:
    """All pairs of zeros, infinities and NaNs of several payloads."""
    word = f"u{jnp.dtype(dtype).itemsize}"
    top = 1 << (8 * jnp.dtype(dtype).itemsize - 1)
    nan = int(np.array(np.nan, jnp.dtype(dtype)).view(word))
    inf = int(np.array(np.inf, jnp.dtype(dtype)).view(word))
    values = np.array([0, top, nan, nan | 1, top | nan | 1, inf, top | inf, 1, 300], word)
    pairs = [grid.ravel().view(jnp.dtype(dtype)) for grid in np.meshgrid(values, values)]
    return jnp.asarray(pairs[0]), jnp.asarray(pairs[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_line_are_bits(dtype: str) -> None:
    base, tuned = odd(dtype)
    assert bits(interpolate(base, tuned, 0)) == bits(base)
    assert bits(interpolate(base, tuned, 1)) == bits(tuned)
    assert bits(interpolate(base, tuned, jnp.float32(1))) == bits(tuned)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_did_not_change_keeps_its_bits(dtype: str) -> None:
    base, _ = odd(dtype)
    assert bits(interpolate(base, base, 0.3)) == bits(base)
    assert bits(dare(base, base, 0.3, KEY)) == bits(base)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dare_drops_a_share_and_rescales_the_rest(dtype: str, rate: float) -> None:
    base, tuned = weights(0, dtype), weights(1, dtype)
    merged = dare(base, tuned, rate, KEY)
    dropped = 0
    for name, found in merged.items():
        old, new, now = (np.asarray(t[name]).astype(np.float64) for t in (base, tuned, merged))
        same = np.asarray(found).view("u1") == np.asarray(base[name]).view("u1")
        is_dropped = same.reshape(*found.shape, -1).all(-1)
        dropped += is_dropped.sum()
        wanted = old + (new - old) / (1 - np.float32(rate).astype(np.float64))
        error = np.abs(now - wanted)[~is_dropped]
        assert found.dtype == dtype
        assert (error <= 1e-5 + float(jnp.finfo(dtype).eps) * np.abs(wanted)[~is_dropped]).all()
    total = 64 * 48 + 500
    assert abs(dropped - rate * total) < 4 * np.sqrt(total * rate * (1 - rate))


def test_a_drop_rate_of_zero_is_the_tuned_bits() -> None:
    base, tuned = odd("bfloat16")
    assert bits(dare(base, tuned, 0.0, KEY)) == bits(tuned)


def test_what_is_dropped_is_the_bases_bits() -> None:
    base, _ = odd("bfloat16")
    merged = np.asarray(dare(base, jnp.full_like(base, 64), 0.5, KEY)).view("u2")
    assert 20 < (merged == np.asarray(base).view("u2")).sum() < 61  # Of 81.


def test_a_key_draws_the_same_again_and_another_key_draws_anew() -> None:
    base, tuned = weights(0), weights(1)
    again = bits(dare(base, tuned, 0.5, jax.random.key(3)))
    assert bits(dare(base, tuned, 0.5, KEY)) == again
    assert bits(dare(base, tuned, 0.5, 3)) == again
    assert bits(dare(base, tuned, 0.5, jax.random.key(4))) != again


def test_leaves_of_one_shape_draw_apart() -> None:
    base, tuned = jnp.zeros(100), jnp.ones(100)
    merged = dare({"a": base, "b": base}, {"a": tuned, "b": tuned}, 0.5, KEY)
    assert bits(merged["a"]) != bits(merged["b"])


def test_a_leaf_by_itself_draws_what_it_draws_among_others() -> None:
    base, tuned = weights(0), weights(1)
    alone = dare({"b": base["b"]}, {"b": tuned["b"]}, 0.5, KEY)
    assert bits(alone["b"]) == bits(dare(base, tuned, 0.5, KEY)["b"])


SPECS = [P(), P("x"), P(None, "x"), P("y", "x"), P(("x", "y"))]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize(
    "merge",
    [lambda a, b, k: dare(a, b, 0.5, k), lambda a, b, _: interpolate(a, b, 0.3)],
    ids=["dare", "interpolate"],
)
def test_every_sharding_gives_the_bits_of_one_device(
    merge: Callable[..., Any], axis_type: AxisType
) -> None:
    base, tuned = ({str(spec): weights(seed)["a"] for spec in SPECS} for seed in (0, 1))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    shardings = {str(spec): NamedSharding(mesh, spec) for spec in SPECS}
    spread = [jax.device_put(tree, shardings) for tree in (base, tuned)]
    with jax.set_mesh(mesh):
        merged = [merge(*spread, KEY), jax.jit(merge)(*spread, KEY)]
    for tree in merged:
        assert bits(tree) == bits(merge(base, tuned, KEY))
        for name, sharding in shardings.items():
            assert tree[name].sharding.is_equivalent_to(sharding, 2)


def test_a_traced_rate_and_weight_serve_all_values_with_one_program() -> None:
    base, tuned = weights(0), weights(1)
    dropped, between = jax.jit(dare), jax.jit(interpolate)
    for share in (0.0, 0.25, 0.5):
        assert bits(dropped(base, tuned, share, KEY)) == bits(dare(base, tuned, share, KEY))
        assert bits(between(base, tuned, share)) == bits(interpolate(base, tuned, share))
    assert dropped._cache_size() == between._cache_size() == 1


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, np.array(1.5), float("nan"), "0.5", None])
def test_a_rate_that_is_not_one_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"drop_rate is the share of changes to drop"):
        dare({}, {}, rate, KEY)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan"), "0.5", None])
def test_a_weight_that_is_not_one_is_refused(weight: Any) -> None:
    with pytest.raises(ValueError, match=r"weight is how far to go"):
        interpolate({}, {}, weight)


@pytest.mark.parametrize(
    "merge", [lambda a, b: dare(a, b, 0.5, KEY), lambda a, b: interpolate(a, b, 0.5)]
)
def test_leaves_that_cannot_be_merged_are_named(merge: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"x/y: the base is float32\[3\].* float32\[4\]"):
        merge({"x": {"y": jnp.ones(3)}}, {"x": {"y": jnp.ones(4)}})
    with pytest.raises(TypeError, match="x: weights to merge must be floats, not int32"):
        merge({"x": jnp.arange(3)}, {"x": jnp.arange(3)})
    wide = {"x": np.zeros(3)}
    with pytest.raises(TypeError, match="x: jax rounds float64 to 32 bits; set jax_enable_x64"):
        merge(wide, wide)
    with jax.enable_x64(True):
        assert merge(wide, wide)["x"].dtype == np.float64
