"""Grouped-query self-attention with rotary positions, sliding windows and a key-value cache."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from flax import nnx

from ..sharding import constrain
from .config import ModelConfig
from .layers import Linear, RMSNorm
from .rope import rotate

# (window, q, k, v) -> [B, T, H, head_dim]; q is already divided by the root of head_dim.
Attend = Callable[[int | None, jax.Array, jax.Array, jax.Array], jax.Array]


class Placement(NamedTuple):
    """Where the tokens of a call stand and what they see; the same for all layers."""

    rotations: tuple[jax.Array, jax.Array]  # of their positions, each [B, T, 1, head_dim / 2]
    slot: jax.Array  # int32 scalar: where the first token is stored in a cache
    attend: Attend


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
        self.windows = distinct_windows(config)

    def __call__(
        self, x: jax.Array, window: jax.Array, place: Placement, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        """x [B, T, D] → [B, T, D], and the cache with the new keys and values.

        Args:
          window: int32 scalar, the layer's place in distinct_windows.
        """
        q = self._heads(self.q, self.q_norm, x)
        k = self._heads(self.k, self.k_norm, x)
        v = self._heads(self.v, None, x)
        cos, sin = place.rotations
        scale = self.head_dim**-0.5  # Where numbers are float32, so that q is rounded once.
        q, k = rotate(q, (cos * scale, sin * scale)), rotate(k, (cos, sin))
        if cache is not None:
            at = (0, place.slot, 0, 0)
            k = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), at)
            v = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), at)
            cache = KeyValue(k, v)
            k, v = k.astype(x.dtype), v.astype(x.dtype)
        # Queries stay where their part of the row is; keys and values come to them whole.
        k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
        # Kernels are made for a window, so that of layers which differ each kind has its own.
        kinds = [partial(place.attend, size) for size in self.windows]
        mixed = kinds[0](q, k, v) if len(kinds) == 1 else jax.lax.switch(window, kinds, q, k, v)
        mixed = constrain(mixed.reshape(*x.shape[:2], -1), "batch", "length", "heads")
        return self.out(mixed), cache

    def _heads(self, linear: Linear, norm: RMSNorm | None, x: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, heads, head_dim]."""
        y = constrain(linear(x), "batch", "length", "heads")
        y = y.reshape(*x.shape[:2], -1, self.head_dim)
        return y if norm is None else norm(y)


def distinct_windows(config: ModelConfig) -> tuple[int | None, ...]:
    """The different windows of a model's layers, None for a layer that sees everything."""
    return tuple(dict.fromkeys(config.windows))
