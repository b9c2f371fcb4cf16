# Copyright 2026 The gmt-jax Authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
# ==============================================================================
"""Gradient-Mask Tuning.

Implementation of "Gradient-Mask Tuning Elevates the Upper Limits of LLM
Performance" (https://arxiv.org/abs/2406.15330) by Li et al.
"""

import fractions
from typing import Any, Callable, NamedTuple, Optional, Sequence, Union

import jax
import jax.numpy as jnp
from optax._src import alias
from optax._src import base
from optax._src import combine
from optax._src import numerics


class GmtMaskState(NamedTuple):
  """State of :func:`optax.contrib.gmt_mask`.

  Attributes:
    count: int32 [], the number of updates done.
    threshold: float32 [leaves], the threshold of each leaf at the latest
      update, in the order of ``jax.tree.leaves``.
    masked_fraction: float32 [], the fraction of all entries that the latest
      update masked.
  """

  count: jax.Array
  threshold: jax.Array
  masked_fraction: jax.Array


def gmt_mask(
    mask_ratio: base.ScalarOrSchedule,
) -> base.GradientTransformationExtraArgs:
  r"""Zeroes the entries of each gradient that have the smallest magnitude.

  For a leaf :math:`g` with :math:`n` entries,

  .. math::
    m = \lfloor r n \rfloor, \qquad
    T = m\text{-th smallest of } |g|, \text{ counting from } 0, \qquad
    \tilde g_i = g_i \text{ if } |g_i| \ge T \text{ else } 0.

  Entries equal to the threshold are kept, so that at most :math:`m` are masked.
  NaN counts as larger than infinity and is kept below a ratio of 1; a ratio of
  1 masks everything. The magnitude of a complex entry is its modulus.

  The threshold is exact. It is found bit by bit, by counting the entries below
  a candidate: a leaf that is sharded over a mesh is neither sorted nor
  gathered, and its devices exchange one integer for each bit.

  Args:
    mask_ratio: :math:`r` in [0, 1], the fraction that is masked, or a schedule
      of it. A Python float is read as the decimal that it prints as. For a
      traced value, :math:`r n` is computed in float32.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs` object, to be chained in
    front of an optimizer.

  Raises:
    ValueError: if a number for ``mask_ratio`` is outside [0, 1], or a leaf has
      2**32 entries or more.
    TypeError: if a leaf is neither float nor complex.

  Examples:
    >>> import optax
    >>> import jax.numpy as jnp
    >>> solver = optax.chain(optax.contrib.gmt_mask(0.4), optax.sgd(1.0))
    >>> params = jnp.zeros(5)
    >>> state = solver.init(params)
    >>> grads = jnp.array([3.0, -1.0, 2.0, -5.0, 4.0])
    >>> updates, state = solver.update(grads, state, params)
    >>> print(updates)
    [-3. -0. -0.  5. -4.]
    >>> print(optax.tree.get(state, 'masked_fraction'))
    0.4

  References:
    Li et al., `Gradient-Mask Tuning Elevates the Upper Limits of LLM
    Performance <https://arxiv.org/abs/2406.15330>`_, 2024
  """
  if isinstance(mask_ratio, (int, float)) and not 0 <= mask_ratio <= 1:
    raise ValueError(f'mask_ratio must be in [0, 1], got {mask_ratio}.')

  def init_fn(params: base.Params) -> GmtMaskState:
    return GmtMaskState(
        count=jnp.zeros([], jnp.int32),
        threshold=jnp.zeros([len(jax.tree.leaves(params))], jnp.float32),
        masked_fraction=jnp.zeros([], jnp.float32),
    )

  def update_fn(
      updates: base.Updates,
      state: GmtMaskState,
      params: Optional[base.Params] = None,
      **extra_args: Any,
  ) -> tuple[base.Updates, GmtMaskState]:
    del params, extra_args
    ratio = mask_ratio(state.count) if callable(mask_ratio) else mask_ratio
    leaves, treedef = jax.tree.flatten(updates)
    if not leaves:
      count = numerics.safe_increment(state.count)
      return updates, state._replace(count=count)
    bits = [_magnitude_bits(g) for g in leaves]
    ranks = [_num_masked(ratio, g.size) for g in leaves]
    thresholds = _order_statistics(bits, ranks)
    masks = [
        (b >= t) & (m < b.size) for b, t, m in zip(bits, thresholds, ranks)
    ]
    num_masked = sum(jnp.sum(~mask, dtype=jnp.float32) for mask in masks)
    num_entries = max(sum(g.size for g in leaves), 1)
    masked = [
        jnp.where(mask, g, jnp.zeros_like(g)) for mask, g in zip(masks, leaves)
    ]
    return jax.tree.unflatten(treedef, masked), GmtMaskState(
        count=numerics.safe_increment(state.count),
        threshold=jnp.stack(
            [_as_magnitude(t, g) for t, g in zip(thresholds, leaves)]
        ),
        masked_fraction=num_masked / num_entries,
    )

  return base.GradientTransformationExtraArgs(init_fn, update_fn)


