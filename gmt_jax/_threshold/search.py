"""Exact order statistics of |g|, by counting on the bits of the floats.

The bits of |g|, read as an unsigned integer, are in the order of |g|. The m-th smallest |g|,
counted from 0, is the largest T with no more than m entries below it. A sample says roughly where
it lies; then each pass over the data counts the entries below a few candidates, and the bracket
around T shrinks to about the square root of the entries that it held. When T is the first of them,
or no more than three are left, one last pass reads it off the data.

A count is a sum: of a gradient sharded over a mesh, a pass moves a few integers between the
devices and nothing else. All thresholds of a tree are searched in one loop, each a row of the same
arrays.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmt_jax._threshold.layout import TensorLayout, TensorRows, key_dtypes
from gmt_jax._threshold.reductions import count_below
from gmt_jax._threshold.replication import mesh_of, replicate
from gmt_jax._threshold.uint64 import UInt64, add, as_float, at_most, subtract, uint64

# Where a pass puts its candidates, in standard deviations around the expected place of T: close
# together where T most probably lies, and far out on each side lest the bracket stay wide. Seven
# cost no more than two on any backend.
SPREAD = np.array([-4, -1.4, -0.45, 0, 0.45, 1.4, 4], np.float32)[:, None]
# How much further out, as a share of the bracket for each factor of e that it spans: its entries
# are seldom spread evenly.
BEND = np.array([-1, -0.1, 0, 0, 0, 0.1, 1], np.float32)[:, None]
# From this pass on, brackets are divided evenly: no data takes more than 22 passes of float32.
EVENLY_FROM = 10


class Selected(NamedTuple):
    """What `select` found."""

    bits: list[jax.Array]  # a leaf: T as magnitude bits, [*stack]; above NaN's: mask everything
    below: jax.Array  # float32 scalar: entries with |g| < T, over all leaves
    passes: jax.Array  # int32 scalar: times that the data was read


class _Bracket(NamedTuple):
    """low <= T < high, for each row, with how many entries lie below the two."""

    low: jax.Array  # [R], unsigned
    high: jax.Array
    below_low: UInt64
    below_high: UInt64
    stalled: jax.Array  # bool: the latest count left most of its entries in it

    @property
    def width(self) -> jax.Array:
        return self.high - self.low

    @property
    def entries(self) -> UInt64:
        return subtract(self.below_high, self.below_low)


class _Search(NamedTuple):
    passes: jax.Array  # int32 scalar: times that the data was read
    bracket: _Bracket


@partial(jax.jit, static_argnames="layout")
def select(
    leaves: Sequence[jax.Array], ranks: UInt64, layout: TensorLayout, slack: UInt64 | None = None
) -> Selected:
    """The m-th smallest |g|, counted from 0, of every tensor; NaNs are one value, the largest.

    Where m is the size of a tensor, T lies above everything.

    Args:
      leaves: at least one float or complex array, each on any mesh.
      ranks: m, for each of `layout.sizes`.
      slack: where given, by how many entries the number below T may fall short of m, for each of
        `layout.sizes`; T need not be an entry then.
    """
    rows = TensorRows(layout, key_dtypes([leaf.dtype for leaf in leaves], layout), mesh_of(leaves))
    ranks = replicate(layout.expand(ranks), rows.mesh)
    exact = slack is None
    slack = layout.expand(uint64([0] * len(layout.sizes)) if slack is None else slack)
    first = _guess(leaves, rows, ranks, slack)

    def is_known(bracket: _Bracket) -> jax.Array:
        one = bracket.width <= 1
        return one if exact else one | at_most(subtract(ranks, bracket.below_low), slack)

    def is_counted(bracket: _Bracket) -> jax.Array:
        at_low = at_most(ranks, bracket.below_low)
        return is_known(bracket) | (exact & (at_low | at_most(bracket.entries, uint64([3]))))

    def is_waiting(state: _Search) -> jax.Array:
        stalled = state.bracket.stalled & (state.passes < EVENLY_FROM)
        return ~jnp.all(is_counted(state.bracket) | stalled)

    def is_unfinished(state: _Search) -> jax.Array:
        return ~jnp.all(is_known(state.bracket))

    def count(state: _Search) -> _Search:
        (passes, bracket), tied = _tied(state, leaves)
        counted, even = is_counted(bracket), _divide(bracket)
        near = _interpolate(bracket, ranks, slack, rows.mantissas)
        candidates = jnp.where(passes == 0, first, near)
        candidates = jnp.where(passes < EVENLY_FROM, candidates, even)
        candidates = _distinct(candidates, bracket)
        narrower = _narrow(bracket, candidates, rows.count(tied, candidates, counted), ranks)
        return replicate(_Search(passes + 1, _where(counted, bracket, narrower)), rows.mesh)

    def read_off(state: _Search) -> _Search:
        (passes, bracket), tied = _tied(state, leaves)
        inside = rows.inside(tied, *bracket[:2])
        closer = _read_off(bracket, is_counted(bracket), ranks, inside)
        closer = _where(is_known(bracket), bracket, closer)
        return replicate(_Search(passes + 1, closer), rows.mesh)

    def read_and_count(state: _Search) -> _Search:
        return lax.while_loop(is_waiting, count, read_off(state))

    start = replicate(_Search(jnp.int32(0), _everywhere(rows, ranks)), rows.mesh)
    search = lax.while_loop(is_waiting, count, start)
    passes, bracket = lax.while_loop(is_unfinished, read_and_count, search)
    below = jnp.sum(as_float(bracket.below_low))
    return Selected(rows.split(bracket.low), below, passes)


def _tied(state: _Search, leaves: Sequence[jax.Array]) -> tuple[_Search, list[jax.Array]]:
    """The leaves tied to a pass.

    Else XLA computes their bits once, before the loop, and keeps them: a second copy of the
    gradient.
    """
    tied: tuple[_Search, list[jax.Array]] = lax.optimization_barrier((state, list(leaves)))
    return tied


def _everywhere(rows: TensorRows, ranks: UInt64) -> _Bracket:
    """The brackets to begin with: from zero to above NaN, or at the top to mask everything."""
    sizes, tops = rows.layout.expand(uint64(rows.layout.sizes)), rows.tops
    everything = at_most(sizes, ranks)
    return _Bracket(
        jnp.where(everything, tops, 0),
        tops,
        UInt64(*(jnp.where(everything, size, 0) for size in sizes)),
        UInt64(*(jnp.asarray(size) for size in sizes)),
        jnp.zeros_like(everything),
    )


def _where(kept: jax.Array, old: _Bracket, new: _Bracket) -> _Bracket:
    return jax.tree.map(lambda old, new: jnp.where(kept, old, new), old, new)


def _guess(
    leaves: Sequence[jax.Array], rows: TensorRows, ranks: UInt64, slack: UInt64
) -> jax.Array:
    """Candidates for the first pass, [K, R]: order statistics of a sample."""
    sample, lengths = rows.sample(leaves)
    sizes = jnp.maximum(as_float(rows.layout.expand(uint64(rows.layout.sizes))), 1)
    # The rank in the sample of the m-th entry, give or take.
    at = jnp.clip(_aim(ranks, slack) / sizes, 0, 1)
    unseen = jnp.clip(1 - lengths / sizes, 0, 1)
    places = jnp.floor(at * lengths + SPREAD * jnp.sqrt(at * (1 - at) * lengths * unseen))
    places = jnp.clip(places, 0, jnp.maximum(lengths - 1, 0)).astype(jnp.uint32)
    wanted = UInt64(jnp.zeros_like(places), places)
    tops, digits = rows.tops, 8 * rows.tops.dtype.itemsize - 1

    def next_digit(i: jax.Array, found: jax.Array) -> jax.Array:
        digit = jnp.left_shift(jnp.ones((), tops.dtype), (digits - 1 - i).astype(tops.dtype))
        candidates = jnp.minimum(found + digit, tops)
        counts = count_below(sample, lambda bits: bits, candidates, 1, None)
        return replicate(jnp.where(at_most(counts, wanted), candidates, found), rows.mesh)

    start = replicate(jnp.zeros(places.shape, tops.dtype), rows.mesh)
    return lax.fori_loop(0, digits, next_digit, start)


def _aim(missing: UInt64, slack: UInt64) -> jax.Array:
    """The rank to look for: in the middle of the m-th entry, or of what may be missing."""
    return as_float(missing) + 0.5 - as_float(slack) / 2


def _interpolate(
    bracket: _Bracket, ranks: UInt64, slack: UInt64, mantissas: np.ndarray
) -> jax.Array:
    """Candidates around the place of T, were the entries of a bracket spread evenly, [K, R]."""
    entries = jnp.maximum(as_float(bracket.entries), 1)
    at = jnp.clip(_aim(subtract(ranks, bracket.below_low), slack) / entries, 0, 1)
    width = bracket.width.astype(jnp.float32)
    bend = 1 - jnp.exp2(-width * np.exp2(-mantissas.astype(np.float32)))
    places = at + SPREAD * jnp.sqrt(at * (1 - at) / entries) + BEND * bend
    # At a power of two the floats, and with them their bits, begin to lie twice as far apart.
    octave = np.left_shift(np.ones_like(mantissas), mantissas).astype(bracket.low.dtype)
    near = jnp.minimum(bracket.width, octave - bracket.low % octave).astype(jnp.float32)
    along = jnp.clip(places, 0, 1) * (2 * width - near)
    along = jnp.where(along < near, along, (near + along) / 2)
    between = bracket.low + jnp.minimum(along, width).astype(bracket.low.dtype)
    # Between a few entries, or over octaves, nothing says where they should lie.
    unknown = (entries <= len(SPREAD)) | (width <= len(SPREAD)) | (bend > 0.75)
    return jnp.where(unknown, _divide(bracket), between)


def _divide(bracket: _Bracket) -> jax.Array:
    """Candidates at even distances through the brackets, [K, R]."""
    parts = len(SPREAD) + 1
    j = jnp.arange(1, parts, dtype=bracket.low.dtype)[:, None]
    whole, rest = jnp.divmod(bracket.width, jnp.array(parts, j.dtype))
    return bracket.low + whole * j + rest * j // parts


def _distinct(candidates: jax.Array, bracket: _Bracket) -> jax.Array:
    """The candidates inside their brackets and, where there is room, no two the same."""
    later = jnp.arange(len(SPREAD), dtype=candidates.dtype)[::-1, None]
    candidates = jnp.clip(candidates, bracket.low + 1, bracket.high - 1)
    candidates = lax.cummax(candidates + later, axis=0) - later
    return jnp.minimum(candidates, bracket.high - 1)


def _narrow(bracket: _Bracket, candidates: jax.Array, counts: UInt64, ranks: UInt64) -> _Bracket:
    """The part of each bracket between the last candidate that fits below T and the next."""
    last = jnp.sum(at_most(counts, ranks), axis=0, dtype=jnp.int32)[None]

    def pick(first: jax.Array, between: jax.Array, end: jax.Array, at: jax.Array) -> jax.Array:
        edges = jnp.concatenate([first[None], between, end[None]])
        return jnp.take_along_axis(edges, at, axis=0)[0]

    def count(at: jax.Array) -> UInt64:
        edges = zip(bracket.below_low, counts, bracket.below_high, strict=True)
        return UInt64(*(pick(*parts, at) for parts in edges))

    low, high = (pick(bracket.low, candidates, bracket.high, at) for at in (last, last + 1))
    narrower = _Bracket(low, high, count(last), count(last + 1), bracket.stalled)
    left = as_float(narrower.entries)
    most = as_float(bracket.entries) * 0.75
    # Of a few entries, all: else one more count is sooner done than a pass to close up.
    most = jnp.maximum(most, jnp.minimum(as_float(bracket.entries) - 1, len(SPREAD)))
    return narrower._replace(stalled=left > most)


def _read_off(
    bracket: _Bracket,
    counted: jax.Array,
    ranks: UInt64,
    inside: tuple[jax.Array, jax.Array, jax.Array],
) -> _Bracket:
    """The brackets with nothing but T in them where that is counted, else closed up to entries.

    T is the first entry of its bracket, or one of three at most: the smallest, the largest and the
    sum tell them apart. Else the bracket stalled, and it ends at entries far from its ends, or at
    one that there are many of.
    """
    smallest, largest, total = inside
    at, three = subtract(ranks, bracket.below_low).low, bracket.entries.low == 3
    middle = total - smallest - largest
    offset = jnp.where(at == 0, smallest, jnp.where(three & (at == 1), middle, largest))
    before = (smallest < offset).astype(jnp.uint32) + (three & (middle < offset))
    before = jnp.where((at > 0) & counted, before, 0).astype(jnp.uint32)
    return _Bracket(
        bracket.low + jnp.where(counted, offset, smallest),
        bracket.low + jnp.where(counted, offset, largest) + 1,
        add(bracket.below_low, UInt64(jnp.zeros_like(before), before)),
        bracket.below_high,
        jnp.zeros_like(bracket.stalled),
    )
