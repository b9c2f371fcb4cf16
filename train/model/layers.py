"""The parts that attention and the feed-forward network are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from train.sharding import constrain


class Linear(nnx.Module):
    """x [..., in] → [..., out]; the weight is [..., out, in], as Hugging Face stores it."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs, *, bias: bool) -> None:
        self.weight = nnx.Param(jax.nn.initializers.normal(0.02)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[:-1])) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum("...i,oi->...o", x, self.weight[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root mean square normalisation over the last axis (Zhang & Sennrich 2019), in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float) -> None:
        self.weight = nnx.Param(jnp.ones(shape))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.weight[...]).astype(x.dtype)


def scores(hidden: jax.Array, head: jax.Array, dtype: Any) -> jax.Array:
    """float32 logits [..., V] of hidden [..., D] and head [V, D]; products of `dtype`."""
    y = jnp.einsum(
        "...d,vd->...v",
        hidden.astype(dtype),
        head.astype(dtype),
        preferred_element_type=jnp.float32,
    )
    return constrain(y, "batch", *["length"] * (y.ndim - 2), "vocab")
