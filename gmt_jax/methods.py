"""The relatives of Gradient-Mask Tuning by name; what they do not choose keeps its bits.

Most are a score and a time at which a mask is drawn, and keep the entries with the largest scores:
the arguments are those of `by_score`, as are the options by keyword that each passes on to it.
`hft` and `lisa` choose matrices and layers, and pass theirs on to `train_only`.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import optax

from gmt_jax.param_roles import ROLES
from gmt_jax.selection import MaskRatio
from gmt_jax.selective import by_score, train_only
from gmt_jax.structured import MaskSchedule, hft_schedule, lisa_schedule
from gmt_jax.tree_paths import Key

Inner: TypeAlias = optax.GradientTransformation
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs


def random_mask(inner: Inner, mask_ratio: MaskRatio, key: Key, **options: Any) -> Optimizer:
    """Random mask tuning: a uniformly random part of each tensor, anew at every update.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import random_mask
      >>> optimizer = random_mask(optax.sgd(1.0), 0.5, key=0)
      >>> state = optimizer.init(jnp.zeros(6))
      >>> for _ in range(2):
      ...     updates, state = optimizer.update(jnp.ones(6), state)
      ...     print(updates)
      [-0. -1. -1. -1. -0. -0.]
      [-1. -0. -0. -1. -0. -1.]
    """
    return by_score(inner, mask_ratio, score="random", key=key, **options)


def one_off(inner: Inner, mask_ratio: MaskRatio, **options: Any) -> Optimizer:
    """SIFT: the largest gradients of the first update, and those entries from then on.

    The tuned weights are the base and a few entries, as `gmt_jax.delta` stores them.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import one_off
      >>> optimizer = one_off(optax.sgd(1.0), 0.5)
      >>> state = optimizer.init(jnp.zeros(4))
      >>> for gradient in ([1.0, 2.0, 3.0, 4.0], [8.0, 7.0, 6.0, 5.0]):
      ...     updates, state = optimizer.update(jnp.array(gradient), state)
      ...     print(updates)
      [-0. -0. -3. -4.]
      [-0. -0. -6. -5.]

    References:
      Song et al., `Sparse is Enough in Fine-tuning Pre-trained Large Language Models
      <https://arxiv.org/abs/2312.11875>`_, 2024.
    """
    return by_score(inner, mask_ratio, every=None, **options)


def every_few(inner: Inner, mask_ratio: MaskRatio, every: int, **options: Any) -> Optimizer:
    """GASDU: the largest gradients of every `every`-th update, which stay until the next.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import every_few
      >>> optimizer = every_few(optax.sgd(1.0), 0.5, every=2)
      >>> state = optimizer.init(jnp.zeros(4))
      >>> for gradient in ([1.0, 2.0, 3.0, 4.0], [8.0, 7.0, 6.0, 5.0], [8.0, 7.0, 6.0, 5.0]):
      ...     updates, state = optimizer.update(jnp.array(gradient), state)
      ...     print(updates)
      [-0. -0. -3. -4.]
      [-0. -0. -6. -5.]
      [-8. -7. -0. -0.]
    """
    return by_score(inner, mask_ratio, every=every, **options)


def gradient_to_weight(inner: Inner, mask_ratio: MaskRatio, **options: Any) -> Optimizer:
    """The score of GEM: the largest gradients for their weights, |g| / |w|, at the first update.

    Then the weights are those before training; with ``every=1`` it follows them.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import gradient_to_weight
      >>> optimizer = gradient_to_weight(optax.sgd(1.0), 0.5)
      >>> params = jnp.array([1.0, 10.0])
      >>> updates, _ = optimizer.update(jnp.array([2.0, 3.0]), optimizer.init(params), params)
      >>> print(updates)
      [-2. -0.]

    References:
      `GEM <https://arxiv.org/abs/2508.16191>`_, 2025, of which this is the score alone.
    """
    options = {"every": None} | options
    return by_score(inner, mask_ratio, score="gradient_to_weight", **options)


def magnitude(inner: Inner, mask_ratio: MaskRatio, **options: Any) -> Optimizer:
    """The largest weights |w| before the first update, and those entries from then on.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import magnitude
      >>> optimizer = magnitude(optax.sgd(1.0), 0.5)
      >>> params = jnp.array([1.0, 10.0])
      >>> updates, _ = optimizer.update(jnp.array([2.0, 3.0]), optimizer.init(params), params)
      >>> print(updates)
      [-0. -3.]
    """
    options = {"every": None} | options
    return by_score(inner, mask_ratio, score="weight", **options)


def fisher(inner: Inner, mask_ratio: MaskRatio, warmup: int, **options: Any) -> Optimizer:
    """FISH mask: the largest sums of g² over `warmup` + 1 updates, of all tensors together.

    The first `warmup` updates move nothing. The paper sums over examples, this over updates: it is
    the same where an update has one example.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import fisher
      >>> optimizer = fisher(optax.sgd(1.0), 0.5, warmup=1)
      >>> state = optimizer.init(jnp.zeros(2))
      >>> for gradient in ([3.0, 1.0], [1.0, 2.0]):
      ...     updates, state = optimizer.update(jnp.array(gradient), state)
      ...     print(updates)
      [-0. -0.]
      [-1. -0.]

    References:
      Sung et al., `Training Neural Networks with Fixed Sparse Masks
      <https://arxiv.org/abs/2111.09839>`_, 2021.
    """
    options = {"every": None, "scope": "global"} | options
    return by_score(inner, mask_ratio, score="fisher", warmup=warmup, **options)


def hft(
    inner: Inner, key: Key, every: int, *, roles: Mapping[str, str] = ROLES, **options: Any
) -> Optimizer:
    """Half Fine-Tuning: half of the matrices of each layer, drawn anew every `every` updates.

    Which half, `gmt_jax.structured.hft_schedule` says; a model whose paths it does not know is
    refused.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import hft
      >>> optimizer = hft(optax.sgd(1.0), key=0, every=100)
      >>> ones = jnp.ones((4, 1))  # Four layers.
      >>> params = {"layers": {"mlp": {"gate": ones, "up": ones, "down": ones}}}
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> for name, update in updates["layers"]["mlp"].items():
      ...     print(name, update.ravel())
      down [-0. -1. -1. -0.]
      gate [-1. -1. -0. -1.]
      up [-1. -0. -0. -0.]

    References:
      Hui et al., `HFT: Half Fine-Tuning for Large Language Models
      <https://arxiv.org/abs/2404.18466>`_, 2024.
    """
    return train_only(
        inner, lambda params: hft_schedule(params, key, every, roles=roles), **options
    )


def lisa(
    inner: Inner,
    num_layers: int,
    key: Key,
    every: int,
    *,
    roles: Mapping[str, str] = ROLES,
    **options: Any,
) -> Optimizer:
    """LISA: `num_layers` random layers, drawn anew every `every` updates, and what is in no layer.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import lisa
      >>> optimizer = lisa(optax.sgd(1.0), num_layers=2, key=0, every=20)
      >>> params = {"layers": {"attention_norm": jnp.ones((6, 1))}}  # Six layers.
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> print(updates["layers"]["attention_norm"].ravel())
      [-0. -1. -0. -1. -0. -0.]

    References:
      Pan et al., `LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model
      Fine-Tuning <https://arxiv.org/abs/2403.17919>`_, 2024.
    """

    def schedule(params: Any) -> MaskSchedule:
        return lisa_schedule(params, num_layers, key, every, roles=roles)

    return train_only(inner, schedule, **options)
