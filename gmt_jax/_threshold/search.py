"""Exact order statistics of |g|, by counting on the bits of floats.

The threshold T of a tensor is its m-th smallest |g|, counting from 0. The bits of |g|, read as an
integer, are in the order of |g|, so that T is the largest integer with at most m entries below it.
`select` searches the thresholds of all tensors of a tree together, each a row of the same arrays,
and keeps a bracket low <= T < high for each of them. Until every bracket is one integer wide, it
repeats three steps:

1. Place. `_candidates` places three candidates in each bracket: around the position that T would
   have if the entries in the bracket were spread evenly (`_interpolate`), or evenly over the
   bracket (`_divide`) where little is known. In the first pass they stand around a guess, such as
   the threshold of the update before (`_around`).
2. Read. A pass over the data, `TensorRows.read`, counts the entries below each candidate, and finds
   the entry that follows it, and the largest in the bracket.
3. Narrow. `_narrow` keeps the part of the bracket from the entry that follows the last candidate
   with at most m entries below it, to the next candidate or the largest entry. An entry with
   exactly m below it is T, and ends the search of its row.

A pass leaves about the square root of the entries that the bracket held. After one that leaves more
than half of them the bracket is divided evenly, which 16 times end any search of float32: no data
takes more than 35 + log2 n passes, log2 n that halve its n entries, and two around a guess.

A count is a sum: for a gradient sharded over a mesh, the devices exchange a few integers in each
pass and nothing else. `gmt_jax.selection` compares every entry with T. The tests compare the result
with that of ten lines that sort, quoted in docs/methods.md.
"""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmt_jax._threshold.replication import replicate, shard_axes
from gmt_jax._threshold.rows import RowsRead, TensorRows
from gmt_jax._threshold.uint64 import UInt64, as_float, at_most, subtract, uint64

# Candidates stand where T is expected, and on each side of it at a distance: of standard deviations
# of the number of entries below T, and of a part of a bracket that spans octaves, whose entries are
# seldom spread evenly. Around a guess, it is an octave. Chosen on gradients of a language model.
SIDES = np.array([-1, 0, 1], np.float32)[:, None]
DEVIATIONS = 1.3
BEND = 0.3
# A pass that leaves more than this part of the entries in the bracket is followed by even division.
STALLED = 0.5


class Selected(NamedTuple):
    """The result of `select`.

    Attributes:
      bits: T of each tensor as integers, [R]; its `ends` mask everything.
      below: the number of entries of each tensor below T, [R].
      passes: int32 scalar: how often the data was read.
    """

    bits: jax.Array
    below: UInt64
    passes: jax.Array


