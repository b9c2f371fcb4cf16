"""Masks by a score: what is scored, and when a new mask is selected."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import KeyPath

from gmt_jax._threshold.float_bits import float32_or_wider
from gmt_jax._threshold.replication import shard_axes, shard_index
from gmt_jax.selection import GmtMaskState, LargestScores, Selector, check_mask
from gmt_jax.tree_paths import as_key, path_key
from gmt_jax.types import Key, Mask, PyTree, is_integer

# The name of a score, or a function of the gradient and the parameters that returns the scores.
Score: TypeAlias = str | Callable[[optax.Updates, optax.Params | None], PyTree]
# Likewise with the state of the inner optimizer, as `by_score` takes it.
ScoreFunction: TypeAlias = Callable[[optax.Updates, optax.Params | None, optax.OptState], PyTree]
SCORES = ("gradient", "gradient_to_weight", "weight", "random", "fisher")


class ScoredState(NamedTuple):
    """State of a selector by score; shapes and dtypes are the same after every update.

    Attributes:
      latest: threshold and masked fraction of the mask in use, and the number of updates done.
      mask: bool, shaped and sharded as the parameters: the mask in use; None where every update
        selects a new one.
      squares: float32, shaped and sharded as the parameters: the sum of |g|² since a mask was
        selected; None unless the score is "fisher".
    """

    latest: GmtMaskState
    mask: Mask
    squares: PyTree


def score_selector(
    largest: LargestScores, score: Score, every: int | None, warmup: int, key: Key
) -> Selector[ScoredState]:
    """A selector of the entries with the largest scores.

    The arguments are those of `by_score`; a function that is the score has two arguments here, the
    gradient and the parameters.
    """
    every, warmup = _checked(score, every, warmup)
    every_update = every == 1 and warmup == 0
    if every_update and score == "fisher":
        score = "gradient"  # The squares of a single gradient are ordered as the gradient is.

    def init(params: optax.Params) -> ScoredState:
        def zeros(dtype: type) -> PyTree:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)

        return ScoredState(
            largest.init(params),
            None if every_update else zeros(bool),
            zeros(jnp.float32) if score == "fisher" else None,
        )

    def select(
        grads: optax.Updates, state: ScoredState, params: optax.Params | None
    ) -> tuple[Mask, ScoredState]:
        if params is None and score in ("weight", "gradient_to_weight"):
            raise ValueError(f"score={score!r} needs params: update(gradient, state, params)")
        count, squares = state.latest.count, state.squares
        since_warmup = count - warmup
        if score == "fisher":
            squares = jax.tree.map(lambda total, g: total + _square(g), squares, grads)

        def select_anew() -> tuple[Mask, GmtMaskState]:
            if score == "random":
                scores = _random_scores(grads, key, 0 if every is None else since_warmup // every)
            else:
                scores = squares if score == "fisher" else _scores(score, grads, params)
            # A mask that lasts keeps exactly as many entries as it says.
            mask, latest = largest.select(scores, state.latest, break_ties=not every_update)
            jax.tree_util.tree_map_with_path(check_mask, mask, grads)
            return mask, latest

        def keep() -> tuple[Mask, GmtMaskState]:
            fraction = jnp.where(since_warmup < 0, 1, state.latest.masked_fraction)
            return state.mask, GmtMaskState(
                jnp.asarray(optax.safe_increment(count)),
                state.latest.threshold,
                fraction.astype(jnp.float32),
            )

        if every_update:
            mask, latest = select_anew()
            return mask, ScoredState(latest, None, squares)
        due = _is_due(since_warmup, every)
        if isinstance(due, jax.core.Tracer):
            mask, latest = lax.cond(due, select_anew, keep)
        else:
            mask, latest = select_anew() if due else keep()
        if score == "fisher":
            squares = jax.tree.map(lambda total: jnp.where(due, 0, total), squares)
        return mask, ScoredState(latest, mask, squares)

    return Selector(init, select)


def _is_due(since_warmup: jax.Array, every: int | None) -> jax.Array:
    """Whether a new mask is selected."""
    if every is None:
        return since_warmup == 0
    return (since_warmup >= 0) & (since_warmup % every == 0)


def _checked(score: Score, every: int | None, warmup: int) -> tuple[int | None, int]:
    """`every` and `warmup` as integers of Python."""
    if not callable(score) and score not in SCORES:
        raise ValueError(f"score is one of {', '.join(SCORES)} or a function; got {score!r}")
    every = None if every is None else _num_updates("every", every, 1)
    return every, _num_updates("warmup", warmup, 0)


def _num_updates(name: str, value: object, least: int) -> int:
    """The integer that an option is; ValueError if it is none, or too small."""
    if not is_integer(value) or value < least:
        raise ValueError(
            f"{name} is a number of updates, an integer of at least {least}; got {value!r} (under "
            "optax.inject_hyperparams, name it in static_args)"
        )
    return int(value)


def _scores(score: Score, grads: optax.Updates, params: optax.Params | None) -> PyTree:
    """Scores that follow from a gradient and the parameters alone."""
    if callable(score):
        return score(grads, params)
    if score == "gradient":
        return grads
    # Only of the parameters that have gradients.
    if score == "weight":
        return jax.tree.map(lambda _, w: w, grads, params)
    return jax.tree.map(_gradient_to_weight, grads, params)


def _square(g: jax.Array) -> jax.Array:
    return jnp.square(jnp.abs(g).astype(jnp.float32))


def _gradient_to_weight(g: jax.Array, w: jax.Array) -> jax.Array:
    """|g| / |w|, and 0 for a gradient of zero, whatever the weight."""
    dtype = float32_or_wider(g.dtype)
    size = jnp.abs(g).astype(dtype)
    return jnp.where(size == 0, 0, size / jnp.abs(w).astype(dtype))


def _random_scores(grads: optax.Updates, key: Key, number: jax.Array | int) -> PyTree:
    """Positive float32 scores for every entry, in a uniformly random order.

    The scores of a leaf depend only on the key, on how many masks were selected before (`number`),
    and on the path and shape of the leaf.
    """
    key = jax.random.fold_in(as_key(key), number)

    def scores_of(path: KeyPath, g: jax.Array) -> jax.Array:
        own = path_key(path, key)
        # Inside jax.shard_map each shard of a tensor draws its own.
        return _draw(jax.random.fold_in(own, shard_index(g)) if shard_axes(g) else own, g)

    return jax.tree_util.tree_map_with_path(scores_of, grads)


@jax.jit
def _draw(key: jax.Array, like: jax.Array) -> jax.Array:
    bits = jax.random.bits(key, like.shape, "uint32", out_sharding=jax.typeof(like).sharding)
    # Finite floats, of which the search compares the bits; few are equal.
    return lax.bitcast_convert_type(bits >> 2, jnp.float32)
