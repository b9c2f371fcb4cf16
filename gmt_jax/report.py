"""What a mask does, in figures: for each tensor and over all."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gmt_jax._threshold import reductions as counting
from gmt_jax._threshold.replication import mesh_of, replicate
from gmt_jax.scores import Selector
from gmt_jax.selection import NumStackedAxes, stacked_axes


class MaskReport(NamedTuple):
    """Figures of one update, float32: each a scalar over all, or for each leaf one a tensor."""

    masked: Any  # of all entries
    norm_kept: Any  # of the gradient's norm, the share that the kept entries have
    nonzero_dropped: Any  # of the entries whose gradient is not zero, the masked ones
    overlap: Any  # with the mask before, kept entries: |both| / |either|; 0 at the first update
    ever_kept: Any  # of all entries, those that any update so far kept


class ReportedState(NamedTuple):
    """State of a selector with a report."""

    selector_state: Any
    seen: Any  # uint8, shaped as the parameters: 1 if the latest update kept it, 2 if any has
    by_tensor: MaskReport
    overall: MaskReport


class _Sums(NamedTuple):
    """What the figures are shares of, [*stack]."""

    entries: Any
    kept: Any
    nonzero: Any
    nonzero_dropped: Any
    both: Any
    either: Any
    ever: Any
    squares: Any
    squares_kept: Any


def reported(selector: Selector, num_stacked_axes: NumStackedAxes) -> Selector:
    """The selector, with a `MaskReport` of each update in its state."""

    def init(params: Any) -> ReportedState:
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        stacks = [leaf.shape[: stacked_axes(num_stacked_axes, path, leaf)] for path, leaf in flat]
        zeros = jax.tree.unflatten(treedef, [jnp.zeros(stack, jnp.float32) for stack in stacks])
        zeros, zero = replicate((zeros, jnp.float32(0)), mesh_of([leaf for _, leaf in flat]))
        seen = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.uint8), params)
        figures = len(MaskReport._fields)
        reports = MaskReport(*[zeros] * figures), MaskReport(*[zero] * figures)
        return ReportedState(selector.init(params), seen, *reports)

    def select(grads: Any, state: ReportedState, params: Any) -> tuple[Any, ReportedState]:
        kept, selector_state = selector.select(grads, state.selector_state, params)
        flat, treedef = jax.tree_util.tree_flatten_with_path(grads)
        mesh = mesh_of([g for _, g in flat])
        parts = zip(flat, jax.tree.leaves(kept), jax.tree.leaves(state.seen), strict=True)
        measured = [
            _measure(jnp.asarray(g), now, seen, stacked_axes(num_stacked_axes, path, g))
            for (path, g), now, seen in parts
        ]
        sums = replicate([sums for _, sums in measured], mesh)
        each = list(map(_shares, sums))
        by_tensor = MaskReport(*(jax.tree.unflatten(treedef, f) for f in zip(*each, strict=True)))
        total = jax.tree.map(lambda *parts: sum(map(jnp.sum, parts)), *sums)
        seen = jax.tree.unflatten(treedef, [seen for seen, _ in measured])
        return kept, ReportedState(selector_state, seen, by_tensor, _shares(total))

    return Selector(init, select)


@partial(jax.jit, static_argnames="num_stacked_axes")
def _measure(
    g: jax.Array, kept: jax.Array, seen: jax.Array, num_stacked_axes: int
) -> tuple[jax.Array, _Sums]:
    """The new `seen`, and the sums of each tensor of a leaf."""
    kept = kept & jnp.ones_like(g, bool)
    entries = jnp.full(
        g.shape[:num_stacked_axes], float(np.prod(g.shape[num_stacked_axes:])), jnp.float32
    )

    def arrays(leaf: tuple[jax.Array, ...], _: Any) -> list[jax.Array]:
        g, kept, seen = leaf
        before, nonzero = _latest(seen), g != 0
        square = jnp.square(jnp.abs(g).astype(jnp.float32))
        parts = [kept, nonzero, nonzero & ~kept, kept & before, kept | before, _ever(seen, kept)]
        counts = [part.astype(jnp.uint32) for part in parts]
        return [*counts, square, jnp.where(kept, square, 0)]

    # Along one axis first, and then in floats: a float32 that counts ones stops at 2**24.
    leaf, last = (g, kept, seen), tuple(range(max(num_stacked_axes, g.ndim - 1), g.ndim))
    rows = (
        counting.reduce(("sum",) * 8, arrays, leaf, None, last, None)
        if last
        else arrays(leaf, None)
    )
    rest = tuple(range(num_stacked_axes, rows[0].ndim))
    sums = [jnp.sum(part.astype(jnp.float32), rest) for part in rows]
    seen = kept.astype(jnp.uint8) + 2 * _ever(seen, kept).astype(jnp.uint8)
    return seen, _Sums(entries, *sums)


def _latest(seen: jax.Array) -> jax.Array:
    return (seen & 1).astype(bool)


def _ever(seen: jax.Array, kept: jax.Array) -> jax.Array:
    return (seen > 0) | kept


def _shares(sums: _Sums) -> MaskReport:
    def share(part: jax.Array, whole: jax.Array) -> jax.Array:
        return jnp.where(whole == 0, 0, part / whole)  # Of nothing, nothing.

    return MaskReport(
        masked=share(sums.entries - sums.kept, sums.entries),
        norm_kept=jnp.sqrt(share(sums.squares_kept, sums.squares)),
        nonzero_dropped=share(sums.nonzero_dropped, sums.nonzero),
        overlap=share(sums.both, sums.either),
        ever_kept=share(sums.ever, sums.entries),
    )
