"""The mesh, and what is said of devices and sizes that do not fit."""

import jax
import pytest

from train.errors import UserError
from train.sharding import make_mesh, param_shardings


def test_the_rest_of_the_devices_goes_to_the_open_axis() -> None:
    sizes = {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert dict(make_mesh(2, -1, 2).shape) == sizes
    assert dict(make_mesh(2, 1, 1, -1).shape) == sizes | {"fsdp": 1, "context": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, -1, 1), "data=3, fsdp=-1, context=1, tensor=1 does not match the 8 devices"),
        ((1, 2, 2), "data=1, fsdp=2, context=1, tensor=2 does not match the 8 devices"),
        ((-1, -1, 1), "only one axis may be -1"),
    ],
)
def test_a_mesh_that_does_not_match_is_told(shape: tuple[int, int, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_mesh(*shape)


def test_a_size_that_an_axis_does_not_divide_is_told_with_its_parameter() -> None:
    shapes = {
        "good": jax.ShapeDtypeStruct((16,), "float32"),
        "bad": {"kernel": jax.ShapeDtypeStruct((12, 6), "float32")},
    }
    axes = {"good": ("embed",), "bad": {"kernel": ("embed", "ffn")}}
    with pytest.raises(UserError, match=r"bad/kernel has 12 along embed, not divisible by 8") as e:
        param_shardings(make_mesh(1, 8, 1), shapes, axes)
    assert "good" not in str(e.value)
