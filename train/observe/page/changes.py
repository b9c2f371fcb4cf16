"""Where training moved the weights, by layer and matrix: the export beside its base."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...hf.compare import check_alike, tensor_specs
from ...hf.safetensors import open_weights
from .charts import Grid


class Change(NamedTuple):
    """How a tensor changed.

    Attributes:
      name: the tensor's, as in the export.
      share: the fraction of its entries that changed.
      size: the norm of the change, as a fraction of the base's.
    """

    name: str
    share: float
    size: float


def find_changes(base: Path, tuned: Path) -> list[Change]:
    """How each tensor of a model changed, after the base is rounded to the tuned one's dtype.

    One tensor of each model is in memory at a time.

    Raises:
      UserError: if the tensors differ in name or shape.
    """
    with open_weights(base) as old, open_weights(tuned) as new:
        before, after = tensor_specs(old), tensor_specs(new)
        dtypes = {name: spec.dtype for name, spec in after.items()}
        rounded = {
            name: spec._replace(dtype=dtypes.get(name, spec.dtype)) for name, spec in before.items()
        }
        check_alike(rounded, base, after, tuned)
        return [_change(name, old.tensor(name), new.tensor(name)) for name in after]


def _change(name: str, before: np.ndarray, after: np.ndarray) -> Change:
    before = before.astype(after.dtype)
    share = float(np.mean(before != after)) if after.size else 0.0
    wide, moved = before.astype(np.float32), after.astype(np.float32)
    norm = float(np.linalg.norm(wide))
    return Change(name, share, float(np.linalg.norm(moved - wide)) / norm if norm else 0.0)


def grids(changes: Sequence[Change]) -> list[Grid]:
    """Share and size of the changes, matrices by layers; the first column has no layer."""
    matrices: dict[str, dict[int, Change]] = {}
    for change in changes:
        layer = re.search(r"\blayers\.(\d+)\.", change.name)
        name = change.name[layer.end() :] if layer else change.name
        row = matrices.setdefault(name.removesuffix(".weight"), {})
        row[int(layer[1]) if layer else -1] = change
    layers = sorted({layer for row in matrices.values() for layer in row})
    columns = ["none" if layer < 0 else str(layer) for layer in layers]

    def grid(title: str, field: str) -> Grid:
        values = [
            [getattr(row[layer], field) if layer in row else np.nan for layer in layers]
            for row in matrices.values()
        ]
        return Grid(title, list(matrices), columns, np.array(values))

    return [
        grid("share of entries that changed", "share"),
        grid("norm of the change, as a fraction of the weights'", "size"),
    ]
