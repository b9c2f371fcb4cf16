"""Figures that describe a mask, for each tensor and over all of them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from gmt_jax._threshold.layout import TensorLayout
from gmt_jax._threshold.reductions import reduce
from gmt_jax._threshold.replication import mesh_of, replicate, shard_axes, shard_count
from gmt_jax.mask_ratio import axes_of
from gmt_jax.selection import Selector, as_arrays
from gmt_jax.tree_paths import path_name
from gmt_jax.types import Mask, PyTree, StackedAxes

State = TypeVar("State")


class MaskReport(NamedTuple):
    """Figures of one update, float32.

    Each is a scalar over all entries, or an array with one element for each tensor, [R], in the
    order of `GmtMaskState.threshold`; `by_leaf` makes a tree of it. An update with the extra
    argument ``report=False`` computes none, and counts for none.

    Attributes:
      masked: the masked fraction of all entries.
      norm_kept: the norm of the kept gradient entries as a fraction of the gradient's norm.
      nonzero_dropped: the masked fraction of the entries whose gradient is not zero.
      overlap: entries kept by this mask and the one reported before, as a fraction of those kept by
        either of them; 0 at the first update.
      ever_kept: the fraction of all entries that any update reported so far has kept.
    """

    masked: jax.Array
    norm_kept: jax.Array
    nonzero_dropped: jax.Array
    overlap: jax.Array
    ever_kept: jax.Array


class ReportedState(NamedTuple):
    """State of a selector with a report.

    Attributes:
      selector_state: the state of the selector.
      history: uint8, shaped as the parameters: 1 if the latest update that was reported kept the
        entry, plus 2 if any has.
      by_tensor: figures of each tensor.
      overall: figures of all tensors together.
    """

    selector_state: PyTree
    history: PyTree
    by_tensor: MaskReport
    overall: MaskReport


class _Sums(NamedTuple):
    """Sums over the entries of each tensor, float32 [*stack]."""

    entries: jax.Array
    kept: jax.Array
    nonzero: jax.Array
    nonzero_dropped: jax.Array
    both: jax.Array
    either: jax.Array
    ever: jax.Array
    squares: jax.Array
    squares_kept: jax.Array


def by_leaf(figures: jax.Array, params: PyTree, stacked_axes: StackedAxes = None) -> PyTree:
    """The figures of each tensor as a tree.

    Args:
      figures: an array with one element for each tensor, [R], such as the field `threshold` of a
        state or those of the report `by_tensor`.
      params: the tree of parameters, or of their shapes.
      stacked_axes: as given to the optimizer.

    Returns:
      A tree of arrays, each of the shape of its parameter's stacked axes: scalars without them.

    Raises:
      ValueError: if there are not as many figures as tensors.

    Example:
      >>> import jax.numpy as jnp
      >>> from gmt_jax import gmt_mask
      >>> from gmt_jax.report import by_leaf
      >>> mask = gmt_mask(0.5)
      >>> gradient = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0, 4.0])}
      >>> _, state = mask.update(gradient, mask.init(gradient))
      >>> print(by_leaf(state.threshold, gradient))
      {'a': Array(2., dtype=float32), 'b': Array(4., dtype=float32)}
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    axes = [axes_of(stacked_axes, path, leaf) for path, leaf in flat]
    layout = TensorLayout(tuple(tuple(leaf.shape) for _, leaf in flat), tuple(axes))
    if figures.shape != (layout.num_tensors,):
        raise ValueError(
            f"got figures of shape {list(figures.shape)} for {layout.num_tensors} tensors"
        )
    parts = jnp.split(figures, np.cumsum(layout.counts)[:-1])
    shaped = [part.reshape(stack) for part, stack in zip(parts, layout.stacks, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def reported(
    selector: Selector[State], stacked_axes: StackedAxes, now: bool = True
) -> Selector[ReportedState]:
    """The selector, with a `MaskReport` in its state.

    Args:
      selector: any.
      stacked_axes: as in `gmt_jax.gmt`.
      now: whether to compute the report; False: the last one stays.
    """

    def init(params: optax.Params) -> ReportedState:
        flat = jax.tree_util.tree_flatten_with_path(params)[0]
        axes = [axes_of(stacked_axes, path, leaf) for path, leaf in flat]
        layout = TensorLayout(tuple(tuple(leaf.shape) for _, leaf in flat), tuple(axes))
        mesh = mesh_of([leaf for _, leaf in flat])

        def zeros(shape: tuple[int, ...]) -> MaskReport:
            # An array for each figure: states are donated, and a buffer only once.
            return MaskReport(*(jnp.zeros(shape, jnp.float32) for _ in MaskReport._fields))

        history = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.uint8), params)
        reports = replicate((zeros((layout.num_tensors,)), zeros(())), mesh)
        return ReportedState(selector.init(params), history, *reports)

    def select(
        grads: optax.Updates, state: ReportedState, params: optax.Params | None
    ) -> tuple[Mask, ReportedState]:
        mask, selector_state = selector.select(grads, state.selector_state, params)
        if not now:
            return mask, state._replace(selector_state=selector_state)
        flat, treedef = jax.tree_util.tree_flatten_with_path(grads)
        parts = zip(flat, jax.tree.leaves(mask), jax.tree.leaves(state.history), strict=True)
        measured = []
        for (path, g), part, history in parts:
            leaf = lax.stop_gradient(jnp.asarray(g))
            measured.append(_measure(leaf, part, history, axes_of(stacked_axes, path, leaf)))
        if not measured:
            return mask, state._replace(selector_state=selector_state)
        flat_sums = [jax.tree.map(jnp.ravel, sums) for _, sums in measured]
        sums = jax.tree.map(lambda *parts: jnp.concatenate(parts), *flat_sums)
        sums = replicate(sums, mesh_of([g for _, g in flat]))
        history = jax.tree.unflatten(treedef, [history for history, _ in measured])
        overall = _report(jax.tree.map(jnp.sum, sums))
        return mask, ReportedState(selector_state, history, _report(sums), overall)

    return Selector(init, select)


