"""Optimizers and schedules by name: what they get, and the values of our own schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.by_name import (
    check_optimizer,
    make_optimizer_by_name,
    make_schedule_by_name,
    needs_matrices,
)


def rates(name: str, steps: int, **keys: Any) -> np.ndarray:
    keys = {"warmup_steps": 0, "min_ratio": 0.0, "arguments": {}} | keys
    with jax.numpy_dtype_promotion("standard"):
        schedule = make_schedule_by_name(name, 1.0, steps, **keys)
        return np.array([schedule(step) for step in range(steps)])


def test_wsd_is_constant_and_then_falls_linearly_over_a_part_of_the_run() -> None:
    found = rates("wsd", 20, warmup_steps=4, min_ratio=0.2, arguments={"decay_ratio": 0.25})
    falls = 1 - 0.8 * np.arange(4) / 4
    expected = [0.25, 0.5, 0.75, 1.0, *np.ones(12), *falls]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_inverse_sqrt_falls_with_the_root_of_the_updates() -> None:
    found = rates("inverse_sqrt", 20, warmup_steps=4)
    step = np.arange(4, 20)
    np.testing.assert_allclose(found[4:], np.sqrt(4 / step), rtol=1e-6)
    found = rates("inverse_sqrt", 20, arguments={"timescale": 5}, min_ratio=0.5)
    np.testing.assert_allclose(found, np.maximum(np.sqrt(5 / (np.arange(20) + 5)), 0.5), rtol=1e-6)


def test_a_schedule_of_optax_gets_peak_steps_and_last_rate() -> None:
    found = rates("polynomial_schedule", 10, min_ratio=0.1, arguments={"power": 2})
    expected = 0.9 * (1 - np.arange(10) / 10) ** 2 + 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = rates("exponential_decay", 12, warmup_steps=2, arguments={"decay_rate": 0.5})
    np.testing.assert_allclose(found[:3], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(found[2:], 0.5 ** (np.arange(10) / 10), rtol=1e-6)


def test_a_schedule_with_a_warm_up_of_its_own_has_no_other() -> None:
    found = rates("warmup_cosine_decay_schedule", 10, warmup_steps=4)
    expected = optax.warmup_cosine_decay_schedule(0.0, 1.0, 4, 10)
    np.testing.assert_allclose(found, [expected(step) for step in range(10)])


def own_schedule(init_value: float, decay_steps: int) -> optax.Schedule:
    return lambda count: init_value * (1 - count / decay_steps)


def own_optimizer(learning_rate: optax.Schedule, momentum: float = 0.0) -> Any:
    return optax.sgd(learning_rate, momentum)


def test_modules_of_ones_own_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(optax)("mine")
    module.schedule, module.optimizer = own_schedule, own_optimizer  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "mine", module)
    np.testing.assert_allclose(rates("mine:schedule", 4), [1, 0.75, 0.5, 0.25])
    check_optimizer("mine:optimizer", {"momentum": 0.5})
    with pytest.raises(ValueError, match="mine:optimizer takes no b1; it takes momentum"):
        check_optimizer("mine:optimizer", {"b1": 0.5})


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb"])
def test_weight_decay_has_the_mask_that_is_given(name: str) -> None:
    params = {"w": jnp.ones((2, 2)), "norm": jnp.ones(2)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    given = {"mask": lambda params: {"w": True, "norm": False}}
    optimizer = make_optimizer_by_name(name, lambda count: 1.0, {"weight_decay": 0.5}, given)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    assert not jnp.any(updates["norm"])
    assert jnp.all(updates["w"] < 0)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("adafactor", {}, True),
        ("adafactor", {"factored": False}, False),
        ("muon", {}, True),
        ("galore", {}, True),
        ("adamw", {}, False),
        ("prodigy", {}, False),  # Sums over whole tensors.
        ("schedule_free_adamw", {}, False),
    ],
)
def test_an_optimizer_that_computes_with_rows_or_products_is_known(
    name: str, arguments: dict[str, Any], expected: bool
) -> None:
    assert needs_matrices(name, arguments) == expected
