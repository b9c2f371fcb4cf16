"""skip_update and magma: whole tensors are left out of an update at random."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.reductions import along
from gmt_jax._threshold.replication import mesh_of, replicate, shard_axes, shard_count
from gmt_jax.mask_ratio import axes_of, check_fraction
from gmt_jax.momentum import first_moment
from gmt_jax.selection import apply_mask, as_arrays
from gmt_jax.tree_paths import as_key, expression, first_found, path_key
from gmt_jax.types import Key, PyTree, StackedAxes, is_number

Inner: TypeAlias = optax.GradientTransformation
Optimizer: TypeAlias = optax.GradientTransformationExtraArgs
# One probability for all leaves, or a mapping of regular expressions searched in their paths.
SkipRatio: TypeAlias = float | jax.Array | Mapping[str, float | jax.Array]
_SKIP_RATIO = "skip_ratio is the probability that a tensor is not updated"


class SkipState(NamedTuple):
    """State of `skip_update` and `magma`.

    Attributes:
      inner_state: the state of the inner optimizer.
      count: int32 scalar: the number of updates done.
      masked_fraction: float32 scalar: the fraction of all entries that the latest update left out.
      alignment: float32 [tensors]: the running mean of how well momentum and gradient agree
        (`gmt_jax.report.by_leaf` makes a tree of it); None for `skip_update`.
    """

    inner_state: optax.OptState
    count: jax.Array  # type: ignore[assignment]  # tuple.count is a method
    masked_fraction: jax.Array
    alignment: PyTree


def skip_update(
    inner: Inner,
    key: Key,
    skip_ratio: SkipRatio = 0.5,
    *,
    stacked_axes: StackedAxes = None,
) -> Optimizer:
    r"""SkipUpdate: whole tensors are left out of an update at random, and the others move further.

    Each tensor b is updated with probability p = 1 - ``skip_ratio``, drawn anew at each update, and
    its update :math:`\Delta` divided by p, so that it is right on average:

    .. math::
      \theta^{(b)} \leftarrow \theta^{(b)} + \tfrac{1}{p} m^{(b)} \Delta^{(b)}, \qquad
      m^{(b)} \sim \text{Bernoulli}(p).

    The optimizer sees the whole gradient: its moments are those of plain training. A tensor that is
    left out keeps its bits. The paper draws the matrices of attention and feed-forward layers and
    updates the rest always: ``{"embed|head|norm": 0.0, ".*": 0.5}``.

    Args:
      inner: any optimizer; the paper's is RMSProp.
      key: the key of the draws, as from ``jax.random.key``, or an integer n for
        ``jax.random.key(n)``. They depend only on it, on the number of updates done and on the path
        of a leaf: they are the same on every sharding and after a restart.
      skip_ratio: the probability, in [0, 1), with which a tensor is left out; one for all, or by
        path: of a mapping's keys, regular expressions, the first that is found in a leaf's path
        applies. It may be an array, as from ``optax.inject_hyperparams``, whose value is not
        checked: NaN leaves every tensor out.
      stacked_axes: the axes of a leaf that index separate tensors, as in ``gmt_mask``.

    Returns:
      The optimizer, whose state is a ``SkipState``.

    Raises:
      ValueError: if ``skip_ratio`` is not in [0, 1); and when first given the parameters, if no
        pattern is found in a path, or as ``gmt_mask``.
      TypeError: as ``gmt_mask``.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import skip_update
      >>> optimizer = skip_update(optax.sgd(1.0), key=0, skip_ratio={"norm": 0.0, ".*": 0.5})
      >>> params = {"norm": jnp.zeros(2), "w": jnp.zeros(2)}
      >>> state = optimizer.init(params)
      >>> gradient = {"norm": jnp.ones(2), "w": jnp.ones(2)}
      >>> for _ in range(3):
      ...     updates, state = optimizer.update(gradient, state, params)
      ...     print(updates["norm"], updates["w"])
      [-1. -1.] [-0. -0.]
      [-1. -1.] [-2. -2.]
      [-1. -1.] [-2. -2.]

    References:
      Joo et al., `On Surprising Effectiveness of Masking Updates in Adaptive Optimizers
      <https://arxiv.org/abs/2602.15322>`_, 2026, section 2.
    """
    _check_skip_ratio(skip_ratio)
    return _skipping(inner, key, skip_ratio, stacked_axes, None)


def magma(
    inner: Inner,
    key: Key,
    skip_ratio: SkipRatio = 0.5,
    *,
    temperature: float = 2.0,
    stacked_axes: StackedAxes = None,
) -> Optimizer:
    r"""Magma: SkipUpdate, with each tensor's update scaled by how well momentum and gradient agree.

    For each tensor b, with the first moment :math:`\mu` after the update and the gradient g,

    .. math::
      s_t^{(b)} = 0.9\, s_{t-1}^{(b)}
        + 0.1\, \text{sigmoid}(\cos(\mu_t^{(b)}, g_t^{(b)}) / \tau), \qquad
      \theta^{(b)} \leftarrow \theta^{(b)} + s_t^{(b)} m^{(b)} \Delta^{(b)},

    and :math:`m^{(b)}` is 1 with probability 1 - ``skip_ratio``, else 0. Unlike with `skip_update`
    the update is not divided by that probability: by the paper's settings, it is about a quarter of
    the optimizer's on average, so that the learning rate may have to be larger.

    Tensors whose ``skip_ratio`` is 0 are updated as by ``inner`` alone.

    Two things are choices of this library: :math:`s_0`, which is 1/2, the value where momentum and
    gradient are orthogonal; and the cosine of a zero vector, which is 0.

    Args:
      inner: an optimizer with a first moment, as in `mofo`.
      key: as in `skip_update`.
      skip_ratio: as in `skip_update`.
      temperature: the temperature τ of the paper.
      stacked_axes: as in `skip_update`.

    Returns:
      The optimizer, whose state is a ``SkipState``.

    Raises:
      ValueError: as `skip_update`; if ``temperature`` is not positive; and at the first update, if
        ``inner`` has no first moment.
      TypeError: as `skip_update`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import magma
      >>> optimizer = magma(optax.sgd(1.0, momentum=0.9), key=0, skip_ratio=0.01)
      >>> params = jnp.zeros(2)
      >>> updates, _ = optimizer.update(jnp.ones(2), optimizer.init(params), params)
      >>> print(updates)  # 0.9 * 0.5 + 0.1 * sigmoid(1 / 2)
      [-0.5122459 -0.5122459]

    References:
      Joo et al., `On Surprising Effectiveness of Masking Updates in Adaptive Optimizers
      <https://arxiv.org/abs/2602.15322>`_, 2026, algorithm 1.
    """
    _check_skip_ratio(skip_ratio)
    if is_number(temperature) and not temperature > 0:
        raise ValueError(f"temperature is a positive number; got {temperature!r}")
    return _skipping(inner, key, skip_ratio, stacked_axes, temperature)


def _skipping(
    inner: Inner,
    key: Key,
    skip_ratio: SkipRatio,
    stacked_axes: StackedAxes,
    temperature: float | None,
) -> Optimizer:
    """`magma`, or without a temperature `skip_update`."""
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> SkipState:
        params = as_arrays(params)
        flat, layout = _flat(params, stacked_axes)
        for path, _ in flat:
            _ratio_of(skip_ratio, path)  # Refuses a path without one before anything is trained.
        alignment = jnp.full(layout.num_tensors, 0.5, jnp.float32)
        return SkipState(
            inner.init(params),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.float32),
            None if temperature is None else alignment,
        )

    def update(
        updates: optax.Updates,
        state: PyTree,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SkipState]:
        grads, params = as_arrays((updates, params))
        updates, inner_state = inner.update(grads, state.inner_state, params, **extra_args)
        flat, layout = _flat(updates, stacked_axes)
        alignment: jax.Array | None = state.alignment
        scales: list[Any] = [None] * len(flat)
        if temperature is not None and flat:
            moments = first_moment(inner_state, grads)
            parts = zip(*map(jax.tree.leaves, (grads, moments)), layout.stacked_axes, strict=True)
            each = replicate([_cosine(*part) for part in parts], mesh_of([u for _, u in flat]))
            cosines = jnp.concatenate([jnp.ravel(part) for part in each])
            alignment = 0.9 * state.alignment + 0.1 * jax.nn.sigmoid(cosines / temperature)
            scales = layout.split(alignment)
        draw = jax.random.fold_in(as_key(key), state.count)
        made, masked = [], jnp.float32(0)
        for (path, u), scale, axes in zip(flat, scales, layout.stacked_axes, strict=True):
            ratio = _ratio_of(skip_ratio, path)
            if not u.size or (_is_known(ratio) and ratio == 0):
                made.append(u)
                continue
            stack = tuple(u.shape[axis] for axis in axes)
            # In float32, so that a ratio of any dtype draws the same.
            kept = jax.random.bernoulli(path_key(path, draw), jnp.float32(1 - ratio), stack)
            factor = 1 / (1 - ratio) if scale is None else jnp.where(ratio == 0, 1, scale)
            scaled = u * along(jnp.broadcast_to(factor, stack), u.ndim, axes).astype(u.dtype)
            made.append(apply_mask(scaled, along(kept, u.ndim, axes), -0.0))
            share = u.size * shard_count(u) / layout.entries
            masked += (1 - jnp.mean(kept, dtype=jnp.float32)) * share
        count = jnp.asarray(optax.safe_increment(state.count))
        made = jax.tree.unflatten(jax.tree.structure(updates), made)
        return made, SkipState(inner_state, count, masked, alignment)

    return optax.GradientTransformationExtraArgs(init, update)


def _flat(
    tree: PyTree, stacked_axes: StackedAxes
) -> tuple[list[tuple[KeyPath, Any]], TensorLayout]:
    """The leaves with their paths, and how they are divided into tensors."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    axes = tuple(axes_of(stacked_axes, path, leaf) for path, leaf in flat)
    shapes = tuple(tuple(leaf.shape) for _, leaf in flat)
    return flat, TensorLayout(shapes, axes, num_shards=tuple(shard_count(u) for _, u in flat))


