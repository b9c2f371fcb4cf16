"""The products that layers are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.model.layers import product


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
        a, b = (np.asarray(each, np.float32) for each in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
