"""The parts that attention and the feed-forward network are made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ..sharding import constrain

PRODUCT = "product"  # What a layer's products with weights are called, for rematerialisation.


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [B, T, in] · weightᵀ [in, out] → [B, T, out]."""
    return jnp.einsum("bti,oi->bto", x, weight)


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, weight), (x, weight)


def _backward(kept: tuple[jax.Array, jax.Array], d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weight's gradient by the product in which the narrower factor is the turned one.

    A CPU's product turns its left factor first, and XLA computes what that factor is made of anew.
    """
    x, weight = kept
    d_x = jnp.einsum("bto,oi->bti", d_y, weight)
    if x.shape[-1] < d_y.shape[-1]:
        return d_x, jnp.einsum("bti,bto->io", x, d_y).T
    return d_x, jnp.einsum("bto,bti->oi", d_y, x)


product.defvjp(_forward, _backward)


class Linear(nnx.Module):
    """x [..., in] → [..., out]; the weight is [..., out, in], as Hugging Face stores it."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs, *, bias: bool) -> None:
        self.weight = nnx.Param(jax.nn.initializers.normal(0.02)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[:-1])) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(product(x, self.weight[...].astype(x.dtype)), PRODUCT)
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


def compute_logits(hidden: jax.Array, head: jax.Array, dtype: Any) -> jax.Array:
    """float32 logits [..., V] of hidden [..., D] and head [V, D]; products of `dtype`."""
    y = jnp.einsum(
        "...d,vd->...v",
        hidden.astype(dtype),
        head.astype(dtype),
        preferred_element_type=jnp.float32,
    )
    return constrain(y, "batch", *["length"] * (y.ndim - 2), "vocab")
