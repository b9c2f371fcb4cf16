"""Writes a model folder that appears whole or not at all."""

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..safetensors import Layout, write_safetensors
from .reader import listed
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


def check_destination(out: Path) -> None:
    """An import may replace nothing but an import, and that only if nothing was added to it."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder to write to")
    names = {path.name for path in out.iterdir()}
    ours: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        ours = {MARKER, *json.loads((out / MARKER).read_text(encoding="utf-8"))["files"]}
    if names - ours:
        raise UserError(
            f"{out}: holds files that no import wrote ({listed(sorted(names - ours))}); "
            "name another folder or empty this one"
        )


@contextlib.contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place at the end, or vanishes on an error."""
    suffix = secrets.token_hex(4)
    new = out.with_name(f".{out.name}.new-{suffix}")
    old = out.with_name(f".{out.name}.old-{suffix}")
    new.mkdir(parents=True)
    try:
        yield new
        check_destination(out)  # the import took a while
        if out.exists():
            out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
