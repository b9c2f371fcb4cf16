"""Compares two model folders tensor by tensor, and writes a third in the layout of one of them."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .safetensors import (
    DTYPES,
    INDEX,
    SafetensorsReader,
    TensorSpec,
    name_list,
    open_weights,
    write_safetensors,
)
from .tokenizer_files import companions, is_companion


class Tuned(NamedTuple):
    """A tuned model, in files or not.

    Attributes:
      source: where it is from, for messages.
      specs: the type and shape of each tensor.
      tensor: returns a tensor by its name; one at a time is asked for.
      files: the content of the files beside the weights, by name.
    """

    source: Path
    specs: Mapping[str, TensorSpec]
    tensor: Callable[[str], np.ndarray]
    files: Mapping[str, bytes]


@contextmanager
def open_tuned(folder: Path) -> Iterator[Tuned]:
    """A tuned model in a folder, whose files are open as long as the context."""
    with open_weights(folder) as reader:
        yield Tuned(folder, tensor_specs(reader), reader.tensor, small_files(folder))


def tensor_specs(reader: SafetensorsReader) -> dict[str, TensorSpec]:
    """Type and shape of every tensor of a model.

    Raises:
      UserError: if two files hold the same tensor, or one has a type that is not supported.
    """
    if reader.duplicates:
        raise UserError(
            f"{reader.folder}: in two files: {name_list(reader.duplicates)}; remove one of them"
        )
    specs = {name: reader.spec(name) for name in reader.names}
    unsupported = [name for name, spec in specs.items() if spec.dtype not in DTYPES]
    if unsupported:
        raise UserError(
            f"{reader.folder}: of a type that is not supported: {name_list(unsupported)}; "
            f"convert them to one of {', '.join(DTYPES)}"
        )
    return specs


def check_alike(
    base: Mapping[str, TensorSpec],
    base_path: Path,
    other: Mapping[str, TensorSpec],
    other_path: Path,
) -> None:
    """Refuses two models whose tensors differ in name, type or shape, naming all that differ."""
    faults = {
        f"only in {base_path}": [name for name in base if name not in other],
        f"only in {other_path}": [name for name in other if name not in base],
    }
    for name in sorted(base.keys() & other.keys()):
        first, second = base[name], other[name]
        if first.dtype != second.dtype:
            fault = f"{first.dtype} in {base_path} but {second.dtype} in {other_path}"
        elif first.shape != second.shape:
            fault = f"{list(first.shape)} in {base_path} but {list(second.shape)} in {other_path}"
        else:
            continue
        faults.setdefault(fault, []).append(name)
    message = "; ".join(f"{fault}: {name_list(names)}" for fault, names in faults.items() if names)
    if message:
        raise UserError(
            f"the tensors do not match: {message}; both must be one model, stored in one type"
        )


def small_files(folder: Path) -> dict[str, bytes]:
    """The content of the files beside a model's weights, by name: config, tokenizer, templates."""
    names = ["config.json"] if (folder / "config.json").is_file() else []
    return {name: (folder / name).read_bytes() for name in [*names, *companions(folder)]}


def is_small_file(name: str) -> bool:
    """Whether `small_files` can return a file of this name."""
    return name == "config.json" or is_companion(name)


def write_small_file(folder: Path, name: str, content: bytes) -> None:
    """Writes one of a model's `small_files` into another folder."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def write_like(base: SafetensorsReader, folder: Path, read: Callable[[str], np.ndarray]) -> None:
    """Writes tensors to files with the same names, order and index as the base's."""
    for file in base.files:
        specs = {name: base.spec(name) for name in file.handle.offset_keys()}
        write_safetensors(folder / file.path.name, specs, read, file.handle.metadata() or {})
    index = base.folder / INDEX
    if base.files[0].path.name != "model.safetensors" and index.is_file():
        shutil.copyfile(index, folder / INDEX)
