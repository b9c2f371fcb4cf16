"""A safetensors file written tensor after tensor."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Bytes of an entry, by safetensors' name of its type.
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}


class Layout(NamedTuple):
    """What a file says of a tensor."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.entries * WIDTHS[self.dtype]


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Layout],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensor after tensor; the library's own writer wants all of them in memory."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, layout in tensors.items():
        start, end = end, end + layout.bytes
        header[name] = {
            "dtype": layout.dtype,
            "shape": layout.shape,
            "data_offsets": (start, end),
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the data starts aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in tensors:
            file.write(as_bytes(read(name)))


def as_bytes(array: np.ndarray) -> memoryview:
    """An array's bytes in row-major order; no copy of an array that lies so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
