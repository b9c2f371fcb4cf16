"""gmt_mask: Gradient-Mask Tuning as an optax transformation."""

import numbers
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax.bits import magnitude, magnitude_bits
from gmt_jax.replicate import mesh_of, replicate
from gmt_jax.rows import Layout, key_dtypes
from gmt_jax.threshold import select
from gmt_jax.wide import Wide, share, wide

# An int for all leaves, a function of a leaf's path, a tree prefix of ints, or None for 0.
Stacked = int | Callable[[KeyPath], int] | Any


class GmtMaskState(NamedTuple):
    """State of `gmt_mask`; shapes and dtypes are the same from update to update."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar: updates done
    # The latest T, float32, or float64 for float64: a leaf, shaped as its stack; or one for all.
    threshold: Any
    masked_fraction: jax.Array  # float32 scalar: masked by the latest update, of all entries


def gmt_mask(
    mask_ratio: float | jax.Array | optax.Schedule,
    *,
    scope: str = "tensor",
    tolerance: float | jax.Array = 0.0,
    stacked: Stacked = None,
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
        apart: 7 for float32, 3 for float16, 2 for bfloat16.
      scope: ``"tensor"``: each tensor has a threshold of its own. ``"global"``: one for the whole
        tree, with :math:`n` and :math:`m` those of all its entries together, in any dtypes.
      tolerance: how far, as a fraction of :math:`n`, the number of masked entries may fall short
        of :math:`m`, in [0, 1]. With 0, the default, the mask is exact. With 0.001 the search
        reads the gradient two or three times instead of about six, and :math:`T` is a number
        between entries rather than one of them. It may be an array, as from
        ``optax.inject_hyperparams``: at 0 the mask is exact then too.
      stacked: how many leading axes of a leaf index separate tensors, each with a threshold of
        its own, as in layers stacked for ``jax.lax.scan``. An int for all leaves, a tree prefix
        of ints, or a function of a leaf's key path, as ``jax.tree_util.tree_map_with_path`` gives
        it; by default 0. Under ``optax.inject_hyperparams`` name it in ``static_args``.

    Returns:
      The transformation, for gradients of any float or complex dtype. Its state is a
      ``GmtMaskState``, whose fields ``optax.tree.get(opt_state, "masked_fraction")`` reads from
      the state of a chain.

    Raises:
      ValueError: if ``mask_ratio`` or ``tolerance`` is outside [0, 1], if ``scope`` is unknown, or
        global for tensors that are to be told apart; at the first sight of the parameters or
        gradients, if ``stacked`` does not fit them.
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
    if not callable(mask_ratio):
        _check_fraction(_MASK_RATIO, mask_ratio)
    if scope not in ("tensor", "global"):
        raise ValueError(f"scope is 'tensor' or 'global', got {scope!r}")
    if scope == "global" and stacked is not None:
        raise ValueError("scope='global' has one threshold for all tensors: leave out stacked")
    _check_fraction("tolerance is the fraction of entries that may stay unmasked", tolerance)

    def layout_of(flat: list[tuple[KeyPath, Any]]) -> Layout:
        return Layout(
            tuple(tuple(leaf.shape) for _, leaf in flat),
            tuple(_stacked_axes(stacked, path, leaf) for path, leaf in flat),
            scope == "global",
        )

    def init_fn(params: optax.Params) -> GmtMaskState:
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        layout, mesh = layout_of(flat), mesh_of([leaf for _, leaf in flat])
        dtypes = [_threshold_dtype(leaf.dtype) for _, leaf in flat]
        if layout.shared:
            thresholds = jnp.zeros((), jnp.result_type(jnp.float32, *dtypes))
        else:
            stacks = zip(layout.shapes, layout.stacked, dtypes, strict=True)
            zeros = [jnp.zeros(shape[:k], dtype) for shape, k, dtype in stacks]
            thresholds = jax.tree.unflatten(treedef, zeros)
        return GmtMaskState(
            count=jnp.zeros((), jnp.int32),
            threshold=replicate(thresholds, mesh),
            masked_fraction=replicate(jnp.zeros((), jnp.float32), mesh),
        )

    def update_fn(
        updates: optax.Updates,
        state: GmtMaskState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GmtMaskState]:
        del params, extra_args
        flat, treedef = jax.tree_util.tree_flatten_with_path(updates)
        layout, leaves = layout_of(flat), [jnp.asarray(leaf) for _, leaf in flat]
        ratio = mask_ratio(state.count) if callable(mask_ratio) else mask_ratio
        _check_fraction(_MASK_RATIO, ratio)
        thresholds, fraction = state.threshold, state.masked_fraction
        if leaves:
            keys = key_dtypes([leaf.dtype for leaf in leaves], layout)
            exact = not isinstance(tolerance, jax.Array) and tolerance == 0
            slack = None if exact else _parts(tolerance, layout.sizes)
            bits, below, _ = select(leaves, _parts(ratio, layout.sizes), layout, slack)
            fraction = below / np.float32(max(layout.entries, 1))
            found = [magnitude(part, key) for part, key in zip(bits, keys, strict=True)]
            if layout.shared:
                thresholds = found[0].astype(thresholds.dtype)
            else:
                held, treedef_of = jax.tree.flatten(thresholds)
                found = [new.astype(old.dtype) for new, old in zip(found, held, strict=True)]
                thresholds = jax.tree.unflatten(treedef_of, found)
            leaves = list(map(_mask, leaves, bits, keys))
        return jax.tree.unflatten(treedef, leaves), GmtMaskState(
            optax.safe_increment(state.count), thresholds, fraction
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@partial(jax.jit, static_argnames="key")
def _mask(leaf: jax.Array, bits: jax.Array, key: Any) -> jax.Array:
    """The leaf, with zero where |g|, as a float of dtype `key`, has lower bits than T."""
    masked = magnitude_bits(leaf, key) < jnp.expand_dims(bits, tuple(range(bits.ndim, leaf.ndim)))
    if jnp.iscomplexobj(leaf):
        return jnp.where(masked, jnp.zeros((), leaf.dtype), leaf)
    # On the bits, because a backend may choose between bfloat16s by way of float32, which changes
    # the payload of a NaN.
    word = lax.bitcast_convert_type(leaf, f"uint{jnp.finfo(leaf.dtype).bits}")
    return lax.bitcast_convert_type(jnp.where(masked, jnp.zeros((), word.dtype), word), leaf.dtype)


def _threshold_dtype(dtype: Any) -> Any:
    """float64 for float64 and complex128 where 64 bits are enabled, else float32."""
    return jax.dtypes.canonicalize_dtype(
        np.float64 if jnp.finfo(dtype).dtype == np.float64 else np.float32
    )


_MASK_RATIO = "mask_ratio is the fraction of gradient entries to mask"


def _check_fraction(meaning: str, value: Any) -> None:
    """Refuses what is no fraction. An array's value is not looked at: it may be traced."""
    if isinstance(value, (jax.Array, np.ndarray)):
        valid = value.ndim == 0
    else:
        number = isinstance(value, numbers.Real) and type(value) is not bool
        valid = number and 0 <= float(value) <= 1
    if not valid:
        raise ValueError(f"{meaning}, one number in [0, 1]; got {value!r}")


