"""Training of the chosen entries alone: the state, its shardings, and how entries are drawn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gmt_jax import compact
from gmt_jax.compact import CompactParams, Rows, Slots
from gmt_jax.compact.slots import GROUP

from .model import ModelConfig, Params, abstract_params, stacked_axes
from .sharding import replicated


def abstract_weights(model: ModelConfig, compute_dtype: str) -> Params:
    """The ShapeDtypeStructs of the weights that the model computes with.

    Matrices have the dtype of the computation, as they would be rounded to it; norms and biases,
    which are small and computed with in float32, have that.
    """

    def struct(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        is_matrix = len(leaf.shape) - (stacked_axes(path) is not None) >= 2
        return jax.ShapeDtypeStruct(leaf.shape, compute_dtype if is_matrix else jnp.float32)

    shapes: Params = jax.tree_util.tree_map_with_path(struct, abstract_params(model))
    return shapes


def start_params(forms: Any, weights: Params, scores: Any) -> CompactParams:
    """The parameters before the first update, whose choice has the largest scores."""
    chosen = compact.choose(forms, scores)
    return CompactParams(weights, chosen, compact.read(chosen, weights))


def abstract_compact(forms: Any, weights: Params) -> CompactParams:
    """The ShapeDtypeStructs of the parameters."""
    shapes: CompactParams = jax.eval_shape(partial(start_params, forms), weights, weights)
    return shapes


def compact_shardings(mesh: Mesh, params: CompactParams, weights: Any) -> CompactParams:
    """The shardings of the parameters: slots are split as their weights, between groups.

    Args:
      params: ShapeDtypeStructs.
      weights: the shardings of the weights.
    """

    def of_values(choice: Any, shape: Any, sharding: NamedSharding) -> NamedSharding:
        spec = [*sharding.spec, *[None] * (len(shape.shape) - len(sharding.spec))]
        if isinstance(choice, Rows):
            spec[0] = None
        if isinstance(choice, Slots):
            part = sharding.shard_shape(shape.shape)[-1]
            spec[-1] = spec[-1] if part % GROUP == 0 else None
        return NamedSharding(mesh, PartitionSpec(*spec))

    def of_choice(choice: Any, shape: Any, sharding: NamedSharding) -> Any:
        if isinstance(choice, (Rows, Slots)):
            rows = isinstance(choice, Rows)
            of: Any = replicated(mesh) if rows else of_values(choice, shape, sharding)
            return type(choice)(of)
        return choice

    def each(function: Callable[..., Any]) -> Any:
        return jax.tree.map(
            function, params.chosen, params.weights, weights, is_leaf=compact.is_choice
        )

    values = jax.tree.map(
        lambda value, sharding: None if value is None else sharding,
        params.values,
        each(of_values),
        is_leaf=lambda node: node is None,
    )
    return CompactParams(weights, each(of_choice), values)


def sum_shardings(sums: Any, weights: Any) -> Any:
    """The shardings of sums of gradients: those of the weights, where they have enough rows.

    Args:
      sums: ShapeDtypeStructs, None where there is no sum.
      weights: the shardings of the weights.
    """

    def of_sum(shape: Any, sharding: NamedSharding) -> Any:
        if shape is None:
            return None
        spec = list(sharding.spec)
        for axis in range(len(spec)):
            alone = [None] * axis + [spec[axis]]
            try:
                NamedSharding(sharding.mesh, PartitionSpec(*alone)).shard_shape(shape.shape)
            except ValueError:
                spec[axis] = None
        return NamedSharding(sharding.mesh, PartitionSpec(*spec))

    return jax.tree.map(of_sum, sums, weights, is_leaf=lambda node: node is None)


@jax.jit
def fingerprint(weights: Params) -> jax.Array:
    """A checksum of each array, uint32 [number of arrays], the same on every mesh."""

    def sum_bits(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        # Each entry counts with an odd number of its own, so that no bit is lost and order matters.
        weight = jnp.ones((), jnp.uint32)
        for axis in range(bits.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            weight = weight * (index * jnp.uint32(0x9E3779B2 + 4 * axis) + jnp.uint32(1))
        return jnp.sum(bits.astype(jnp.uint32) * weight, dtype=jnp.uint32)

    return jnp.stack([sum_bits(leaf) for leaf in jax.tree.leaves(weights)])
