"""The choice before the first update, of one microbatch or of a sum over several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmt_jax import compact
from train.config import load_config
from train.draw import draw_from
from train.model import init_params, load_model_config
from train.program import Program
from train.sharding import make_mesh
from train.step import Batch

MASK = "optimizer.mask={kind: one_off, mask_ratio: 0.8, compact: true}"


def _batch(num_microbatches: int) -> Batch:
    rng = np.random.default_rng(0)
    shape = (num_microbatches, 8 // num_microbatches, 16)
    return {
        "tokens": jnp.asarray(rng.integers(0, 272, shape), jnp.int32),
        "targets": jnp.asarray(rng.integers(0, 272, shape), jnp.int32),
        "weights": jnp.asarray(rng.integers(0, 2, shape), jnp.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_the_choice_is_that_of_the_whole_gradient(
    write_config: Callable[..., Path], num_microbatches: int
) -> None:
    file = write_config(batch={"size": 8, "num_microbatches": num_microbatches})
    config = load_config(file, [MASK, "data.max_length=16"])
    mesh = make_mesh(devices=jax.devices()[:2])
    model = load_model_config(Path(config.model.path))
    program = Program(config, model, mesh, steps=2)
    weights, batch = init_params(model, jax.random.key(0)), _batch(num_microbatches)
    total = program.objective.weight(batch)

    def loss(params: Any) -> jax.Array:
        rows = [jax.tree.map(lambda x, n=n: x[n], batch) for n in range(num_microbatches)]
        return sum(program.objective(params, part).loss for part in rows) / total

    with jax.set_mesh(mesh):
        expected = compact.choose(program.forms, jax.jit(jax.grad(loss))(weights))
        spread = jax.device_put(jax.tree.map(jnp.copy, weights), program.weight_shardings)
        params = draw_from(program, spread, [batch])
    for left, right in zip(*map(jax.tree.leaves, (params.chosen, expected)), strict=True):
        assert np.mean(np.asarray(left) != np.asarray(right)) < 0.005  # Ties but for rounding.
    values = compact.read(params.chosen, weights)
    jax.tree.map(np.testing.assert_array_equal, params.values, values)
