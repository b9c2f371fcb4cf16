"""Merges of base and tuned weights after training: drop and rescale, or interpolate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax._threshold.float_bits import float32_or_wider
from gmt_jax.tree_paths import as_key, path_key, path_name
from gmt_jax.types import Key, Leaf, PyTree, is_number


def dare(base: PyTree, tuned: PyTree, drop_rate: float | jax.Array, key: Key) -> PyTree:
    r"""Drops a random part of what training changed, and rescales the rest.

    For an entry with base :math:`\theta_0` and tuned value :math:`\theta`, the merged value is

    .. math::
      \theta_0 + \frac{m}{1 - p} (\theta - \theta_0), \qquad m = 0 \text{ with probability } p,
      \text{ else } 1,

    whose expectation is :math:`\theta`. An entry that is dropped, or that training did not
    change, has the bits of the base; a rate of 0 gives the bits of the tuned weights. 16-bit
    weights are computed in float32 and rounded once.

    What is drawn for a leaf depends only on the key, and on the path and shape of the leaf: it is
    the same under jit, on every sharding, and in a tree with other leaves or none.

    Args:
      base: a tree of float arrays.
      tuned: a tree of the same structure, shapes and dtypes.
      drop_rate: :math:`p`, in [0, 1); may be traced.
      key: a key as from ``jax.random.key``, or an integer n for ``jax.random.key(n)``.

    Returns:
      The tree of merged weights, of the same dtypes.

    Raises:
      ValueError: if ``drop_rate`` is outside [0, 1), or a leaf (which is named) differs in shape or
        dtype between the trees.
      TypeError: if a leaf (which is named) is not of a float dtype, or of one that jax would round:
        float64 while 64 bits are off.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from gmt_jax import dare
      >>> base, tuned = {"w": jnp.zeros(8)}, {"w": jnp.full(8, 3.0)}
      >>> print(dare(base, tuned, 0.5, jax.random.key(1))["w"])
      [6. 6. 6. 0. 6. 0. 6. 0.]

    References:
      Yu et al., `Language Models are Super Mario: Absorbing Abilities from Homologous Models as a
      Free Lunch <https://arxiv.org/abs/2311.03099>`_, 2024.
    """
    if not _is_number(drop_rate, lambda p: 0 <= p < 1):
        raise ValueError(
            f"drop_rate is the share of changes to drop, one number in [0, 1); got {drop_rate!r}"
        )

    key = as_key(key)

    def merged(path: KeyPath, base: Leaf, tuned: Leaf) -> jax.Array:
        _check(path, base, tuned)
        rate = jnp.float32(drop_rate)
        return _dare(jnp.asarray(base), jnp.asarray(tuned), rate, path_key(path, key))

    return jax.tree_util.tree_map_with_path(merged, base, tuned)


def interpolate(base: PyTree, tuned: PyTree, weight: float | jax.Array) -> PyTree:
    r"""The weights at one point of the line from the base to the tuned weights.

    :math:`\theta_0 + \alpha (\theta - \theta_0)`, where a weight :math:`\alpha` of 0 gives the
    bits of the base and 1 those of the tuned weights. An entry that is the same in both stays so.
    16-bit weights are computed in float32 and rounded once.

    Args:
      base: a tree of float arrays.
      tuned: a tree of the same structure, shapes and dtypes.
      weight: :math:`\alpha`, in [0, 1]; may be traced.

    Returns:
      The tree of merged weights, of the same dtypes.

    Raises:
      ValueError: if ``weight`` is outside [0, 1], or a leaf (which is named) differs in shape or
        dtype between the trees.
      TypeError: if a leaf (which is named) is not of a float dtype, or of one that jax would round:
        float64 while 64 bits are off.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax import interpolate
      >>> print(interpolate({"w": jnp.zeros(2)}, {"w": jnp.array([1.0, 4.0])}, 0.25)["w"])
      [0.25 1.  ]
    """
    if not _is_number(weight, lambda alpha: 0 <= alpha <= 1):
        raise ValueError(
            f"weight is how far to go from base to tuned, one number in [0, 1]; got {weight!r}"
        )

    def merged(path: KeyPath, base: Leaf, tuned: Leaf) -> jax.Array:
        _check(path, base, tuned)
        return _moved(jnp.asarray(base), jnp.asarray(tuned), jnp.float32(weight))

    return jax.tree_util.tree_map_with_path(merged, base, tuned)


@jax.jit
def _dare(base: jax.Array, tuned: jax.Array, drop_rate: jax.Array, key: jax.Array) -> jax.Array:
    # Drawn with the sharding of the weights, so that every device draws its own shard's part.
    sharding = jax.typeof(base).sharding
    kept = jax.random.uniform(key, base.shape, jnp.float32, out_sharding=sharding) >= drop_rate
    return _moved(base, tuned, jnp.where(kept, 1 / (1 - drop_rate), 0))


@jax.jit
def _moved(base: jax.Array, tuned: jax.Array, factor: jax.Array) -> jax.Array:
    """base + factor · (tuned - base), with the bits of base or tuned where it is one of them."""
    dtype = float32_or_wider(base.dtype)
    old, new = base.astype(dtype), tuned.astype(dtype)
    between = (old + factor.astype(dtype) * (new - old)).astype(base.dtype)
    # Chosen between the bits: 0.0 and -0.0 are different weights, and a NaN keeps its payload.
    word = f"uint{8 * base.dtype.itemsize}"
    bits = [lax.bitcast_convert_type(x, word) for x in (base, tuned, between)]
    merged = jnp.where(factor == 1, bits[1], bits[2])
    merged = jnp.where((factor == 0) | (bits[0] == bits[1]), bits[0], merged)
    return lax.bitcast_convert_type(merged, base.dtype)


def _is_number(number: object, valid: Callable[[float], bool]) -> bool:
    """Whether this is one valid number; of jax's arrays, which may be traced, one number at all."""
    if isinstance(number, jax.Array):
        return number.ndim == 0
    number = number[()] if isinstance(number, np.ndarray) else number
    return is_number(number) and valid(float(number))


def _check(path: KeyPath, base: Leaf, tuned: Leaf) -> None:
    if (base.shape, base.dtype) != (tuned.shape, tuned.dtype):
        raise ValueError(
            f"{path_name(path)}: the base is {base.dtype}{list(base.shape)}, "
            f"the tuned leaf {tuned.dtype}{list(tuned.shape)}"
        )
    if not jnp.issubdtype(base.dtype, jnp.floating):
        raise TypeError(f"{path_name(path)}: weights to merge must be floats, not {base.dtype}")
    if jax.dtypes.canonicalize_dtype(base.dtype) != base.dtype:
        raise TypeError(
            f"{path_name(path)}: jax rounds {base.dtype} to 32 bits; set jax_enable_x64, or give "
            "float32"
        )
