"""The bits of |g| are in the order of |g|."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax._threshold.float_bits import (
    bits_dtype,
    float32_or_wider,
    magnitude,
    magnitude_bits,
    magnitude_dtype,
    nan_bits,
)

DTYPES = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"]


def every_float(dtype: str) -> np.ndarray:
    """All floats of a dtype, or 100,000 random bits of a wide one."""
    itemsize = jnp.dtype(dtype).itemsize
    if itemsize > 2:
        return np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32).view(dtype)
    return np.arange(2 ** (8 * itemsize)).astype(f"u{itemsize}").view(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_compare_as_magnitudes_do(dtype: str) -> None:
    g, key = every_float(dtype), magnitude_dtype(dtype)
    bits = np.asarray(magnitude_bits(jnp.asarray(g), key)).astype(np.int64)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        size = np.abs(g.astype(np.float64))
    order = np.argsort(size, kind="stable")  # NaN comes last.
    steps, equal = np.diff(bits[order]), size[order][1:] == size[order][:-1]
    nan = np.isnan(size[order])
    assert (steps >= 0).all()
    np.testing.assert_array_equal(steps == 0, equal | (nan[1:] & nan[:-1]))
    assert (bits[np.isnan(size)] == nan_bits(key)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_magnitude_comes_back_from_its_bits(dtype: str) -> None:
    key = magnitude_dtype(dtype)
    g = every_float(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        expected = np.abs(g.astype(np.float64))
    bits = magnitude_bits(jnp.asarray(g), key)
    assert bits.dtype == bits_dtype(key)
    found = np.asarray(magnitude(bits, key))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(found.astype(np.float64), expected)


@pytest.mark.parametrize(
    ("dtype", "wide"), [("bfloat16", "float32"), ("complex64", "float32"), ("float64", "float64")]
)
def test_a_dtype_is_widened_to_float32_at_least(dtype: str, wide: str) -> None:
    with jax.enable_x64(True):
        assert float32_or_wider(dtype) == wide
    assert float32_or_wider(dtype) == np.float32


def test_bits_above_those_of_nan_are_infinity() -> None:
    above = jnp.array(nan_bits("float32") + 1, jnp.int32)
    assert float(magnitude(above, jnp.float32)) == np.inf