def _parts(ratio: Any, sizes: list[int]) -> Wide:
    """⌊ratio · size⌋ of every size, with the ratio read as a decimal."""
    if isinstance(ratio, (jax.Array, np.ndarray)):
        return share(jnp.asarray(ratio), sizes)
    return wide([int(Fraction(str(ratio)) * size) for size in sizes])


def _stacked_axes(stacked: Stacked, path: KeyPath, leaf: Any) -> int:
    """How many leading axes of a leaf index tensors. Refuses a leaf that cannot be masked."""
    name = jax.tree_util.keystr(path, simple=True, separator="/") or "the gradient"
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise TypeError(
            f"gmt_mask needs float or complex gradients, but {name} is {leaf.dtype}; "
            "leave it out with optax.masked or optax.partition"
        )
    axes: Any
    if stacked is None:
        axes = 0
    elif callable(stacked):
        axes = stacked(path)
    else:
        # By path, and not by mapping over both trees, because parts of the gradient may be
        # missing: optax.masked and optax.partition put other nodes in their place.
        prefix = dict(jax.tree_util.tree_leaves_with_path(stacked))
        axes = next((prefix[path[:n]] for n in range(len(path) + 1) if path[:n] in prefix), None)
    if not isinstance(axes, (int, np.integer)) or not 0 <= axes <= len(leaf.shape):
        raise ValueError(
            f"stacked is the number of leading axes that index tensors, but gives {axes!r} for "
            f"{name}, which has shape {tuple(leaf.shape)} (under optax.inject_hyperparams, name "
            "it in static_args)"
        )
    return int(axes)
