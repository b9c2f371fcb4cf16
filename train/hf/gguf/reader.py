"""What a GGUF file holds: its values, and its tensors dequantised."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType
from gguf.quants import dequantize

from ...errors import UserError


def open_gguf(source: Path) -> GGUFReader:
    if not source.is_file():
        raise UserError(f"{source}: no such file; give the path of a .gguf file")
    try:
        reader = GGUFReader(source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    # What the reader raises depends on where in the file the bytes run out.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{source}: not a whole GGUF file ({reason}); download or convert it again"
        ) from error
    if reader.byte_order != "I":
        raise UserError(f"{source}: has the other byte order; convert it for this machine")
    return reader


def read_values(reader: GGUFReader) -> dict[str, Any]:
    values = {}
    for key, field in reader.fields.items():
        value = field.contents()
        if field.types == [GGUFValueType.FLOAT32]:
            # The shortest decimal that is this float32 is the 1e-05 that its author wrote.
            value = float(str(np.float32(value)))
        values[key] = value
    return values


def dequantized(source: Path, tensor: Any) -> npt.NDArray[np.float32]:
    try:
        weights: npt.NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UserError(
            f"{source}: {tensor.name} has the type {tensor.tensor_type.name}, which cannot be "
            "dequantised; use a file of another quantisation, such as Q8_0"
        ) from error
    if not np.isfinite(weights).all():
        raise UserError(f"{source}: {tensor.name} is not finite; download or convert it again")
    return weights


def listed(items: Sequence[str], most: int = 8) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
