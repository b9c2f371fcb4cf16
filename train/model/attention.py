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

# (window, q, k, v) -> [B, T, H, head_dim]; q is already divided by the square root of head_dim.
# Keys and values are [B, S, K, head_dim], or [B, K, S, head_dim] where they come from a cache.
AttentionFn = Callable[[int | None, jax.Array, jax.Array, jax.Array], jax.Array]


class AttentionContext(NamedTuple):
    """What attention needs to know about the tokens of a call; the same for all layers."""

    rotations: tuple[jax.Array, jax.Array]  # cosines and sines, each [B, T, 1, head_dim / 2]
    cache_index: jax.Array  # int32 scalar: the slot of a cache that stores the first token
    attend: AttentionFn


class KeyValue(NamedTuple):
    """One layer's keys and values, each [B, K, S, head_dim]; [L, B, K, S, head_dim] for all."""

    keys: jax.Array
    values: jax.Array


class Attention(nnx.Module):
    """Self-attention of L stacked layers, or of one layer sliced out of the stack."""

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
        self, x: jax.Array, window: jax.Array, context: AttentionContext, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        """x [B, T, D] → [B, T, D], and the cache with the new keys and values.

        Args:
          window: int32 scalar, the index of the layer's window in distinct_windows.
        """
        q = self._heads(self.q, self.q_norm, x)
        k = self._heads(self.k, self.k_norm, x)
        v = self._heads(self.v, None, x)
        cos, sin = context.rotations
        scale = self.head_dim**-0.5  # Applied to the float32 rotations, so that q is rounded once.
        q, k = rotate(q, (cos * scale, sin * scale)), rotate(k, (cos, sin))
        if cache is None:
            # Each device keeps its queries of a row that is split; keys and values are gathered.
            k, v = (constrain(array, "batch", None, "kv_heads", None) for array in (k, v))
        else:
            cache = KeyValue(
                _append(cache.keys, k, context.cache_index),
                _append(cache.values, v, context.cache_index),
            )
            k, v = cache.keys.astype(x.dtype), cache.values.astype(x.dtype)
        # A kernel is built for one window, so layers with different windows branch to their own.
        kernels = [partial(context.attend, size) for size in self.windows]
        if len(kernels) == 1:
            mixed = kernels[0](q, k, v)
        else:
            mixed = jax.lax.switch(window, kernels, q, k, v)
        mixed = constrain(mixed.reshape(*x.shape[:2], -1), "batch", "length", "heads")
        return self.out(mixed), cache

    def _heads(self, linear: Linear, norm: RMSNorm | None, x: jax.Array) -> jax.Array:
        """[B, T, D] → [B, T, heads, head_dim]."""
        y = constrain(linear(x), "batch", "length", "heads")
        y = y.reshape(*x.shape[:2], -1, self.head_dim)
        return y if norm is None else norm(y)


def _append(cached: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """cached [B, K, S, head_dim] with new [B, T, K, head_dim] in the slots from `index` on."""
    new = new.transpose(0, 2, 1, 3).astype(cached.dtype)
    cached = jax.lax.dynamic_update_slice(cached, new, (0, 0, index, 0))
    return constrain(cached, "batch", "kv_heads", None, None)


def distinct_windows(config: ModelConfig) -> tuple[int | None, ...]:
    """The different windows of a model's layers; None means that a token sees all before it."""
    return tuple(dict.fromkeys(config.windows))
