"""Reads a decoder's weights from safetensors files, slice by slice into each device's shard."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401 (teaches NumPy bfloat16, which safetensors then returns)
import numpy as np
import safetensors
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..errors import UserError
from ..model.config import ModelConfig
from ..model.functional import Params, abstract_params
from ..model.param_table import EMBED, HEAD, PARAM_SPECS, ParamSpec

INDEX = "model.safetensors.index.json"
READABLE = ("F32", "F16", "BF16")
# Buffers that old exports store beside the weights; the config says them too.
TOLERATED = ".rotary_emb.inv_freq"
# Rows of the embeddings that are compared at a time with a tied head.
ROWS = 4096


@dataclass(frozen=True)
class File:
    """An open safetensors file and its path."""

    path: Path
    handle: Any


class Store:
    """The tensors of all files of a model, by name."""

    def __init__(self, files: list[File]) -> None:
        self.files = files
        self.where: dict[str, File] = {}
        self.twice: list[str] = []
        for file in files:
            for name in file.handle.keys():  # noqa: SIM118 (not a dict)
                if name in self.where:
                    self.twice.append(name)
                self.where[name] = file

    def slices(self, name: str) -> Any:
        return self.where[name].handle.get_slice(name)

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor."""
        found: np.ndarray = self.where[name].handle.get_tensor(name)
        return found

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """The part of a tensor that `index` says; no other bytes of the file are read."""
        part: np.ndarray = self.slices(name)[index]
        return part


