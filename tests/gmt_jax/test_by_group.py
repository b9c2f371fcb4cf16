"""The balanced mask over whole weights."""

import doctest
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmt_jax.by_group
from gmt_jax import compact
from gmt_jax.by_group import balanced


def test_the_example_runs() -> None:
    result = doctest.testmod(gmt_jax.by_group)
    assert result.attempted > 3
    assert result.failed == 0


@pytest.mark.parametrize("score", ["gradient", "fisher"])
def test_it_trains_what_compact_would_and_only_that(score: Any) -> None:
    rng = np.random.default_rng(0)
    params = {name: jnp.zeros((6, 160), jnp.float32) for name in ("embed", "w")}
    grads = [
        {name: jnp.asarray(rng.standard_normal((6, 160)), jnp.float32) for name in params}
        for _ in range(3)
    ]
    warmup = 1 if score == "fisher" else 0
    optimizer = balanced(optax.sgd(1.0), 0.5, rows="embed", score=score, warmup=warmup)
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = optimizer.update(gradient, state, params)
    forms = compact.plan_forms(params, 0.5, rows="embed")
    scores = grads[0]
    if score == "fisher":
        scores = {n: jnp.sqrt(jnp.square(grads[0][n]) + jnp.square(grads[1][n])) for n in params}
    mask = compact.mask(compact.choose(forms, scores), params)
    for name in params:
        np.testing.assert_array_equal(np.asarray(updates[name]) != 0, mask[name])
    assert optax.tree.get(state, "masked_fraction") == pytest.approx(0.5)


@pytest.mark.parametrize("ratio", [np.float32(0.75), Fraction(3, 4), 1, np.int64(1)])
def test_a_ratio_may_be_a_number_of_any_type(ratio: Any) -> None:
    params = jnp.zeros(128)
    optimizer = balanced(optax.sgd(1.0), ratio)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert optax.tree.get(state, "masked_fraction") == float(ratio)


def test_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="same number of entries in every group"):
        balanced(optax.sgd(1.0), lambda count: 0.5)
