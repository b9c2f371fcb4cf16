"""gmt_mask: Gradient-Mask Tuning as an optax transformation."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmt_jax import threshold
from gmt_jax.threshold import Count

Path = tuple[Any, ...]  # jax's key path of a leaf
Stacked = int | Callable[[Path], int] | Any  # or a tree prefix of ints


class GmtMaskState(NamedTuple):
    """State of `gmt_mask`; its shapes, dtypes and shardings do not change between updates."""

    count: jax.Array  # int32 scalar: updates done
    threshold: Any  # per leaf the latest T, in the dtype of |g|, shaped as the leaf's stack
    masked_fraction: jax.Array  # float32 scalar: entries masked by the latest update, of all


def gmt_mask(
    mask_ratio: float | jax.Array | optax.Schedule, *, stacked: Stacked = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Zeroes the gradient entries with the smallest magnitude, tensor by tensor.

    ``mask_ratio`` is the fraction that is *masked*, not the fraction that is kept. For a tensor
    with gradient :math:`g` of :math:`n` entries,

    .. math::
      m = \lfloor \text{mask\_ratio} \cdot n \rfloor, \qquad
      T = m\text{-th smallest of } |g| \text{ counting from } 0, \qquad
      \tilde g_i = g_i \text{ if } |g_i| \ge T \text{ else } 0.

    Ties with the threshold are kept, so at most :math:`m` entries are masked. A ratio of 0
    changes no bit, a ratio of 1 zeroes everything. NaN counts as larger than infinity: below a
    ratio of 1 it is kept, to be seen by what comes after. :math:`|g|` of a complex entry is its
    modulus.

    The search is exact and by counting alone: on a gradient sharded over a mesh it gathers and
    sorts nothing, and each device exchanges a few integers.

    The optimizer that follows sees the masked gradient. Under AdamW a masked weight still moves a
    little, by its older momentum and by weight decay; under SGD it stays where it is. Clip before
    the mask: ``optax.chain(optax.clip_by_global_norm(1.0), gmt_mask(0.2), optax.adamw(1e-5))``.

    Args:
      mask_ratio: in [0, 1]. A number is read as the decimal its author wrote: 0.29 of 100 is 29.
        Or a schedule, called with the number of updates done; or an array, also a traced one, as
        ``optax.inject_hyperparams(gmt_mask)(mask_ratio=0.2)`` makes it. Those two are read to the
        decimals that their dtype holds, at most six, and clipped to [0, 1].
      stacked: how many leading axes of a leaf index separate tensors, each of which gets its own
        threshold, as for layers stacked for ``jax.lax.scan``. One number for all leaves, a tree
        prefix of numbers, or a function of the leaf's key path.

    Returns:
      The transformation. Its state is a ``GmtMaskState``, of which each field can be read with
      ``optax.tree.get(opt_state, "masked_fraction")``.

    Raises:
      ValueError: for a number outside [0, 1], or more stacked axes than a leaf has.
      TypeError: at the update, for a leaf that is not floating-point or complex, with its path.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import gmt_mask
      >>> optimizer = optax.chain(gmt_mask(0.4), optax.sgd(1.0))
      >>> params = jnp.zeros(5)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.array([3.0, -1.0, 2.0, -5.0, 4.0]), state, params)
      >>> updates
      Array([-3.,  0.,  0.,  5., -4.], dtype=float32)

    References:
      Li et al., `Gradient-Mask Tuning Elevates the Upper Limits of LLM Performance
      <https://arxiv.org/abs/2406.15330>`_, 2024. The ≥ of the selection is the paper's; that the
      threshold is a tensor's own is a choice of this library.
    """
    _check_ratio(mask_ratio)

    def init_fn(params: optax.Params) -> GmtMaskState:
        def one(path: Path, leaf: Any, axes: int) -> jax.Array:
            return threshold.stack_zeros(
                leaf, _checked_axes(path, leaf, axes), threshold.real_dtype(leaf.dtype)
            )

        thresholds = jax.tree_util.tree_map_with_path(one, params, _stack_tree(stacked, params))
        return GmtMaskState(jnp.zeros((), jnp.int32), thresholds, jnp.zeros((), jnp.float32))

    def update_fn(
        updates: optax.Updates,
        state: GmtMaskState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GmtMaskState]:
        del params, extra_args
        ratio = mask_ratio(state.count) if callable(mask_ratio) else mask_ratio
        flat, treedef = jax.tree_util.tree_flatten_with_path(updates)
        axes = jax.tree.leaves(_stack_tree(stacked, updates))
        for (path, leaf), number in zip(flat, axes, strict=True):
            _check_leaf(path, leaf)
            _checked_axes(path, leaf, number)
        masked, thresholds, fraction = _mask_leaves([leaf for _, leaf in flat], ratio, axes)
        return treedef.unflatten(masked), GmtMaskState(
            optax.safe_increment(state.count), treedef.unflatten(thresholds), fraction
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _mask_leaves(
    leaves: list[jax.Array], ratio: Any, axes: list[int]
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """Masked leaves, their thresholds, and the masked fraction of all entries."""
    full = [at for at, leaf in enumerate(leaves) if leaf.size]
    ranks = [_rank(ratio, threshold.tensor_size(leaves[at].shape, axes[at])) for at in full]
    found = threshold.select([leaves[at] for at in full], ranks, tuple(axes[at] for at in full))
    masked = list(leaves)
    thresholds = [
        threshold.stack_zeros(leaf, number, threshold.real_dtype(leaf.dtype))
        for leaf, number in zip(leaves, axes, strict=True)
    ]
    below = jnp.zeros((), jnp.float32)
    for at, selected in zip(full, found, strict=True):
        leaf = leaves[at]
        inner = tuple(range(axes[at], leaf.ndim))
        drop = threshold.magnitude_bits(leaf) < jnp.expand_dims(selected.bits, inner)
        masked[at] = jnp.where(drop, jnp.zeros((), leaf.dtype), leaf)
        thresholds[at] = threshold.magnitude(selected.bits, threshold.real_dtype(leaf.dtype))
        below += jnp.sum(threshold.as_float(selected.below))
    entries = sum(leaf.size for leaf in leaves)
    return masked, thresholds, below / max(entries, 1)


def _check_ratio(ratio: Any) -> None:
    if callable(ratio) or isinstance(ratio, jax.core.Tracer):
        return
    if jnp.ndim(ratio) != 0 or isinstance(ratio, bool) or not 0 <= ratio <= 1:
        raise ValueError(
            f"mask_ratio is the fraction of gradient entries to mask, a number in [0, 1]; "
            f"got {ratio!r}"
        )


def _rank(ratio: Any, size: int) -> Count:
    """m = ⌊ratio · size⌋, with the ratio read as a decimal."""
    if isinstance(ratio, (int, float, np.floating, np.integer)):
        return threshold.count_of(int(Fraction(str(ratio)) * size))
    ratio = jnp.asarray(ratio)
    # A float32 0.29 is not 0.29, but rounds to it at the six decimals that float32 holds.
    decimals = min(jnp.finfo(ratio.dtype).precision, 6) if ratio.dtype.kind != "i" else 0
    units = jnp.round(jnp.clip(ratio, 0, 1).astype(jnp.float32) * 10**decimals)
    return threshold.share_of(units.astype(jnp.int32) * 10 ** (6 - decimals), size)


def _stack_tree(stacked: Stacked, tree: Any) -> Any:
    """The number of stacked axes of every leaf, as a tree like the given one."""
    if callable(stacked):
        return jax.tree_util.tree_map_with_path(lambda path, _: stacked(path), tree)
    return jax.tree.map(lambda axes, part: jax.tree.map(lambda _: axes, part), stacked, tree)


def _check_leaf(path: Path, leaf: Any) -> None:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise TypeError(
            f"gmt_mask takes floating-point or complex gradients, but {_name(path)} is "
            f"{leaf.dtype}; leave it out with optax.masked or optax.partition"
        )


def _checked_axes(path: Path, leaf: Any, axes: int) -> int:
    if not 0 <= axes <= len(leaf.shape):
        raise ValueError(
            f"stacked says {axes} leading axes for {_name(path)}, which has shape {leaf.shape}"
        )
    return axes


def _name(path: Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the gradient"
