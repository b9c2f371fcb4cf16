"""gmt_mask: Gradient-Mask Tuning as an optax transformation."""

from typing import Any

import jax
import optax

from gmt_jax.selection import GmtMaskState, MaskRatio, NumStackedAxes, Smallest, apply_mask

__all__ = ["GmtMaskState", "gmt_mask"]


def gmt_mask(
    mask_ratio: MaskRatio,
    *,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    num_stacked_axes: NumStackedAxes = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Zeroes the gradient entries with the smallest magnitude.

    For a tensor whose gradient :math:`g` has :math:`n` entries,

    .. math::
      m = \lfloor \text{mask\_ratio} \cdot n \rfloor, \qquad
      T = m\text{-th smallest of } |g| \text{ counting from } 0, \qquad
      \tilde g_i = g_i \text{ if } |g_i| \ge T \text{ else } 0.

    Ties with the threshold are kept, so that at most :math:`m` entries are masked. A ratio of 0
    changes no bit, a ratio of 1 zeroes everything. NaN counts as larger than infinity: below a
    ratio of 1 it is kept, to be seen by what comes after. Of a complex entry :math:`|g|` is the
    modulus, as ``jnp.abs`` gives it.

    The threshold is exact and found by counting: a gradient sharded over a mesh is neither
    gathered nor sorted, its devices exchange a few integers and a small sample.

    What follows in the chain sees the masked gradient. Under SGD a masked weight stays where it
    is; under AdamW it still moves a little, by its older momentum and by decoupled weight decay.
    Clip before the mask, so that the norm is the full gradient's:
    ``optax.chain(optax.clip_by_global_norm(1.0), gmt_mask(0.2), optax.adamw(1e-5))``.

    Args:
      mask_ratio: the fraction that is MASKED (not the fraction that is kept), in [0, 1].
        A number is read as the decimal that it prints as: 0.29 of 100 is 29. A schedule is called
        with the number of updates done. An array may be traced, as ``optax.inject_hyperparams``
        makes it; it is clipped to [0, 1] and rounded to the decimal places that its dtype tells
        apart: 7 for float32, 3 for float16, 2 for bfloat16. Different ratios by path are a mapping
        of regular expressions, of which the first that is found in a leaf's path counts:
        ``{"embed|norm": 0.0, "attention": 0.5, ".*": 0.2}``.
      scope: ``"tensor"``: each tensor has a threshold of its own. ``"global"``: one for the whole
        tree, with :math:`n` and :math:`m` those of all its entries together, in any dtypes.
      tolerance: how far, as a fraction of :math:`n`, the number of masked entries may fall short
        of :math:`m`, in [0, 1]. With 0, the default, the mask is exact. With 0.001 the search
        reads the gradient two or three times instead of about six, and :math:`T` is a number
        between entries rather than one of them. It may be an array, as from
        ``optax.inject_hyperparams``: at 0 the mask is exact then too.
      num_stacked_axes: how many leading axes of a leaf index separate tensors, each with a
        threshold of its own, as in layers stacked for ``jax.lax.scan``. An int for all leaves,
        a tree prefix of ints, or a function of a leaf's key path, as
        ``jax.tree_util.tree_map_with_path`` gives it; by default 0. Under
        ``optax.inject_hyperparams`` name it in ``static_args``.

    Returns:
      The transformation, for gradients of any float or complex dtype. Its state is a
      ``GmtMaskState``, whose fields ``optax.tree.get(opt_state, "masked_fraction")`` reads from
      the state of a chain.

    Raises:
      ValueError: if ``mask_ratio`` or ``tolerance`` is outside [0, 1], if ``scope`` is unknown, or
        global for tensors that are to be told apart; at the first sight of the parameters or
        gradients, if ``num_stacked_axes`` does not fit them.
      TypeError: at the first sight of a leaf that is neither float nor complex.

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
      3.0 0.4

    References:
      Li et al., `Gradient-Mask Tuning Elevates the Upper Limits of LLM Performance
      <https://arxiv.org/abs/2406.15330>`_, 2024. That ties are kept is the paper's; that each
      tensor has its own threshold is this library's choice.
    """
    rule = Smallest(mask_ratio, scope, tolerance, num_stacked_axes)

    def update_fn(
        updates: optax.Updates,
        state: GmtMaskState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GmtMaskState]:
        del params, extra_args
        kept, state = rule.select(updates, state)
        return jax.tree.map(apply_mask, updates, kept), state

    return optax.GradientTransformationExtraArgs(rule.init, update_fn)
