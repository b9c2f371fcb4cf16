"""Exact order statistics of |g|, by counting on the bits of floats.

The threshold T of a tensor is its m-th smallest |g|, counting from 0. The bits of |g|, read as an
unsigned integer, are in the order of |g|, so that T is the largest integer with at most m entries
below it. `select` searches the thresholds of all tensors of a tree together, each a row of the same
arrays, and keeps a bracket low <= T < high for each of them. It takes four steps:

1. Sample. `_sample_candidates` places the seven candidates of the first pass around the position of
   T in a small sample of each tensor.
2. Count. A pass over the data, `TensorRows.count`, counts the entries below each candidate, and
   `_narrow` keeps the part of the bracket between the last candidate with at most m entries below
   it and the next one. `_interpolate` places the candidates of the next pass; from the tenth pass
   on, or where little is known, `_divide` places them evenly. A pass leaves about the square root
   of the entries that the bracket held.
3. Read off. When T is the first entry of its bracket, or at most three entries are left, or
   counting stalls, a pass `TensorRows.inside` finds the smallest, the largest and the sum of the
   entries in the bracket, and `_read_off` makes a bracket of T alone from them, or a closer one.
4. Repeat steps 2 and 3 until every bracket is one integer wide: it is T, which `select` returns.

A count is a sum: for a gradient sharded over a mesh, the devices exchange a few integers in each
pass and nothing else. `gmt_jax.selection` compares every entry with T. The tests compare
the result with that of ten lines that sort, quoted in docs/methods.md.
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
from gmt_jax._threshold.uint64 import Array, UInt64, add, as_float, at_most, subtract, uint64

# The candidates of a pass, in standard deviations from the expected position of T: close together
# where T most probably is, and far out on each side so that the bracket never stays wide. Seven
# cost no more than two on any backend.
SPREAD = np.array([-4, -1.4, -0.45, 0, 0.45, 1.4, 4], np.float32)[:, None]
# How much further out they are, as a fraction of the bracket, if it spans octaves: its entries are
# seldom spread evenly.
BEND = np.array([-1, -0.1, 0, 0, 0, 0.1, 1], np.float32)[:, None]
# From this pass on, brackets are divided evenly: no data takes more than 22 passes of float32.
EVENLY_FROM = 10


class Selected(NamedTuple):
    """The result of `select`.

    Attributes:
      bits: for each leaf, T as magnitude bits, unsigned [*stack]; bits above those of NaN mask
        everything.
      num_below: float32 scalar: the number of entries with |g| < T, over all leaves.
      passes: int32 scalar: how often the data was read.
    """

    bits: list[jax.Array]
    num_below: jax.Array
    passes: jax.Array


class _Bracket(NamedTuple):
    """low <= T < high for each row.

    Attributes:
      low, high: unsigned [R].
      below_low, below_high: the number of entries below low and below high, [R].
      stalled: bool [R]: whether the latest count left most of the entries in the bracket.
    """

    low: jax.Array
    high: jax.Array
    below_low: UInt64
    below_high: UInt64
    stalled: jax.Array

    @property
    def width(self) -> jax.Array:
        return self.high - self.low

    @property
    def entries(self) -> UInt64:
        return subtract(self.below_high, self.below_low)


class _Search(NamedTuple):
    """State of the loop: how often the data was read, int32 scalar, and the brackets."""

    passes: jax.Array
    bracket: _Bracket


@partial(jax.jit, static_argnames="layout")
def select(
    leaves: Sequence[jax.Array], ranks: UInt64, layout: TensorLayout, slack: UInt64 | None = None
) -> Selected:
    """The m-th smallest |g| of every tensor, counting from 0; all NaNs are one value, the largest.

    If m is the size of a tensor, T is above everything.

    Args:
      leaves: at least one float or complex array, on any mesh.
      ranks: m, [len(layout.sizes)].
      layout: how the leaves are divided into tensors.
      slack: how far the number of entries below T may fall short of m, [len(layout.sizes)]; T need
        not be an entry then. None for the exact T.
    """
    rows = TensorRows(layout, key_dtypes([leaf.dtype for leaf in leaves], layout), mesh_of(leaves))
    ranks = replicate(layout.expand(ranks), rows.mesh)
    exact = slack is None
    slack = layout.expand(uint64([0] * len(layout.sizes)) if slack is None else slack)
    first = _sample_candidates(leaves, rows, ranks, slack)

    def is_known(bracket: _Bracket) -> jax.Array:
        single = bracket.width <= 1
        return single if exact else single | at_most(subtract(ranks, bracket.below_low), slack)

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
        interpolated = _interpolate(bracket, ranks, slack, rows.mantissas)
        candidates = jnp.where(passes == 0, first, interpolated)
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

    start = replicate(_Search(jnp.int32(0), _first_brackets(rows, ranks)), rows.mesh)
    search = lax.while_loop(is_waiting, count, start)
    passes, bracket = lax.while_loop(is_unfinished, read_and_count, search)
    num_below = jnp.sum(as_float(bracket.below_low))
    return Selected(rows.split(bracket.low), num_below, passes)


def _tied(state: _Search, leaves: Sequence[jax.Array]) -> tuple[_Search, list[jax.Array]]:
    """The leaves behind a barrier with the state of the loop.

    Without it, XLA computes their bits once before the loop and stores them, a second copy of the
    gradient.
    """
    return lax.optimization_barrier((state, list(leaves)))


def _first_brackets(rows: TensorRows, ranks: UInt64) -> _Bracket:
    """The first brackets: from zero to above NaN, or at the top where everything is masked."""
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


def _sample_candidates(
    leaves: Sequence[jax.Array], rows: TensorRows, ranks: UInt64, slack: UInt64
) -> jax.Array:
    """Candidates of the first pass, [K, R]: order statistics of a sample, digit by digit."""
    sample, lengths = rows.sample(leaves)
    sizes = jnp.maximum(as_float(rows.layout.expand(uint64(rows.layout.sizes))), 1)
    # The ranks of the candidates in the sample, around that of the m-th entry.
    quantile = jnp.clip(_aim(ranks, slack) / sizes, 0, 1)
    unseen = jnp.clip(1 - lengths / sizes, 0, 1)
    deviation = jnp.sqrt(quantile * (1 - quantile) * lengths * unseen)
    positions = jnp.floor((quantile * lengths)[None] + SPREAD * deviation[None])
    positions = jnp.clip(positions, 0, jnp.maximum(lengths - 1, 0)[None]).astype(jnp.uint32)
    wanted = UInt64(jnp.zeros_like(positions), positions)
    tops, digits = rows.tops, 8 * rows.tops.dtype.itemsize - 1

    def next_digit(i: jax.Array, found: jax.Array) -> jax.Array:
        digit = jnp.left_shift(jnp.ones((), tops.dtype), (digits - 1 - i).astype(tops.dtype))
        candidates = jnp.minimum(found + digit, tops[None])
        counts = count_below(sample, lambda bits: bits, candidates, 1, None)
        return replicate(jnp.where(at_most(counts, wanted), candidates, found), rows.mesh)

    start = replicate(jnp.zeros(positions.shape, tops.dtype), rows.mesh)
    return lax.fori_loop(0, digits, next_digit, start)


def _aim(missing: UInt64, slack: UInt64) -> jax.Array:
    """The rank to aim at: the middle of the m-th entry, or of the entries that may be missing."""
    return as_float(missing) + 0.5 - as_float(slack) / 2


def _interpolate(
    bracket: _Bracket, ranks: UInt64, slack: UInt64, mantissas: np.ndarray
) -> jax.Array:
    """Candidates around the position of T if the entries of a bracket were even, [K, R]."""
    entries = jnp.maximum(as_float(bracket.entries), 1)
    quantile = jnp.clip(_aim(subtract(ranks, bracket.below_low), slack) / entries, 0, 1)
    width = bracket.width.astype(jnp.float32)
    bend = 1 - jnp.exp2(-width * np.exp2(-mantissas.astype(np.float32)))
    deviation = jnp.sqrt(quantile * (1 - quantile) / entries)
    positions = quantile[None] + SPREAD * deviation[None] + BEND * bend[None]
    # Above a power of two, floats are twice as far apart.
    octave = np.left_shift(np.ones_like(mantissas), mantissas).astype(bracket.low.dtype)
    near = jnp.minimum(bracket.width, octave - bracket.low % octave).astype(jnp.float32)
    near, width = near[None], width[None]
    along = jnp.clip(positions, 0, 1) * (2 * width - near)
    along = jnp.where(along < near, along, (near + along) / 2)
    between = bracket.low[None] + jnp.minimum(along, width).astype(bracket.low.dtype)
    # With few entries, or over octaves, their spread is unknown.
    unknown = (entries <= len(SPREAD)) | (width[0] <= len(SPREAD)) | (bend > 0.75)
    return jnp.where(unknown[None], _divide(bracket), between)


def _divide(bracket: _Bracket) -> jax.Array:
    """Candidates that divide the brackets evenly, [K, R]."""
    parts = len(SPREAD) + 1
    j = jnp.arange(1, parts, dtype=bracket.low.dtype)[:, None]
    whole, rest = jnp.divmod(bracket.width, jnp.array(parts, j.dtype))
    return bracket.low[None] + whole[None] * j + rest[None] * j // parts


def _distinct(candidates: jax.Array, bracket: _Bracket) -> jax.Array:
    """The candidates inside their brackets and, if there is room, all different."""
    later = jnp.arange(len(SPREAD), dtype=candidates.dtype)[::-1, None]
    low, high = bracket.low[None], bracket.high[None]
    candidates = jnp.clip(candidates, low + 1, high - 1)
    candidates = lax.cummax(candidates + later, axis=0) - later
    return jnp.minimum(candidates, high - 1)


def _narrow(bracket: _Bracket, candidates: jax.Array, counts: UInt64, ranks: UInt64) -> _Bracket:
    """The part of each bracket between the last candidate that fits below T and the next."""
    ranks = jax.tree.map(lambda part: part[None], ranks)
    last = jnp.sum(at_most(counts, ranks), axis=0, dtype=jnp.int32)[None]

    def pick(first: Array, between: Array, end: Array, index: jax.Array) -> jax.Array:
        edges = jnp.concatenate([first[None], between, end[None]])
        return jnp.take_along_axis(edges, index, axis=0)[0]

    def count(index: jax.Array) -> UInt64:
        edges = zip(bracket.below_low, counts, bracket.below_high, strict=True)
        return UInt64(*(pick(first, between, end, index) for first, between, end in edges))

    low, high = (pick(bracket.low, candidates, bracket.high, index) for index in (last, last + 1))
    narrower = _Bracket(low, high, count(last), count(last + 1), bracket.stalled)
    left = as_float(narrower.entries)
    most = as_float(bracket.entries) * 0.75
    # Of a few entries only if all are left: else another count costs less than reading off.
    most = jnp.maximum(most, jnp.minimum(as_float(bracket.entries) - 1, len(SPREAD)))
    return narrower._replace(stalled=left > most)


def _read_off(
    bracket: _Bracket,
    counted: jax.Array,
    ranks: UInt64,
    inside: tuple[jax.Array, jax.Array, jax.Array],
) -> _Bracket:
    """Brackets of T alone where `counted`; elsewhere they begin and end at entries.

    Where counted, T is the first entry of its bracket, or one of at most three, which the smallest,
    the largest and the sum tell apart. Elsewhere counting stalled: the entries are far from the
    ends of the bracket, or many of them are equal.
    """
    smallest, largest, total = inside
    rank, three = subtract(ranks, bracket.below_low).low, bracket.entries.low == 3
    middle = total - smallest - largest
    offset = jnp.where(rank == 0, smallest, jnp.where(three & (rank == 1), middle, largest))
    before = sum(x.astype(jnp.uint32) for x in (smallest < offset, three & (middle < offset)))
    before = jnp.where((rank > 0) & counted, before, jnp.uint32(0))
    return _Bracket(
        bracket.low + jnp.where(counted, offset, smallest),
        bracket.low + jnp.where(counted, offset, largest) + 1,
        add(bracket.below_low, UInt64(jnp.zeros_like(before), before)),
        bracket.below_high,
        jnp.zeros_like(bracket.stalled),
    )