def gmt_adamw(
    learning_rate: base.ScalarOrSchedule,
    mask_ratio: base.ScalarOrSchedule = 0.2,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    mu_dtype: Optional[Any] = None,
    weight_decay: base.ScalarOrSchedule = 1e-4,
    mask: Optional[Union[Any, Callable[[base.Params], Any]]] = None,
) -> base.GradientTransformationExtraArgs:
  """AdamW on gradients masked by :func:`optax.contrib.gmt_mask`.

  A masked weight still moves a little, by its older momentum and by weight
  decay.

  Args:
    learning_rate: A global scaling factor, either fixed or evolving along
      iterations with a scheduler.
    mask_ratio: The fraction of each gradient that is masked.
    b1: As in :func:`optax.adamw`.
    b2: As in :func:`optax.adamw`.
    eps: As in :func:`optax.adamw`.
    mu_dtype: As in :func:`optax.adamw`.
    weight_decay: As in :func:`optax.adamw`.
    mask: As in :func:`optax.adamw`: the weights that decay.

  Returns:
    The corresponding :class:`optax.GradientTransformationExtraArgs`.
  """
  return combine.chain(
      gmt_mask(mask_ratio),
      alias.adamw(
          learning_rate,
          b1=b1,
          b2=b2,
          eps=eps,
          mu_dtype=mu_dtype,
          weight_decay=weight_decay,
          mask=mask,
      ),
  )


def _magnitude_bits(g: jax.Array) -> jax.Array:
  """Unsigned integers in the order of the magnitudes, with NaN as the largest."""
  if not jnp.issubdtype(g.dtype, jnp.inexact):
    raise TypeError(f'gmt_mask needs float or complex gradients, got {g.dtype}.')
  if g.size >= 2**32:
    raise ValueError(f'gmt_mask counts in 32 bits, got {g.size} entries.')
  magnitude = jnp.abs(g)
  dtype = jnp.dtype(f'uint{jnp.finfo(magnitude.dtype).bits}')
  bits = jax.lax.bitcast_convert_type(magnitude, dtype)
  largest = jnp.full_like(bits, jnp.iinfo(dtype).max >> 1)
  return jnp.where(jnp.isnan(magnitude), largest, bits)


def _as_magnitude(bits: jax.Array, like: jax.Array) -> jax.Array:
  dtype = jnp.finfo(like.dtype).dtype
  return jax.lax.bitcast_convert_type(bits, dtype).astype(jnp.float32)


def _num_masked(ratio: jax.typing.ArrayLike, size: int) -> jax.Array:
  """The number of entries to mask, uint32 []."""
  if isinstance(ratio, (int, float)):
    return jnp.uint32(int(fractions.Fraction(str(ratio)) * size))
  # 2**32 is no uint32, but the nearest float32 to many sizes below it.
  entries = jnp.floor(jnp.clip(jnp.asarray(ratio, jnp.float32), 0, 1) * size)
  return jnp.where(entries >= size, size, entries).astype(jnp.uint32)


def _order_statistics(
    bits: Sequence[jax.Array], ranks: Sequence[jax.Array]
) -> Sequence[jax.Array]:
  """The rank-th smallest of each array of integers, counting from 0.

  It is the largest integer that has at most `rank` entries below it.
  """
  widths = [8 * b.dtype.itemsize - 1 for b in bits]

  def set_next_bit(i, found):
    new = []
    for b, rank, width, low in zip(bits, ranks, widths, found):
      shift = jnp.maximum(width - 1 - i, 0).astype(b.dtype)
      bit = jnp.where(i < width, jnp.left_shift(b.dtype.type(1), shift), 0)
      high = low | bit.astype(b.dtype)
      below = jnp.sum(b < high, dtype=jnp.uint32)
      new.append(jnp.where(below <= rank, high, low))
    return tuple(new)

  # Zeros of the type that a sum over the array has, on meshes and in shard_map.
  zeros = tuple(jnp.sum(b, dtype=b.dtype) & b.dtype.type(0) for b in bits)
  return jax.lax.fori_loop(0, max(widths), set_next_bit, zeros)
