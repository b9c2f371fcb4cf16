"""The inputs that attention hands to its kernel, and what it stores in a cache."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.model import ModelConfig
from train.model.attention import Attention, AttentionContext, KeyValue, distinct_windows
from train.model.rope import rotations


def _layer(config: ModelConfig) -> Attention:
    """Attention of the first layer."""
    graphdef, state = nnx.split(Attention(config, nnx.Rngs(0)))
    layer: Attention = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], state))
    return layer


def test_equal_windows_are_listed_once(family: Any) -> None:
    assert distinct_windows(ModelConfig.from_hf(family("qwen3-layers"))) == (3, None)


def test_queries_are_scaled_and_new_keys_are_stored_from_the_cache_index(family: Any) -> None:
    config = ModelConfig.from_hf(family("llama"))
    calls = []

    def attend(window: int | None, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        calls.append((window, q, k, v))
        return jnp.zeros_like(q)

    layer = _layer(config)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, config.hidden_size)), jnp.float32)
    angles = rotations(config.rope, config.head_dim, jnp.tile(jnp.arange(4, 7)[None], (2, 1)))
    empty = jnp.zeros((2, config.num_key_value_heads, 8, config.head_dim))
    context = AttentionContext(angles, jnp.int32(4), attend)
    with jax.disable_jit():
        mixed, cache = layer(x, jnp.int32(0), context, KeyValue(empty, empty))
        q, v = (linear(x).reshape(2, 3, -1, config.head_dim) for linear in (layer.q, layer.v))
    assert mixed.shape == x.shape
    [(window, queries, keys, _)] = calls
    assert window is None
    norms = jnp.linalg.norm(q, axis=-1) * config.head_dim**-0.5  # Rotation keeps the length.
    np.testing.assert_allclose(jnp.linalg.norm(queries, axis=-1), norms, rtol=1e-5)
    assert cache is not None
    np.testing.assert_array_equal(cache.keys, keys)
    np.testing.assert_allclose(cache.values[:, :, 4:7], v.swapaxes(1, 2), rtol=1e-6)
    assert not np.any(cache.values[:, :, :4])
    assert not np.any(cache.values[:, :, 7:])
