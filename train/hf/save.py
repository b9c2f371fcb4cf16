"""Writes a decoder's weights as safetensors files that transformers loads."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ..errors import UserError
from ..model.config import ModelConfig
from ..model.functional import Params
from ..model.param_table import PARAM_SPECS
from .load import INDEX
from .safetensors import Layout, write_safetensors

# Our dtype -> safetensors' name of it.
LABELS = {"float32": "F32", "bfloat16": "BF16"}


class _Piece(NamedTuple):
    """One tensor of a file: a parameter, or one layer of a stacked parameter."""

    name: str
    param: jax.Array
    layer: int | None

    def layout(self, dtype: str) -> Layout:
        shape = self.param.shape if self.layer is None else self.param.shape[1:]
        return Layout(LABELS[dtype], shape)

    def fetch(self, dtype: str) -> np.ndarray:
        """The tensor in this process's memory. Where there are several, all call it together."""
        array = _take(self.param, self.layer, jnp.dtype(dtype))
        if not array.is_fully_addressable:
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.ascontiguousarray(array)


def save_params(
    params: Params,
    config: ModelConfig,
    folder: Path | None,
    dtype: str = "bfloat16",
    *,
    max_file_bytes: int = 5 * 10**9,
) -> None:
    """Writes the weights and config.json into a folder.

    One tensor is held in memory at a time. Where there are several processes, all call this
    together and one writes.

    Args:
      folder: exists and holds no weights yet, such as one from `atomic_folder`; None in the
        processes that do not write.
      dtype: of the stored weights, float32 or bfloat16.
      max_file_bytes: above it, the weights are cut into several files with an index.
    """
    files = _files(_pieces(params, config), dtype, max_file_bytes)
    if folder is None:
        for pieces in files.values():
            for piece in pieces:
                piece.fetch(dtype)
        return
    if any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: holds weights already; choose another folder")
    for name, pieces in files.items():
        _write_file(folder / name, pieces, dtype)
    if len(files) > 1:
        _write_json(folder / INDEX, _index(files, dtype))
    _write_json(folder / "config.json", _stored_as(config, dtype))


def _pieces(params: Params, config: ModelConfig) -> list[_Piece]:
    """All tensors in the order of the table, layer by layer."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    rows = [tensor for tensor in PARAM_SPECS if tensor.path in leaves]
    whole = [_Piece(row.name, leaves[row.path], None) for row in rows if not row.stacked]
    layers = [
        _Piece(row.name.format(layer), leaves[row.path], layer)
        for layer in range(config.num_hidden_layers)
        for row in rows
        if row.stacked
    ]
    return whole + layers


def _files(pieces: list[_Piece], dtype: str, limit: int) -> dict[str, list[_Piece]]:
    """The pieces of each file by its name; a piece above the limit has a file to itself."""
    groups: list[list[_Piece]] = [[]]
    room = limit
    for piece in pieces:
        size = piece.layout(dtype).bytes
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(piece)
        room -= size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    count = len(groups)
    return {f"model-{i:05d}-of-{count:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def _index(files: dict[str, list[_Piece]], dtype: str) -> dict[str, Any]:
    total = sum(piece.layout(dtype).bytes for pieces in files.values() for piece in pieces)
    places = {piece.name: file for file, pieces in files.items() for piece in pieces}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _stored_as(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The original config.json with the type of the weights, under the name it has there."""
    key = "torch_dtype" if "torch_dtype" in config.original else "dtype"
    return {**config.original, key: dtype}


def _write_file(path: Path, pieces: list[_Piece], dtype: str) -> None:
    by_name = {piece.name: piece for piece in pieces}
    layouts = {name: piece.layout(dtype) for name, piece in by_name.items()}
    write_safetensors(path, layouts, lambda name: by_name[name].fetch(dtype), {"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@partial(jax.jit, static_argnames="dtype")
def _take(param: jax.Array, layer: int | None, dtype: Any) -> jax.Array:
    # The layer's number is traced: one program serves all layers.
    if layer is not None:
        param = jax.lax.dynamic_index_in_dim(param, layer, keepdims=False)
    return param.astype(dtype)
