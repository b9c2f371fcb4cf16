"""Masked weights keep their bits under any optimizer."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import gmt_jax.selective
from gmt_jax import by_score, gmt, gmt_mask, train_only

OPTIONS: Any = {"stacked_axes": {"w": None, "b": None, "layers": 0}}


def word(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize(
    ("steps", "compiled"), [(8, False), pytest.param(20, True, marks=pytest.mark.slow)]
)
def test_under_gmt_the_selected_weights_move_and_no_others(
    run: Any, mesh: Mesh | None, steps: int, compiled: bool
) -> None:
    """With momentum from earlier updates, and weight decay."""
    optimizer = gmt(run.adamw(), run.ratio, **OPTIONS)
    for step, (_, moved, _) in enumerate(run.train(optimizer, steps, mesh, compiled)):
        jax.tree.map(np.testing.assert_array_equal, moved, run.largest(run.gradient(step)))


def test_a_chain_moves_all_weights(run: Any) -> None:
    optimizer = optax.chain(gmt_mask(run.ratio, **OPTIONS), run.adamw())
    for _, moved, _ in run.train(optimizer, 2):
        assert all(np.all(part) for part in moved.values())


@pytest.mark.slow
def test_a_compiled_chain_moves_all_weights_on_every_mesh(run: Any, mesh: Mesh | None) -> None:
    optimizer = optax.chain(gmt_mask(run.ratio, **OPTIONS), run.adamw())
    for _, moved, _ in run.train(optimizer, 20, mesh, compiled=True):
        assert all(np.all(part) for part in moved.values())


INNER: dict[str, Any] = {
    "lion": lambda: optax.lion(1e-2, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8, weight_decay_rate=0.1),
    "muon": lambda: optax.contrib.muon(1e-2, weight_decay=0.1),
    "sgd with momentum": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(1e-2, weight_decay=0.1),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(1e-2, weight_decay=0.1),
    "partitioned": lambda: optax.partition(
        {"a": optax.adamw(1e-2), "b": optax.lion(1e-2)}, {"w": "a", "b": "b", "layers": "a"}
    ),
}


@pytest.mark.parametrize("name", INNER)
def test_under_any_optimizer_masked_weights_do_not_move(name: str, run: Any) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax's code
        for step, (_, moved, _) in enumerate(run.train(gmt(INNER[name](), 0.5, **OPTIONS), 4)):
            selected = run.largest(run.gradient(step))
            assert not any(np.any(moved[key] & ~selected[key]) for key in selected)
            assert all(np.mean(moved[key][selected[key]]) > 0.9 for key in selected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zeros_infinities_and_nans_keep_their_bits(dtype: str) -> None:
    special = jnp.array([-0.0, 0.0, jnp.inf, -jnp.inf, jnp.nan, -jnp.nan])
    weight = jnp.tile(special, 2).astype(dtype)
    grads = jnp.array([0.0] * 6 + [1.0] * 6).astype(dtype)
    optimizer = gmt(optax.sgd(1.0), 0.5)
    for update in (optimizer.update, jax.jit(optimizer.update)):
        updates, _ = update(grads, optimizer.init(weight), weight)
        new = optax.apply_updates(weight, updates)
        np.testing.assert_array_equal(word(new)[:6], word(weight)[:6])
        assert np.all(word(updates)[:6] == word(-jnp.zeros((), dtype)))


@pytest.mark.parametrize(
    ("apply_to", "moves", "seen"),
    [("both", False, 0.0), ("update", False, 0.1), ("gradient", True, 0.0)],
)
def test_apply_to_names_what_is_masked(apply_to: str, moves: bool, seen: float, run: Any) -> None:
    params = jnp.ones(4)
    optimizer = gmt(run.adamw(), 0.25, apply_to=apply_to)
    updates, state = optimizer.update(jnp.arange(1.0, 5.0), optimizer.init(params), params)
    assert bool(updates[0] != 0) is moves
    np.testing.assert_allclose(optax.tree.get(state, "mu")[0], seen, rtol=1e-6)


def test_an_unknown_part_to_apply_to_is_refused() -> None:
    message = "apply_to is 'both', 'update' or 'gradient', got 'weights'"
    with pytest.raises(ValueError, match=message):
        by_score(optax.sgd(1.0), 0.5, apply_to="weights")


def test_extra_arguments_reach_the_inner_optimizer() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, factor: Any) -> Any:
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    optimizer = gmt(inner, 0.5)
    grads = jnp.array([1.0, 2.0, 3.0, 4.0])
    out, _ = optimizer.update(grads, optimizer.init(jnp.ones(4)), factor=3.0)
    np.testing.assert_array_equal(out, [0.0, 0.0, 9.0, 12.0])


def test_ratios_differ_by_path(run: Any) -> None:
    ratios = {"^b$": 0.0, "layers": optax.constant_schedule(0.75), ".*": 0.5}
    (_, moved, state), *_ = run.train(gmt(run.adamw(), ratios, **OPTIONS), 1)
    masked = {name: 1 - np.mean(part) for name, part in moved.items()}
    assert masked == {"b": 0.0, "layers": 0.75, "w": 0.5}
    fraction = (192 * 0.75 + 384 * 0.5) / run.size
    np.testing.assert_allclose(optax.tree.get(state, "masked_fraction"), fraction, rtol=1e-6)


def test_a_schedule_may_give_a_prefix_of_the_tree_and_is_called_with_the_updates_done() -> None:
    def schedule(params: Any) -> Any:
        return lambda count: {"a": count >= 1, "rest": False}

    params = {"a": jnp.ones(2), "rest": {"b": jnp.ones(3), "c": jnp.ones(1)}}
    optimizer = train_only(optax.sgd(1.0), schedule)
    state = optimizer.init(params)
    for moves in (False, True):
        updates, state = optimizer.update(params, state, params)
        assert bool(jnp.all(updates["a"] == -1)) is moves
        assert all(bool(jnp.all(u == 0)) for u in jax.tree.leaves(updates["rest"]))
    np.testing.assert_allclose(optax.tree.get(state, "masked_fraction"), 4 / 6, rtol=1e-6)


def test_parameters_that_a_schedule_refuses_are_refused_before_training() -> None:
    def schedule(params: Any) -> Any:
        raise ValueError("not these")

    with pytest.raises(ValueError, match="not these"):
        train_only(optax.sgd(1.0), schedule).init({"a": jnp.ones(2)})


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize(
    ("part", "fault", "message"),
    [
        (np.ones((2, 3), bool), ValueError, r"mask of a has shape \[2, 3\], its parameter \[3\]"),
        (np.ones(2, bool), ValueError, r"mask of a has shape \[2\], its parameter \[3\]"),
        (np.ones(3), TypeError, "a mask is a tree of bools, but a is float64"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_by_name(
    part: Any, fault: Any, message: str, report: bool
) -> None:
    """It would broadcast the update, and with it the weight, to its own shape."""
    optimizer = train_only(optax.sgd(1.0), lambda params: lambda count: {"a": part}, report=report)
    params = {"a": jnp.ones(3)}
    for update in (optimizer.update, jax.jit(optimizer.update)):
        with pytest.raises(fault, match=message):
            update(params, optimizer.init(params), params)


def test_a_score_of_another_shape_is_refused_by_name() -> None:
    optimizer = by_score(optax.sgd(1.0), 0.5, score=lambda g, w, _: {"a": jnp.ones((2, 3))})
    params = {"a": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"mask of a has shape \[2, 3\], its parameter \[3\]"):
        optimizer.update(params, optimizer.init(params), params)


def test_the_examples_run() -> None:
    with jax.numpy_dtype_promotion("standard"):  # for optax's AdamW
        result = doctest.testmod(gmt_jax.selective)
    assert result.attempted > 0
    assert result.failed == 0
