"""Reads a decoder's weights from safetensors files, slice by slice into each device's shard."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..errors import UserError
from ..model.config import ModelConfig
from ..model.functional import Params, abstract_params
from ..model.param_table import EMBED, HEAD, PARAM_SPECS, ParamSpec
from .safetensors import WEIGHT_DTYPES, SafetensorsReader, name_list, open_weights

# A buffer that old exports store beside the weights and that follows from the config.
IGNORED_SUFFIX = ".rotary_emb.inv_freq"
# Rows of a stored head that are compared with the embeddings at a time.
ROWS_AT_A_TIME = 4096
# Numbers that are looked at together for one that is not finite.
NUMBERS_AT_A_TIME = 1 << 22

_path_name = partial(jax.tree_util.keystr, simple=True, separator="/")


def load_params(
    folder: Path, config: ModelConfig, shardings: Any = None, shapes: Params | None = None
) -> Params:
    """A model's weights as parameters; each device reads its own shards only.

    Args:
      folder: holds model.safetensors, or several files with or without
        model.safetensors.index.json.
      shardings: one for each parameter, as from train.sharding.param_shardings; by default all
        parameters are on the first device.
      shapes: ShapeDtypeStructs of the parameters, for other dtypes than float32.

    Raises:
      UserError: for a missing or broken file, or naming every tensor that is missing, extra, of
        the wrong shape or of a type that is not supported.
    """
    shapes = abstract_params(config) if shapes is None else shapes
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    specs = {spec.path: spec for spec in PARAM_SPECS}
    with open_weights(folder) as reader:
        _check(reader, config, shapes)
        checked = _FiniteReader(reader)

        def load(path: Any, leaf: jax.ShapeDtypeStruct, sharding: Sharding) -> jax.Array:
            return _load_param(checked, specs[_path_name(path)], leaf, sharding)

        params: Params = jax.tree_util.tree_map_with_path(load, shapes, shardings)
    if checked.infinite:
        raise UserError(
            f"{folder}: weights are not finite: {name_list(checked.infinite)}; "
            "fetch the files again, or name another model"
        )
    return params


class _FiniteReader:
    """Reads tensors, and notes the names of those that hold a NaN or an infinity."""

    def __init__(self, reader: SafetensorsReader) -> None:
        self._reader, self.infinite = reader, list[str]()

    def read(self, name: str, bounds: tuple[slice, ...]) -> np.ndarray:
        array = self._reader.read(name, bounds)
        if name not in self.infinite and not _is_finite(array):
            self.infinite.append(name)
        return array


def _is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, looking at some of them at a time."""
    flat = array.reshape(-1)
    if flat.dtype == ml_dtypes.bfloat16:  # Its own isfinite is slow; an exponent of ones is none.
        flat = flat.view(np.uint16)
    for start in range(0, flat.size, NUMBERS_AT_A_TIME):
        part = flat[start : start + NUMBERS_AT_A_TIME]
        finite = (part & 0x7F80) != 0x7F80 if part.dtype == np.uint16 else np.isfinite(part)
        if not finite.all():
            return False
    return True


def _load_param(
    reader: _FiniteReader, spec: ParamSpec, leaf: jax.ShapeDtypeStruct, sharding: Sharding
) -> jax.Array:
    """One parameter; a stacked one is put together from its layers' tensors.

    Beside it, this process holds its own shards of one tensor at a time.
    """
    shape = leaf.shape
    if not spec.stacked:
        return _load_tensor(reader, spec.name, shape, sharding).astype(leaf.dtype)
    stack, set_layer = _zeros(shape, leaf.dtype, sharding)(), _layer_setter(sharding)
    layer_sharding = _without_first_axis(sharding)
    for layer in range(shape[0]):
        tensor = _load_tensor(reader, spec.name.format(layer), shape[1:], layer_sharding)
        stack = jax.block_until_ready(set_layer(stack, tensor, layer))
    return stack


