"""Counts past 32 bits, and how they are added up."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import threshold


def number(count: threshold.Count) -> int:
    return int(count.millions) * threshold.MILLION + int(count.rest)


@pytest.mark.parametrize("n", [0, 1, 999_999, 10**6, 2**31, 2**32 + 1, 18_800_000_000, 10**12])
@pytest.mark.parametrize("millionths", [0, 1, 200_000, 290_000, 333_333, 999_999, 1_000_000])
def test_a_share_is_exact(n: int, millionths: int) -> None:
    share = threshold.share_of(jnp.int32(millionths), n)
    assert number(share) == int(Fraction(millionths, 10**6) * n)
    assert 0 <= int(share.rest) < threshold.MILLION


def test_partial_counts_add_up_past_32_bits() -> None:
    parts = np.random.default_rng(0).integers(0, 2**31, 70_000).astype(np.int32)
    total = threshold._add_up(jnp.asarray(parts))
    assert number(total) == int(parts.astype(np.int64).sum()) > 2**32
    many = threshold._add_up(jnp.full(2**21, 999_999, jnp.int32))
    assert number(many) == 2**21 * 999_999


def test_counts_compare_as_integers() -> None:
    numbers = [0, 999_999, 10**6, 10**6 + 1, 2**32, 2**32 + 10**6]
    for a in numbers:
        for b in numbers:
            both = threshold.count_of(a), threshold.count_of(b)
            assert bool(threshold.at_most(*both)) == (a <= b)


@pytest.mark.parametrize("shape", [(80, 28672, 8192), (2**16, 2**16), (2, 2**31)])
def test_a_leaf_past_32_bits_is_counted_in_parts(shape: tuple[int, ...]) -> None:
    """Compiled, not run: no partial count may reach 2**31."""
    axis = threshold._parts_axis(shape, 0)
    assert axis is not None
    assert int(np.prod(shape, dtype=object)) // shape[axis] < 2**31
    leaf = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    rank = threshold.count_of(int(np.prod(shape, dtype=object)) // 5)
    found = jax.eval_shape(lambda g: threshold.select([g], [rank], (0,)), leaf)
    assert found[0].bits.shape == ()


def test_a_leaf_counted_in_parts_is_counted_right(monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(0).standard_normal((6, 50, 40)).astype(np.float32)
    monkeypatch.setattr(threshold, "_parts_axis", lambda shape, stacked: 1)
    # Not the jitted function, whose cache knows nothing of the patch.
    found = threshold.select.__wrapped__([jnp.asarray(g)], [threshold.count_of(3000)], (0,))
    assert (
        float(threshold.magnitude(found[0].bits, jnp.float32)) == np.sort(np.abs(g.ravel()))[3000]
    )
    assert number(found[0].below) == 3000