def load_params(folder: Path, config: ModelConfig, shardings: Any = None) -> Params:
    """A model's weights as float32 parameters, each device reading its own shards only.

    Args:
      folder: holds model.safetensors, or several files with or without
        model.safetensors.index.json.
      shardings: one for each parameter, as from train.sharding.param_shardings; left out, all
        parameters lie on the first device.

    Raises:
      UserError: for a missing or broken file, or naming every tensor that is missing, extra, of
        the wrong shape or of a type that is not read.
    """
    shapes = abstract_params(config)
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: device, shapes)
    rows = {tensor.path: tensor for tensor in PARAM_SPECS}
    with open_weights(folder) as store:
        _check(store, folder, config, shapes)

        def one(path: Any, shape: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
            row = rows[jax.tree_util.keystr(path, simple=True, separator="/")]
            return _load(store, row, shape.shape, sharding)

        params: Params = jax.tree_util.tree_map_with_path(one, shapes, shardings)
    return params


def _load(store: Store, row: ParamSpec, shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
    """One parameter, or one stacked from its layers' tensors.

    What this process's devices hold of one tensor is all that is in its memory beside them.
    """
    if not row.stacked:
        return _tensor(store, row.name, shape, sharding).astype(jnp.float32)
    one = _unstacked(sharding)
    stack, set_layer = _zeros(shape, sharding)(), _layer_setter(sharding)
    for layer in range(shape[0]):
        tensor = _tensor(store, row.name.format(layer), shape[1:], one)
        stack = jax.block_until_ready(set_layer(stack, tensor, layer))
    return stack


def _tensor(store: Store, name: str, shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
    """A tensor in the file's type; devices that hold the same part share one reading."""
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = index or ()
        if str(bounds) not in parts:
            parts[str(bounds)] = store.read(name, bounds)
        return parts[str(bounds)]

    return jax.make_array_from_callback(shape, sharding, part)


def _unstacked(sharding: Sharding) -> Sharding:
    """Of one layer, where the layers together lie so."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@lru_cache
def _zeros(shape: tuple[int, ...], sharding: Sharding) -> Callable[[], jax.Array]:
    """Makes zeros where they are to lie, and nowhere else."""
    return jax.jit(partial(jnp.zeros, shape, jnp.float32), out_shardings=sharding)


@lru_cache
def _layer_setter(sharding: Sharding) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Puts one layer into a stack that lies so, in place."""

    def put(stack: jax.Array, tensor: jax.Array, layer: int) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, tensor.astype(stack.dtype), layer, 0)

    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


@contextlib.contextmanager
def open_weights(folder: Path) -> Iterator[Store]:
    """The folder's safetensors files, open as long as the context."""
    with contextlib.ExitStack() as stack:
        files = []
        for path in weight_files(folder):
            handle = stack.enter_context(open_safetensors(path))
            files.append(File(path, handle))
        yield Store(files)


def open_safetensors(path: Path) -> Any:
    """A file whose header fits its size, to be used as a context.

    Raises:
      UserError: if it is missing or broken.
    """
    try:
        return safetensors.safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; download or copy it again") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is not a whole safetensors file ({error}); download or copy it again"
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, those of the index, or all that there are."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed(index)
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickled = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickled:
        raise UserError(
            f"{folder}: {pickled[0].name} is a pickle file, which could run code and is never "
            "loaded; convert the weights to safetensors"
        )
    raise UserError(f"{folder}: holds no *.safetensors; name a folder with a model's weights")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: is not an index of weights; download or copy it again") from None
    for name in names:
        # Links are followed (the hub's cache is made of them); what an index says is not trusted.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(
                f"{index}: points to {name!r}; an index may only name files beside it, "
                "so do not use this model"
            )
    return [index.parent / name for name in names]


def _check(store: Store, folder: Path, config: ModelConfig, shapes: Params) -> None:
    """Compares all names, shapes and types with what the config asks for."""
    wanted = wanted_tensors(config, shapes)
    faults: dict[str, list[str]] = {"missing": [], "extra": [], "in two files": store.twice}
    for name, shape in wanted.items():
        if name not in store.where:
            faults["missing"].append(name)
            continue
        tensor = store.slices(name)
        found = tuple(tensor.get_shape())
        if found != shape:
            faults.setdefault(f"of shape {list(found)} instead of {list(shape)}", []).append(name)
        if tensor.get_dtype() not in READABLE:
            faults.setdefault(f"of unsupported type {tensor.get_dtype()}", []).append(name)
    for name in sorted(store.where.keys() - wanted.keys()):
        if name == HEAD and EMBED in store.where:
            if not _same(store, EMBED, HEAD):
                faults["tied by the config but unlike the embeddings"] = [name]
        elif not name.endswith(TOLERATED):
            faults["extra"].append(name)
    said = "; ".join(f"{what}: {name_list(names)}" for what, names in faults.items() if names)
    if said:
        raise UserError(f"{folder}: weights do not match config.json: {said}")


def wanted_tensors(config: ModelConfig, shapes: Params) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file of this config holds."""
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    wanted = {}
    for row in PARAM_SPECS:
        if row.path not in ours:
            continue
        if row.stacked:
            for layer in range(config.num_hidden_layers):
                wanted[row.name.format(layer)] = ours[row.path][1:]
        else:
            wanted[row.name] = ours[row.path]
    return wanted


def _same(store: Store, a: str, b: str) -> bool:
    shape = store.slices(a).get_shape()
    if shape != store.slices(b).get_shape():
        return False
    starts = range(0, shape[0], ROWS)
    pieces = (slice(at, min(at + ROWS, shape[0])) for at in starts)
    return all(np.array_equal(store.read(a, (p,)), store.read(b, (p,))) for p in pieces)


def name_list(names: list[str]) -> str:
    """All names, those that differ in the layer's number only as one: layers.{0-3,7}.x."""
    groups: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.layers\.)\d+(?=\.)", name)
        if number is None:
            groups[name] = []
            continue
        key = f"{name[: number.start()]}{{}}{name[number.end() :]}"
        groups.setdefault(key, []).append(int(number.group()))
    return ", ".join(key.replace("{}", _ranges(sorted(n))) for key, n in groups.items())


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return said if len(numbers) == 1 else f"{{{said}}}"