def _load_tensor(
    reader: _FiniteReader, name: str, shape: tuple[int, ...], sharding: Sharding
) -> jax.Array:
    """A tensor in the file's type; a slice that several devices hold is read once."""
    slices: dict[str, np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = index or ()
        if str(bounds) not in slices:
            slices[str(bounds)] = reader.read(name, bounds)
        return slices[str(bounds)]

    return jax.make_array_from_callback(shape, sharding, read)


def _without_first_axis(sharding: Sharding) -> Sharding:
    """The sharding of one layer, given the sharding of the stack."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@lru_cache
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> Callable[[], jax.Array]:
    """A function that makes zeros with this sharding, never whole on one device."""
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@lru_cache
def _layer_setter(sharding: Sharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """A function that writes one layer into a stack with this sharding, in place."""

    def set_layer(stack: jax.Array, tensor: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, tensor.astype(stack.dtype), layer, 0)

    return jax.jit(set_layer, donate_argnums=0, out_shardings=sharding)


class StoredTensor(NamedTuple):
    """A tensor as files hold it: a parameter, or one layer of a stacked parameter."""

    name: str
    param: Any  # the parameter, a jax.Array or ShapeDtypeStruct
    layer: int | None  # its index in a stacked parameter
    dtype: str | None = None  # the type in which it stays stored, whatever the weights' type

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.param.shape
        return shape if self.layer is None else shape[1:]


def stored_tensors(config: ModelConfig, params: Params) -> list[StoredTensor]:
    """The tensors of a model's files: those outside the layers, then layer by layer.

    Args:
      params: the parameters, or their ShapeDtypeStructs.
    """
    leaves = {_path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    specs = [spec for spec in PARAM_SPECS if spec.path in leaves]
    whole = [StoredTensor(s.name, leaves[s.path], None) for s in specs if not s.stacked]
    layers = [
        StoredTensor(spec.name.format(layer), leaves[spec.path], layer)
        for layer in range(config.num_hidden_layers)
        for spec in specs
        if spec.stacked
    ]
    return whole + layers


def further_tensors(folder: Path, tensors: Sequence[StoredTensor]) -> list[StoredTensor]:
    """The tensors that a model's files hold beside its weights, and that follow from them.

    They are the head of tied embeddings, which is the embeddings' parameter again, and the buffers
    of old exports.

    Args:
      tensors: the model's `stored_tensors`.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    further = []
    with open_weights(folder) as reader:
        for name in reader.names:
            if name == HEAD and name not in by_name:
                further.append(by_name[EMBED]._replace(name=name))
            elif name.endswith(IGNORED_SUFFIX):
                buffer = reader.tensor(name)
                further.append(StoredTensor(name, buffer, None, buffer.dtype.name))
    return further


def _check(reader: SafetensorsReader, config: ModelConfig, shapes: Params) -> None:
    """Compares all names, shapes and types with those that the config requires."""
    required = {tensor.name: tensor.shape for tensor in stored_tensors(config, shapes)}
    names = reader.names
    faults = {
        "missing": [name for name in required if name not in names],
        "extra": [],
        "in two files": reader.duplicates,
    }
    for name in names:
        if name in required:
            for fault in _spec_faults(reader, name, required[name]):
                faults.setdefault(fault, []).append(name)
        elif name == HEAD and EMBED in names:
            if not _equal(reader, EMBED, HEAD):
                faults["tied by the config but unlike the embeddings"] = [name]
        elif not name.endswith(IGNORED_SUFFIX):
            faults["extra"].append(name)
    message = "; ".join(f"{fault}: {name_list(names)}" for fault, names in faults.items() if names)
    if message:
        raise UserError(f"{reader.folder}: weights do not match config.json: {message}")


def _spec_faults(reader: SafetensorsReader, name: str, shape: tuple[int, ...]) -> list[str]:
    spec, faults = reader.spec(name), []
    if spec.shape != shape:
        faults.append(f"of shape {list(spec.shape)} instead of {list(shape)}")
    if spec.dtype not in WEIGHT_DTYPES:
        faults.append(f"of unsupported type {spec.dtype}")
    return faults


def _equal(reader: SafetensorsReader, a: str, b: str) -> bool:
    """Whether two matrices are equal; some rows of each are in memory at a time."""
    shape = reader.spec(a).shape
    if shape != reader.spec(b).shape:
        return False
    starts = range(0, shape[0], ROWS_AT_A_TIME)
    indices = [(slice(start, min(start + ROWS_AT_A_TIME, shape[0])),) for start in starts]
    return all(np.array_equal(reader.read(a, i), reader.read(b, i)) for i in indices)
