"""The search, its counts past 32 bits, and ratios read as decimals."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import counting, threshold
from gmt_jax.bits import magnitude
from gmt_jax.wide import Wide, add, as_float, at_most, share, subtract, wide

SIZES = [0, 1, 99, 10**6, 2**24 + 1, 2**31, 2**32 + 1, 18_800_000_000, 10**12 + 7, 2**50 + 3]


def integers(numbers: Wide) -> list[int]:
    parts = zip(*map(np.ravel, numbers), strict=True)
    return [(int(high) << 32) + int(low) for high, low in parts]


@pytest.mark.parametrize(
    "ratio", ["0", "1e-07", "0.1", "0.2", "0.29", "0.333333", "0.7", "0.999", "0.9999999", "1"]
)
def test_a_share_is_exact_for_a_float32_of_seven_places(ratio: str) -> None:
    shares = jax.jit(lambda r: share(r, SIZES))(jnp.float32(ratio))
    assert integers(shares) == [int(Fraction(ratio) * size) for size in SIZES]


@pytest.mark.parametrize(("dtype", "places"), [("float16", 3), ("bfloat16", 2), ("float32", 4)])
def test_a_share_is_exact_for_every_decimal_that_the_dtype_tells_apart(
    dtype: str, places: int
) -> None:
    shares = jax.jit(jax.vmap(lambda r: share(r, [10**places, 2**33])))
    high, low = shares(jnp.asarray(np.arange(10**places + 1) / 10**places, dtype))
    expected = [[k, k * 2**33 // 10**places] for k in range(10**places + 1)]
    np.testing.assert_array_equal(
        (np.array(high, np.int64) << 32) + np.array(low, np.int64), expected
    )


@pytest.mark.parametrize("ratio", [-0.5, 1.5, float("inf")])
def test_an_array_out_of_range_is_clipped(ratio: float) -> None:
    assert integers(share(jnp.float32(ratio), [10])) == [10 if ratio > 0 else 0]


def test_wide_integers_compare_and_add_as_integers() -> None:
    numbers = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 3 * 2**32 - 1, 2**50 + 5]
    pairs = [(a, b) for a in numbers for b in numbers]
    a, b = (wide(side) for side in zip(*pairs, strict=True))
    assert np.asarray(at_most(a, b)).tolist() == [x <= y for x, y in pairs]
    assert integers(add(a, b)) == [x + y for x, y in pairs]
    assert integers(subtract(add(a, b), b)) == [x for x, _ in pairs]
    np.testing.assert_allclose(as_float(wide(numbers)), numbers, rtol=1e-7)


def test_partial_counts_add_up_past_32_bits() -> None:
    parts = np.random.default_rng(0).integers(0, 2**32, (3, 70_000), np.uint32)
    total = counting._add_up(Wide(jnp.zeros_like(parts), jnp.asarray(parts)), (1,))
    assert integers(total) == parts.sum(1, dtype=np.int64).tolist()
    assert min(integers(total)) > 2**32


@pytest.mark.parametrize(
    ("shape", "stacked", "at_once", "later"),
    [
        ((80, 28672, 8192), 1, (1, 2), ()),
        ((80, 28672, 8192), 0, (1, 2), (0,)),
        ((2**16, 2**16), 0, (1,), (0,)),
        ((2**16 - 1, 2**16), 0, (0, 1), ()),
        ((2**33,), 0, (), (0,)),
        ((), 0, (), ()),
        ((3, 0), 0, (0, 1), ()),
    ],
)
def test_a_count_is_split_where_it_could_pass_32_bits(
    shape: tuple[int, ...], stacked: int, at_once: Any, later: Any
) -> None:
    assert counting._counted_at_once(shape, stacked) == (at_once, later)
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    ranks, layout = wide([2**33]), threshold.Layout((shape,), (stacked,))
    found = jax.eval_shape(lambda g: threshold.select([g], ranks, layout), leaf)
    assert found.bits[0].shape == shape[:stacked]


@pytest.mark.parametrize("later", [(0,), (1,), (0, 1, 2)])
def test_a_leaf_counted_in_parts_is_counted_right(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    g = np.random.default_rng(0).standard_normal((6, 50, 40)).astype(np.float32)
    whole = counting._counted_at_once

    def in_parts(shape: tuple[int, ...], stacked: int) -> Any:
        if shape != g.shape:  # a sample
            return whole(shape, stacked)
        return tuple(axis for axis in range(3) if axis not in later), later

    monkeypatch.setattr(counting, "_counted_at_once", in_parts)
    # Not the jitted function, whose cache knows nothing of the patch.
    found = threshold.select.__wrapped__(
        [jnp.asarray(g)], wide([3000]), threshold.Layout((g.shape,), (0,))
    )
    assert float(magnitude(found.bits[0], g.dtype)) == np.sort(np.abs(g), None)[3000]
    assert float(found.below) == 3000
