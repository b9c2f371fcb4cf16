"""How the next token is chosen from its logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ..errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many are.

    Attributes:
      max_new_tokens: the length of a completion that nothing else ends.
      temperature: 0 takes the most probable token.
      top_p: the nucleus: the most probable tokens that together have this probability.
      seed: of the random choices. With one seed a prompt is completed alike in any batch, up to
        rounding; the number of the prompt is part of its key.
      top_k: the most probable tokens, so many; 0 takes all. It is applied before `top_p`.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_k < 0:
            raise UserError(f"top_k must be at least 0 (0: all tokens), got {self.top_k}")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed must be at least 0 and below 2**31, got {self.seed}")


def sample(scores: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """The next token [B] of each row from its logits [B, V], with the row's key [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    scores = scores / sampling.temperature
    top_k = min(sampling.top_k, scores.shape[-1])
    if top_k or sampling.top_p < 1:
        ordered = jnp.sort(scores, axis=-1, descending=True)
        if top_k:
            ordered = jnp.where(jnp.arange(ordered.shape[-1])[None] < top_k, ordered, -jnp.inf)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
        # The nucleus: tokens with less than top_p of the mass before them, and so the first one.
        in_nucleus = (mass_before < sampling.top_p) & (ordered > -jnp.inf)
        least = jnp.min(jnp.where(in_nucleus, ordered, jnp.inf), -1, keepdims=True)
        scores = jnp.where(scores < least, -jnp.inf, scores)
    return jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
