"""The named types are those in the signatures of the public functions."""

import inspect

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
