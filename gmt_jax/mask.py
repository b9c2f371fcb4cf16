"""gmt_mask: Gradient-Mask Tuning as an optax transformation."""

from typing import Any

import jax
import optax

from gmt_jax.selection import GmtMaskState, LargestScores, apply_mask
from gmt_jax.types import MaskRatio, PyTree, StackedAxes

__all__ = ["GmtMaskState", "gmt_mask"]


def gmt_mask(
    mask_ratio: MaskRatio,
    *,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    stacked_axes: StackedAxes = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Zeroes the gradient entries with the smallest magnitude.

    For a tensor whose gradient :math:`g` has :math:`n` entries,

    .. math::
      m = \lfloor \text{mask\_ratio} \cdot n \rfloor, \qquad
      T = m\text{-th smallest of } |g| \text{ counting from } 0, \qquad
      \tilde g_i = g_i \text{ if } |g_i| \ge T \text{ else } 0.

    Ties with the threshold are kept, so that at most :math:`m` entries are masked. A ratio of 0
    changes no bit; a ratio of 1 zeroes everything. NaN counts as larger than infinity: below a
    ratio of 1 it is kept, so that later checks see it. For a complex entry, :math:`|g|` is the
    modulus, as computed by ``jnp.abs``.

    The threshold is exact and found by counting: a gradient sharded over a mesh is neither
    gathered nor sorted, and its devices exchange a few integers. The threshold of the update before
    shortens the search.

    Transformations that follow in a chain see the masked gradient. Under SGD a masked weight stays
    where it is; under AdamW it still moves a little, by its older momentum and by decoupled weight
    decay. Clip before the mask, so that the norm is that of the whole gradient:
    ``optax.chain(optax.clip_by_global_norm(1.0), gmt_mask(0.2), optax.adamw(1e-5))``.

    Args:
      mask_ratio: the fraction that is MASKED (not the fraction that is kept), in [0, 1].
        A number is read as the decimal that it prints as: 0.29 of 100 is 29. A schedule is called
        with the number of updates done. An array may be traced, as ``optax.inject_hyperparams``
        makes it; it is clipped to [0, 1] (NaN, which cannot be refused there, masks nothing) and
        read as the shortest decimal that its dtype rounds to it, of at most seven places. With
        bfloat16 parameters ``optax.inject_hyperparams`` makes bfloat16 of it, which has no 0.995
        but only 0.996: give it ``hyperparam_dtype=jnp.float32``. A mapping gives different ratios
        by path: of its keys, regular expressions, the first that is found in the path of a leaf
        applies: ``{"embed|norm": 0.0, "attention": 0.5, ".*": 0.2}``.
      scope: ``"tensor"``: each tensor has its own threshold. ``"global"``: the whole tree has one
        threshold, with :math:`n` and :math:`m` counted over all entries together, in any dtypes.
      tolerance: how far, as a fraction of :math:`n`, the number of masked entries may fall short
        of :math:`m`, in [0, 1]. With 0, the default, the mask is exact. With 0.001 the search
        reads the gradient about half as often, and :math:`T` is a number
        between entries rather than one of them. It may be an array, as from
        ``optax.inject_hyperparams``: at 0 the mask is exact then too.
      stacked_axes: the axis of a leaf that indexes separate tensors, each with its own threshold,
        such as layers stacked for ``jax.lax.scan``; wherever it stands, as ``in_axes`` of
        ``jax.vmap``: 0 for the first, or a tuple of several, or None for a leaf that is one tensor.
        For all leaves, as a tree prefix (a tuple of integers is then the axes of one leaf), or as a
        function of a leaf's key path, as passed by ``jax.tree_util.tree_map_with_path``. Under
        ``optax.inject_hyperparams`` name it in ``static_args``.

    Returns:
      The transformation, for gradients of any float or complex dtype. Its state is a
      ``GmtMaskState``, whose fields ``optax.tree.get(opt_state, "masked_fraction")`` reads, also
      from the state of a chain.

    Raises:
      ValueError: if ``mask_ratio`` or ``tolerance`` is outside [0, 1], if ``scope`` is unknown, or
        global although tensors are given separate ratios or stacked axes, or if a key of
        ``mask_ratio`` is no regular expression; and when first given the parameters or gradients,
        if ``stacked_axes`` does not fit them, or no key is found in a path.
      TypeError: when first given a leaf that is neither float nor complex.

    Inside ``jax.shard_map``, a leaf that varies over mesh axes is one shard of its tensor: the mask
    is that of the whole tensor. Derivatives through the update are those under a
    constant mask.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import gmt_mask
      >>> optimizer = optax.chain(gmt_mask(0.4), optax.sgd(1.0))
      >>> params = jnp.zeros(5)
      >>> state = optimizer.init(params)
      >>> gradient = jnp.array([3.0, -1.0, 2.0, -5.0, 4.0])
      >>> updates, state = optimizer.update(gradient, state, params)
      >>> print(updates)
      [-3. -0. -0.  5. -4.]
      >>> print(optax.tree.get(state, "threshold"), optax.tree.get(state, "masked_fraction"))
      [3.] 0.4

    References:
      Li et al., `Gradient-Mask Tuning Elevates the Upper Limits of LLM Performance
      <https://arxiv.org/abs/2406.15330>`_, 2024. The paper keeps ties; that each tensor
      has its own threshold is this library's choice.
    """
    largest = LargestScores(mask_ratio, scope, tolerance, stacked_axes)

    def update_fn(
        updates: optax.Updates,
        state: PyTree,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GmtMaskState]:
        del params, extra_args
        mask, state = largest.select(updates, state)
        return jax.tree.map(apply_mask, updates, mask), state

    return optax.GradientTransformationExtraArgs(largest.init, update_fn)
