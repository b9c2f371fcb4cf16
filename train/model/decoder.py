"""The decoder as a Flax NNX module: embeddings, L stacked and scanned layers, head."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from gmt_jax import compact

from ..sharding import constrain
from .attention import Attention, AttentionContext, KeyValue, distinct_windows
from .attention_kernels import cached_attention, causal_attention
from .config import ComputeOptions, ModelConfig
from .layers import PRODUCT, Linear, RMSNorm, compute_logits
from .rope import rotations

INPUT = "layer input"  # Names a layer's input, for rematerialisation.
# What the forward pass keeps of a layer for the backward pass: everything; the products with
# weights; the layer's input; the layer's input, in the host's memory.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Cache(NamedTuple):
    """Keys and values of the tokens so far, for generation."""

    layers: Any  # a KeyValue, each [L, B, K, S, head_dim], or L of them without the leading axis
    length: jax.Array  # int32 scalar: slots that are filled, the same in every row


class Documents(NamedTuple):
    """The document of each token of packed rows, and the token's position in it."""

    segment_ids: jax.Array  # int32 [B, T], equal for the tokens of one document of a row
    positions: jax.Array  # int32 [B, T], from 0


class MLP(nnx.Module):
    """The gated feed-forward network (SwiGLU, Shazeer 2020) of L stacked layers."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        layers, D, F = config.num_hidden_layers, config.hidden_size, config.intermediate_size
        self.gate = Linear((layers, F, D), rngs, bias=config.mlp_bias)
        self.up = Linear((layers, F, D), rngs, bias=config.mlp_bias)
        self.down = Linear((layers, D, F), rngs, bias=config.mlp_bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = jax.nn.silu(self.gate(x)) * self.up(x)  # [B, T, F]
        return self.down(constrain(inner, "batch", "length", "ffn"))


class Layer(nnx.Module):
    """L stacked layers, or one layer sliced out of the stack."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        shape = (config.num_hidden_layers, config.hidden_size)
        self.attention_norm = RMSNorm(shape, config.rms_norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(shape, config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: jax.Array, window: jax.Array, context: AttentionContext, cache: KeyValue | None
    ) -> tuple[jax.Array, KeyValue | None]:
        x = checkpoint_name(x, INPUT)
        mixed, cache = self.attention(self.attention_norm(x), window, context, cache)
        x = x + mixed
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, "batch", "length", None), cache


class Decoder(nnx.Module):
    """A decoder-only transformer of the Llama type.

    Every parameter under `layers` has a leading axis of L layers, over which a scan runs, so the
    compiled program does not grow with depth.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        shape = (config.vocab_size, config.hidden_size)
        init = jax.nn.initializers.normal(0.02)
        self.embed = nnx.Param(init(rngs.params(), shape))
        self.layers = Layer(config, rngs)
        self.norm = RMSNorm(shape[1:], config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.head = None if tied else nnx.Param(init(rngs.params(), shape))
        self.config = config

    def __call__(
        self,
        tokens: jax.Array,
        options: ComputeOptions,
        cache: Cache | None = None,
        start: jax.Array | None = None,
        *,
        documents: Documents | None = None,
        trained: Any = None,
    ) -> tuple[jax.Array, Any]:
        """Hidden states [B, T, D] of tokens [B, T], and the cache, if any, with these tokens added.

        Args:
          start: int32 [B], the slot at which each row's text begins; padding precedes it.
          documents: the documents of packed rows, which do not see each other; without a cache.
          options: attention with a cache is always computed by XLA.
          trained: parameters in the place of the embeddings and layers, with nodes of
            `gmt_jax.compact` or `Adapted` among them, as each layer computes with them; or, with
            a cache, with a tuple of L trees under `layers`, as from `unstack`.
        """
        # Whole rows of the table are looked up, so that the result is split by rows of the batch
        # from the start; in float32, because the gradient of a frequent token is summed in it.
        table: Any = self.embed[...] if trained is None else trained["embed"]
        if compact.is_node(table):
            table = replace(table, weight=constrain(table.weight, "vocab", None))
        else:
            table = constrain(table, "vocab", None)
        x = constrain(compact.take(table, tokens).astype(options.dtype), "batch", "length", None)
        context = self._attention_context(tokens, options, cache, start, documents)
        graphdef, state = nnx.split(self.layers)
        stacked = nnx.to_pure_dict(state) if trained is None else trained["layers"]
        distinct = distinct_windows(self.config)
        windows = jnp.array([distinct.index(window) for window in self.config.windows], jnp.int32)

        def apply(x: jax.Array, layer: Any) -> tuple[jax.Array, KeyValue | None]:
            params, window, kv = layer
            return nnx.merge(graphdef, compact.resolve(params))(x, window, context, kv)

        apply = jax.checkpoint(apply, policy=REMAT[options.remat], prevent_cse=False)
        kv: Any = None if cache is None else cache.layers
        if isinstance(stacked, tuple):
            new = []
            for layer in zip(stacked, windows, kv, strict=True):
                x, layer_kv = apply(x, layer)
                new.append(layer_kv)
            kv = tuple(new)
        else:
            x, kv = jax.lax.scan(apply, x, (stacked, windows, kv))
        x = self.norm(x)
        return x, None if cache is None else Cache(kv, cache.length + tokens.shape[1])

    def logits(self, hidden: jax.Array, dtype: DTypeLike) -> jax.Array:
        """float32 logits [..., V] of hidden [..., D]; factors are cast to `dtype`."""
        weight = self.embed if self.head is None else self.head
        return compute_logits(hidden, weight[...], dtype)

    def _attention_context(
        self,
        tokens: jax.Array,
        options: ComputeOptions,
        cache: Cache | None,
        start: jax.Array | None,
        documents: Documents | None,
    ) -> AttentionContext:
        B, T = tokens.shape
        index = jnp.int32(0) if cache is None else cache.length
        start = jnp.zeros(B, jnp.int32) if start is None else start
        positions = index + jnp.arange(T)[None] - start[:, None]
        segment_ids = None
        if documents is not None:
            segment_ids, positions = documents
        angles = rotations(self.config.rope, self.config.head_dim, positions)
        if cache is None:
            attend = causal_attention(options.attention, segment_ids)
        else:
            attend = cached_attention(index, start)
        return AttentionContext(angles, index, attend)
