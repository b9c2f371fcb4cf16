"""What a checkpoint of a compact run holds, and the parameters that it gives back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import compact
from train.compact import fingerprint
from train.compact_checkpoint import from_stored, to_stored
from train.errors import UserError


def _params() -> Any:
    weights = {"a": jax.random.normal(jax.random.key(0), (4, 128)), "norm": jnp.ones(8)}
    forms = compact.plan_forms(weights, {"norm": 0.0, ".*": 0.9})
    chosen = compact.choose(forms, weights)
    values = jax.tree.map(lambda x: x + 1, compact.read(chosen, weights))
    return weights, compact.CompactParams(weights, chosen, values)


def test_the_parameters_come_back_from_what_was_trained_and_the_base() -> None:
    weights, params = _params()
    # Copies: what a checkpoint gives back is used up.
    stored = jax.tree.map(jnp.copy, to_stored(params, fingerprint(weights)))
    assert stored.keys() == {"chosen", "values", "base"}
    assert stored["chosen"].keys() == {"a/positions"}
    expected = compact.write(params)
    back = from_stored(stored, jax.tree.map(jnp.copy, weights), params, fingerprint(weights))
    jax.tree.map(np.testing.assert_array_equal, back, expected)


def test_a_base_that_differs_in_one_bit_or_in_its_order_is_refused() -> None:
    weights, params = _params()
    stored = to_stored(params, fingerprint(weights))
    changed = weights | {"a": weights["a"].at[1, 2].multiply(-1)}
    swapped = weights | {"a": weights["a"][::-1]}
    assert np.array_equal(fingerprint(weights), fingerprint(jax.tree.map(jnp.copy, weights)))
    for other in (changed, swapped):
        with pytest.raises(UserError, match="holds other weights"):
            from_stored(stored, other, params, fingerprint(other))
