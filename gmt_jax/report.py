"""Figures that describe a mask, for each tensor and over all of them."""

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gmt_jax._threshold.reductions import reduce
from gmt_jax._threshold.replication import mesh_of, replicate
from gmt_jax.mask_ratio import stacked_axes
from gmt_jax.selection import Selector
from gmt_jax.types import Mask, NumStackedAxes, PyTree

State = TypeVar("State")


class MaskReport(NamedTuple):
    """Figures of one update, float32.

    Each is a scalar over all entries, or a tree with an array of shape `[*stacked axes]` for each
    leaf.

    Attributes:
      masked: the masked fraction of all entries.
      norm_kept: the norm of the kept gradient entries as a fraction of the gradient's norm.
      nonzero_dropped: the masked fraction of the entries whose gradient is not zero.
      overlap: entries kept by this mask and the one before, as a fraction of those kept by either
        of them; 0 at the first update.
      ever_kept: the fraction of all entries that any update so far has kept.
    """

    masked: PyTree
    norm_kept: PyTree
    nonzero_dropped: PyTree
    overlap: PyTree
    ever_kept: PyTree


class ReportedState(NamedTuple):
    """State of a selector with a report.

    Attributes:
      selector_state: the state of the selector.
      history: uint8, shaped as the parameters: 1 if the latest update kept the entry, plus 2 if any
        update has.
      by_tensor: figures of each tensor.
      overall: figures of all tensors together.
    """

    selector_state: PyTree
    history: PyTree
    by_tensor: MaskReport
    overall: MaskReport


class _Sums(NamedTuple):
    """Sums over the entries of each tensor, float32 [*stacked axes]."""

    entries: jax.Array
    kept: jax.Array
    nonzero: jax.Array
    nonzero_dropped: jax.Array
    both: jax.Array
    either: jax.Array
    ever: jax.Array
    squares: jax.Array
    squares_kept: jax.Array


def reported(
    selector: Selector[State], num_stacked_axes: NumStackedAxes
) -> Selector[ReportedState]:
    """The selector, with a `MaskReport` of each update in its state."""

    def init(params: optax.Params) -> ReportedState:
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        stacks = [leaf.shape[: stacked_axes(num_stacked_axes, path, leaf)] for path, leaf in flat]
        zeros = jax.tree.unflatten(treedef, [jnp.zeros(stack, jnp.float32) for stack in stacks])
        zeros, zero = replicate((zeros, jnp.float32(0)), mesh_of([leaf for _, leaf in flat]))
        history = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.uint8), params)
        by_tensor, overall = (MaskReport(*[x] * len(MaskReport._fields)) for x in (zeros, zero))
        return ReportedState(selector.init(params), history, by_tensor, overall)

    def select(
        grads: optax.Updates, state: ReportedState, params: optax.Params | None
    ) -> tuple[Mask, ReportedState]:
        mask, selector_state = selector.select(grads, state.selector_state, params)
        flat, treedef = jax.tree_util.tree_flatten_with_path(grads)
        parts = zip(flat, jax.tree.leaves(mask), jax.tree.leaves(state.history), strict=True)
        measured = [
            _measure(jnp.asarray(g), part, history, stacked_axes(num_stacked_axes, path, g))
            for (path, g), part, history in parts
        ]
        sums = replicate([sums for _, sums in measured], mesh_of([g for _, g in flat]))
        figures = zip(*map(_report, sums), strict=True)
        by_tensor = MaskReport(*(jax.tree.unflatten(treedef, figure) for figure in figures))
        total = jax.tree.map(lambda *parts: sum(map(jnp.sum, parts)), *sums)
        history = jax.tree.unflatten(treedef, [history for history, _ in measured])
        return mask, ReportedState(selector_state, history, by_tensor, _report(total))

    return Selector(init, select)


@partial(jax.jit, static_argnames="num_stacked_axes")
def _measure(
    g: jax.Array, mask: jax.Array, history: jax.Array, num_stacked_axes: int
) -> tuple[jax.Array, _Sums]:
    """The new history, and the sums over each tensor of a leaf."""
    mask = jnp.expand_dims(mask, tuple(range(g.ndim - mask.ndim))) & jnp.ones_like(g, bool)
    stack, shape = g.shape[:num_stacked_axes], g.shape[num_stacked_axes:]

    def arrays(leaf: tuple[jax.Array, ...], _: None) -> list[jax.Array]:
        g, mask, history = leaf
        before, nonzero = (history & 1).astype(bool), g != 0
        square = jnp.square(jnp.abs(g).astype(jnp.float32))
        bools = [mask, nonzero, nonzero & ~mask, mask & before, mask | before, _ever(history, mask)]
        return [*(x.astype(jnp.uint32) for x in bools), square, jnp.where(mask, square, 0)]

    # Over one axis as integers, then over the others as floats: a float32 that counts ones stops
    # at 2**24.
    leaf, last = (g, mask, history), tuple(range(max(num_stacked_axes, g.ndim - 1), g.ndim))
    rows = reduce(("sum",) * 8, arrays, leaf, None, last, None) if last else arrays(leaf, None)
    rest = tuple(range(num_stacked_axes, rows[0].ndim))
    sums = [jnp.sum(part.astype(jnp.float32), rest) for part in rows]
    entries = jnp.full(stack, float(np.prod(shape)), jnp.float32)
    history = mask.astype(jnp.uint8) + 2 * _ever(history, mask).astype(jnp.uint8)
    return history, _Sums(entries, *sums)


def _ever(history: jax.Array, mask: jax.Array) -> jax.Array:
    return (history > 0) | mask


def _report(sums: _Sums) -> MaskReport:
    def fraction(part: jax.Array, whole: jax.Array) -> jax.Array:
        return jnp.where(whole == 0, 0, part / whole)

    return MaskReport(
        masked=fraction(sums.entries - sums.kept, sums.entries),
        norm_kept=jnp.sqrt(fraction(sums.squares_kept, sums.squares)),
        nonzero_dropped=fraction(sums.nonzero_dropped, sums.nonzero),
        overlap=fraction(sums.both, sums.either),
        ever_kept=fraction(sums.ever, sums.entries),
    )