@partial(jax.jit, static_argnames="stacked_axes")
def _measure(
    g: jax.Array, mask: jax.Array, history: jax.Array, stacked_axes: tuple[int, ...]
) -> tuple[jax.Array, _Sums]:
    """The new history, and the sums over each tensor of a leaf."""
    mask = jnp.expand_dims(mask, tuple(range(g.ndim - mask.ndim))) & jnp.ones_like(g, bool)

    def arrays(leaf: tuple[jax.Array, ...], _: Sequence[jax.Array]) -> list[jax.Array]:
        g, mask, history = leaf
        before, nonzero = (history & 1).astype(bool), g != 0
        square = jnp.square(jnp.abs(g).astype(jnp.float32))
        bools = [mask, nonzero, nonzero & ~mask, mask & before, mask | before, _ever(history, mask)]
        return [*(x.astype(jnp.uint32) for x in bools), square, jnp.where(mask, square, 0)]

    # Over one axis as integers, then over the others as floats: a float32 that counts ones stops
    # at 2**24.
    axes = tuple(axis for axis in range(g.ndim) if axis not in stacked_axes)
    leaf, last = (g, mask, history), axes[-1:]
    rows = arrays(leaf, ())
    if last:
        stacks = reduce(("sum",) * 8, arrays, [leaf], last)
        rows = [result[0] for stack in stacks for result in stack]
    sums = [jnp.sum(part.astype(jnp.float32), axes[:-1]) for part in rows]
    shards = shard_axes(g)
    sums = [lax.psum(part, shards) for part in sums] if shards else sums
    size = math.prod(g.shape[axis] for axis in axes) * shard_count(g)
    entries = jnp.full_like(sums[0], float(size))
    history = mask.astype(jnp.uint8) + 2 * _ever(history, mask).astype(jnp.uint8)
    return history, _Sums(entries, *sums)


def _ever(history: jax.Array, mask: jax.Array) -> jax.Array:
    return (history > 0) | mask


