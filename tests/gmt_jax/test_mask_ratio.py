"""From ratios to numbers of entries."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax._threshold.uint64 import UInt64
from gmt_jax.mask_ratio import (
    axes_of,
    check_fraction,
    check_mask_ratio,
    fraction_of,
    num_masked,
)

SIZES = [0, 1, 99, 10**6, 2**24 + 1, 2**31, 2**32 + 1, 18_800_000_000, 10**12 + 7, 2**50 + 3]
COUNT = jnp.int32(3)


def integers(numbers: UInt64) -> list[int]:
    parts = zip(*map(np.ravel, numbers), strict=True)
    return [(int(high) << 32) + int(low) for high, low in parts]


@pytest.mark.parametrize(
    "ratio", ["0", "1e-07", "0.1", "0.2", "0.29", "0.333333", "0.7", "0.999", "0.9999999", "1"]
)
def test_a_fraction_is_exact_for_a_float32_of_seven_places(ratio: str) -> None:
    expected = [int(Fraction(ratio) * size) for size in SIZES]
    assert integers(fraction_of(jnp.float32(ratio), SIZES)) == expected
    assert integers(fraction_of(float(ratio), SIZES)) == expected


@pytest.mark.parametrize(("dtype", "places"), [("float16", 3), ("bfloat16", 2), ("float32", 4)])
def test_a_fraction_is_exact_for_every_decimal_that_the_dtype_tells_apart(
    dtype: str, places: int
) -> None:
    fractions = jax.jit(jax.vmap(lambda r: fraction_of(r, [10**places, 2**33])))
    high, low = fractions(jnp.asarray(np.arange(10**places + 1) / 10**places, dtype))
    expected = [[k, k * 2**33 // 10**places] for k in range(10**places + 1)]
    np.testing.assert_array_equal(
        (np.array(high, np.int64) << 32) + np.array(low, np.int64), expected
    )


@pytest.mark.parametrize("n", [100, 1000, 1003])
def test_any_kind_of_number_is_read_as_the_decimal_it_was_written_as(n: int) -> None:
    for thousandths in range(0, 1001, 29):
        ratio, expected = thousandths / 1000, [int(Fraction(thousandths, 1000) * n)]
        for number in (ratio, np.float32(ratio), np.float64(ratio), jnp.float32(ratio)):
            assert integers(fraction_of(number, [n])) == expected


@pytest.mark.parametrize("ratio", [-0.5, 1.5, float("inf"), float("nan")])
def test_an_array_out_of_range_is_clipped(ratio: float) -> None:
    assert integers(fraction_of(jnp.float32(ratio), [10])) == [10 if ratio > 0 else 0]


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.2, 0.29, 0.5, 0.8, 0.95, 0.995, 0.9999, 1.0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_array_is_the_shortest_decimal_of_its_dtype(dtype: str, ratio: float) -> None:
    array = jnp.asarray(ratio, dtype)
    shortest = next(
        decimal
        for places in range(8)
        if jnp.asarray(float(decimal := f"{float(array):.{places}f}"), dtype) == array
    )
    assert integers(fraction_of(array, [10**6])) == [int(Fraction(shortest) * 10**6)]
    if dtype == "float32":
        assert float(shortest) == ratio


def test_the_first_pattern_found_in_a_path_gives_the_ratio() -> None:
    ratios = {"^b$": 0.0, "layers": optax.constant_schedule(0.75), ".*": 0.5}
    tree = {"b": 1, "layers": 2, "w": 3}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert integers(num_masked(ratios, paths, [8, 8, 8], COUNT)) == [0, 6, 4]
    assert integers(num_masked(ratios, [], [], COUNT)) == []
    with pytest.raises(ValueError, match=r"no pattern of mask_ratio is found in w; add '\.\*'"):
        num_masked({"b|layers": 0.5}, paths, [8, 8, 8], COUNT)


def test_a_schedule_is_called_with_the_updates_done_and_checked() -> None:
    assert integers(num_masked(lambda count: 0.1 * count.astype(float), [], [10], COUNT)) == [3]
    with pytest.raises(ValueError, match="mask_ratio is the fraction of gradient entries to mask"):
        num_masked(lambda count: 2.0, [], [10], COUNT)


@pytest.mark.parametrize(
    "ratio",
    [-0.1, 1.1, float("nan"), float("inf"), True, "0.5", np.ones(2), np.array(1.1), {"a": 1.5}],
    ids=repr,
)
def test_a_ratio_that_is_no_fraction_is_refused(ratio: Any) -> None:
    with pytest.raises(ValueError, match=r"mask_ratio is the fraction .* one number in"):
        check_mask_ratio(ratio)


def test_the_value_of_an_array_is_checked_unless_it_may_be_traced() -> None:
    check_fraction("x", jnp.float32(2))
    check_fraction("x", np.array(0.5))


def axes(
    stacked_axes: Any, shape: tuple[int, ...] = (3, 4), dtype: str = "float32"
) -> tuple[int, ...]:
    path = (jax.tree_util.DictKey("a"), jax.tree_util.DictKey("w"))
    return axes_of(stacked_axes, path, jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.parametrize(
    "given",
    [1, -1, (1,), np.int64(1), {"a": 1}, {"a": {"w": (1,)}}, lambda path: int(path[-1].key == "w")],
)
def test_stacked_axes_are_as_in_axes_of_vmap_or_a_function(given: Any) -> None:
    assert axes(given) == (1,)
    for nothing in (None, (), {"a": None}, {"a": {"w": None}}, lambda path: None):
        assert axes(nothing) == ()
    assert axes((1, 0)) == axes({"a": (-1, 0)}) == (0, 1)


@pytest.mark.parametrize(
    "given",
    [2, -3, {"b": 1}, lambda path: 1.0, True, (0, 2)],
    ids=["no such axis", "too negative", "no prefix", "no integer", "bool", "one of two"],
)
def test_stacked_axes_that_do_not_fit_are_refused_by_path(given: Any) -> None:
    with pytest.raises(ValueError, match=r"is .* for a/w, which has shape \(3, 4\)"):
        axes(given)


def test_an_integer_leaf_is_refused_by_path() -> None:
    with pytest.raises(TypeError, match=r"a/w is int32; leave it out with optax\.masked"):
        axes(0, dtype="int32")
