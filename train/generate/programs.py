"""The compiled programs of generation: the prompts into a key-value cache, then token by token."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..model import Cache, ModelConfig, Params, decode, init_cache, logits, unstack
from ..sharding import constrain
from .sampling import Sampling, sample

CHUNK = 16  # Tokens that are chosen before the host looks at them.
PIECE = 512  # Tokens of a prompt whose attention scores are in memory at a time.


class State(NamedTuple):
    """Where the completions of a batch are.

    Attributes:
      step: int32 scalar, the tokens of each row that were returned.
      token: int32 [B], the token that each row goes on with; it is not in the cache yet.
      start: int32 [B], the slot of the cache at which the text of each row begins.
      keys: [B], each row's random key.
      cache: the keys and values of all tokens before, split by rows and heads over the mesh.
    """

    step: jax.Array
    token: jax.Array
    start: jax.Array
    keys: jax.Array
    cache: Cache


@partial(jax.jit, static_argnames=("config", "slots", "sampling", "dtype", "stacked"))
def prefill(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    numbers: jax.Array,
    seed: jax.Array,
    *,
    slots: int,
    sampling: Sampling,
    dtype: str,
    stacked: bool,
) -> State:
    """The state after the prompts, with the first new token of each row.

    Args:
      tokens: int32 [B, T], the prompts, padded on the left.
      lengths: int32 [B], their tokens.
      numbers: int32 [B], which are part of the rows' random keys.
      slots: of the cache: T, and the new tokens.
      stacked: whether the cache of all layers is one array; otherwise as from `unstack`.
    """
    num_rows, width = tokens.shape
    tokens = constrain(tokens, "batch", None)
    start = width - lengths
    cache = init_cache(config, num_rows, slots, dtype)
    size = math.gcd(width, PIECE)

    def add(cache: Cache, piece: jax.Array) -> tuple[Cache, jax.Array]:
        hidden, cache = decode(config, params, piece, cache, start=start, dtype=dtype)
        return cache, hidden[:, -1]

    if size == width:
        cache, hidden = add(cache, tokens)
    else:
        cache, ends = jax.lax.scan(add, cache, tokens.reshape(num_rows, -1, size).swapaxes(0, 1))
        hidden = ends[-1]
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(numbers)
    scores = logits(config, params, hidden, dtype=dtype)
    token = sample(scores, sampling, _at(keys, jnp.int32(0)))
    if not stacked:
        cache = cache._replace(layers=unstack(cache.layers))
    return State(jnp.int32(0), token, start, keys, cache)


@partial(jax.jit, static_argnames=("config", "sampling", "dtype"), donate_argnames="state")
def advance(
    config: ModelConfig,
    params: Params,
    state: State,
    ended: jax.Array,
    stop_ids: jax.Array,
    steps: jax.Array,
    *,
    sampling: Sampling,
    dtype: str,
) -> tuple[State, jax.Array]:
    """The state further on, and the next tokens [B, CHUNK]; after all rows ended, the rest are 0.

    Args:
      params: their layers are stacked if the state's are, or both are as from `unstack`.
      ended: bool [B], the rows whose tokens are of no interest any more.
      steps: int32 scalar, the most tokens that are chosen.
    """

    def is_unfinished(carry: tuple[State, jax.Array, jax.Array]) -> jax.Array:
        now, _, ended = carry
        return (now.step < state.step + steps) & ~jnp.all(ended)

    def choose(
        carry: tuple[State, jax.Array, jax.Array],
    ) -> tuple[State, jax.Array, jax.Array]:
        now, tokens, ended = carry
        tokens = tokens.at[:, now.step - state.step].set(now.token)
        ended |= jnp.isin(now.token, stop_ids)
        hidden, cache = decode(
            config, params, now.token[:, None], now.cache, start=now.start, dtype=dtype
        )
        scores = logits(config, params, hidden[:, -1], dtype=dtype)
        step = now.step + 1
        token = sample(scores, sampling, _at(now.keys, step))
        return State(step, token, now.start, now.keys, cache), tokens, ended

    blank = jnp.zeros((len(state.token), CHUNK), jnp.int32)
    state, tokens, _ = jax.lax.while_loop(is_unfinished, choose, (state, blank, ended))
    return state, constrain(tokens, None, None)  # Each process reads all of it.


def _at(keys: jax.Array, step: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, step)
