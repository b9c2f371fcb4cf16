"""Writes a decoder's weights as safetensors files that transformers loads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gmt_jax.compact import CompactParams
from gmt_jax.compact.choices import Choice, Frozen, is_choice, write

from ..errors import UserError
from ..files import write_json
from ..model.config import ModelConfig
from ..model.functional import Params
from ..model.lora import LoraParams, merge
from .load import StoredTensor, further_tensors, stored_tensors
from .model_config import config_json
from .safetensors import INDEX, LABELS, TensorSpec, open_weights, write_safetensors


def save_params(
    params: Params | CompactParams | LoraParams,
    config: ModelConfig,
    folder: Path | None,
    dtype: str = "bfloat16",
    *,
    base: Path | None = None,
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Writes the weights and config.json into a folder, one tensor in memory at a time.

    Where there are several processes, all call this together and one writes.

    Args:
      params: the weights; or `CompactParams` or `LoraParams`, whose values are put into, or added
        to, the tensors of `base` as its files have them.
      folder: exists and holds no weights yet, such as one from `atomic_folder`; None in the
        processes that do not write.
      dtype: of the stored weights, float32 or bfloat16.
      base: the folder of the model that was tuned. What its files hold beside the weights, such as
        the head of tied embeddings, is written too, so that the two have the same tensors.
      max_file_bytes: larger weights are split into several files with an index.
    """
    files = _split(_tensors(params, config, base), dtype, max_file_bytes)
    if folder is None:
        for group in files.values():
            for tensor in group:
                _fetch(tensor, dtype)
        return
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: holds weights already; choose another folder")
    for name, group in files.items():
        _write_file(folder / name, group, dtype)
    if len(files) > 1:
        write_json(folder / INDEX, _index(files, dtype))
    write_json(folder / "config.json", config_json(config, dtype))


def saved_tensors(
    params: Params | CompactParams | LoraParams, config: ModelConfig, dtype: str, base: Path
) -> tuple[dict[str, TensorSpec], Callable[[str], np.ndarray]]:
    """What `save_params` would write: the specs of the tensors, and a function that makes one."""
    tensors = {tensor.name: tensor for tensor in _tensors(params, config, base)}
    specs = {name: _spec(tensor, dtype) for name, tensor in tensors.items()}
    return specs, lambda name: _fetch(tensors[name], dtype)


def _tensors(
    params: Params | CompactParams | LoraParams, config: ModelConfig, base: Path | None
) -> list[StoredTensor]:
    if isinstance(params, CompactParams | LoraParams):
        assert base is not None, "values are put into a base"
        params = _in_base(params, base)
    tensors = stored_tensors(config, params)
    return tensors if base is None else tensors + further_tensors(base, tensors)


def _split(
    tensors: Sequence[StoredTensor], dtype: str, max_file_bytes: int
) -> dict[str, list[StoredTensor]]:
    """The tensors of each file by its name; a tensor above the limit has a file to itself."""
    groups: list[list[StoredTensor]] = [[]]
    bytes_left = max_file_bytes
    for tensor in tensors:
        size = _spec(tensor, dtype).num_bytes
        if size > bytes_left and groups[-1]:
            groups.append([])
            bytes_left = max_file_bytes
        groups[-1].append(tensor)
        bytes_left -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def _index(files: Mapping[str, Sequence[StoredTensor]], dtype: str) -> dict[str, Any]:
    """The index file's content: which file holds which tensor."""
    total = sum(_spec(tensor, dtype).num_bytes for group in files.values() for tensor in group)
    file_of = {tensor.name: file for file, group in files.items() for tensor in group}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}


def _write_file(path: Path, tensors: Sequence[StoredTensor], dtype: str) -> None:
    by_name = {tensor.name: tensor for tensor in tensors}
    specs = {name: _spec(tensor, dtype) for name, tensor in by_name.items()}
    write_safetensors(path, specs, lambda name: _fetch(by_name[name], dtype), {"format": "pt"})


def _spec(tensor: StoredTensor, dtype: str) -> TensorSpec:
    return TensorSpec(LABELS[tensor.dtype or dtype], tensor.shape)


def _fetch(tensor: StoredTensor, dtype: str) -> np.ndarray:
    """The whole tensor in this process's memory; a collective call where there are several."""
    if tensor.dtype is not None:
        return np.ascontiguousarray(tensor.param)
    if isinstance(tensor.param, _InBase | _Merged):
        return tensor.param.fetch(tensor, dtype)
    return gather(tensor.param, tensor.layer, dtype)


def gather(param: jax.Array, layer: int | None, dtype: str) -> np.ndarray:
    """A parameter, or a layer of it, in this process's memory; all processes call it together."""
    array = _slice_and_cast(param, layer, dtype)
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.ascontiguousarray(array)


@dataclass(frozen=True)
class _InBase:
    """A parameter whose trained entries are put into the base's tensors."""

    folder: Path
    shape: tuple[int, ...]
    choice: Choice
    values: jax.Array | None

    def fetch(self, tensor: StoredTensor, dtype: str) -> np.ndarray:
        """The whole tensor: the base's, rounded to `dtype`, with the values in it."""
        array = _base_tensor(self.folder, tensor.name).astype(dtype)
        whole = partial(gather, layer=tensor.layer)
        choice: Choice = jax.tree.map(
            lambda x: jnp.asarray(whole(x, dtype=x.dtype.name)), self.choice
        )
        values = None if self.values is None else jnp.asarray(whole(self.values, dtype="float32"))
        return np.ascontiguousarray(write(choice, array, values))


@dataclass(frozen=True)
class _Merged:
    """A parameter to whose tensors in the base the product of two factors is added."""

    folder: Path
    shape: tuple[int, ...]
    factors: dict[str, jax.Array]
    scale: float

    def fetch(self, tensor: StoredTensor, dtype: str) -> np.ndarray:
        """The whole tensor, rounded to `dtype` once."""
        array = _base_tensor(self.folder, tensor.name)
        a, b = (jnp.asarray(gather(self.factors[key], tensor.layer, "float32")) for key in "ab")
        return np.ascontiguousarray(merge(array, a, b, self.scale).astype(dtype))


def _base_tensor(folder: Path, name: str) -> jax.Array:
    with open_weights(folder) as reader:
        return jnp.asarray(reader.tensor(name))


def _in_base(params: CompactParams | LoraParams, base: Path) -> Params:
    if isinstance(params, LoraParams):
        return _merged_in_base(params, base)

    def of(choice: Choice, weight: Any, values: jax.Array | None) -> _InBase:
        return _InBase(base, weight.shape, choice, values)

    tree: Params = jax.tree.map(of, params.chosen, params.weights, params.values, is_leaf=is_choice)
    return tree


def _merged_in_base(params: LoraParams, base: Path) -> Params:
    def of(weight: Any, factors: Any) -> _InBase | _Merged:
        if factors is None:
            return _InBase(base, weight.shape, Frozen(), None)
        return _Merged(base, weight.shape, factors, params.scale)

    tree: Params = jax.tree.map(of, params.weights, params.values)
    return tree


@partial(jax.jit, static_argnames="dtype")
def _slice_and_cast(param: jax.Array, layer: int | None, dtype: str) -> jax.Array:
    # The layer's index is traced, so that one program serves all layers.
    if layer is not None:
        param = jax.lax.dynamic_index_in_dim(param, layer, keepdims=False)
    return param.astype(jnp.dtype(dtype))
