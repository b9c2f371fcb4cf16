"""The mesh of leaves, and small arrays replicated over it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gmt_jax._threshold.replication import is_explicit, mesh_of, replicate

AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)


def make_mesh(axis_type: AxisType, devices: int = 8) -> Any:
    return jax.make_mesh((devices,), ("x",), axis_types=(axis_type,))


@AXIS_TYPES
def test_the_mesh_is_that_of_the_first_leaf_with_one(axis_type: AxisType) -> None:
    mesh = make_mesh(axis_type)
    spread = jax.device_put(jnp.zeros(8), NamedSharding(mesh, P("x")))
    shape = jax.ShapeDtypeStruct((8,), "float32", sharding=NamedSharding(mesh, P()))
    assert mesh_of([jnp.zeros(3), spread]) == mesh
    assert mesh_of([shape]) == mesh
    assert mesh_of([jnp.zeros(3), np.zeros(3)]) is None
    alone = make_mesh(axis_type, 1)
    assert mesh_of([jax.device_put(jnp.zeros(8), NamedSharding(alone, P()))]) is None


def test_inside_jit_an_auto_mesh_is_known_from_the_context() -> None:
    mesh, found = make_mesh(AxisType.Auto), []

    @jax.jit
    def look(x: jax.Array) -> jax.Array:
        found.append(mesh_of([x]))
        return x

    with jax.set_mesh(mesh):
        look(jnp.zeros(8))
    look(jnp.zeros(4))
    assert found == [mesh.abstract_mesh, None]


@AXIS_TYPES
def test_replicated_arrays_are_whole_on_every_device(axis_type: AxisType) -> None:
    mesh = make_mesh(axis_type)
    assert is_explicit(mesh) is (axis_type == AxisType.Explicit)
    spread = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("x")))
    with jax.set_mesh(mesh):
        assert replicate({"a": spread}, mesh)["a"].sharding.is_fully_replicated


def test_without_a_mesh_arrays_stay_as_they_are() -> None:
    x = jnp.zeros(3)
    assert replicate(x, None) is x
    assert not is_explicit(None)
