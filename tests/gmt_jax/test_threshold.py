"""The search, its counts past 32 bits, and ratios read as decimals."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import threshold

SIZES = [0, 1, 99, 10**6, 2**24 + 1, 2**31, 2**32 + 1, 18_800_000_000, 10**12 + 7, 2**50 + 3]


def integers(wide: threshold.Wide) -> list[int]:
    return [(int(high) << 32) + int(low) for high, low in zip(*map(np.ravel, wide), strict=True)]


@pytest.mark.parametrize(
    "ratio", ["0", "1e-07", "0.1", "0.2", "0.29", "0.333333", "0.7", "0.999", "0.9999999", "1"]
)
def test_a_share_is_exact_for_a_float32_of_seven_places(ratio: str) -> None:
    shares = jax.jit(lambda r: threshold.share(r, SIZES))(jnp.float32(ratio))
    assert integers(shares) == [int(Fraction(ratio) * size) for size in SIZES]


@pytest.mark.parametrize(("dtype", "places"), [("float16", 3), ("bfloat16", 2), ("float32", 4)])
def test_a_share_is_exact_for_every_decimal_that_the_dtype_tells_apart(
    dtype: str, places: int
) -> None:
    share = jax.jit(jax.vmap(lambda r: threshold.share(r, [10**places, 2**33])))
    high, low = share(jnp.asarray(np.arange(10**places + 1) / 10**places, dtype))
    expected = [[k, k * 2**33 // 10**places] for k in range(10**places + 1)]
    np.testing.assert_array_equal(
        (np.array(high, np.int64) << 32) + np.array(low, np.int64), expected
    )


@pytest.mark.parametrize("ratio", [-0.5, 1.5, float("inf")])
def test_an_array_out_of_range_is_clipped(ratio: float) -> None:
    assert integers(threshold.share(jnp.float32(ratio), [10])) == [10 if ratio > 0 else 0]


def test_wide_integers_compare_and_add_as_integers() -> None:
    numbers = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 3 * 2**32 - 1, 2**50 + 5]
    pairs = [(a, b) for a in numbers for b in numbers]
    a, b = (threshold.wide(side) for side in zip(*pairs, strict=True))
    assert np.asarray(threshold.at_most(a, b)).tolist() == [x <= y for x, y in pairs]
    assert integers(threshold.add(a, b)) == [x + y for x, y in pairs]
    np.testing.assert_allclose(threshold.as_float(threshold.wide(numbers)), numbers, rtol=1e-7)


def test_partial_counts_add_up_past_32_bits() -> None:
    parts = np.random.default_rng(0).integers(0, 2**32, (3, 70_000), np.uint32)
    total = threshold._add_up(threshold.Wide(jnp.zeros_like(parts), jnp.asarray(parts)), (1,))
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
    assert threshold._counted_at_once(shape, stacked) == (at_once, later)
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    ranks = threshold.wide([2**33])
    found = jax.eval_shape(lambda g: threshold.select([g], ranks, (stacked,)), leaf)
    assert found.bits[0].shape == shape[:stacked]


@pytest.mark.parametrize("later", [(0,), (1,), (0, 1, 2)])
def test_a_leaf_counted_in_parts_is_counted_right(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    g = np.random.default_rng(0).standard_normal((6, 50, 40)).astype(np.float32)
    axes = tuple(axis for axis in range(3) if axis not in later)
    monkeypatch.setattr(threshold, "_counted_at_once", lambda shape, stacked: (axes, later))
    # Not the jitted function, whose cache knows nothing of the patch.
    found = threshold.select.__wrapped__([jnp.asarray(g)], threshold.wide([3000]), (0,))
    assert float(threshold.magnitude(found.bits[0], g.dtype)) == np.sort(np.abs(g), None)[3000]
    assert float(found.below) == 3000


@pytest.mark.parametrize(
    ("dtype", "passes"), [("bfloat16", 5), ("float16", 5), ("float32", 11), ("float8_e5m2", 11)]
)
def test_the_passes_are_few_and_their_number_is_known(
    monkeypatch: pytest.MonkeyPatch, dtype: str, passes: int
) -> None:
    done = []
    count_rows = threshold._count_rows

    def counted(*args: Any) -> threshold.Wide:
        jax.debug.callback(lambda: done.append(1))
        return count_rows(*args)

    monkeypatch.setattr(threshold, "_count_rows", counted)
    g = jnp.asarray(np.random.default_rng(0).standard_normal(1000), dtype)
    jax.block_until_ready(threshold.select.__wrapped__([g], threshold.wide([500]), (0,)))
    jax.effects_barrier()
    assert len(done) == passes
