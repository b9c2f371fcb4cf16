"""The named methods, against their rules in NumPy."""

import doctest
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmt_jax.methods
from gmt_jax import (
    by_score,
    every_few,
    fisher,
    gradient_to_weight,
    hft,
    lisa,
    magnitude,
    one_off,
    random_mask,
)
from gmt_jax.structured import hft_schedule, lisa_schedule

OPTIONS: Any = {"stacked_axes": {"w": None, "b": None, "layers": 0}}


def largest_of_all(run: Any, steps: range) -> Any:
    """The largest sums of squares, with one threshold for the whole tree."""
    gradients = [run.gradient(step) for step in steps]
    scores = jax.tree.map(lambda *g: sum(x * x for x in g), *gradients)
    flat = np.concatenate([np.ravel(x) for x in scores.values()])
    threshold = np.sort(flat)[int(run.ratio * flat.size)]
    return {name: x >= threshold for name, x in scores.items()}


# Each method, and which entries it trains in a step.
CASES: dict[str, tuple[Any, Any]] = {
    "one_off": (
        lambda run: one_off(run.adamw(), run.ratio, **OPTIONS),
        lambda run, step: run.largest(run.gradient(0)),
    ),
    "every_few": (
        lambda run: every_few(run.adamw(), run.ratio, 2, **OPTIONS),
        lambda run, step: run.largest(run.gradient(step // 2 * 2)),
    ),
    "gradient_to_weight": (
        lambda run: gradient_to_weight(run.adamw(), run.ratio, **OPTIONS),
        lambda run, step: run.largest(jax.tree.map(np.divide, run.gradient(0), run.weights())),
    ),
    "magnitude": (
        lambda run: magnitude(run.adamw(), run.ratio, **OPTIONS),
        lambda run, step: run.largest(run.weights()),
    ),
    "fisher": (
        lambda run: fisher(run.adamw(), run.ratio, 1),
        lambda run, step: (
            largest_of_all(run, range(2))
            if step
            else {name: np.zeros(shape, bool) for name, shape in run.shapes.items()}
        ),
    ),
}


@pytest.mark.parametrize(
    ("steps", "compiled"), [(3, False), pytest.param(7, True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CASES)
def test_the_method_trains_these_entries(name: str, run: Any, steps: int, compiled: bool) -> None:
    make, rule = CASES[name]
    for step, (_, moved, _) in enumerate(run.train(make(run), steps, compiled=compiled)):
        jax.tree.map(np.testing.assert_array_equal, moved, rule(run, step))


def test_a_random_mask_is_the_random_score(run: Any) -> None:
    named = run.train(random_mask(run.adamw(), run.ratio, 5), 2)
    by = run.train(by_score(run.adamw(), run.ratio, score="random", key=5), 2)
    for a, b in zip(named, by, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.moved, b.moved)


def llama(seed: int) -> Any:
    draw = np.random.default_rng(seed).standard_normal
    attention = {part: jnp.asarray(draw((3, 4, 4)), "f4") for part in ("q", "k", "v", "o")}
    return {"embed": jnp.asarray(draw((8, 4)), "f4"), "layers": {"attn": attention}}


SCHEDULED: dict[str, tuple[Any, Any]] = {
    "hft": (
        lambda run: hft(run.adamw(), key=0, every=2),
        lambda params: hft_schedule(params, 0, 2),
    ),
    "lisa": (
        lambda run: lisa(run.adamw(), num_layers=1, key=0, every=2),
        lambda params: lisa_schedule(params, 1, 0, 2),
    ),
}


@pytest.mark.parametrize(
    ("steps", "compiled"), [(4, False), pytest.param(6, True, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", SCHEDULED)
def test_only_scheduled_weights_move(name: str, run: Any, steps: int, compiled: bool) -> None:
    make, schedule = SCHEDULED[name]
    params, optimizer = llama(0), make(run)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    for step in range(steps):
        updates, state = update(llama(1 + step), state, params)
        after = optax.apply_updates(params, updates)
        moved = jax.tree.map(lambda a, b: np.asarray(a != b), params, after)
        expected = jax.tree.map(
            lambda m, p: np.broadcast_to(m, p.shape), schedule(params)(step), params
        )
        jax.tree.map(np.testing.assert_array_equal, moved, expected)
        fraction = np.mean(np.concatenate([np.ravel(m) for m in jax.tree.leaves(moved)]))
        assert 0 < fraction < 1
        found = optax.tree.get(state, "masked_fraction")
        np.testing.assert_allclose(found, 1 - fraction, rtol=1e-6)
        params = after


STATIC = ("every", "warmup", "layer_axis")
INJECTED: dict[str, tuple[Any, dict[str, Any]]] = {
    "random_mask": (random_mask, {"mask_ratio": 0.5, "key": 1}),
    "one_off": (one_off, {"mask_ratio": 0.5, "warmup": 0}),
    "every_few": (every_few, {"mask_ratio": 0.5, "every": 2}),
    "gradient_to_weight": (gradient_to_weight, {"mask_ratio": 0.5}),
    "magnitude": (magnitude, {"mask_ratio": 0.5}),
    "fisher": (fisher, {"mask_ratio": 0.5, "warmup": 0}),
    "hft": (hft, {"key": 0, "every": 2}),
    "lisa": (lisa, {"num_layers": 1, "key": 0, "every": 2}),
}


@pytest.mark.parametrize("name", INJECTED)
def test_hyperparameters_may_be_injected(name: str) -> None:
    method, arguments = INJECTED[name]
    static = [argument for argument in STATIC if argument in signature(method).parameters]
    plain = method(optax.sgd(1.0), **arguments)
    injected = optax.inject_hyperparams(method, static)(optax.sgd(1.0), **arguments)
    states = [optimizer.init(llama(0)) for optimizer in (plain, injected)]
    for step in range(2):
        updates, other = (
            optimizer.update(llama(step), state, llama(0))[0]
            for optimizer, state in zip((plain, injected), states, strict=True)
        )
        jax.tree.map(np.testing.assert_array_equal, updates, other)


def test_an_axis_of_layers_that_is_injected_is_refused() -> None:
    optimizer = optax.inject_hyperparams(hft)(optax.sgd(1.0), key=0, every=2)
    with pytest.raises(ValueError, match=r"layer_axis is .* name it in static_args"):
        optimizer.init(llama(0))


def test_the_examples_run() -> None:
    result = doctest.testmod(gmt_jax.methods)
    assert result.attempted > 0
    assert result.failed == 0
