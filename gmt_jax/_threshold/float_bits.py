"""The order of |g| as the order of unsigned integers: the bits of a float without its sign."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def magnitude_dtype(dtype: Any) -> Any:
    """The dtype whose bits are compared: that of |g|, but float32 for the floats of 8 bits.

    Those disagree on which bits are NaN; float32 holds them all exactly.
    """
    real = jnp.finfo(dtype).dtype
    return real if real.itemsize > 1 else jnp.dtype(jnp.float32)


def unsigned_dtype(dtype: Any) -> Any:
    """The unsigned integer as wide as a float dtype."""
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")


def nan_bits(dtype: Any) -> int:
    """The bits above infinity's: every NaN is read as these."""
    return int(np.array(np.inf, dtype).view(unsigned_dtype(dtype))) + 1


def magnitude_bits(g: jax.Array, dtype: Any) -> jax.Array:
    """The bits of |g| in a real dtype no narrower than g's; NaNs are one value, the largest."""
    if jnp.iscomplexobj(g):
        g = jnp.abs(g)
    bits = lax.bitcast_convert_type(g.astype(dtype), unsigned_dtype(dtype))
    # Clearing the sign bit treats subnormals as any number; comparisons of floats may flush them.
    bits &= jnp.array(jnp.iinfo(bits.dtype).max >> 1, bits.dtype)
    return jnp.minimum(bits, jnp.array(nan_bits(dtype), bits.dtype))


def magnitude(bits: jax.Array, dtype: Any) -> jax.Array:
    """The float with these bits; infinity for bits above every NaN's, which mask everything."""
    above = bits > jnp.array(nan_bits(dtype), bits.dtype)
    return jnp.where(above, jnp.array(jnp.inf, dtype), lax.bitcast_convert_type(bits, dtype))