def _cosine(g: jax.Array, moment: jax.Array, stacked_axes: tuple[int, ...]) -> jax.Array:
    """The cosine of gradient and moment of each tensor, [*stack]; 0 where one of them is zero."""
    over = tuple(axis for axis in range(g.ndim) if axis not in stacked_axes)
    shards = shard_axes(g)

    def total(x: jax.Array) -> jax.Array:
        x = jnp.sum(x, over)
        return lax.psum(x, shards) if shards else x

    a, b = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (g, moment))
    cosine = total((a * jnp.conj(b)).real)
    for x in (a, b):  # One after the other: the product of both squares has twice the exponent.
        norm = jnp.sqrt(total(jnp.square(jnp.abs(x))))
        cosine /= jnp.where(norm > 0, norm, 1)
    return cosine.astype(jnp.float32)


def _is_known(ratio: float | jax.Array) -> bool:
    """Whether this is a number, not an array, which may be traced."""
    return not isinstance(ratio, jax.Array)


def _check_skip_ratio(skip_ratio: SkipRatio) -> None:
    by_pattern = skip_ratio if isinstance(skip_ratio, Mapping) else {"": skip_ratio}
    for pattern, ratio in by_pattern.items():
        expression("skip_ratio", pattern)
        check_fraction(_SKIP_RATIO, ratio)
        if _is_known(ratio) and ratio == 1:
            raise ValueError(f"{_SKIP_RATIO}; with 1 nothing would be trained")


def _ratio_of(skip_ratio: SkipRatio, path: KeyPath) -> float | jax.Array:
    by_pattern = skip_ratio if isinstance(skip_ratio, Mapping) else {"": skip_ratio}
    ratio = first_found("skip_ratio", by_pattern, path)
    return float(ratio) if _is_known(ratio) else ratio
