"""Gradient-Mask Tuning (GMT) as an optax transformation.

At every update, a fraction `mask_ratio` of each tensor's gradient entries, those with the smallest
magnitude, is set to zero before the optimizer sees the gradient:

    import optax
    from gmt_jax import gmt_mask

    optimizer = optax.chain(gmt_mask(0.2), optax.adamw(1e-5))

Old momentum and weight decay still move a masked weight. To leave it exactly where it is, wrap the
optimizer: `gmt(optax.adamw(1e-5), 0.2)`. The other methods wrap it in the same way.

The threshold is exact and found by counting, so that a sharded gradient is neither gathered nor
sorted. From Li et al., https://arxiv.org/abs/2406.15330.
"""

from gmt_jax.by_group import balanced
from gmt_jax.fixed import fixed_mask
from gmt_jax.mask import GmtMaskState, gmt_mask
from gmt_jax.merge import dare, interpolate
from gmt_jax.methods import (
    every_few,
    fisher,
    gradient_to_weight,
    hft,
    lisa,
    magnitude,
    one_off,
    random_mask,
)
from gmt_jax.momentum import mofo
from gmt_jax.report import MaskReport
from gmt_jax.selective import SelectiveState, by_score, gmt, train_only
from gmt_jax.skipping import magma, skip_update

__all__ = [
    "GmtMaskState",
    "MaskReport",
    "SelectiveState",
    "balanced",
    "by_score",
    "dare",
    "every_few",
    "fisher",
    "fixed_mask",
    "gmt",
    "gmt_mask",
    "gradient_to_weight",
    "hft",
    "interpolate",
    "lisa",
    "magma",
    "magnitude",
    "mofo",
    "one_off",
    "random_mask",
    "skip_update",
    "train_only",
]
__version__ = "0.1.0"
