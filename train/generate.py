"""Completes prompts with a key-value cache, greedily or by sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .errors import UserError
from .model import Cache, ModelConfig, Params, decode, init_cache, logits
from .sharding import constrain

# Prompts are padded to a multiple of this many tokens, so that few lengths are compiled.
PROMPT_MULTIPLE = 64

# Step, last tokens [B], new tokens [B, N], rows that ended [B], key-value cache.
_Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, Cache]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
      max_new_tokens: the length of a completion that no stop token ends.
      temperature: 0 takes the most probable token.
      top_p: the nucleus: the most probable tokens that together have this probability.
      seed: of the random choices.
    """

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


def complete(
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    dtype: str = "float32",
) -> list[str]:
    """The text that follows each prompt, up to the first stop token.

    Args:
      tokenizer: as from `load_tokenizer`.
      prompts: token ids.
      stop_ids: as from `find_ends`.
      dtype: of activations and the cache.

    Raises:
      UserError: as `generate` does.
    """
    completions = generate(config, params, prompts, sampling, stop_ids, dtype)
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Sequence[int],
    dtype: str = "float32",
) -> list[list[int]]:
    """The new tokens of each prompt, up to and without the first stop token.

    Raises:
      UserError: if a prompt is empty, has a token that the model does not have, or is too long.
    """
    check_prompts(config, prompts, sampling)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    width = -(-lengths.max() // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[width - len(prompt) :] = prompt  # Padded on the left, all rows go on at one position.
    stops = np.asarray(stop_ids, np.int32)
    new_tokens = _generate(config, params, tokens, lengths, stops, sampling, dtype)
    return [_until_stop(row, stop_ids) for row in np.asarray(new_tokens).tolist()]


def check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> None:
    """Checks that the model can complete every prompt.

    Raises:
      UserError: if one is empty, has a token without a row in the embeddings, or is too long for
        the model's positions.
    """
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) == 0:
            raise UserError(f"a prompt has no tokens (number {number}); give at least one word")
        if max(prompt) >= config.vocab_size:
            raise UserError(
                f"prompt {number} has token {max(prompt)}, and the model's vocabulary ends at "
                f"{config.vocab_size - 1}; use the tokenizer that belongs to the model"
            )
        length = len(prompt) + sampling.max_new_tokens
        if length > config.max_position_embeddings:
            raise UserError(
                f"prompt {number} has {len(prompt):,} tokens, with {sampling.max_new_tokens:,} new "
                f"ones more than the model's {config.max_position_embeddings:,} positions; "
                "shorten it, or lower max_new_tokens (--max-new-tokens)"
            )


@partial(jax.jit, static_argnames=("config", "sampling", "dtype"))
def _generate(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    stop_ids: jax.Array,
    sampling: Sampling,
    dtype: str,
) -> jax.Array:
    """New tokens [B, max_new_tokens] after left-padded prompts [B, T]; 0s after all rows ended."""
    num_rows, width = tokens.shape
    limit = sampling.max_new_tokens
    cache = init_cache(config, num_rows, width + limit, dtype)
    start = width - lengths
    hidden, cache = decode(config, params, tokens, cache, start=start, dtype=dtype)
    key = jax.random.key(sampling.seed)

    def next_token(hidden: jax.Array, step: jax.Array) -> jax.Array:
        scores = logits(config, params, hidden[:, -1], dtype=dtype)
        return sample(scores, sampling, jax.random.fold_in(key, step))

    def is_unfinished(carry: _Carry) -> jax.Array:
        step, _, _, ended, _ = carry
        return (step < limit) & ~jnp.all(ended)

    def advance(carry: _Carry) -> _Carry:
        step, token, new_tokens, ended, cache = carry
        new_tokens = new_tokens.at[:, step].set(token)
        ended |= jnp.isin(token, stop_ids)
        hidden, cache = decode(config, params, token[:, None], cache, start=start, dtype=dtype)
        return step + 1, next_token(hidden, step + 1), new_tokens, ended, cache

    step = jnp.int32(0)
    blank = jnp.zeros((num_rows, limit), jnp.int32)
    carry = (step, next_token(hidden, step), blank, jnp.zeros(num_rows, bool), cache)
    new_tokens = jax.lax.while_loop(is_unfinished, advance, carry)[2]
    return constrain(new_tokens, None, None)  # Each process reads all of it.


def sample(scores: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """The next token [B] of each row from its logits [B, V]."""
    if sampling.temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / sampling.temperature
    if sampling.top_p < 1:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The nucleus: tokens with less than top_p of the mass before them, and so the first one.
        in_nucleus = jnp.where(mass_before < sampling.top_p, ordered, jnp.inf)
        scores = jnp.where(scores < jnp.min(in_nucleus, -1, keepdims=True), -jnp.inf, scores)
    return jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)


def _until_stop(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [index for index, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0]] if ends else tokens
