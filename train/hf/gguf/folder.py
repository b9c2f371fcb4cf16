"""Writes a model folder that appears whole or not at all."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ...files import check_destination
from ..safetensors import Layout, write_safetensors
from .tensors import Planned

DType: TypeAlias = Literal["float32", "bfloat16", "float16"]


# Our dtype -> the NumPy type and safetensors' name of it.
DTYPES: dict[str, tuple[npt.DTypeLike, str]] = {
    "float32": (np.float32, "F32"),
    "bfloat16": (ml_dtypes.bfloat16, "BF16"),
    "float16": (np.float16, "F16"),
}

MARKER = "gguf_import.json"


def write_tensors(path: Path, source: Path, tensors: Sequence[Planned], dtype: DType) -> None:
    """Writes the tensors in the dtype that was asked for."""
    numpy_dtype, label = np.dtype(DTYPES[dtype][0]), DTYPES[dtype][1]
    by_name = {tensor.name: tensor for tensor in tensors}

    def read(name: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            weights = by_name[name].read().astype(numpy_dtype, copy=False)
        if not np.isfinite(weights).all():
            raise UserError(f"{source}: {name} overflows {dtype}; import as float32")
        return weights

    layouts = {tensor.name: Layout(label, tuple(tensor.shape)) for tensor in tensors}
    write_safetensors(path, layouts, read, {"format": "pt"})


def check_replaceable(out: Path) -> None:
    """Refuses a folder that holds anything but an earlier import."""
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names = [MARKER, *json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]]
    check_destination(out, names)
