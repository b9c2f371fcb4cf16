"""The device mesh, the one table from logical axes to mesh axes, and the shardings made of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .errors import UserError

AXES = ("data", "fsdp", "context", "tensor")  # from the slowest network to the fastest

# The mesh axes that split each logical axis. Other axes are whole on every device.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": ("fsdp", "context"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
}


def make_mesh(
    data: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    context: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Makes a mesh with the axes data, fsdp, context and tensor over all devices.

    One size may be -1, which stands for all remaining devices. Each of several TPU slices holds
    whole copies of the model: the data axis, over which only gradients are summed, runs between
    slices first.

    Raises:
      UserError: where the sizes do not match the devices, or the data axis the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
    given = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(f"mesh: only one axis may be -1, got {given}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh: {given} does not match the {len(devices)} devices here; set mesh.data, "
            "mesh.fsdp, mesh.context and mesh.tensor so that their product does (-1: the rest)"
        )
    arranged = _arrange(tuple(sizes.values()), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in the mesh's shape, with neighbours along its last axes close to each other."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1 or devices[0].platform != "tpu":
        return create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise UserError(
            f"mesh: data={shape[0]} is not a multiple of the {slices} slices here; "
            "every slice must hold whole copies of the model"
        )
    return create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]),
        (slices, *(1 for _ in shape[1:])),
        devices,
        allow_split_physical_axes=True,
    )


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical axes."""
    return PartitionSpec(*(RULES.get(axis) if axis else None for axis in axes))


def param_shardings(mesh: Mesh, shapes: Any, axes: Any) -> Any:
    """The NamedSharding of each parameter, from trees of shapes and of logical axes.

    Raises:
      UserError: naming every parameter with a dimension that its mesh axes do not divide.
    """
    faults = []

    def sharding_of(
        path: Any, shape: jax.ShapeDtypeStruct, names: tuple[str | None, ...]
    ) -> NamedSharding:
        for size, name in zip(shape.shape, names, strict=True):
            mesh_axes = RULES.get(name, ()) if name else ()
            shards = math.prod(mesh.shape[axis] for axis in mesh_axes)
            if size % shards:
                param = jax.tree_util.keystr(path, simple=True, separator="/")
                reason = f"not divisible by {shards} ({', '.join(mesh_axes)})"
                faults.append(f"{param} has {size} along {name}, {reason}")
        return NamedSharding(mesh, partition_spec(names))

    shardings = jax.tree_util.tree_map_with_path(sharding_of, shapes, axes)
    if faults:
        raise UserError("mesh: " + "; ".join(faults) + "; choose a smaller mesh axis")
    return shardings


def as_shardings(mesh: Mesh, given: Any, tree: Any) -> Any:
    """The NamedSharding of each leaf of a tree, from a prefix of PartitionSpecs or NamedShardings.

    Raises:
      UserError: if it is no prefix of the tree.
    """

    def is_sharding(node: Any) -> bool:
        return isinstance(node, (PartitionSpec, NamedSharding))

    def named(node: PartitionSpec | NamedSharding) -> NamedSharding:
        return node if isinstance(node, NamedSharding) else NamedSharding(mesh, node)

    try:
        spread = jax.tree.broadcast(given, tree, is_leaf=is_sharding)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the shardings are no prefix of the tree of arrays: {reason}") from None
    return jax.tree.map(named, spread, is_leaf=is_sharding)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [B, ...]: rows split over the data and fsdp axes."""
    return NamedSharding(mesh, partition_spec(["batch"]))


def microbatch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays [N, B/N, ...]: each microbatch's rows split over data and fsdp."""
    return NamedSharding(mesh, partition_spec([None, "batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that keeps the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(shapes: Any, shardings: Any) -> None:
    """Checks that the mesh can split every array of a tree.

    Raises:
      UserError: naming every array that it cannot split.
    """
    faults = []
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_flatten_with_path(shapes)[0], jax.tree.leaves(shardings), strict=True
    ):
        try:
            sharding.shard_shape(leaf.shape)
        except ValueError:
            faults.append(
                f"{path_name(path)} {list(leaf.shape)} cannot be split as {sharding.spec}"
            )
    if faults:
        raise UserError("mesh: " + "; ".join(faults) + "; change the shardings or the mesh")


def path_name(path: Any) -> str:
    """The keys of a leaf's path, joined by "/"; "the array" for a tree that is a single leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/") or "the array"


def abstract(shapes: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs that carry their shardings, for a restore or a compilation."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def check_rows(mesh: Mesh, microbatch_size: int, max_length: int) -> None:
    """Checks that the mesh can split the rows of a microbatch, and their length.

    Raises:
      UserError: where they cannot.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatch_size % shards:
        raise UserError(
            f"batch: a microbatch has {microbatch_size} rows (size / num_microbatches), not "
            f"divisible by the {shards} devices along data and fsdp; "
            "change batch.size, batch.num_microbatches or the mesh"
        )
    context = mesh.shape["context"]
    if max_length % context:
        raise UserError(
            f"data.max_length: {max_length} is not divisible by the {context} devices along "
            "context; change data.max_length or mesh.context"
        )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains an activation to the sharding of its logical axes; the identity without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def num_shards(axis: str) -> int:
    """Parts into which the current mesh splits a logical axis; 1 where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh().shape
    return math.prod(mesh.get(name, 1) for name in RULES[axis])


def mesh_of(params: Any) -> Mesh:
    """The mesh that parameters are sharded over, or one of one device."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))


def given_shardings(mesh: Mesh, params: Any, given: Any) -> Any:
    """The sharding of each parameter: as given, or as its array has it on the mesh, or whole."""
    if given is not None:
        shardings = as_shardings(mesh, given, params)
        check_divisible(params, shardings)
        return shardings

    def of(leaf: Any) -> NamedSharding:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh == mesh:
            return sharding
        return replicated(mesh)

    return jax.tree.map(of, params)