def _report(sums: _Sums) -> MaskReport:
    def fraction(part: jax.Array, whole: jax.Array) -> jax.Array:
        return jnp.where(whole == 0, 0, part / jnp.where(whole == 0, 1, whole))

    return MaskReport(
        masked=fraction(sums.entries - sums.kept, sums.entries),
        norm_kept=jnp.sqrt(fraction(sums.squares_kept, sums.squares)),
        nonzero_dropped=fraction(sums.nonzero_dropped, sums.nonzero),
        overlap=fraction(sums.both, sums.either),
        ever_kept=fraction(sums.ever, sums.entries),
    )


def masked_fraction(mask: Mask, params: PyTree) -> jax.Array:
    """The fraction of all entries at which a mask is False, a float32 scalar.

    Args:
      mask: a tree with an array of bools for each leaf, broadcastable to it.
      params: the tree of arrays.
    """
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True)
    sizes = [(part, leaf.size * shard_count(leaf)) for part, leaf in pairs if leaf.size]
    entries = sum(size for _, size in sizes)
    return jnp.asarray(sum((1 - _mean(part)) * (size / entries) for part, size in sizes), "float32")


def _mean(part: jax.Array) -> jax.Array:
    mean, shards = jnp.mean(part, dtype=jnp.float32), shard_axes(part)
    return lax.pmean(mean, shards) if shards else mean


def zero_fraction(updates: optax.Updates) -> jax.Array:
    """The fraction of entries that are zero, a float32 scalar: a measure for `optax.monitor`.

    After `gmt_mask` in a chain, it is the masked fraction, and that of zeros in the gradient.
    """
    updates = as_arrays(updates)
    return masked_fraction(jax.tree.map(lambda u: u != jnp.zeros((), u.dtype), updates), updates)


def ever_nonzero() -> optax.GradientTransformationExtraArgs:
    """A measure for `optax.monitor`: the fraction of entries that any update so far left nonzero.

    It takes one byte for each entry.
    """

    def update(
        updates: optax.Updates, state: PyTree, params: optax.Params | None = None, **_: Any
    ) -> tuple[jax.Array, PyTree]:
        del params
        state = jax.tree.map(lambda ever, u: ever | (u != 0), state, updates)
        return 1 - zero_fraction(state), state

    def init(params: optax.Params) -> PyTree:
        return jax.tree.map(lambda p: jnp.zeros_like(p, bool), params)

    return optax.GradientTransformationExtraArgs(init, update)


def without_choice(
    state: PyTree, params: PyTree, stacked_axes: StackedAxes = None
) -> dict[str, int]:
    """The leaves in which position decided what a mask that lasts keeps, by name.

    The mask keeps some of the entries with a score of zero: fewer had another score than are kept.

    Args:
      state: the state of an optimizer with a threshold for each tensor, outside jit.
      params: the tree of parameters, or of their shapes.
      stacked_axes: as given to the optimizer.

    Returns:
      For each such leaf the number of its tensors of which this is true.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from gmt_jax import one_off
      >>> from gmt_jax.report import without_choice
      >>> optimizer = one_off(optax.sgd(1.0), 0.5)
      >>> params = {"seen": jnp.arange(4.0), "unseen": jnp.zeros(4)}
      >>> _, state = optimizer.update(params, optimizer.init(params), params)
      >>> without_choice(state, params)
      {'unseen': 1}
    """
    thresholds = by_leaf(_field(state, "GmtMaskState", "threshold"), params, stacked_axes)
    masks = jax.tree.leaves(_field(state, "ScoredState", "mask"))
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    counts = {}
    for (path, leaf), t, mask in zip(flat, jax.tree.leaves(thresholds), masks, strict=bool(masks)):
        axes = tuple({*range(len(leaf.shape))} - {*axes_of(stacked_axes, path, leaf)})
        some, all_ = replicate((jnp.any(mask, axes), jnp.all(mask, axes)), mesh_of([mask]))
        counts[path_name(path)] = int(np.sum((np.asarray(t) == 0) & np.asarray(some & ~all_)))
    return {name: count for name, count in counts.items() if count}


def _field(state: PyTree, of: str, name: str) -> Any:
    """The field of a state of this kind, and of no parameter that is called alike."""
    return optax.tree.get(
        state, name, filtering=lambda path, _: getattr(path[-1], "tuple_name", None) == of
    )
