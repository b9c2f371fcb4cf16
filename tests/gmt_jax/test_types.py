"""The named types are those in the signatures of the public functions."""

import inspect
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import gmt_jax
from gmt_jax import types

NAMED = {
    "mask_ratio": types.MaskRatio,
    "stacked_axes": types.StackedAxes,
    "key": types.Key,
}


@pytest.mark.parametrize("name", [name for name in gmt_jax.__all__ if name.islower()])
def test_a_parameter_has_the_same_type_everywhere(name: str) -> None:
    signature = inspect.signature(getattr(gmt_jax, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation == NAMED.get(parameter.name, parameter.annotation)


def test_numbers_are_those_of_python_and_numpy_and_not_arrays() -> None:
    reals, integers = (0.5, np.float32(0.5), Fraction(1, 2)), (3, np.int64(3), np.uint8(3))
    assert all(map(types.is_number, reals + integers))
    assert all(map(types.is_integer, integers))
    assert not any(map(types.is_integer, reals))
    assert not any(map(types.is_number, ("1", None, 1j, np.ones(2), jnp.ones(()))))
