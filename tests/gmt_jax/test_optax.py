"""gmt_mask is a transformation like optax's own, wherever optax takes one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax import gmt_mask

Make = Callable[[], optax.GradientTransformation]
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 30).reshape(5, 6), "b": jnp.array([0.5, -2.0, 3.0])}
CASES: dict[str, Make] = {
    "alone": lambda: gmt_mask(0.2),
    "adamw": lambda: optax.chain(gmt_mask(0.2), optax.adamw(1e-1)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), gmt_mask(0.2), optax.sgd(0.1)),
    "schedule": lambda: optax.chain(
        gmt_mask(optax.linear_schedule(0.0, 0.5, 10)), optax.lion(1e-2)
    ),
    "injected": lambda: optax.inject_hyperparams(
        lambda mask_ratio, learning_rate: optax.chain(
            gmt_mask(mask_ratio), optax.adamw(learning_rate)
        )
    )(mask_ratio=0.2, learning_rate=1e-1),
    "multi-steps": lambda: optax.MultiSteps(
        optax.chain(gmt_mask(0.2), optax.adamw(1e-1)), 2
    ).gradient_transformation(),
    "masked": lambda: optax.chain(
        optax.masked(gmt_mask(0.2), {"w": True, "b": False}), optax.sgd(0.1)
    ),
    "partition": lambda: optax.partition(
        {"gmt": optax.chain(gmt_mask(0.2), optax.adamw(1e-1)), "plain": optax.sgd(0.1)},
        {"w": "gmt", "b": "plain"},
    ),
}


def grads(step: Any = 0) -> Any:
    return jax.tree.map(lambda p: jnp.sin(17 * p + step), PARAMS)


def steps(optimizer: Any, n: int, update: Any = None) -> tuple[Any, Any]:
    params, state = PARAMS, optimizer.init(PARAMS)
    for step in range(n):
        updates, state = (update or optimizer.update)(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def layout(state: Any) -> Any:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), state)


@pytest.fixture(params=CASES, name="optimizer")
def _optimizer(request: pytest.FixtureRequest) -> Any:
    return CASES[request.param]()


def test_eager_equals_jit(optimizer: Any) -> None:
    assert_close(steps(optimizer, 4), steps(optimizer, 4, jax.jit(optimizer.update)))


def test_the_state_keeps_its_layout_and_the_second_call_compiles_nothing(optimizer: Any) -> None:
    update = jax.jit(optimizer.update)
    state = optimizer.init(PARAMS)
    before = layout(state)
    for step in range(3):
        _, state = update(grads(step), state, PARAMS)
        assert layout(state) == before
    assert update._cache_size() == 1


def test_it_runs_in_scan_and_cond(optimizer: Any) -> None:
    def body(carry: Any, step: jax.Array) -> tuple[Any, None]:
        params, state = carry

        def take(_: Any) -> Any:
            updates, new = optimizer.update(grads(step), state, params)
            return optax.apply_updates(params, updates), new

        return jax.lax.cond(step >= 0, take, lambda _: (params, state), None), None

    start = (PARAMS, optimizer.init(PARAMS))
    scanned, _ = jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(4.0)))(start)
    assert_close(scanned, steps(optimizer, 4, jax.jit(optimizer.update)))


def test_init_takes_shapes_and_params_can_be_mapped(optimizer: Any) -> None:
    shapes = jax.eval_shape(optimizer.init, PARAMS)
    assert layout(shapes) == layout(optimizer.init(PARAMS))
    state = optimizer.init(PARAMS)
    mapped = optax.tree.map_params(
        optimizer,
        lambda x: x,
        state,
        is_leaf=lambda v: isinstance(v, optax.MaskedNode),
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)


def test_init_takes_shape_structs() -> None:
    shapes = jax.eval_shape(lambda: PARAMS)
    assert layout(gmt_mask(0.2).init(shapes)) == layout(gmt_mask(0.2).init(PARAMS))


def test_the_fields_can_be_read() -> None:
    _, state = steps(CASES["adamw"](), 2)
    assert float(optax.tree.get(state, "masked_fraction")) == pytest.approx(6 / 33)
    assert set(optax.tree.get(state, "threshold")) == {"w", "b"}


def test_an_injected_ratio_equals_a_number_and_can_be_changed() -> None:
    injected = optax.inject_hyperparams(gmt_mask)(mask_ratio=0.2)
    state = injected.init(PARAMS)
    update = jax.jit(injected.update)
    for ratio in (0.2, 0.29, 0.5):
        state.hyperparams["mask_ratio"] = jnp.asarray(ratio)
        out, state = update(grads(), state)
        expected, _ = gmt_mask(ratio).update(grads(), gmt_mask(ratio).init(PARAMS))
        assert_close(out, expected)
    assert update._cache_size() == 1


def test_multi_steps_masks_the_mean_gradient() -> None:
    optimizer = optax.MultiSteps(optax.chain(gmt_mask(0.5), optax.sgd(1.0)), 2)
    params = jnp.zeros(4)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.array([1.0, 2.0, 3.0, 4.0]), state, params)
    out, _ = optimizer.update(jnp.array([9.0, 0.0, 0.0, 0.0]), state, params)
    np.testing.assert_array_equal(out, [-5.0, 0.0, 0.0, -2.0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_kept(dtype: str) -> None:
    optimizer = optax.chain(gmt_mask(0.2), optax.adamw(1e-1))
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    thresholds = jax.tree.leaves(optax.tree.get(state, "threshold"))
    assert {leaf.dtype for leaf in thresholds} == {jnp.dtype("float32")}


def test_it_takes_extra_arguments() -> None:
    optimizer = optax.chain(gmt_mask(0.2), optax.scale_by_polyak())
    state = optimizer.init(PARAMS)
    optimizer.update(grads(), state, PARAMS, value=jnp.float32(1.0))


def test_it_converges() -> None:
    target = jax.tree.map(jnp.cos, PARAMS)
    optimizer = optax.chain(gmt_mask(0.5), optax.adamw(3e-2))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grad = jax.tree.map(jnp.subtract, params, target)
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(500):
        params, state = step(params, state)
    assert max(float(jnp.max(jnp.abs(d))) for d in jax.tree.leaves(
        jax.tree.map(jnp.subtract, params, target))) < 0.02  # fmt: skip


def test_buffers_can_be_donated() -> None:
    optimizer = CASES["adamw"]()
    params = jax.tree.map(jnp.copy, PARAMS)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update, donate_argnums=(0, 1))
    updates, _ = update(grads(), state, params)
    expected, _ = optimizer.update(grads(), optimizer.init(PARAMS), PARAMS)
    assert_close(updates, expected)


def test_masked_weights_move_under_adamw_and_not_under_sgd() -> None:
    """What the documentation says of the two."""
    weights = jnp.ones(10)
    gradient = jnp.arange(1.0, 11.0)
    for inner, moves in ((optax.adamw(0.1, weight_decay=0.1), True), (optax.sgd(0.1), False)):
        optimizer = optax.chain(gmt_mask(0.2), inner)
        updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        assert bool(jnp.any(updates[:2] != 0)) is moves
        assert bool(jnp.all(updates[2:] != 0))
