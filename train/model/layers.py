"""The parts that attention and the feed-forward network are made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ..sharding import constrain
from .lora import Adapted

PRODUCT = "product"  # Names the products with weights in a layer, for rematerialisation.


@jax.custom_vjp
def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [B, T, in] · weightᵀ [in, out] → [B, T, out]."""
    if x.shape[1] > 1:
        return jnp.einsum("bti,oi->bto", x, weight)
    return few_rows(x[:, 0], weight, weight.dtype)[:, None]


def few_rows(x: jax.Array, weight: jax.Array, dtype: DTypeLike) -> jax.Array:
    """x [B, in] · weightᵀ [in, out] → [B, out] of few rows, as when one token a row is computed.

    A CPU copies the right factor into another layout, so there the weight is the left one, which
    the barrier keeps: XLA would fold the transposition into the product, and swap the factors.
    """

    def weight_first(x: jax.Array, weight: jax.Array) -> jax.Array:
        y = jnp.einsum("oi,bi->ob", weight, x, preferred_element_type=dtype)
        return jax.lax.optimization_barrier(y).T

    def weight_last(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.einsum("bi,oi->bo", x, weight, preferred_element_type=dtype)

    y: jax.Array = jax.lax.platform_dependent(x, weight, cpu=weight_first, default=weight_last)
    return y


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, weight), (x, weight)


def _backward(
    residuals: tuple[jax.Array, jax.Array], d_y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weight = residuals
    return jnp.einsum("bto,oi->bti", d_y, weight), weight_gradient(x, d_y, weight.dtype)


product.defvjp(_forward, _backward)


def weight_gradient(x: jax.Array, d_y: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The gradient [out, in] of a weight, from its input and its output's gradient.

    XLA transposes the left factor of a product on CPUs, and computes again what that factor is
    made of. So the narrower factor is put on the left there. A CPU has no such product of bfloat16
    factors with a float32 result.

    Args:
      x: [B, T, in].
      d_y: [B, T, out], of the same dtype as x.
      dtype: dtype of the result.
    """

    def output_first(x: jax.Array, d_y: jax.Array) -> jax.Array:
        return jnp.einsum("bto,bti->oi", d_y, x, preferred_element_type=dtype)

    def input_first(x: jax.Array, d_y: jax.Array) -> jax.Array:
        return jnp.einsum("bti,bto->io", x, d_y, preferred_element_type=dtype).T

    if x.shape[-1] >= d_y.shape[-1] or x.dtype != dtype:
        return output_first(x, d_y)
    gradient: jax.Array = jax.lax.platform_dependent(x, d_y, cpu=input_first, default=output_first)
    return gradient


def weighted(x: jax.Array, weight: jax.Array | Adapted) -> jax.Array:
    """x [B, T, in] by a weight, in the dtype of x: [B, T, out]."""
    if not isinstance(weight, Adapted):
        return checkpoint_name(product(x, weight.astype(x.dtype)), PRODUCT)
    y, inner = weighted(x, weight.weight), weighted(x, weight.a)
    return y + weight.scale * weighted(inner, weight.b)


class Linear(nnx.Module):
    """x [..., in] → [..., out]; the weight is [..., out, in], as Hugging Face stores it."""

    def __init__(self, shape: tuple[int, ...], rngs: nnx.Rngs, *, bias: bool) -> None:
        self.weight = nnx.Param(jax.nn.initializers.normal(0.02)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[:-1])) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = weighted(x, self.weight.get_value())
        if self.bias is None:
            return y
        return y + jax.lax.broadcast_to_rank(self.bias[...].astype(x.dtype), y.ndim)


class RMSNorm(nnx.Module):
    """Root mean square normalisation over the last axis (Zhang & Sennrich 2019), in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float) -> None:
        self.weight = nnx.Param(jnp.ones(shape))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * jax.lax.broadcast_to_rank(self.weight[...], y.ndim)).astype(x.dtype)


def compute_logits(hidden: jax.Array, head: jax.Array, dtype: DTypeLike) -> jax.Array:
    """float32 logits [..., V] from hidden [..., D] and head [V, D]; factors are cast to `dtype`."""
    factors = hidden.astype(dtype), head.astype(dtype)
    if hidden.ndim == 2:
        logits = few_rows(*factors, jnp.float32)
    else:
        logits = jnp.einsum("...d,vd->...v", *factors, preferred_element_type=jnp.float32)
    return constrain(logits, "batch", *["length"] * (logits.ndim - 2), "vocab")
