"""A mask that is given: its forms, its sharding, and that it is no constant of the program."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import gmt_jax.fixed
from gmt_jax import fixed_mask, gmt, one_off
from gmt_jax.fixed import FixedState, select_largest, with_mask


def random_mask(run: Any) -> dict[str, np.ndarray]:
    return {name: run.weights(5)[name] > 0.3 for name in run.shapes}


MESHES = ["auto", *(pytest.param(m, marks=pytest.mark.slow) for m in ("one device", "explicit"))]


@pytest.mark.parametrize("mesh", MESHES, indirect=True)
def test_the_entries_of_the_mask_move_and_no_others(run: Any, mesh: Mesh | None) -> None:
    mask = random_mask(run)
    for weights, moved, state in run.train(fixed_mask(run.adamw(), mask), 2, mesh):
        jax.tree.map(np.testing.assert_array_equal, moved, mask)
        share = sum(np.sum(part) for part in mask.values()) / run.size
        fraction = float(optax.tree.get(state, "masked_fraction"))
        assert fraction == pytest.approx(1 - share, abs=1e-6)
        for leaf, weight in zip(
            jax.tree.leaves(optax.tree.get(state, "mask")), jax.tree.leaves(weights), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(weight.sharding, leaf.ndim)


def test_masks_may_be_prefixes_rows_or_functions(run: Any) -> None:
    rows = np.arange(24)[:, None] < 3
    expected = {name: np.zeros(shape, bool) for name, shape in run.shapes.items()}
    expected["w"][:3] = True
    params = run.to_devices(run.weights(), None)
    for mask in (
        {"w": rows, "b": False, "layers": np.zeros((8,), bool)},
        lambda params: {"w": jnp.asarray(rows), "b": False, "layers": False},
    ):
        state = fixed_mask(optax.sgd(1.0), mask).init(params)
        jax.tree.map(np.testing.assert_array_equal, optax.tree.get(state, "mask"), expected)
    state = fixed_mask(optax.sgd(1.0), None).init(params)
    assert float(optax.tree.get(state, "masked_fraction")) == 1


def test_the_mask_follows_a_batch_to_its_devices_as_the_parameters_do() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    batch = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("x")))
    params, rows = jnp.ones((4, 2)), np.arange(4)[:, None] < 2
    optimizer = fixed_mask(optax.sgd(1.0), np.broadcast_to(rows, (4, 2)))
    state = optimizer.init(params)
    for given in (state, with_mask(state, rows)):
        updates, _ = jax.jit(
            lambda batch, state: optimizer.update(
                jax.grad(lambda w: jnp.sum(batch @ w))(params), state, params
            )
        )(batch, given)
        np.testing.assert_array_equal(updates, np.where(rows, -8.0, -0.0).repeat(2, axis=1))


@pytest.mark.parametrize("jitted", [False, True])
def test_a_mask_is_put_into_a_state(run: Any, jitted: bool) -> None:
    optimizer = optax.chain(optax.identity(), fixed_mask(run.adamw(), None))
    params, mask = run.to_devices(run.weights(), None), random_mask(run)
    state = with_mask(jax.jit(optimizer.init)(params) if jitted else optimizer.init(params), mask)
    whole = fixed_mask(run.adamw(), mask).init(params)
    jax.tree.map(np.testing.assert_array_equal, state[1], whole)
    with pytest.raises(ValueError, match="the state has 0 masks"):
        with_mask(run.adamw().init(params), mask)


def test_the_mask_is_no_constant_of_the_update() -> None:
    params = jnp.zeros((64, 1024))
    optimizer = fixed_mask(optax.sgd(1.0), np.arange(64 * 1024).reshape(64, 1024) % 3 == 0)
    state = optimizer.init(params)
    text = jax.jit(optimizer.update).lower(params, state, params).as_text()
    assert len(text) < 64 * 1024 / 8


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"w": True}, "no prefix of the tree of parameters"),
        ({"w": np.ones((2, 3), bool), "b": True}, r"the mask of w has shape \[2, 3\]"),
        ({"w": np.ones((1, 4, 5), bool), "b": True}, r"the mask of w has shape \[1, 4, 5\]"),
    ],
)
def test_masks_of_another_form_are_refused(mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fixed_mask(optax.sgd(1.0), mask).init({"w": jnp.ones((4, 5)), "b": jnp.ones(2)})


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match="a mask is a tree of bools, but w is float32"):
        fixed_mask(optax.sgd(1.0), {"w": jnp.ones(2)}).init({"w": jnp.ones(2)})


@pytest.mark.slow
def test_the_largest_of_all_changes_are_selected(run: Any) -> None:
    change = run.weights(3)
    mask = select_largest(run.to_devices(change, None), run.ratio, scope="global")
    flat = np.sort(np.concatenate([np.abs(x).ravel() for x in change.values()]))
    threshold = flat[int(run.ratio * flat.size)]
    for name, part in change.items():
        np.testing.assert_array_equal(mask[name], np.abs(part) >= threshold)


@pytest.mark.slow
def test_masks_of_different_kinds_by_path_in_one_run(run: Any) -> None:
    rows = np.arange(24)[:, None] < 3
    optimizer = optax.partition(
        {
            "rows": fixed_mask(run.adamw(), lambda params: jax.tree.map(lambda _: rows, params)),
            "first": one_off(run.adamw(), run.ratio),
            "each": gmt(run.adamw(), run.ratio, stacked_axes=0),
        },
        {"w": "rows", "b": "first", "layers": "each"},
    )
    for step, (_, moved, state) in enumerate(run.train(optimizer, 2)):
        np.testing.assert_array_equal(moved["w"], np.broadcast_to(rows, (24, 16)))
        np.testing.assert_array_equal(moved["b"], run.largest(run.gradient(0))["b"])
        np.testing.assert_array_equal(moved["layers"], run.largest(run.gradient(step))["layers"])
        assert isinstance(state.inner_states["rows"].inner_state.selector_state, FixedState)


def test_the_examples_run() -> None:
    result = doctest.testmod(gmt_jax.fixed)
    assert result.attempted > 0
    assert result.failed == 0
