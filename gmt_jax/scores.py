"""Which entries are trained, by a score: what is scored, and when the mask is drawn anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gmt_jax.selection import GmtMaskState, Smallest
from gmt_jax.tree_paths import Key, as_key, path_key

SCORES = ("gradient", "gradient_to_weight", "weight", "random", "fisher")


class Selector(NamedTuple):
    """Chooses the entries to train."""

    init: Callable[[Any], Any]  # params -> state
    # gradient, state, params -> a tree of bools, broadcastable to the gradient's leaves; state
    select: Callable[[Any, Any, Any], tuple[Any, Any]]


class ScoredState(NamedTuple):
    """State of a mask by score; shapes and dtypes are the same from update to update."""

    mask: GmtMaskState  # of the mask in use, but for the count, which is of all updates
    kept: Any  # bool, shaped as the parameters: the mask in use; None if each update draws one
    squares: Any  # float32, shaped as the parameters: Σ|g|² since a mask was drawn; None if unused


def scored(rule: Smallest, score: str, every: int | None, warmup: int, key: Key) -> Selector:
    """Keeps the entries with the largest scores; the arguments are those of `by_score`."""
    if score not in SCORES:
        raise ValueError(f"score is one of {', '.join(SCORES)}; got {score!r}")
    _check_updates("every", every, 1)
    _check_updates("warmup", warmup, 0)
    always = every == 1 and warmup == 0
    if always and score == "fisher":
        score = "gradient"  # The squares of one gradient are in its order.

    def init(params: Any) -> ScoredState:
        def like(dtype: Any) -> Any:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype), params)

        return ScoredState(
            rule.init(params),
            None if always else like(bool),
            like(jnp.float32) if score == "fisher" else None,
        )

    def select(grads: Any, state: ScoredState, params: Any) -> tuple[Any, ScoredState]:
        count, squares = state.mask.count, state.squares
        since = count - warmup
        if score == "fisher":
            squares = jax.tree.map(lambda sum, g: sum + _square(g), squares, grads)
        if params is None and score in ("weight", "gradient_to_weight"):
            raise ValueError(
                f"score={score!r} needs the parameters: update(gradient, state, params)"
            )

        def draw() -> tuple[Any, GmtMaskState]:
            if score == "gradient":
                scores = grads
            elif score == "weight":
                scores = _alongside(grads, params)
            elif score == "gradient_to_weight":
                scores = jax.tree.map(_ratio, grads, _alongside(grads, params))
            elif score == "fisher":
                scores = squares
            else:
                scores = _random(grads, key, 0 if every is None else since // every)
            return rule.select(scores, state.mask)

        def hold() -> tuple[Any, GmtMaskState]:
            masked = jnp.where(since < 0, 1, state.mask.masked_fraction)
            return state.kept, GmtMaskState(
                optax.safe_increment(count), state.mask.threshold, masked.astype(jnp.float32)
            )

        if always:
            kept, mask = draw()
            return kept, ScoredState(mask, None, squares)
        due = since == 0 if every is None else (since >= 0) & (since % every == 0)
        traced = isinstance(due, jax.core.Tracer)
        kept, mask = lax.cond(due, draw, hold) if traced else (draw if due else hold)()
        if score == "fisher":
            squares = jax.tree.map(lambda sum: jnp.where(due, 0, sum), squares)
        return kept, ScoredState(mask, kept, squares)

    return Selector(init, select)


def _check_updates(name: str, value: Any, least: int) -> None:
    if value is None and name == "every":
        return
    if not isinstance(value, int) or value < least:
        raise ValueError(
            f"{name} is a number of updates, an integer of at least {least}; got {value!r} (under "
            "optax.inject_hyperparams, name it in static_args)"
        )


def _alongside(grads: Any, params: Any) -> Any:
    """The parameters of which there are gradients."""
    return jax.tree.map(lambda _, p: p, grads, params)


def _square(g: jax.Array) -> jax.Array:
    return jnp.square(jnp.abs(g).astype(jnp.float32))


def _ratio(g: jax.Array, w: jax.Array) -> jax.Array:
    """|g| / |w|; of no gradient 0, whatever the weight."""
    wide = jnp.promote_types(jnp.finfo(g.dtype).dtype, jnp.float32)
    size = jnp.abs(g).astype(wide)
    return jnp.where(size == 0, 0, size / jnp.abs(w).astype(wide))


def _random(grads: Any, key: Key, draw: Any) -> Any:
    """Positive float32s in any order, each as likely as another, for each entry.

    What is drawn for a leaf depends on the key, the number of the draw and the leaf's path and
    shape alone.
    """
    key = jax.random.fold_in(as_key(key), draw)

    def one(path: Any, g: jax.Array) -> jax.Array:
        return _draw(path_key(path, key), g)

    return jax.tree_util.tree_map_with_path(one, grads)


@jax.jit
def _draw(key: jax.Array, like: jax.Array) -> jax.Array:
    bits = jax.random.bits(key, like.shape, "uint32", out_sharding=jax.typeof(like).sharding)
    # Finite floats, of which the search looks at the bits alone: few are equal.
    return lax.bitcast_convert_type(bits >> 2, jnp.float32)
