"""Grouped-query self-attention with rotary positions, sliding windows and a key-value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from train.model.config import ModelConfig
from train.model.layers import Linear, RMSNorm
from train.model.rope import rotate
from train.sharding import constrain


class Placement(NamedTuple):
    """Where the tokens of a call stand; the same for all layers."""

    rotations: tuple[jax.Array, jax.Array]  # of their positions, each [B, T, 1, head_dim / 2]
    seen: jax.Array  # bool [B, T, S]: which of S slots a token may see, windows aside
    distance: jax.Array  # int32 [T, S]: how far back a slot is
    slot: jax.Array  # int32 scalar: where the first token is stored


class KeyValue(NamedTuple):
    """One layer's keys and values, each [B, S, K, head_dim]; [L, B, S, K, head_dim] for all."""

    keys: jax.Array
    values: jax.Array


class Attention(nnx.Module):
    """Self-attention of L stacked layers, or of one where it was sliced out of the stack."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        layers, width = config.num_hidden_layers, config.hidden_size
        inner = config.num_attention_heads * config.head_dim
        kv_inner = config.num_key_value_heads * config.head_dim
        self.q = Linear((layers, inner, width), rngs, bias=config.qkv_bias)
        self.k = Linear((layers, kv_inner, width), rngs, bias=config.qkv_bias)
        self.v = Linear((layers, kv_inner, width), rngs, bias=config.qkv_bias)
        self.out = Linear((layers, width, inner), rngs, bias=config.out_bias)
        norm_shape = (layers, config.head_dim)
        self.q_norm = RMSNorm(norm_shape, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(norm_shape, config.rms_norm_eps) if config.qk_norm else None
        self.head_dim = config.head_dim

    def __call__(
        self, x: jax.Array, window: jax.Array, place: Placement, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        """x [B, T, D] → [B, T, D], and the cache with the new keys and values."""
        q = self._heads(self.q, self.q_norm, x)
        k = self._heads(self.k, self.k_norm, x)
        v = self._heads(self.v, None, x)
        q, k = rotate(q, place.rotations), rotate(k, place.rotations)
        if cache is not None:
            at = (0, place.slot, 0, 0)
            k = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), at)
            v = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), at)
            cache = KeyValue(k, v)
            k, v = k.astype(x.dtype), v.astype(x.dtype)
        mask = place.seen & (place.distance < window)
        # Queries stay where their part of the row is; keys and values come to them whole.
        k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
        mixed = constrain(attend(q, k, v, mask), "batch", "length", "heads")
        return self.out(mixed), cache

    def _heads(self, linear: Linear, norm: RMSNorm | None, x: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, heads, head_dim]."""
        y = constrain(linear(x), "batch", "length", "heads")
        y = y.reshape(*x.shape[:2], -1, self.head_dim)
        return y if norm is None else norm(y)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention with float32 scores; each kv head serves its group without a copy.

    Args:
      q: [B, T, H, head_dim].
      k, v: [B, S, K, head_dim].
      mask: [B, T, S], True where a token sees a slot.

    Returns:
      [B, T, H * head_dim]; of no meaning, but finite, for a token that sees nothing.
    """
    B, T, H, head_dim = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * head_dim**-0.5, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(B, T, H * head_dim)


def placement_mask(slots: jax.Array, start: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """What tokens at `slots` [T] see of `length` slots S, where row b begins at start[b].

    Returns:
      seen [B, T, S] and distance [T, S] of a Placement.
    """
    keys = jnp.arange(length)
    distance = slots[:, None] - keys
    seen = (distance >= 0) & (keys >= start[:, None, None])
    return seen, distance
