"""Models and numbers that HFT and LISA refuse, and their examples."""

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gmt_jax.structured
from gmt_jax import hft, lisa, train_only
from gmt_jax.structured import hft_schedule, lisa_schedule

LAYERS = {"layers": {"attention_norm": jnp.ones((8, 2))}}  # eight of them
OPTIMIZERS = {
    "hft": hft(optax.identity(), key=0, every=7),
    "lisa": lisa(optax.identity(), num_layers=3, key=0, every=7),
}


def test_the_docstrings_run() -> None:
    result = doctest.testmod(gmt_jax.structured)
    assert result.attempted > 6
    assert result.failed == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_unknown_model_is_refused_before_it_is_trained(name: str) -> None:
    tree = {"transformer": {"h": jnp.ones((4, 2, 2))}}
    optimizer = OPTIMIZERS[name]
    with pytest.raises(ValueError, match="no known role: transformer/h;"):
        optimizer.init(tree)
    with pytest.raises(ValueError, match="no known role: transformer/h;"):
        optimizer.update(tree, optimizer.init({}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: hft_schedule(LAYERS, 0, every=0), "every must be an integer of at least 1, got 0"),
        (
            lambda: hft_schedule(LAYERS, 0, every=np.int64(0)),
            "every must be an integer of at least 1, got 0",
        ),
        (
            lambda: lisa_schedule(LAYERS, 1, 0, every=-1),
            "every must be an integer of at least 1, got -1",
        ),
        (lambda: lisa_schedule(LAYERS, 2.5, 0, every=1), "num_layers must be an integer"),  # type: ignore[arg-type]
        (
            lambda: lisa_schedule(LAYERS, 0, 0, every=1),
            "num_layers must be an integer of at least 1, got 0",
        ),
        (lambda: lisa_schedule(LAYERS, 9, 0, every=1), "cannot train 9 of 8 layers"),
        (lambda: lisa_schedule(LAYERS, np.int64(9), 0, every=1), "cannot train 9 of 8 layers"),
    ],
)
def test_impossible_numbers_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bad()


def test_a_schedule_that_returns_an_array_of_its_own_is_refused_in_a_compiled_update() -> None:
    mask = jnp.arange(1 << 20) % 3 == 0
    params = jnp.zeros(1 << 20)
    optimizer = train_only(optax.sgd(1.0), lambda params: lambda count: mask)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"would be a constant of the program.*fixed_mask"):
        jax.eval_shape(optimizer.update, params, state, params)
