"""The optimizer of a run: clipping, the mask and the optimizer by name, from the config."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax

from gmt_jax.report import without_choice

from .config.optimizer import OptimizerSection
from .model import LoraParams, stacked_axes

P = ParamSpec("P")
R = TypeVar("R")


def make_schedule(config: OptimizerSection, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates done, of `steps` in all."""
    return _standard_promotion(config.build_schedule(steps))


def make_optimizer(
    config: OptimizerSection, steps: int, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer: the gradient's norm is clipped, then the weights move under the mask.

    Under `compact` it is an optimizer of the chosen entries, whose gradient's norm is clipped.

    Args:
      steps: updates of the whole run.
      seed: seed of the masks that are drawn at random.
    """
    given = {
        "mask": _are_matrices,
        "weight_decay_mask": _are_matrices,
        "muon_weight_dimension_numbers": _matrices_in_layers,
    }
    inner = optax.with_extra_args_support(config.build(make_schedule(config, steps), given))
    inner = optax.GradientTransformationExtraArgs(inner.init, _standard_promotion(inner.update))
    mask, max_norm = config.mask, config.clip_norm
    if mask.is_compact:  # It sees the chosen entries alone, and needs no mask.
        return _after_mask(inner, max_norm)
    if mask.shows_kept:
        inner = _after_mask(inner, max_norm if mask.lasts else None)
    masked = mask.build(inner, steps, key=seed, stacked_axes=stacked_axes)
    return masked if mask.shows_kept and mask.lasts else _before_mask(masked, max_norm)


def on_factors(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of `LoraParams`, of which `inner` sees the factors alone."""

    def init(params: Any) -> optax.OptState:
        # optax.tree.map_params gives a stand-in for the parameters.
        return inner.init(params.values if isinstance(params, LoraParams) else params)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        return inner.update(updates, state, params.values, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


class KeptState(NamedTuple):
    """State of an optimizer that sees what a mask keeps of the gradient.

    Attributes:
      inner_state: the state of the optimizer.
      kept_grad_norm: float32 scalar: the norm of what was kept, before it was clipped.
    """

    inner_state: optax.OptState
    kept_grad_norm: jax.Array


def _before_mask(
    masked: optax.GradientTransformationExtraArgs, max_norm: float | None
) -> optax.GradientTransformationExtraArgs:
    """Clips the whole gradient. The mask takes nothing from the norm, as the paper has it."""
    if max_norm is None:
        return masked
    clip = optax.clip_by_global_norm(max_norm)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        scale = jnp.minimum(1.0, max_norm / optax.tree.norm(updates))
        updates, _ = clip.update(updates, optax.EmptyState())
        return masked.update(updates, state, params, clip_scale=scale, **extra_args)

    return optax.GradientTransformationExtraArgs(masked.init, update)


def _after_mask(
    inner: optax.GradientTransformationExtraArgs, max_norm: float | None
) -> optax.GradientTransformationExtraArgs:
    """Records the norm of what a mask keeps, and clips it.

    Where a mask lasts, the norm of gradients that are never used would make the updates of the
    others too small.
    """
    clip = optax.identity() if max_norm is None else optax.clip_by_global_norm(max_norm)

    def init(params: optax.Params) -> KeptState:
        return KeptState(inner.init(params), jnp.zeros((), jnp.float32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        clip_scale: jax.Array | float = 1.0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, KeptState]:
        norm = jnp.asarray(optax.tree.norm(updates) / clip_scale, jnp.float32)
        updates, _ = clip.update(updates, optax.EmptyState())
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        return updates, KeptState(inner_state, norm)

    return optax.GradientTransformationExtraArgs(init, update)


def _matrices_in_layers(params: optax.Params) -> optax.Params:
    """What Muon orthogonalises: each layer's matrices [out, in]; it moves the rest as Adam does."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: matrix if stacked_axes(path) == 0 and leaf.ndim == 3 else None, params
    )


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
    if not config.mask.lasts or threshold is None or threshold.size == 1:
        return None
    counts = without_choice(opt_state, params, stacked_axes)
    if not counts:
        return None
    names = ", ".join(list(counts)[:3]) + (", …" if len(counts) > 3 else "")
    return (
        f"mask: {sum(counts.values())} tensors ({names}) had fewer entries with a score than the "
        "mask keeps; the others were taken by position. A mask_ratio nearer to 1 keeps fewer."
    )