class _Bracket(NamedTuple):
    """low <= T < high for each row.

    Attributes:
      low, high: integers [R].
      below_low, below_high: the number of entries below low and below high, [R].
      stalled: bool [R]: whether the latest pass left more than half of the entries.
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


@partial(jax.jit, static_argnames="rows")
def select(
    leaves: Sequence[jax.Array],
    ranks: UInt64,
    rows: TensorRows,
    guess: jax.Array | None = None,
    slack: UInt64 | None = None,
) -> Selected:
    """The m-th smallest integer of every tensor, counting from 0; its `ends` if m is its size.

    Args:
      leaves: what `rows` reads, at least one.
      ranks: m, [R].
      rows: reads the leaves.
      guess: what T may be, [R], or 0. It changes how often the data is read, and not the exact T.
      slack: by how much fewer than m entries may be below T, [R]; None for the exact T.
    """
    ranks = replicate(jax.tree.map(jnp.asarray, ranks), rows.mesh)
    exact = slack is None
    slack = uint64([0] * rows.layout.num_tensors) if slack is None else slack
    tolerant = jnp.any((slack.high | slack.low) > 0)  # A traced tolerance may be 0.

    def is_known(bracket: _Bracket) -> jax.Array:
        single = bracket.width <= 1
        if exact:
            return single
        return single | (tolerant & at_most(subtract(ranks, bracket.below_low), slack))

    def is_unfinished(state: _Search) -> jax.Array:
        return ~jnp.all(is_known(state.bracket))

    def next_pass(state: _Search) -> _Search:
        passes, bracket = state
        tied = _tied(passes, leaves)
        aim = as_float(subtract(ranks, bracket.below_low)) - 0.5 - as_float(slack) / 2
        candidates = _candidates(bracket, aim, rows)
        if guess is not None:
            missed = (passes == 1) & (bracket.low == 0) & (aim > 0)
            around = jnp.where(missed[None], _below(bracket, rows), _around(guess, rows))
            guessed = (guess > 0) & ((passes == 0) | missed)
            candidates = jnp.where(guessed[None], around, candidates)
        candidates = _distinct(candidates, bracket)
        narrower = _narrow(bracket, candidates, rows.read(tied, candidates, bracket.high), ranks)
        known = is_known(bracket)
        bracket = jax.tree.map(lambda old, new: jnp.where(known, old, new), bracket, narrower)
        return replicate(_Search(passes + 1, bracket), rows.mesh)

    start = replicate(_Search(jnp.int32(0), _first_brackets(rows, ranks)), rows.mesh)
    passes, bracket = lax.while_loop(is_unfinished, next_pass, start)
    return Selected(bracket.low, bracket.below_low, passes)


def _tied(passes: jax.Array, leaves: Sequence[Any]) -> list[Any]:
    """The leaves behind a barrier with the state of the loop.

    Without it, XLA computes their integers once before the loop and stores them, a second copy of
    the gradient. Shards have a barrier of their own, behind which all varies as they do.
    """
    kinds = [shard_axes(jax.tree.leaves(leaf)[0]) for leaf in leaves]
    tied = list(leaves)
    for kind in set(kinds):
        indices = [i for i, axes in enumerate(kinds) if axes == kind]
        _, group = lax.optimization_barrier((passes, [leaves[i] for i in indices]))
        for i, leaf in zip(indices, group, strict=True):
            tied[i] = leaf
    return tied


def _first_brackets(rows: TensorRows, ranks: UInt64) -> _Bracket:
    """The first brackets: all integers, or those above all entries where everything is masked."""
    sizes = rows.layout.expand(uint64(rows.layout.sizes))
    ends = jnp.asarray(rows.rows(rows.ends))
    everything = at_most(sizes, ranks)
    return _Bracket(
        jnp.where(everything, ends, 0),
        ends,
        UInt64(*(jnp.where(everything, size, 0) for size in sizes)),
        UInt64(*(jnp.asarray(size) for size in sizes)),
        jnp.zeros_like(everything),
    )


def _around(guess: jax.Array, rows: TensorRows) -> jax.Array:
    """Candidates around a guess, [K, R]."""
    octaves = rows.rows(rows.octaves)
    # Low enough that no sum wraps around.
    guess = jnp.minimum(guess, rows.rows(rows.ends) - 2 * octaves)
    return guess[None] + SIDES.astype(rows.dtype) * octaves[None]


def _below(bracket: _Bracket, rows: TensorRows) -> jax.Array:
    """Candidates below a guess that was too large by more than an octave, [K, R]."""
    steps = np.array([8, 3, 1], rows.dtype)[:, None] * rows.rows(rows.octaves)[None]
    return bracket.high[None] - jnp.minimum(steps, bracket.high[None])


def _candidates(bracket: _Bracket, aim: jax.Array, rows: TensorRows) -> jax.Array:
    """Candidates in the brackets, [K, R].

    Args:
      bracket: the brackets.
      aim: the rank in the bracket to aim at, float32 [R].
      rows: reads the leaves.
    """
    octaves = rows.rows(rows.octaves)
    entries = jnp.maximum(as_float(bracket.entries), 1)
    width = bracket.width.astype(jnp.float32)
    bend = width / (width + octaves.astype(np.float32))
    quantile = jnp.clip(aim / entries, 0, 1)
    deviation = jnp.sqrt(quantile * (1 - quantile) / entries)
    positions = quantile[None] + SIDES * (DEVIATIONS * deviation + BEND * bend)[None]
    between = _interpolate(bracket, jnp.clip(positions, 0, 1), octaves)
    # Over octaves nothing is spread evenly; but the first entry is found below all others.
    wide = (bend > 0.67) & (aim > 0)  # two octaves
    return jnp.where((wide | bracket.stalled)[None], _divide(bracket), between)


def _interpolate(bracket: _Bracket, positions: jax.Array, octaves: np.ndarray) -> jax.Array:
    """The integers at positions in [0, 1] of the brackets, [K, R], if floats were spread evenly."""
    # Above a power of two, floats are twice as far apart.
    width = bracket.width.astype(jnp.float32)[None]
    near = jnp.minimum(bracket.width, octaves - bracket.low % octaves).astype(jnp.float32)[None]
    along = positions * (2 * width - near)
    along = jnp.where(along < near, along, (near + along) / 2)
    return bracket.low[None] + jnp.minimum(along, width).astype(bracket.low.dtype)


def _divide(bracket: _Bracket) -> jax.Array:
    """Candidates that divide the brackets evenly, [K, R]."""
    parts = len(SIDES) + 1
    j = jnp.arange(1, parts, dtype=bracket.low.dtype)[:, None]
    whole, rest = jnp.divmod(bracket.width, parts)
    return bracket.low[None] + whole[None] * j + rest[None] * j // parts


def _distinct(candidates: jax.Array, bracket: _Bracket) -> jax.Array:
    """The candidates inside their brackets and, if there is room, all different."""
    low, high = bracket.low[None], bracket.high[None]
    found: list[jax.Array] = []
    for candidate in jnp.clip(candidates, low + 1, high - 1):
        found.append(jnp.maximum(candidate, found[-1] + 1) if found else candidate)
    return jnp.minimum(jnp.stack(found), high - 1)


def _narrow(bracket: _Bracket, candidates: jax.Array, reading: RowsRead, ranks: UInt64) -> _Bracket:
    """The part of each bracket from the entry after the last candidate that is at most T."""
    (old, high, below_low, below_high, _), counts = bracket, reading.counts
    fits = at_most(counts, UInt64(*(jnp.asarray(part)[None] for part in ranks)))
    low = jnp.max(jnp.where(fits, reading.following, old[None]), 0)
    high = jnp.min(jnp.where(fits, high[None], candidates), 0)
    for k in range(len(candidates)):
        count = jax.tree.map(itemgetter(k), counts)
        below_low = jax.tree.map(partial(jnp.where, fits[k]), count, below_low)
    for k in reversed(range(len(candidates))):
        count = jax.tree.map(itemgetter(k), counts)
        below_high = jax.tree.map(partial(jnp.where, fits[k]), below_high, count)
    found = (low > old) & at_most(ranks, below_low)
    high = jnp.where(found, low + 1, jnp.minimum(high, reading.largest + 1))
    left = as_float(subtract(below_high, below_low))
    return _Bracket(low, high, below_low, below_high, left > STALLED * as_float(bracket.entries))
