"""Clip → mask → AdamW, from the config."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from gmt_jax import (
    every_few,
    fisher,
    gmt,
    gradient_to_weight,
    magnitude,
    one_off,
    random_mask,
    train_only,
)
from gmt_jax.structured import hft_choice, lisa_choice

from .config.optimizer import MaskSection, OptimizerSection
from .errors import UserError
from .model import is_stacked


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
    masked = _mask(config.mask, adamw, steps, seed)
    if config.clip_norm is None:
        return masked
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), masked)


BY_SCORE: dict[str, Callable[..., Any]] = {
    "gmt_mask": partial(gmt, place="gradient"),
    "gmt": gmt,
    "random_mask": random_mask,
    "one_off": one_off,
    "every_few": every_few,
    "gradient_to_weight": gradient_to_weight,
    "magnitude": magnitude,
    "fisher": fisher,
}


def _mask(mask: MaskSection, inner: Any, steps: int, seed: int) -> Any:
    """The optimizer `inner` under the mask."""
    if mask.kind == "none":
        return inner
    if mask.kind in ("hft", "lisa"):
        choice = partial(_choice, mask, seed)
        return train_only(inner, choice, stacked=is_stacked, report=mask.report)
    ratio: Any = mask.mask_ratio
    if mask.final_mask_ratio is not None:
        ratio = optax.linear_schedule(mask.mask_ratio, mask.final_mask_ratio, max(steps - 1, 1))
    if mask.mask_ratios:
        ratio = mask.mask_ratios | {".*": ratio}
    said = mask.model_dump(
        include={"scope", "tolerance", "every", "warmup", "report"}, exclude_none=True
    )
    if not mask.is_global:
        said["stacked"] = is_stacked
    if mask.kind == "random_mask":
        said["seed"] = seed
    return BY_SCORE[mask.kind](inner, ratio, **said)


def _choice(mask: MaskSection, seed: int, params: Any) -> Any:
    every = mask.every or 1  # There is one: the section's validator sees to it.
    try:
        if mask.kind == "hft":
            return hft_choice(params, seed, every)
        return lisa_choice(params, mask.num_layers or 1, seed, every)
    except ValueError as error:
        raise UserError(f"optimizer.mask: {error}") from None


def _is_matrix(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim - is_stacked(path) >= 2, params
    )
