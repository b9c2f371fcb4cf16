"""The optimizer of a run: clipping, the mask and AdamW, from the config."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import optax

from gmt_jax.report import without_choice

from .config.optimizer import OptimizerSection
from .model import stacked_axes

P = ParamSpec("P")
R = TypeVar("R")
# Kinds of masks that stay, so that a position that was chosen by chance stays too.
LASTING = ("one_off", "every_few", "gradient_to_weight", "magnitude", "fisher")


def make_schedule(config: OptimizerSection, steps: int) -> optax.Schedule:
    r"""Returns the learning rate as a function of the number of updates done, of `steps` in all.

    With a warm-up of W updates it rises linearly, :math:`\eta_t = \eta (t + 1) / W` for t < W: no
    update is spent at a rate of zero, and the warm-up's last has the peak. Then it falls towards
    `min_lr_ratio` of the peak, which it would reach one update after the last.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    decay = max(steps - warmup, 1)
    after_warmup: optax.Schedule
    if config.lr_schedule == "cosine":
        after_warmup = optax.cosine_decay_schedule(peak, decay, config.min_lr_ratio)
    elif config.lr_schedule == "linear":
        after_warmup = optax.linear_schedule(peak, peak * config.min_lr_ratio, decay)
    else:
        after_warmup = optax.constant_schedule(peak)
    if not warmup:
        return _standard_promotion(after_warmup)
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return _standard_promotion(optax.join_schedules([rise, after_warmup], [warmup]))


def make_optimizer(
    config: OptimizerSection, steps: int, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer: the gradient's norm is clipped, then AdamW updates under the mask.

    Args:
      steps: updates of the whole run.
      seed: seed of the masks that are drawn at random.
    """
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        mu_dtype=config.mu_dtype,
        weight_decay=config.weight_decay,
        mask=_are_matrices,
    )
    adamw = optax.GradientTransformationExtraArgs(adamw.init, _standard_promotion(adamw.update))
    masked = config.mask.build(adamw, steps, key=seed, stacked_axes=stacked_axes)
    if config.clip_norm is None:
        return masked
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), masked)


def _are_matrices(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim - (stacked_axes(path) is not None) >= 2, params
    )


def _standard_promotion(function: Callable[P, R]) -> Callable[P, R]:
    """Lets optax mix integers and floats, as it does with counts, when promotion is strict."""

    @functools.wraps(function)
    def promoting(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return promoting


def undecided(config: OptimizerSection, opt_state: optax.OptState, params: Any) -> str | None:
    """A line that names the tensors in which a lasting mask kept entries without any score."""
    threshold = optax.tree.get(opt_state, "threshold")
    lasts = config.mask.kind in LASTING
    if not lasts or threshold is None or threshold.size == 1:
        return None
    counts = without_choice(opt_state, params, stacked_axes)
    if not counts:
        return None
    names = ", ".join(list(counts)[:3]) + (", …" if len(counts) > 3 else "")
    return (
        f"mask: {sum(counts.values())} tensors ({names}) had fewer entries with a score than the "
        "mask keeps; the others were taken by position. A mask_ratio nearer to 1 keeps fewer."
    )
