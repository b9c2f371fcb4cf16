"""What optax's wrappers and optimizers make of gmt_mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax import gmt_mask

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 30).reshape(5, 6), "b": jnp.array([0.5, -2.0, 3.0])}


def grads(step: Any = 0) -> Any:
    return jax.tree.map(lambda p: jnp.sin(17 * p + step), PARAMS)


def assert_close(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def layout(tree: Any) -> Any:
    """Shape, dtype and sharding of every leaf."""
    return jax.tree.map(jax.typeof, tree)


def test_a_tree_may_have_more_entries_than_32_bits_count() -> None:
    shapes = {"w": jax.ShapeDtypeStruct((3, 2**16, 2**16), "bfloat16")}
    transformation = gmt_mask(0.2, stacked_axes=0)
    state = jax.eval_shape(transformation.init, shapes)
    updates, new = jax.eval_shape(transformation.update, shapes, state)
    assert layout((updates, new)) == layout((shapes, state))


def test_the_fields_can_be_read() -> None:
    optimizer = optax.chain(gmt_mask(0.2), optax.adamw(1e-1))
    state = optimizer.init(PARAMS)
    for step in range(2):
        _, state = optimizer.update(grads(step), state, PARAMS)
    assert float(optax.tree.get(state, "masked_fraction")) == pytest.approx(6 / 33)
    assert optax.tree.get(state, "threshold").shape == (2,)


def test_an_injected_ratio_can_be_changed() -> None:
    injected = optax.inject_hyperparams(gmt_mask)(mask_ratio=0.2)
    state = injected.init(PARAMS)
    for ratio in (0.2, 0.29, 0.5):
        state.hyperparams["mask_ratio"] = jnp.asarray(ratio)
        out, state = injected.update(grads(), state)
        expected, _ = gmt_mask(ratio).update(grads(), gmt_mask(ratio).init(PARAMS))
        assert_close(out, expected)


def test_multi_steps_masks_the_mean_gradient() -> None:
    optimizer = optax.MultiSteps(optax.chain(gmt_mask(0.5), optax.sgd(1.0)), 2)
    params = jnp.zeros(4)
    state = optimizer.init(params)
    _, state = optimizer.update(jnp.array([1.0, 2.0, 3.0, 4.0]), state, params)
    out, _ = optimizer.update(jnp.array([9.0, 0.0, 0.0, 0.0]), state, params)
    np.testing.assert_array_equal(out, [-5.0, 0.0, 0.0, -2.0])


@pytest.mark.parametrize(
    ("optimizer", "untouched"),
    [
        (optax.masked(gmt_mask(0.4), {"w": True, "b": False}), True),
        (
            optax.partition(
                {"ours": gmt_mask(0.4), "plain": optax.sgd(0.1)}, {"w": "ours", "b": "plain"}
            ),
            False,
        ),
    ],
    ids=["masked", "partition"],
)
def test_only_the_wrapped_leaves_are_masked(optimizer: Any, untouched: bool) -> None:
    out, _ = optimizer.update(grads(), optimizer.init(PARAMS), PARAMS)
    assert int(jnp.sum(out["w"] == 0)) == 12
    expected = grads()["b"] if untouched else -0.1 * grads()["b"]
    np.testing.assert_allclose(out["b"], expected, rtol=1e-6)


def test_masked_weights_move_under_adamw_and_not_under_sgd() -> None:
    """What the documentation says of the two."""
    weights = jnp.ones(10)
    gradient = jnp.arange(1.0, 11.0)
    for inner, moves in ((optax.adamw(0.1, weight_decay=0.1), True), (optax.sgd(0.1), False)):
        optimizer = optax.chain(gmt_mask(0.2), inner)
        updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        assert bool(jnp.any(updates[:2] != 0)) is moves
        assert bool(jnp.all(updates[2:] != 0))
