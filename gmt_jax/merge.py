"""What can be done with two sets of weights after training: drop and rescale, interpolate."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax.tree_paths import path_key, path_name


def dare(base: Any, tuned: Any, drop_rate: float | jax.Array, key: jax.Array) -> Any:
    r"""Drops a random part of what training changed, and rescales the rest.

    For an entry whose base is :math:`\theta_0` and whose tuned value is :math:`\theta`,

    .. math::
      \theta_0 + \frac{m}{1 - p} (\theta - \theta_0), \qquad m = 0 \text{ with probability } p,
      \text{ else } 1,

    of which :math:`\theta` is the expectation. An entry that is dropped, or that training did not
    change, has the bits of the base; a rate of 0 gives the bits of the tuned weights. 16-bit
    weights are computed in float32 and rounded once.

    What is drawn for a leaf depends on the key, on the leaf's path and on its shape alone: it is
    the same under jit and on every sharding, and for a leaf by itself in a tree of its own.

    Args:
      base: a tree of float arrays.
      tuned: a tree of the same structure, shapes and dtypes.
      drop_rate: :math:`p`, in [0, 1); may be traced.
      key: as from ``jax.random.key``, of jax's default generator.

    Returns:
      The tree of merged weights, of the same dtypes.

    Raises:
      ValueError: if ``drop_rate`` is outside [0, 1), or naming a leaf whose shape or dtype
        differs between the trees.
      TypeError: naming a leaf that is not of a float dtype.

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

    def one(path: KeyPath, base: Any, tuned: Any) -> jax.Array:
        _check(path, base, tuned)
        rate = jnp.float32(drop_rate)
        return _dare(jnp.asarray(base), jnp.asarray(tuned), rate, path_key(path, key))

    return jax.tree_util.tree_map_with_path(one, base, tuned)


def interpolate(base: Any, tuned: Any, weight: float | jax.Array) -> Any:
    r"""The weights on the line from the base to the tuned ones.

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
      ValueError: if ``weight`` is outside [0, 1], or naming a leaf whose shape or dtype differs
        between the trees.
      TypeError: naming a leaf that is not of a float dtype.

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

    def one(path: KeyPath, base: Any, tuned: Any) -> jax.Array:
        _check(path, base, tuned)
        return _moved(jnp.asarray(base), jnp.asarray(tuned), jnp.float32(weight))

    return jax.tree_util.tree_map_with_path(one, base, tuned)


@jax.jit
def _dare(base: jax.Array, tuned: jax.Array, drop_rate: jax.Array, key: jax.Array) -> jax.Array:
    # Drawn where the weights lie: every device draws its own shard's part.
    lies = jax.typeof(base).sharding
    kept = jax.random.uniform(key, base.shape, jnp.float32, out_sharding=lies) >= drop_rate
    return _moved(base, tuned, jnp.where(kept, 1 / (1 - drop_rate), 0))


@jax.jit
def _moved(base: jax.Array, tuned: jax.Array, factor: jax.Array) -> jax.Array:
    """base + factor · (tuned - base); where that is one of the two, its bits."""
    wide = jnp.promote_types(base.dtype, jnp.float32)
    old, new = base.astype(wide), tuned.astype(wide)
    between = (old + factor.astype(wide) * (new - old)).astype(base.dtype)
    # On the bits: 0.0 and -0.0 are two weights, and a NaN keeps its payload.
    word = f"uint{8 * base.dtype.itemsize}"
    bits = [lax.bitcast_convert_type(x, word) for x in (base, tuned, between)]
    chosen = jnp.where(factor == 1, bits[1], bits[2])
    chosen = jnp.where((factor == 0) | (bits[0] == bits[1]), bits[0], chosen)
    return lax.bitcast_convert_type(chosen, base.dtype)


def _is_number(number: Any, valid: Callable[[float], bool]) -> bool:
    """Whether this is one valid number. An array's value is not looked at: it may be traced."""
    if isinstance(number, (jax.Array, np.ndarray)):
        return number.ndim == 0
    return isinstance(number, numbers.Real) and valid(float(number))


def _check(path: KeyPath, base: Any, tuned: Any) -> None:
    if (base.shape, base.dtype) != (tuned.shape, tuned.dtype):
        raise ValueError(
            f"{path_name(path)}: the base is {base.dtype}{list(base.shape)}, "
            f"the tuned leaf {tuned.dtype}{list(tuned.shape)}"
        )
    if not jnp.issubdtype(base.dtype, jnp.floating):
        raise TypeError(f"{path_name(path)}: weights to merge must be floats, not {base.dtype}")
