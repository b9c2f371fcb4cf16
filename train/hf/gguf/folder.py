"""The folder that an import writes: its weights, and the marker that it may be replaced."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from ...errors import UserError
from ...files import check_destination
from ...manifest import NAME as MANIFEST
from ..safetensors import DTYPES, LABELS, TensorSpec, write_safetensors
from .tensors import ImportedTensor

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]

MARKER = "gguf_import.json"


def write_tensors(
    path: Path, source: Path, tensors: Sequence[ImportedTensor], dtype: DType
) -> None:
    """Writes the tensors as a safetensors file, one in memory at a time.

    Raises:
      UserError: if an entry is too large for the dtype.
    """
    label = LABELS[dtype]
    by_name = {tensor.name: tensor for tensor in tensors}

    def read(name: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            weights = by_name[name].read().astype(DTYPES[label], copy=False)
        if not np.isfinite(weights).all():
            raise UserError(f"{source}: {name} overflows {dtype}; import as float32")
        return weights

    specs = {tensor.name: TensorSpec(label, tuple(tensor.shape)) for tensor in tensors}
    write_safetensors(path, specs, read, {"format": "pt"})


def check_replaceable(out: Path) -> None:
    """Refuses a folder that holds anything but an earlier import."""
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names = [MARKER, MANIFEST, *json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]]
    check_destination(out, names)
