"""The named methods: an optimizer under a mask, and what the mask leaves out keeps its bits.

Most are a score and a time at which a mask is selected: they take the options of `by_score` by
keyword and pass them on. `hft` and `lisa` take those of `train_only`.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypedDict, TypeVar, Unpack, cast

import jax
import optax

from gmt_jax.param_roles import ROLES
from gmt_jax.selective import by_score, train_only
from gmt_jax.structured import hft_schedule, lisa_schedule
from gmt_jax.types import Key, MaskRatio, MaskSchedule, StackedAxes

Inner: TypeAlias = optax.GradientTransformation
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
Method = TypeVar("Method", bound=Callable[..., Optimizer])


class ScheduleOptions(TypedDict, total=False):
    """Options of `train_only`."""

    stacked_axes: StackedAxes
    apply_to: str
    report: bool


class MaskOptions(ScheduleOptions, total=False):
    """Options of `by_score` other than the score, the key and the times of a mask."""

    scope: str
    tolerance: float | jax.Array


class WarmupOptions(MaskOptions, total=False):
    """Options of `by_score` with a warm-up."""

    warmup: int


class TimedOptions(WarmupOptions, total=False):
    """Options of `by_score` with the times of a mask."""

    every: int | None


class FisherOptions(MaskOptions, total=False):
    """Options of `fisher`, whose warm-up is an argument."""

    every: int | None


def _listing(options: type, **defaults: Any) -> Callable[[Method], Method]:
    """Lists the options in a method's signature, by which `optax.inject_hyperparams` calls it."""
    of_score = inspect.signature(by_score).parameters
    listed = [of_score[name] for name in options.__annotations__]
    listed = [p.replace(default=defaults.get(p.name, p.default)) for p in listed]

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def with_defaults(*args: Any, **options: Any) -> Optimizer:
            return method(*args, **defaults | options)

        *own, _ = (shown := inspect.signature(method)).parameters.values()
        vars(with_defaults)["__signature__"] = shown.replace(parameters=[*own, *listed])
        return cast("Method", with_defaults)

    return decorate


@_listing(TimedOptions)
def random_mask(
    inner: Inner, mask_ratio: MaskRatio, key: Key, **options: Unpack[TimedOptions]
) -> Optimizer:
    """Random mask tuning: a uniformly random part of each tensor, drawn again for every update.

    The arguments are those of `by_score`, whose other options are taken by keyword.

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


@_listing(WarmupOptions)
def one_off(inner: Inner, mask_ratio: MaskRatio, **options: Unpack[WarmupOptions]) -> Optimizer:
    """SIFT: the entries with the largest gradients at the first update, from then on.

    The tuned weights are the base and a few changed entries, which `gmt_jax.delta` stores.

    The arguments are those of `by_score`, whose other options are taken by keyword.

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


@_listing(WarmupOptions)
def every_few(
    inner: Inner, mask_ratio: MaskRatio, every: int, **options: Unpack[WarmupOptions]
) -> Optimizer:
    """GASDU: the entries with the largest gradients at every `every`-th update, until the next.

    The arguments are those of `by_score`, whose other options are taken by keyword.

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


@_listing(TimedOptions, every=None)
def gradient_to_weight(
    inner: Inner, mask_ratio: MaskRatio, **options: Unpack[TimedOptions]
) -> Optimizer:
    """The score of GEM: the entries with the largest |g| / |w| at the first update, from then on.

    The weights are those before training; with ``every=1`` the mask follows gradient and weights.

    The arguments are those of `by_score`, whose other options are taken by keyword.

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
      `GEM <https://arxiv.org/abs/2508.16191>`_, 2025. Only its score is taken over.
    """
    return by_score(inner, mask_ratio, score="gradient_to_weight", **options)


@_listing(TimedOptions, every=None)
def magnitude(inner: Inner, mask_ratio: MaskRatio, **options: Unpack[TimedOptions]) -> Optimizer:
    """The entries with the largest weights |w| before the first update, from then on.

    The arguments are those of `by_score`, whose other options are taken by keyword.

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
    return by_score(inner, mask_ratio, score="weight", **options)


@_listing(FisherOptions, every=None, scope="global")
def fisher(
    inner: Inner, mask_ratio: MaskRatio, warmup: int, **options: Unpack[FisherOptions]
) -> Optimizer:
    """FISH mask: the entries with the largest sums of |g|² over the first `warmup` + 1 updates.

    All tensors share one threshold. The first `warmup` updates move nothing. The paper sums over
    examples, this over updates: the two are the same where an update has one example.

    The arguments are those of `by_score`, whose other options are taken by keyword.

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
    return by_score(inner, mask_ratio, score="fisher", warmup=warmup, **options)


@_listing(ScheduleOptions)
def hft(
    inner: Inner,
    key: Key,
    every: int,
    *,
    roles: Mapping[str, str] = ROLES,
    layer_axis: int = 0,
    **options: Unpack[ScheduleOptions],
) -> Optimizer:
    """Half Fine-Tuning: half of the matrices of each layer, drawn again every `every` updates.

    The half is that of `gmt_jax.structured.hft_schedule`, whose arguments these are; it raises
    ValueError for parameters whose role it does not know. The options of `train_only` are taken by
    keyword.

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

    def schedule(params: optax.Params) -> MaskSchedule:
        return hft_schedule(params, key, every, roles=roles, layer_axis=layer_axis)

    return train_only(inner, schedule, **options)


@_listing(ScheduleOptions)
def lisa(
    inner: Inner,
    num_layers: int,
    key: Key,
    every: int,
    *,
    roles: Mapping[str, str] = ROLES,
    layer_axis: int = 0,
    **options: Unpack[ScheduleOptions],
) -> Optimizer:
    """LISA: `num_layers` random layers, drawn again every `every` updates, and what is in no layer.

    The arguments are those of `gmt_jax.structured.lisa_schedule`; the options of `train_only` are
    taken by keyword.

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

    def schedule(params: optax.Params) -> MaskSchedule:
        return lisa_schedule(params, num_layers, key, every, roles=roles, layer_axis=layer_axis)

    return train_only(inner, schedule, **options)
