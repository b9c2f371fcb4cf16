"""gmt_mask: Gradient-Mask Tuning as an optax transformation."""

import numbers
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax import threshold

# An int for all leaves, a function of a leaf's path, a tree prefix of ints, or None for 0.
Stacked = int | Callable[[KeyPath], int] | Any


class GmtMaskState(NamedTuple):
    """State of `gmt_mask`; shapes and dtypes are the same from update to update."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar: updates done
    threshold: Any  # a leaf: the latest T, shaped as its stack; float32, of a float64 leaf float64
    masked_fraction: jax.Array  # float32 scalar: masked by the latest update, of all entries


def gmt_mask(
    mask_ratio: float | jax.Array | optax.Schedule, *, stacked: Stacked = None
) -> optax.GradientTransformationExtraArgs:
    r"""Zeroes the gradient entries with the smallest magnitude, tensor by tensor.

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
    gathered nor sorted, its devices exchange a few integers.

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
      stacked: how many leading axes of a leaf index separate tensors, each with a threshold of
        its own, as in layers stacked for ``jax.lax.scan``. An int for all leaves, a tree prefix
        of ints, or a function of a leaf's key path, as ``jax.tree_util.tree_map_with_path`` gives
        it; by default 0. Under ``optax.inject_hyperparams`` name it in ``static_args``.

    Returns:
      The transformation, for gradients of any float or complex dtype. Its state is a
      ``GmtMaskState``, whose fields ``optax.tree.get(opt_state, "masked_fraction")`` reads from
      the state of a chain.

    Raises:
      ValueError: if ``mask_ratio`` is outside [0, 1]; at the first sight of the parameters or
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
    _check_ratio(mask_ratio)

    def init_fn(params: optax.Params) -> GmtMaskState:
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        mesh = threshold.mesh_of([leaf for _, leaf in flat])

        def zeros(path: KeyPath, leaf: Any) -> jax.Array:
            shape = leaf.shape[: _stacked_axes(stacked, path, leaf)]
            return threshold.replicate(jnp.zeros(shape, _threshold_dtype(leaf.dtype)), mesh)

        return GmtMaskState(
            count=jnp.zeros((), jnp.int32),
            threshold=jax.tree.unflatten(treedef, [zeros(path, leaf) for path, leaf in flat]),
            masked_fraction=threshold.replicate(jnp.zeros((), jnp.float32), mesh),
        )

    def update_fn(
        updates: optax.Updates,
        state: GmtMaskState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GmtMaskState]:
        del params, extra_args
        flat, treedef = jax.tree_util.tree_flatten_with_path(updates)
        axes = tuple(_stacked_axes(stacked, path, leaf) for path, leaf in flat)
        leaves = [jnp.asarray(leaf) for _, leaf in flat]
        ratio = mask_ratio(state.count) if callable(mask_ratio) else mask_ratio
        _check_ratio(ratio)
        thresholds, fraction = state.threshold, state.masked_fraction
        if leaves:
            ranks = _ranks(ratio, threshold.tensor_sizes(leaves, axes))
            bits, below = threshold.select(leaves, ranks, axes)
            fraction = below / max(sum(leaf.size for leaf in leaves), 1)
            found = map(_threshold, bits, leaves, jax.tree.leaves(state.threshold))
            thresholds = jax.tree.unflatten(treedef, list(found))
            leaves = list(map(_mask, leaves, bits))
        return jax.tree.unflatten(treedef, leaves), GmtMaskState(
            optax.safe_increment(state.count), thresholds, fraction
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@jax.jit
def _mask(leaf: jax.Array, bits: jax.Array) -> jax.Array:
    """The leaf, with zero where |g| has lower bits than its tensor's threshold."""
    wide = jnp.expand_dims(bits, tuple(range(bits.ndim, leaf.ndim)))
    masked = threshold.magnitude_bits(leaf) < wide
    if jnp.iscomplexobj(leaf):
        return jnp.where(masked, jnp.zeros((), leaf.dtype), leaf)
    # On the bits, because a backend may choose between bfloat16s by way of float32, which changes
    # the payload of a NaN.
    word = lax.bitcast_convert_type(leaf, f"uint{jnp.finfo(leaf.dtype).bits}")
    return lax.bitcast_convert_type(jnp.where(masked, jnp.zeros((), word.dtype), word), leaf.dtype)


def _threshold(bits: jax.Array, leaf: jax.Array, previous: jax.Array) -> jax.Array:
    """T as a number, in the dtype that the state has for it."""
    return threshold.magnitude(bits, leaf.dtype).astype(previous.dtype)


def _threshold_dtype(dtype: Any) -> Any:
    """float64 for float64 and complex128 where 64 bits are enabled, else float32."""
    return jax.dtypes.canonicalize_dtype(
        np.float64 if jnp.finfo(dtype).dtype == np.float64 else np.float32
    )


def _check_ratio(ratio: Any) -> None:
    """Refuses what is no ratio. An array's value is not looked at: it may be traced."""
    if callable(ratio):
        return
    if isinstance(ratio, (jax.Array, np.ndarray)):
        valid = ratio.ndim == 0
    else:
        number = isinstance(ratio, numbers.Real) and type(ratio) is not bool
        valid = number and 0 <= float(ratio) <= 1
    if not valid:
        raise ValueError(
            "mask_ratio is the fraction of gradient entries to mask, one number in [0, 1]; "
            f"got {ratio!r}"
        )


def _ranks(ratio: Any, sizes: list[int]) -> threshold.Wide:
    """m = ⌊ratio · size⌋ of every size, with the ratio read as a decimal."""
    if isinstance(ratio, (jax.Array, np.ndarray)):
        return threshold.share(jnp.asarray(ratio), sizes)
    return threshold.wide([int(Fraction(str(ratio)) * size) for size in sizes])


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
