"""Every optimizer on trees that optax takes and few models have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmt_jax import (
    balanced,
    fisher,
    fixed_mask,
    gmt,
    gmt_mask,
    gradient_to_weight,
    magma,
    magnitude,
    mofo,
    one_off,
    random_mask,
    skip_update,
    train_only,
)
from gmt_jax.report import ever_nonzero, zero_fraction

INNER = optax.sgd(1.0, momentum=0.9)


def layers(path: Any) -> int | None:
    return 0 if path[0].key in ("a0", "z") else None


def everything(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "gmt_mask": lambda: gmt_mask(0.5),
    "gmt_mask, global": lambda: gmt_mask(0.5, scope="global"),
    "gmt": lambda: gmt(INNER, 0.5, report=True),
    "random_mask": lambda: random_mask(INNER, 0.5, key=0),
    "one_off": lambda: one_off(INNER, 0.5, report=True),
    "gradient_to_weight": lambda: gradient_to_weight(INNER, 0.5),
    "magnitude": lambda: magnitude(INNER, 0.5),
    "fisher": lambda: fisher(INNER, 0.5, warmup=1),
    "balanced": lambda: balanced(INNER, 0.5),
    "balanced, by rows": lambda: balanced(INNER, 0.5, rows="a"),
    "mofo": lambda: mofo(INNER, 0.5),
    "skip_update": lambda: skip_update(INNER, key=0),
    "magma": lambda: magma(INNER, key=0),
    "magma, by layer": lambda: magma(INNER, key=0, stacked_axes=layers),
    "fixed_mask": lambda: fixed_mask(INNER, everything),
    "train_only": lambda: train_only(INNER, lambda params: lambda count: everything(params)),
    "measures": lambda: optax.monitor({"masked": zero_fraction, "ever": ever_nonzero()}),
}
EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def trained(optimizer: optax.GradientTransformationExtraArgs, params: Any) -> tuple[Any, Any]:
    """The updates and the state after two steps."""
    state = optimizer.init(params)
    _, state = optimizer.update(params, state, params)
    return optimizer.update(params, state, params)


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def figures(state: Any) -> list[float]:
    """What the state says about all entries together."""
    found = [
        optax.tree.get_all_with_path(state, name) for name in ("masked_fraction", "masked", "ever")
    ]
    return [float(x) for values in found for _, x in values if jnp.ndim(x) == 0]


@EVERY
def test_an_array_without_entries_changes_nothing(name: str) -> None:
    params = {"a": jnp.array([[3.0, -1.0], [2.0, 5.0]])}
    empty = {"a0": jnp.zeros((0, 3)), "z": jnp.zeros((2, 0))}
    expected, alone = trained(OPTIMIZERS[name](), params)
    updates, state = trained(OPTIMIZERS[name](), params | empty)
    assert_equal(updates["a"], expected["a"])
    assert figures(state) == figures(alone)
    assert np.isfinite(figures(trained(OPTIMIZERS[name](), empty)[1])).all()


@EVERY
def test_python_numbers_are_arrays_of_one_entry(name: str) -> None:
    numbers = {"a": 2.0, "b": -3.0}
    expected = trained(OPTIMIZERS[name](), jax.tree.map(jnp.asarray, numbers))
    assert_equal(trained(OPTIMIZERS[name](), numbers), expected)
