"""The products that layers are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.model.layers import Linear, RMSNorm, product, weight_gradient


@pytest.mark.parametrize(("width", "out"), [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_has_the_gradients_of_the_plain_one(width: int, out: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, weight, d_y = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in [(2, 7, width), (out, width), (2, 7, out)]
    )
    ours, theirs = (
        jax.vjp(function, x, weight)
        for function in (product, lambda x, weight: jnp.einsum("bti,oi->bto", x, weight))
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    for a, b in zip(ours[1](d_y), theirs[1](d_y), strict=True):
        assert a.dtype == b.dtype
        tolerance = 1e-6 if dtype == "float32" else 2e-2
        a, b = (np.asarray(array, np.float32) for array in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("platform", "dtype", "result", "input_first"),
    [
        ("cpu", "float32", "float32", True),
        ("cpu", "bfloat16", "bfloat16", True),
        ("cpu", "bfloat16", "float32", False),  # XLA's CPU backend has no such product.
        ("tpu", "float32", "float32", False),
        ("cuda", "float32", "float32", False),
    ],
)
def test_the_narrower_factor_is_the_left_one_on_cpus_alone(
    platform: str, dtype: str, result: str, input_first: bool
) -> None:
    x, d_y = (jax.ShapeDtypeStruct((2, 7, width), dtype) for width in (3, 5))
    traced = jax.jit(weight_gradient, static_argnums=2).trace(x, d_y, result)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == 1
    assert ("stablehlo.transpose" in text) == input_first


def test_biases_and_norms_apply_to_the_last_axis() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    linear, norm = Linear((5, 4), nnx.Rngs(0), bias=True), RMSNorm((4,), 1e-6)
    linear.bias[...] = jnp.arange(5, dtype=jnp.float32)
    expected = np.asarray(x) @ np.asarray(linear.weight[...]).T + np.arange(5)
    np.testing.assert_allclose(linear(x), expected, atol=1e-6)
    norm.weight[...] = jnp.arange(4, dtype=jnp.float32)
    root = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))
    np.testing.assert_allclose(norm(x), np.asarray(x) / root * np.arange(4), rtol=1e-4)
