"""Checkpoints of what is trained beside a base, and a digest of the base in place of it.

Of compact runs they hold the chosen entries, of adapters the factors.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from gmt_jax import compact
from gmt_jax.compact import CompactParams

from .checkpoint import Checkpoints
from .compact import fingerprint
from .errors import UserError
from .model import LoraParams, Params
from .sharding import path_name
from .step import TrainState

BaseParams: TypeAlias = CompactParams | LoraParams


class Base:
    """The weights before training, and their digest, which a run computes once.

    Args:
      load: a function that reads the weights, sharded.
    """

    def __init__(self, load: Callable[[], Params]) -> None:
        self._load, self._digest = load, jnp.zeros(0, jnp.uint32)

    def load(self) -> Params:
        """The weights, which the caller may change in place."""
        weights = self._load()
        self._digest = jax.block_until_ready(fingerprint(weights))
        return weights

    @property
    def digest(self) -> jax.Array:
        """The digest of the weights that were loaded."""
        return self._digest


class CompactCheckpoints(Checkpoints):
    """`Checkpoints` of `CompactParams` or `LoraParams`, without the weights: the base's.

    Args:
      base: the weights before training.
      folder: as the other arguments, as in `Checkpoints`.
    """

    def __init__(self, base: Base, folder: Path, *args: Any, **options: Any) -> None:
        super().__init__(folder, *args, **options)
        self._base = base

    def save(
        self, state: TrainState, loader: ocp.StatefulCheckpointable, best: int | None = None
    ) -> None:
        """Starts saving what was trained, as `Checkpoints.save`."""
        stored = to_stored(state.params, self._base.digest)
        super().save(state._replace(params=stored), loader, best)

    def restore(self, state: TrainState, loader: ocp.StatefulCheckpointable) -> TrainState:
        """Restores what was trained, and puts it into the base's weights.

        Raises:
          UserError: as `Checkpoints.restore`, and if the base is another one.
        """
        weights = self._base.load()
        digest = self._base.digest
        abstract = state._replace(params=abstract_stored(state.params, digest))
        loaded = super().restore(abstract, loader)
        params = from_stored(loaded.params, weights, state.params, digest)
        return loaded._replace(params=params)


def to_stored(params: BaseParams, digest: Any) -> dict[str, Any]:
    """What a checkpoint holds: what is trained by the path of its weight, and the base's digest."""

    def by_path(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): leaf for path, leaf in leaves}

    stored = {"values": by_path(params.values), "base": digest}
    return stored if isinstance(params, LoraParams) else stored | {"chosen": by_path(params.chosen)}


def abstract_stored(params: BaseParams, digest: jax.Array) -> dict[str, Any]:
    """The ShapeDtypeStructs of what a checkpoint holds, from those of the parameters."""
    abstract = jax.ShapeDtypeStruct(digest.shape, digest.dtype, sharding=digest.sharding)
    return to_stored(params, abstract)


def from_stored(
    stored: dict[str, Any], weights: Params, like: BaseParams, digest: Any
) -> BaseParams:
    """The parameters, from a checkpoint and the base's weights, which may be changed in place.

    Args:
      like: their ShapeDtypeStructs with shardings.
      digest: the digest of the weights.

    Raises:
      UserError: if the weights are not those that the run began with.
    """
    if not np.array_equal(jax.device_get(stored["base"]), jax.device_get(digest)):
        raise UserError(
            "model.path holds other weights than those that the run began with; bring them back"
        )

    def filled(tree: Any, arrays: dict[str, Any]) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_name(path)], tree)

    values = filled(like.values, stored["values"])
    if isinstance(like, LoraParams):
        return LoraParams(weights, values, like.scale)
    chosen = filled(like.chosen, stored["chosen"])
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    write = jax.jit(
        partial(compact.write, shardings=shardings), donate_argnums=0, out_shardings=shardings
    )
    params: CompactParams = write(CompactParams(weights, chosen, values))
    return params
