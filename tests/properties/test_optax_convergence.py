"""Optimizers with a mask solve the problems that optax solves with its own."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax import gmt, gmt_mask, one_off

RISING = optax.linear_schedule(0.2, 0.5, 3)
FALLING = optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 10_000))
# The transformations of test_optax.py, each with what makes it descend at a constant rate.
OPTIMIZERS = {
    "mask": optax.chain(gmt_mask(0.5), optax.sgd(1e-3)),
    "adamw": optax.chain(gmt_mask(RISING), optax.adamw(1e-2)),
    "gmt": gmt(optax.adam(1e-2), 0.5),
    "one-off": one_off(optax.sgd(1e-3), 0.0),
}
PROBLEMS: dict[str, tuple[Any, Any]] = {
    "parabola": (jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0])),
    "rosenbrock": (jnp.zeros(2), jnp.ones(2)),
    "matrix": (jnp.zeros((2, 2)), jnp.array([[3.0, -2.0], [1.0, 4.0]])),
    "tensors": ([jnp.zeros(3), jnp.ones((2, 2))], [jnp.ones(3), jnp.eye(2)]),
}


def check_that_it_converges(optimizer: Any, problems: Iterable[str]) -> None:
    start, target = ({name: PROBLEMS[name][part] for name in problems} for part in (0, 1))

    def loss(params: Any) -> jax.Array:
        others = {key: part for key, part in params.items() if key != "rosenbrock"}
        others_target = {key: target[key] for key in others}
        squares = optax.tree.norm(optax.tree.sub(others, others_target), squared=True)
        if "rosenbrock" in params:
            x, y = params["rosenbrock"]
            squares += (1 - x) ** 2 + 100 * (y - x**2) ** 2
        return squares

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=10_000)[0])
    params, _ = run((start, optimizer.init(start)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-2, atol=3e-2), params, target
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_converges(name: str) -> None:
    """On four problems at once: no tensor's update depends on another's."""
    after = FALLING if name == "adamw" else optax.identity()
    check_that_it_converges(optax.chain(OPTIMIZERS[name], after), PROBLEMS)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_converges_at_a_constant_rate(name: str, problem: str) -> None:
    check_that_it_converges(OPTIMIZERS[name], [problem])
