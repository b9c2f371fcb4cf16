"""A mask of one's own in a safetensors file, read into each device's shard.

A file of bits holds, by the name of the model's tensor, either bools of its shape, or its bits in
row-major order as uint8, the first entry in the lowest bit of the first byte. Tensors that it does
not hold are not trained. A delta is a mask too: of the entries that it changes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gmt_jax import compact
from gmt_jax.delta import decode_positions

from ..errors import UserError
from ..files import atomic_file
from ..model.config import ModelConfig
from ..model.functional import Params, abstract_params
from ..model.param_table import HEAD, PARAM_SPECS, ParamSpec
from .delta import FORMAT, open_delta
from .load import IGNORED_SUFFIX, stored_tensors
from .safetensors import TensorSpec, name_list, open_safetensors, write_safetensors

Bits = Callable[[str], np.ndarray]  # the bits of a tensor, uint8 [bytes]

_path_name = partial(jax.tree_util.keystr, simple=True, separator="/")


def check_mask(file: Path, config: ModelConfig) -> None:
    """Checks that a file holds a mask of the model.

    Raises:
      UserError: if it does not, naming every tensor that is unknown, or of another shape or type.
    """
    with _open(file, config):
        pass


def load_mask(file: Path, config: ModelConfig, shardings: Any) -> Params:
    """A model's mask, a tree of bools, from its file; each device has its own shards only.

    Args:
      shardings: one for each parameter.

    Raises:
      UserError: as `check_mask`.
    """
    specs = {spec.path: spec for spec in PARAM_SPECS}
    with _open(file, config) as bits:

        def load(path: Any, leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.Array:
            return _load(bits, specs[_path_name(path)], leaf.shape, sharding)

        mask: Params = jax.tree_util.tree_map_with_path(load, abstract_params(config), shardings)
    return mask


def mask_forms(file: Path, config: ModelConfig, slots: int) -> Any:
    """The forms of `gmt_jax.compact` that hold a file's mask, a tree like the parameters.

    Args:
      slots: the most trained entries of a group of 128 in a matrix.

    Raises:
      UserError: as `check_mask`, or naming the tensors that have more.
    """
    specs = {spec.path: spec for spec in PARAM_SPECS}
    most: dict[str, int] = {}
    with _open(file, config) as bits:

        def form_of(path: Any, leaf: jax.ShapeDtypeStruct) -> compact.Form:
            spec = specs[_path_name(path)]
            inner = leaf.shape[1:] if spec.stacked else leaf.shape
            rows = not spec.stacked and len(inner) == 2
            masks = (_unpack(bits(name), inner) for name in _names(spec, leaf.shape))
            form = compact.form_of_mask(masks, rows)
            if len(inner) > 1 and compact.num_slots(form) > slots:
                most[spec.name.format("*")] = compact.num_slots(form)
            return form

        forms = jax.tree_util.tree_map_with_path(form_of, abstract_params(config))
    if most:
        found = name_list([f"{name} has {count}" for name, count in most.items()])
        raise UserError(
            f"optimizer.mask.file: {file} trains more than {slots} of 128 entries in a row: "
            f"{found}; raise optimizer.mask.slots, which takes memory, or remove compact"
        )
    return forms


def save_mask(mask: Params, config: ModelConfig, file: Path) -> None:
    """Writes a mask, a tree of bools like the parameters, as a file of bits.

    Raises:
      UserError: if the file cannot be written.
    """
    tensors = {tensor.name: tensor for tensor in stored_tensors(config, mask)}
    specs = {name: TensorSpec("U8", (_num_bytes(t.shape),)) for name, t in tensors.items()}

    def bits(name: str) -> np.ndarray:
        tensor = tensors[name]
        part = np.asarray(tensor.param if tensor.layer is None else tensor.param[tensor.layer])
        return _pack(part)

    with atomic_file(file) as new:
        write_safetensors(new, specs, bits, {})


def _load(bits: Bits, spec: ParamSpec, shape: tuple[int, ...], sharding: Any) -> jax.Array:
    """One parameter's mask; packed, its tensors take an eighth of a byte for each entry."""
    packed = [bits(name) for name in _names(spec, shape)]
    inner = shape[1:] if spec.stacked else shape

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = index or (slice(None),) * len(shape)
        if not spec.stacked:
            return _unpack(packed[0], inner)[bounds]
        return np.stack([_unpack(layer, inner)[bounds[1:]] for layer in packed[bounds[0]]])

    return jax.make_array_from_callback(shape, sharding, read)


