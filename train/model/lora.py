"""Low-rank adapters (LoRA, Hu et al. 2021): two thin matrices are trained beside each target.

The weights stay as they came, in the dtype of the computation; the factors are float32, and all
that the optimizer sees. A layer computes with the factors as they are; their product with the
base's weight is added up only to export it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gmt_jax.tree_paths import path_key

from ..sharding import partition_spec, path_name

_node = jax.tree_util.register_dataclass


@partial(_node, data_fields=("weight", "a", "b"), meta_fields=("scale",))
@dataclass(frozen=True)
class Adapted:
    """What may stand in the place of a weight: weight + scale · b · a, which is not added up.

    Attributes:
      weight: [..., out, in], which is not trained.
      a, b: [..., r, in] and [..., out, r].
      scale: a constant.
    """

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float

    def resolve(self, dtype: np.dtype) -> Self:
        """This node itself, of which a layer makes use (`gmt_jax.compact.resolve`)."""
        return self


@partial(_node, data_fields=("weights", "values"), meta_fields=("scale",))
@dataclass(frozen=True)
class LoraParams:
    """A frozen model and the factors that are trained beside it.

    Attributes:
      weights: the weights, which never change.
      values: a tree like them: {"a": float32 [L, r, in], "b": float32 [L, out, r]} for a target,
        else None.
      scale: what the product b · a is multiplied by.
    """

    weights: Any
    values: Any
    scale: float


def start_values(weights: Any, targets: Collection[str], rank: int, seed: int) -> Any:
    """The factors before the first update, whose product is zero.

    As PEFT draws them: `a` from U(-1/√in, 1/√in), `b` zero.

    Args:
      weights: the weights, or their ShapeDtypeStructs.
      targets: the paths of the matrices that have factors.
    """
    key = jax.random.key(seed)

    def start(path: Any, weight: Any) -> dict[str, jax.Array] | None:
        if path_name(path) not in targets:
            return None
        L, out, inner = weight.shape
        bound = inner**-0.5
        a = jax.random.uniform(path_key(path, key), (L, rank, inner), minval=-bound, maxval=bound)
        return {"a": a, "b": jnp.zeros((L, out, rank))}

    return jax.tree_util.tree_map_with_path(start, weights)


def abstract_lora(weights: Any, targets: Collection[str], rank: int, scale: float) -> LoraParams:
    """The ShapeDtypeStructs of the parameters, from those of the weights."""
    values = jax.eval_shape(lambda: start_values(weights, targets, rank, 0))
    return LoraParams(weights, values, scale)


def lora_shardings(mesh: Mesh, params: LoraParams, weights: Any, axes: Any) -> LoraParams:
    """The shardings of the parameters: factors are split as the side of the weight that they have.

    The rank is split as weights are along "embed" where the factor has no such side, if it can be.

    Args:
      params: ShapeDtypeStructs.
      weights: the shardings of the weights.
      axes: the logical axes of the weights.
    """

    def of_factors(_: Any, factors: Any, names: Any) -> Any:
        if factors is None:
            return None
        layers, out, inner = names
        sides = {"a": (layers, None, inner), "b": (layers, out, None)}
        return {key: of_factor(factors[key].shape, sides[key]) for key in factors}

    def of_factor(shape: tuple[int, ...], names: tuple[str | None, ...]) -> NamedSharding:
        split = names if "embed" in names else tuple(name or "embed" for name in names)
        for spec in map(partition_spec, (split, names)):
            sharding = NamedSharding(mesh, spec)
            try:
                sharding.shard_shape(shape)
            except ValueError:  # The rank cannot be split so.
                continue
            break
        return sharding

    values = jax.tree.map(of_factors, weights, params.values, axes)
    return LoraParams(weights, values, params.scale)


def attach(params: LoraParams) -> dict[str, Any]:
    """The tree of parameters to compute with: `Adapted` where there are factors."""

    def join(weight: Any, factors: Any) -> Any:
        if factors is None:
            return weight
        return Adapted(weight, factors["a"], factors["b"], params.scale)

    tree: dict[str, Any] = jax.tree.map(join, params.weights, params.values)
    return tree


def merge(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """float32 W + scale · b · a, of one matrix or of a stack of them."""
    return weight.astype(jnp.float32) + scale * jnp.matmul(b, a, precision="highest")


def merged(params: LoraParams, dtype: str) -> dict[str, Any]:
    """The weights with the factors' products added, rounded to `dtype` where there are factors."""

    def add(weight: jax.Array, factors: Any) -> jax.Array:
        if factors is None:
            return weight
        return merge(weight, factors["a"], factors["b"], params.scale).astype(dtype)

    tree: dict[str, Any] = jax.tree.map(add, params.weights, params.values)
    return tree
