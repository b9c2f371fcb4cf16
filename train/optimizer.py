"""Clip → mask → AdamW, from the config."""

from typing import Any

import jax
import optax

from .config.optimizer import OptimizerSection
from .model import num_stacked_axes


def make_schedule(config: OptimizerSection, steps: int) -> optax.Schedule:
    """The learning rate of each of `steps` updates.

    It rises linearly over the warm-up, whose last update has the peak (no update is spent at a
    rate of zero), then falls to `min_lr_ratio` of it.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    decay = max(steps - warmup, 1)
    after: optax.Schedule
    if config.lr_schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay, config.min_lr_ratio)
    elif config.lr_schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.min_lr_ratio, decay)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimizerSection, steps: int, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """The gradient's way to the update: its norm is clipped, then it is masked, then AdamW."""
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.mu_dtype,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    masked = config.mask.build(adamw, steps, key=seed, num_stacked_axes=num_stacked_axes)
    if config.clip_norm is None:
        return masked
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), masked)


def _is_matrix(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim - num_stacked_axes(path) >= 2, params
    )