def _names(spec: ParamSpec, shape: tuple[int, ...]) -> list[str]:
    """The names of a parameter's tensors."""
    return [spec.name.format(layer) for layer in range(shape[0])] if spec.stacked else [spec.name]


@contextmanager
def _open(file: Path, config: ModelConfig) -> Iterator[Bits]:
    """A function from the name of a tensor to its bits."""
    required = {t.name: t.shape for t in stored_tensors(config, abstract_params(config))}
    with open_safetensors(file) as handle:
        is_delta = (handle.metadata() or {}).get("format") == FORMAT
    opened = _open_delta(file, required) if is_delta else _open_bits(file, required)
    with opened as bits:
        yield bits


@contextmanager
def _open_delta(file: Path, required: dict[str, tuple[int, ...]]) -> Iterator[Bits]:
    with open_delta(file) as delta:
        tensors = delta.contents.tensors
        _check(file, {name: tensor.spec for name, tensor in tensors.items()}, required)

        def bits(name: str) -> np.ndarray:
            size, tensor = math.prod(required[name]), tensors.get(name)
            mask = np.zeros(size, bool)
            if tensor is not None and tensor.changed:
                code = delta.handle.get_tensor(f"positions/{name}")
                mask[decode_positions(code, tensor.changed, size)] = True
            return _pack(mask)

        yield bits


@contextmanager
def _open_bits(file: Path, required: dict[str, tuple[int, ...]]) -> Iterator[Bits]:
    with open_safetensors(file) as handle:
        specs = {}
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            part = handle.get_slice(name)
            spec = TensorSpec(part.get_dtype(), tuple(part.get_shape()))
            shape = required.get(name)
            if shape is not None and spec == TensorSpec("U8", (_num_bytes(shape),)):
                spec = TensorSpec("BOOL", shape)  # Bits are as good.
            specs[name] = spec
        _check(file, specs, required, "BOOL")

        def bits(name: str) -> np.ndarray:
            if name not in specs:
                return np.zeros(_num_bytes(required[name]), np.uint8)
            stored: np.ndarray = handle.get_tensor(name)
            return stored if stored.dtype == np.uint8 else _pack(stored)

        yield bits


def _check(
    file: Path,
    specs: dict[str, TensorSpec],
    required: dict[str, tuple[int, ...]],
    dtype: str | None = None,
) -> None:
    """Compares the names, shapes and types of a file with those that the model requires."""
    faults: dict[str, list[str]] = {}
    for name, spec in specs.items():
        if name not in required:
            if name != HEAD and not name.endswith(IGNORED_SUFFIX):
                faults.setdefault("unknown", []).append(name)
        elif spec.shape != required[name]:
            fault = f"of shape {list(spec.shape)} instead of {list(required[name])}"
            faults.setdefault(fault, []).append(name)
        elif dtype is not None and spec.dtype != dtype:
            faults.setdefault(f"of type {spec.dtype} instead of bools", []).append(name)
    if not faults and not any(name in required for name in specs):
        faults["no tensor of the model"] = []
    if faults:
        message = "; ".join(f"{fault}: {name_list(names)}" for fault, names in faults.items())
        raise UserError(f"optimizer.mask.file: {file} is no mask of this model: {message}")


def _num_bytes(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // 8)


def _pack(mask: np.ndarray) -> np.ndarray:
    return np.packbits(np.ravel(mask), bitorder="little")


def _unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    return np.unpackbits(bits, count=count, bitorder="little").astype(bool).reshape(shape)
