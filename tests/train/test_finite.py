"""Arrays that are not finite are found and named."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from train.finite import are_finite, name_infinite


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_the_array_with_the_number_is_named(number: float, dtype: type) -> None:
    bad = np.ones((3, 5), dtype)
    bad[2, 4] = number
    tree = {"layers": {"q": jnp.ones(3), "k": jnp.asarray(bad)}, "count": jnp.int32(2)}
    assert name_infinite(are_finite(tree)) == ["layers/k"]


def test_the_largest_numbers_are_finite() -> None:
    tree = [jnp.full(7, jnp.finfo(jnp.float32).max), jnp.full(3, 1e-45), -jnp.zeros(2)]
    assert name_infinite(are_finite(tree)) == []


def test_it_can_be_asked_while_transfers_are_refused() -> None:
    tree = [jnp.ones(3)]
    with jax.transfer_guard("disallow"):
        assert name_infinite(are_finite(tree)) == []
