"""The decoder as pure functions of a plain tree of parameters, for jit, grad and optax."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gmt_jax import compact

from ..sharding import constrain
from .attention import KeyValue
from .config import ComputeOptions, ModelConfig
from .decoder import Cache, Decoder, Documents
from .param_table import PARAM_SPECS

FLOAT32 = ComputeOptions()
# A nested dict of arrays; under "layers" they are [L, ...]. Where some entries of them are trained,
# nodes of `gmt_jax.compact` are in their places; where adapters are, `Adapted`.
Params = dict[str, Any]


@lru_cache
def _abstract(config: ModelConfig) -> tuple[Any, Params]:
    """The module's structure, and its parameters' ShapeDtypeStructs as a plain tree."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)


def _module(config: ModelConfig, params: Params) -> Decoder:
    params = params | {"norm": compact.resolve(params["norm"])}
    if isinstance(params["layers"], tuple):  # They are given to the call instead.
        params = params | {"layers": _abstract(config)[1]["layers"]}
    return nnx.merge(_abstract(config)[0], compact.plain_weights(params))


def abstract_params(config: ModelConfig) -> Params:
    """The parameters' ShapeDtypeStructs, float32; nothing is allocated."""
    return jax.tree.map(lambda leaf: leaf, _abstract(config)[1])


def logical_axes(config: ModelConfig) -> Params:
    """The logical axes of each parameter, as a tree like that of abstract_params.

    An axis is a name in train.sharding.RULES, "layers" or None.
    """
    axes = {spec.path: spec.axes for spec in PARAM_SPECS}

    def axes_of(path: Any, _: Any) -> tuple[str | None, ...]:
        return axes[jax.tree_util.keystr(path, simple=True, separator="/")]

    tree: Params = jax.tree_util.tree_map_with_path(axes_of, _abstract(config)[1])
    return tree


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random weights from N(0, 0.02²), norms one, biases zero."""
    params: Params = nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))
    return params


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    options: ComputeOptions = FLOAT32,
    *,
    documents: Documents | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] of tokens [B, T], after the last norm.

    Args:
      documents: the documents of packed rows: a token sees no other document than its own, and
        counts its position from that document's start.
    """
    module = _module(config, params)
    hidden, _ = module(tokens, options, documents=documents, trained=params)
    return hidden


def logits(
    config: ModelConfig, params: Params, hidden: jax.Array, dtype: str = "float32"
) -> jax.Array:
    """float32 logits [..., V] of hidden states [..., D], of all tokens or any piece of them."""
    return _module(config, params).logits(hidden, jnp.dtype(dtype))


def head_weight(config: ModelConfig, params: Params) -> jax.Array:
    """The weight [V, D] that turns hidden states into logits: the embeddings if they are tied."""
    # In float32, so that a gradient that is summed over all tokens is not rounded.
    node = params["embed" if config.tie_word_embeddings else "head"]
    weight: jax.Array = compact.resolve(node, jnp.float32)
    return weight


def forward(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    options: ComputeOptions = FLOAT32,
    *,
    documents: Documents | None = None,
) -> jax.Array:
    """float32 logits [B, T, V] of tokens [B, T]."""
    hidden = hidden_states(config, params, tokens, options, documents=documents)
    return logits(config, params, hidden, options.dtype)


def init_cache(config: ModelConfig, batch: int, length: int, dtype: str = "float32") -> Cache:
    """An empty cache with `length` slots a row, padding included."""
    L, K = config.num_hidden_layers, config.num_key_value_heads
    empty = jnp.zeros((L, batch, K, length, config.head_dim), jnp.dtype(dtype))
    empty = constrain(empty, None, "batch", "kv_heads", None, None)
    return Cache(KeyValue(empty, empty), jnp.int32(0))


def unstack(layers: Any) -> tuple[Any, ...]:
    """A tree of arrays [L, ...] as L trees of arrays [...].

    `decode` then computes one layer after the other instead of scanning over them. On a CPU, where
    a scan copies each layer's weights out of the stack, a token takes half the time.
    """
    leaves, structure = jax.tree.flatten(layers)
    return tuple(jax.tree.unflatten(structure, row) for row in zip(*leaves, strict=True))


def decode(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    cache: Cache,
    *,
    start: jax.Array | None = None,
    dtype: str = "float32",
) -> tuple[jax.Array, Cache]:
    """Hidden states [B, T, D] of the next tokens [B, T], and the cache with these tokens added.

    The hidden states equal those of the whole text computed at once. All rows continue at the same
    slot, so prompts of different lengths are padded on the left. The caller must not exceed the
    cache's length: further tokens overwrite its end.

    Args:
      params, cache: their layers may both be unstacked, as from `unstack`.
      start: int32 [B], the slot of each row's first token. Padding precedes it, and its hidden
        states mean nothing. By default no row is padded.
    """
    options = ComputeOptions(dtype)
    return _module(config, params)(tokens, options, cache, start, trained=params)


def stacked_axes(path: Any) -> int | None:
    """The axis that stacks layers in the parameter at a jax path: 0 under "layers", else None."""
    stacked = any(getattr(key, "key", getattr(key, "name", None)) == "layers" for key in path)
    return 0 if stacked else None
