"""The decoder as pure functions of a plain tree of parameters, for jit, grad and optax."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .attention import KeyValue
from .config import ModelConfig
from .decoder import Cache, Decoder, Documents
from .param_table import TENSORS

# A nested dict of float32 arrays [...]; of [L, ...] under "layers".
Params = dict[str, Any]


@lru_cache
def _abstract(config: ModelConfig) -> tuple[Any, Params]:
    """The module's structure, and its parameters' shapes as a plain tree."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def _module(config: ModelConfig, params: Params) -> Decoder:
    return nnx.merge(_abstract(config)[0], params)


def abstract_params(config: ModelConfig) -> Params:
    """The parameters' ShapeDtypeStructs (float32); nothing is allocated."""
    return jax.tree.map(lambda leaf: leaf, _abstract(config)[1])


def logical_axes(config: ModelConfig) -> Params:
    """The same tree as abstract_params, of tuples of names in train.sharding.RULES or None."""
    axes = {tensor.path: tensor.axes for tensor in TENSORS}

    def one(path: Any, _: Any) -> tuple[str | None, ...]:
        return axes[jax.tree_util.keystr(path, simple=True, separator="/")]

    tree: Params = jax.tree_util.tree_map_with_path(one, _abstract(config)[1])
    return tree


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random weights from N(0, 0.02²), norms one, biases zero."""
    params: Params = nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))
    return params


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    documents: Documents | None = None,
    dtype: Any = "float32",
    remat: str = "none",
    attention: str = "xla",
) -> jax.Array:
    """Hidden states [B, T, D] after the last norm, of tokens [B, T].

    Args:
      documents: those of packed rows: a token sees no other document, and its position is the
        one in its own.
      dtype: of activations and matrix products, float32 or bfloat16; norms, rotations and
        softmax are float32 always.
      remat: what the backward pass recomputes: "none", "dots" (all but the products with
        weights), "full" (whole layers) or "offload" (whole layers, from inputs in the host's
        memory).
      attention: what computes it, "xla", "cudnn" or "splash"; all give the same numbers.
    """
    hidden, _ = _module(config, params)(
        tokens, documents=documents, dtype=jnp.dtype(dtype), remat=remat, attention=attention
    )
    return hidden


def logits(
    config: ModelConfig, params: Params, hidden: jax.Array, dtype: Any = "float32"
) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D], which may be any piece of them."""
    return _module(config, params).logits(hidden, jnp.dtype(dtype))


def head(config: ModelConfig, params: Params) -> jax.Array:
    """What makes logits of hidden states, [V, D]: the embeddings where they are tied."""
    weight: jax.Array = params["embed" if config.tie_word_embeddings else "head"]
    return weight


def forward(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    documents: Documents | None = None,
    dtype: Any = "float32",
    remat: str = "none",
) -> jax.Array:
    """float32 logits [B, T, V] of tokens [B, T]."""
    hidden = hidden_states(config, params, tokens, documents=documents, dtype=dtype, remat=remat)
    return logits(config, params, hidden, dtype)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: Any = "float32") -> Cache:
    """An empty cache for `length` tokens a row, padding included."""
    L, K = config.num_hidden_layers, config.num_key_value_heads
    empty = jnp.zeros((L, batch, length, K, config.head_dim), jnp.dtype(dtype))
    return Cache(KeyValue(empty, empty), jnp.int32(0))


def decode(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    cache: Cache,
    *,
    start: jax.Array | None = None,
    dtype: Any = "float32",
) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, D] of the next tokens [B, T], and the cache with them added.

    The numbers are those of the whole text at once. All rows go on at the same slot, so prompts
    of different lengths are padded on the left. More tokens than the cache's length overwrite
    its end: the caller sees to that.

    Args:
      start: the slot [B] of each row's first token; before it is padding, whose hidden states
        mean nothing. Left out, no row is padded.
    """
    hidden, cache = _module(config, params)(tokens, cache, start, dtype=jnp.dtype(dtype))
    return hidden, cache


def is_stacked(path: Any) -> int:
    """How many leading axes of the parameter at a jax path count tensors: 1 under "layers"."""
    return int(any(getattr(key, "key", getattr(key, "name", None)) == "layers" for key in path))
