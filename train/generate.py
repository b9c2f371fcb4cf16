"""Completes prompts with a key-value cache, greedily or by sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .errors import UserError
from .model import ModelConfig, decode, init_cache, logits
from .sharding import constrain

# Prompts are padded to a multiple of this, so that few lengths are ever compiled.
ROUND = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else from the top_p nucleus."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise UserError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def generate(
    config: ModelConfig,
    params: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    dtype: str = "float32",
) -> list[list[int]]:
    """The new tokens of each prompt, up to and without the first stop token."""
    if any(len(prompt) == 0 for prompt in prompts):
        raise UserError("a prompt has no tokens; give at least one word")
    longest = max(map(len, prompts))
    width = -(-longest // ROUND) * ROUND
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt  # Left padding: all rows go on at the same position.
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    new = np.asarray(
        _generate(
            config,
            params,
            tokens,
            lengths,
            np.asarray(stop_ids, np.int32),
            sampling,
            dtype,
        )
    )
    return [_until_stop(row, stop_ids) for row in new.tolist()]


@partial(jax.jit, static_argnames=("config", "sampling", "dtype"))
def _generate(
    config: ModelConfig,
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    stop_ids: jax.Array,
    sampling: Sampling,
    dtype: str,
) -> jax.Array:
    """New tokens [B, max_new_tokens] after left-padded prompts [B, T]; 0s after all rows ended."""
    rows, width = tokens.shape
    total = sampling.max_new_tokens
    cache = init_cache(config, rows, width + total, dtype)
    start = width - lengths
    hidden, cache = decode(config, params, tokens, cache, start=start, dtype=dtype)
    key = jax.random.key(sampling.seed)

    def choose(hidden: jax.Array, step: jax.Array) -> jax.Array:
        scores = logits(config, params, hidden[:, -1], dtype=dtype)
        return _choose(scores, sampling, jax.random.fold_in(key, step))

    def going(carry: Any) -> jax.Array:
        step, _, _, ended, *_ = carry
        return (step < total) & ~jnp.all(ended)

    def advance(carry: Any) -> Any:
        step, token, new, ended, cache = carry
        new = new.at[:, step].set(token)
        ended |= jnp.isin(token, stop_ids)
        hidden, cache = decode(config, params, token[:, None], cache, start=start, dtype=dtype)
        return step + 1, choose(hidden, step + 1), new, ended, cache

    first = choose(hidden, jnp.int32(0))
    blank = jnp.zeros((rows, total), jnp.int32)
    carry = (jnp.int32(0), first, blank, jnp.zeros(rows, bool), cache)
    new = jax.lax.while_loop(going, advance, carry)[2]
    return constrain(new, None, None)  # Each process reads all of it.


def _choose(scores: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row from its scores [B, V]."""
    if sampling.temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / sampling.temperature
    if sampling.top_p < 1:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The nucleus: tokens with less than top_p of the mass before them; the first is in.
        kept = jnp.where(before < sampling.top_p, ordered, jnp.inf)
        scores = jnp.where(scores < jnp.min(kept, -1, keepdims=True), -jnp.inf, scores)
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)


def _until_stop(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [at for at, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0]] if ends else tokens


def complete(
    config: ModelConfig,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    dtype: str = "float32",
) -> list[str]:
    """The text that follows each prompt, up to the tokenizer's end token."""
    end = tokenizer.eos_token_id
    new = generate(config, params, prompts, sampling, [] if end is None else [end], dtype)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
