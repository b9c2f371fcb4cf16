"""The search, its counts past 32 bits, and ratios read as decimals."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold import reductions as counting
from gmt_jax._threshold import search as threshold
from gmt_jax._threshold.float_bits import magnitude
from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.uint64 import UInt64, add, as_float, at_most, share, subtract, uint64

SIZES = [0, 1, 99, 10**6, 2**24 + 1, 2**31, 2**32 + 1, 18_800_000_000, 10**12 + 7, 2**50 + 3]


def integers(numbers: UInt64) -> list[int]:
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
    a, b = (uint64(side) for side in zip(*pairs, strict=True))
    assert np.asarray(at_most(a, b)).tolist() == [x <= y for x, y in pairs]
    assert integers(add(a, b)) == [x + y for x, y in pairs]
    assert integers(subtract(add(a, b), b)) == [x for x, _ in pairs]
    np.testing.assert_allclose(as_float(uint64(numbers)), numbers, rtol=1e-7)


def test_partial_counts_add_up_past_32_bits() -> None:
    parts = np.random.default_rng(0).integers(0, 2**32, (3, 70_000), np.uint32)
    total = counting._add_up(UInt64(jnp.zeros_like(parts), jnp.asarray(parts)), (1,))
    assert integers(total) == parts.sum(1, dtype=np.int64).tolist()
    assert min(integers(total)) > 2**32


@pytest.mark.parametrize(
    ("shape", "num_stacked_axes", "at_once", "later"),
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
    shape: tuple[int, ...], num_stacked_axes: int, at_once: Any, later: Any
) -> None:
    assert counting._counted_at_once(shape, num_stacked_axes) == (at_once, later)
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    ranks, layout = uint64([2**33]), TensorLayout((shape,), (num_stacked_axes,))
    found = jax.eval_shape(lambda g: threshold.select([g], ranks, layout), leaf)
    assert found.bits[0].shape == shape[:num_stacked_axes]


@pytest.mark.parametrize("later", [(0,), (1,), (0, 1, 2)])
def test_a_leaf_counted_in_parts_is_counted_right(
    monkeypatch: pytest.MonkeyPatch, later: tuple[int, ...]
) -> None:
    g = np.random.default_rng(0).standard_normal((6, 50, 40)).astype(np.float32)
    whole = counting._counted_at_once

    def in_parts(shape: tuple[int, ...], num_stacked_axes: int) -> Any:
        if shape != g.shape:  # a sample
            return whole(shape, num_stacked_axes)
        return tuple(axis for axis in range(3) if axis not in later), later

    monkeypatch.setattr(counting, "_counted_at_once", in_parts)
    # Not the jitted function, whose cache knows nothing of the patch.
    found = threshold.select.__wrapped__(
        [jnp.asarray(g)], uint64([3000]), TensorLayout((g.shape,), (0,))
    )
    assert float(magnitude(found.bits[0], g.dtype)) == np.sort(np.abs(g), None)[3000]
    assert float(found.below) == 3000


def passes_and_threshold(g: np.ndarray, m: int, slack: int | None = None) -> tuple[int, float, int]:
    layout = TensorLayout((g.shape,), (0,))
    spare = None if slack is None else uint64([slack])
    found = threshold.select([jnp.asarray(g)], uint64([m]), layout, spare)
    value = float(magnitude(found.bits[0], g.dtype))
    assert float(found.below) == np.sum(np.abs(g) < value)
    return int(found.passes), value, int(found.below)


N = 200_000
DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Any]] = {
    "normal": lambda rng: rng.standard_normal(N),
    "cauchy": lambda rng: rng.standard_cauchy(N),
    "log-normal": lambda rng: np.exp(3 * rng.standard_normal(N)),
    "95 % zeros": lambda rng: rng.standard_normal(N) * (rng.random(N) < 0.05),
    "two scales": lambda rng: rng.standard_normal(N) * rng.choice([1e-12, 1], N),
    "constant": lambda _: np.full(N, 0.37),
    "rounded": lambda rng: np.round(rng.standard_normal(N), 2),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_few_passes_find_the_threshold_of_any_common_distribution(name: str) -> None:
    g = DISTRIBUTIONS[name](np.random.default_rng(0)).astype(np.float32)
    for m in (N // 10, N // 5, N // 2, 9 * N // 10, N - 1):
        passes, value, _ = passes_and_threshold(g, m)
        assert value == np.partition(np.abs(g), m)[m]
        assert passes <= 8


@pytest.mark.parametrize("name", ["normal", "cauchy", "log-normal", "two scales"])
def test_fewer_passes_find_it_within_a_tolerance(name: str) -> None:
    g = DISTRIBUTIONS[name](np.random.default_rng(1)).astype(np.float32)
    for m in (N // 10, N // 5, 9 * N // 10):
        passes, _, below = passes_and_threshold(g, m, N // 1000)
        assert m - N // 1000 <= below <= m
        assert passes <= 3


def adversaries() -> dict[str, np.ndarray]:
    """Entries that no sample shows, crowded where interpolation does not look."""
    rng = np.random.default_rng(0)
    seen = np.zeros(N, bool)
    seen[counting._spread((N,), 2**12)[0]] = True
    one = np.float32(1).view(np.uint32)
    crowd = (one + 2.0 ** rng.uniform(0, 24, N)).astype(np.uint32).view(np.float32)
    powers = np.exp2(-np.minimum(rng.geometric(0.3, N), 149)).astype(np.float32)
    doubly = (one - 2 ** rng.integers(0, 30, N)).astype(np.uint32).view(np.float32)
    return {
        "hidden from the sample": np.where(seen, 1e30, crowd).astype(np.float32),
        "hidden below": np.where(seen, 1e-30, crowd).astype(np.float32),
        "powers of two": powers,
        "crowded from above": crowd,
        "crowded from below": doubly,
        "all bits": (rng.integers(0, 0x7F800000, N).astype(np.uint32)).view(np.float32),
    }


@pytest.mark.parametrize("name", adversaries())
def test_no_data_takes_more_passes_than_the_bound(name: str) -> None:
    g = adversaries()[name]
    for m in (1, 2, N // 100, N // 3, N // 2, N - 2):
        passes, value, _ = passes_and_threshold(g, m)
        assert value == np.partition(g, m)[m]
        assert passes <= 22


def test_the_bound_holds_where_interpolation_learns_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates that never help: only even division of the brackets is left."""

    def useless(bracket: Any, *_: Any) -> jax.Array:
        return jnp.broadcast_to(bracket.high - 1, (len(threshold.SPREAD), *bracket.high.shape))

    monkeypatch.setattr(threshold, "_interpolate", useless)
    monkeypatch.setattr(threshold, "_guess", lambda leaves, rows, *_: jnp.ones((7, 1), jnp.uint32))
    rng = np.random.default_rng(0)
    # One in a thousand at each end, so that reading the ends off the data does not help either.
    g = np.where(rng.random(N) < 0.001, rng.choice([1e-40, 1e38], N), rng.standard_normal(N))
    g = np.abs(g).astype(np.float32)
    found = threshold.select.__wrapped__(
        [jnp.asarray(g)], uint64([N // 3]), TensorLayout((g.shape,), (0,))
    )
    assert float(magnitude(found.bits[0], g.dtype)) == np.partition(g, N // 3)[N // 3]
    assert threshold.EVENLY_FROM < int(found.passes) <= 22


def test_one_threshold_for_all_leaves_is_that_of_their_entries_together() -> None:
    rng = np.random.default_rng(0)
    tree = [
        rng.standard_normal((40, 500)).astype(np.float32),
        np.round(rng.standard_normal(3000), 1).astype("bfloat16"),
        (100 * rng.standard_normal((7, 11))).astype(np.float16),
        np.zeros((0, 4), np.float32),
    ]
    together = np.sort(np.concatenate([np.abs(g.astype(np.float64)).ravel() for g in tree]))
    layout = TensorLayout(tuple(g.shape for g in tree), (0,) * 4, shared=True)
    for m in (0, 1, 4615, len(together) - 1):
        found = threshold.select([jnp.asarray(g) for g in tree], uint64([m]), layout)
        assert [float(magnitude(bits, jnp.float32)) for bits in found.bits] == [together[m]] * 4
        assert float(found.below) == np.sum(together < together[m])
