"""The choice before the first update, layer by layer in the backward pass."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import compact
from train.compact import make_forms
from train.config.mask_bases import Lasting
from train.config.masks import OneOff
from train.draw import draw
from train.model import ModelConfig, init_params
from train.objective.sft import Sft
from train.step import Batch


def _batch() -> Batch:
    rng = np.random.default_rng(0)
    shape = (1, 4, 16)
    return {
        "tokens": jnp.asarray(rng.integers(0, 96, shape), jnp.int32),
        "targets": jnp.asarray(rng.integers(0, 96, shape), jnp.int32),
        "weights": jnp.asarray(rng.integers(0, 2, shape), jnp.float32),
    }


@pytest.mark.slow
def test_the_choice_is_that_of_the_whole_gradient(family: Any) -> None:
    model = ModelConfig.from_hf(family("llama-tied", intermediate_size=64), "config.json")
    weights, objective = init_params(model, jax.random.key(0)), Sft(model)
    mask: Lasting = OneOff(kind="one_off", mask_ratio=0.8, compact=True)
    forms, batch = make_forms(mask, weights), _batch()
    total = objective.weight(batch)

    def loss(params: Any) -> jax.Array:
        return objective(params, jax.tree.map(lambda x: x[0], batch)).loss / total

    expected = compact.choose(forms, jax.jit(jax.grad(loss))(weights))
    params = jax.jit(partial(draw, objective, forms, mask))(weights, batch)
    for left, right in zip(*map(jax.tree.leaves, (params.chosen, expected)), strict=True):
        assert np.mean(np.asarray(left) != np.asarray(right)) < 0.005  # Ties but for rounding.
    values = compact.read(params.chosen, weights)
    jax.tree.map(np.testing.assert_array_equal, params.values, values)
