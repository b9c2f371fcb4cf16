"""The mesh, shardings, and the messages for devices and sizes that do not fit."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from train.errors import UserError
from train.sharding import (
    abstract,
    check_rows,
    constrain,
    make_mesh,
    microbatch_sharding,
    num_shards,
    param_shardings,
)


def test_the_rest_of_the_devices_goes_to_the_open_axis() -> None:
    sizes = {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert dict(make_mesh(2, -1, 2).shape) == sizes
    assert dict(make_mesh(2, 1, 1, -1).shape) == sizes | {"fsdp": 1, "context": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, -1, 1), "data=3, fsdp=-1, context=1, tensor=1 does not match the 8 devices"),
        ((1, 2, 2), "data=1, fsdp=2, context=1, tensor=2 does not match the 8 devices"),
        ((-1, -1, 1), "only one axis may be -1"),
    ],
)
def test_a_mesh_that_does_not_match_the_devices_is_refused(
    shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(*shape)


def test_a_size_that_an_axis_does_not_divide_is_reported_with_its_parameter() -> None:
    shapes = {
        "good": jax.ShapeDtypeStruct((16,), "float32"),
        "bad": {"kernel": jax.ShapeDtypeStruct((12, 6), "float32")},
    }
    axes = {"good": ("embed",), "bad": {"kernel": ("embed", "ffn")}}
    with pytest.raises(UserError, match=r"bad/kernel has 12 along embed, not divisible by 8") as e:
        param_shardings(make_mesh(1, 8, 1), shapes, axes)
    assert "good" not in str(e.value)


def test_microbatches_are_split_along_their_rows() -> None:
    sharding = microbatch_sharding(make_mesh(2, 2, 2))
    assert sharding.shard_shape((3, 8, 16)) == (3, 2, 16)


def test_abstract_arrays_have_the_shapes_and_shardings_given() -> None:
    shapes = {"w": jax.ShapeDtypeStruct((16, 8), "float32")}
    shardings = param_shardings(make_mesh(1, 8, 1), shapes, {"w": ("embed", None)})
    struct = abstract(shapes, shardings)["w"]
    assert (struct.shape, struct.dtype) == ((16, 8), jnp.float32)
    assert struct.sharding == shardings["w"]


@pytest.mark.parametrize(
    ("rows", "length", "message"),
    [(6, 64, "a microbatch has 6 rows"), (8, 63, "data.max_length: 63 is not divisible by the 2")],
)
def test_rows_that_the_mesh_cannot_split_are_refused(rows: int, length: int, message: str) -> None:
    mesh = make_mesh(2, 2, 1, 2)
    check_rows(mesh, 8, 64)
    with pytest.raises(UserError, match=message):
        check_rows(mesh, rows, length)


def test_activations_are_split_by_the_current_mesh_alone() -> None:
    x = jnp.zeros((8, 4))
    assert constrain(x, "batch", None) is x
    assert num_shards("batch") == 1
    with jax.set_mesh(make_mesh(2, 2, 2)):
        assert num_shards("batch") == 4
        split = jax.jit(lambda x: constrain(x, "batch", "heads"))(x)
    assert split.sharding.spec == PartitionSpec(("data", "fsdp"), "tensor")
