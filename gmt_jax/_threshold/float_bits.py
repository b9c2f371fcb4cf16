"""The order of |g| as the order of integers: the bits of a float without its sign."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike


def magnitude_dtype(dtype: DTypeLike) -> np.dtype:
    """The dtype whose bits are compared: that of |g|, but float32 for floats of 8 bits.

    Floats of 8 bits disagree on which bits are NaN; float32 represents all of them exactly.
    """
    real = jnp.finfo(dtype).dtype
    return real if real.itemsize > 1 else jnp.dtype(jnp.float32)


def float32_or_wider(dtype: DTypeLike) -> np.dtype:
    """float64 for float64 and complex128 where 64 bits are enabled, else float32."""
    wide = jnp.finfo(dtype).dtype == np.float64
    return jax.dtypes.canonicalize_dtype(np.float64 if wide else np.float32)


def bits_dtype(dtype: DTypeLike) -> np.dtype:
    """The integer dtype as wide as a float dtype; without a sign, the bits of |g| fit it."""
    return jnp.dtype(f"int{8 * jnp.dtype(dtype).itemsize}")


def nan_bits(dtype: DTypeLike) -> int:
    """The bits that stand for every NaN: one more than those of infinity."""
    return int(np.array(np.inf, dtype).view(bits_dtype(dtype))) + 1


def absolute_bits(g: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The bits of |g|, for a real g, as a dtype no narrower; those of a NaN are any above inf's."""
    bits = lax.bitcast_convert_type(g.astype(dtype), bits_dtype(dtype))
    # |g| by clearing the sign bit: float comparisons may flush subnormals to zero.
    return bits & jnp.array(jnp.iinfo(bits.dtype).max, bits.dtype)


def magnitude_bits(g: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The bits of |g|, for a real g, as a dtype no narrower; all NaNs have `nan_bits`."""
    bits = absolute_bits(g, dtype)
    return jnp.minimum(bits, jnp.array(nan_bits(dtype), bits.dtype))


def magnitude(bits: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The float with these bits; infinity for bits above those of NaN, which mask everything."""
    above = bits > jnp.array(nan_bits(dtype), bits.dtype)
    return jnp.where(above, jnp.array(jnp.inf, dtype), lax.bitcast_convert_type(bits, dtype))
