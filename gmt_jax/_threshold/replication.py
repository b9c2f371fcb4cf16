"""Where arrays are on a mesh: small ones on every device, and shards inside jax.shard_map."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh
Tree = TypeVar("Tree")


def mesh_of(leaves: Sequence[Any]) -> AnyMesh | None:
    """The mesh of the leaves if it has more than one device, as far as it is known.

    It is the mesh of the first leaf that has one, or else that of jax.set_mesh. Inside jit without
    either, the mesh of arrays with Auto axes is unknown.
    """
    for leaf in leaves:
        traced = isinstance(leaf, jax.core.Tracer)
        sharding = getattr(jax.typeof(leaf) if traced else leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
            return sharding.mesh
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    current = jax.sharding.get_abstract_mesh()
    return current if traced and current.size > 1 else None


def is_explicit(mesh: AnyMesh | None) -> bool:
    """Whether arrays on the mesh carry their sharding in their type."""
    return (
        mesh is not None
        and AxisType.Explicit in mesh.axis_types
        and AxisType.Manual not in mesh.axis_types
    )


def replicate(tree: Tree, mesh: AnyMesh | None) -> Tree:
    """The tree with all arrays replicated; XLA would shard the brackets as it does the leaves."""
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return tree
    replicated = NamedSharding(mesh, PartitionSpec())
    if is_explicit(mesh):
        return jax.sharding.reshard(tree, replicated)
    return lax.with_sharding_constraint(tree, replicated)


def shard_axes(leaf: Any) -> tuple[str, ...]:
    """The mesh axes over which an array varies inside jax.shard_map: it is one of their shards."""
    return tuple(sorted(jax.typeof(leaf).manual_axis_type.varying))


def shard_count(leaf: Any) -> int:
    """The number of shards of which an array is one inside jax.shard_map; 1 elsewhere."""
    return math.prod(lax.axis_size(axis) for axis in shard_axes(leaf))


def shard_index(leaf: Any) -> jax.Array | int:
    """Which of its shards an array is inside jax.shard_map; 0 elsewhere."""
    index: jax.Array | int = 0
    for axis in shard_axes(leaf):
        index = index * lax.axis_size(axis) + lax.axis_index(axis)
    return index
