"""Gradient-Mask Tuning (GMT) as an optax transformation.

At every update, the fraction `mask_ratio` of each tensor's gradient entries with the smallest
magnitude is set to zero, and the optimizer sees only the rest:

    import optax
    from gmt_jax import gmt_mask

    optimizer = optax.chain(gmt_mask(0.2), optax.adamw(1e-5))

The threshold is exact on any mesh: it is found by counting, so that a sharded gradient is neither
gathered nor sorted. From Li et al., https://arxiv.org/abs/2406.15330.
"""

from gmt_jax.mask import GmtMaskState, gmt_mask
from gmt_jax.merge import dare, interpolate
from gmt_jax.structured import hft, lisa

__all__ = ["GmtMaskState", "dare", "gmt_mask", "hft", "interpolate", "lisa"]
__version__ = "0.1.0"
