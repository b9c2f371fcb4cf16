"""Safetensors files, read and written one tensor, or a slice of one, at a time."""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from ..errors import UserError

INDEX = "model.safetensors.index.json"

# Safetensors' names of the types that are read and written.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
LABELS = {dtype.name: label for label, dtype in DTYPES.items()}
# The types that weights may have.
WEIGHT_DTYPES = ("F32", "F16", "BF16")


class TensorSpec(NamedTuple):
    """Type and shape of a tensor in a file."""

    dtype: str  # a key of DTYPES, where the type is supported
    shape: tuple[int, ...]

    @property
    def num_entries(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_entries * DTYPES[self.dtype].itemsize


class OpenFile(NamedTuple):
    """An open safetensors file."""

    path: Path
    handle: Any  # safetensors.safe_open, whose methods have no types


class SafetensorsReader:
    """The tensors of all files of a model, by name.

    Attributes:
      folder: the model's folder.
      files: its files, in the order of their names.
      duplicates: names that more than one file holds.
    """

    def __init__(self, folder: Path, files: Sequence[OpenFile]) -> None:
        self.folder = folder
        self.files = files
        self.duplicates: list[str] = []
        self._file_of: dict[str, OpenFile] = {}
        for file in files:
            for name in file.handle.keys():  # noqa: SIM118 (not a dict)
                if name in self._file_of:
                    self.duplicates.append(name)
                self._file_of[name] = file

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._file_of)

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor; its data are not read."""
        part = self._slice(name)
        return TensorSpec(part.get_dtype(), tuple(part.get_shape()))

    def tensor(self, name: str) -> np.ndarray:
        """A whole tensor."""
        tensor: np.ndarray = self._file_of[name].handle.get_tensor(name)
        return tensor

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor; no other bytes of the file are read."""
        part: np.ndarray = self._slice(name)[index]
        return part

    def _slice(self, name: str) -> Any:
        return self._file_of[name].handle.get_slice(name)


@contextlib.contextmanager
def open_weights(folder: Path) -> Iterator[SafetensorsReader]:
    """A reader of the folder's safetensors files, which are open as long as the context.

    Raises:
      UserError: if there is none, or one is missing or broken.
    """
    with contextlib.ExitStack() as stack:
        files = [
            OpenFile(path, stack.enter_context(open_safetensors(path)))
            for path in weight_files(folder)
        ]
        yield SafetensorsReader(folder, files)


def open_safetensors(path: Path) -> Any:
    """Opens a file, as a context, and checks that its header fits its size.

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
    """The files with a model's weights: model.safetensors, those of the index, or all.

    Raises:
      UserError: if there is none, or the index is broken or names files elsewhere.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed_files(index)
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


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: is not an index of weights; download or copy it again") from None
    for name in names:
        # Symbolic links are followed, because the hub's cache consists of them; a path in an
        # index is not trusted.
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(
                f"{index}: points to {name!r}; an index may only name files beside it, "
                "so do not use this model"
            )
    return [index.parent / name for name in names]


def write_safetensors(
    path: Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes one tensor after the other; safetensors' own writer needs all of them in memory.

    Args:
      specs: types and shapes of the tensors, in the order of the file.
      read: returns a tensor of that type and shape by its name.
      metadata: of the file.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.num_bytes
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (start, end)}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # aligns the data
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in specs:
            file.write(as_bytes(read(name)))


def as_bytes(array: np.ndarray) -> memoryview:
    """An array's bytes in row-major order, copied only if it is stored in another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def name_list(names: Iterable[str]) -> str:
    """Names for a message; those that differ in the layer's number are one: layers.{0-3,7}.x."""
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.layers\.)\d+(?=\.)", name)
        if number is None:
            layers[name] = []
            continue
        pattern = f"{name[: number.start()]}{{}}{name[number.end() :]}"
        layers.setdefault(pattern, []).append(int(number.group()))
    return ", ".join(
        pattern.replace("{}", _ranges(sorted(numbers))) for pattern, numbers in layers.items()
    )


def _ranges(numbers: list[int]) -> str:
    """Numbers in ascending order as ranges: 3, or {0-2,5}."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    text = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
