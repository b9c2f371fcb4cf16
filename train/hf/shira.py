"""The change from a base to a tuned model as a sparse high-rank adapter (SHiRA) in PEFT's format.

PEFT stores, for each matrix of the targets, positions of entries and what is added to them. Each
matrix [out, in] must have exactly r (out + in) of them, with one r for all: matrices with fewer
changes are filled up with zeros. Embeddings, norms and biases have no place in the format.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..files import atomic_folder, write_json
from ..model.param_table import HEAD, PARAM_SPECS
from .adapter import CONFIG, WEIGHTS
from .compare import Tuned, check_alike, tensor_specs
from .safetensors import SafetensorsReader, TensorSpec, name_list, open_weights, write_safetensors

_LINEAR = {HEAD, *(s.name for s in PARAM_SPECS if s.stacked and len(s.axes) == 3)}


class Written(NamedTuple):
    """What an adapter's files hold.

    Attributes:
      num_changed: the entries that differ from the base's.
      num_stored: those and the zeros that fill matrices up.
      r: PEFT's r.
    """

    num_changed: int
    num_stored: int
    r: int


def export_shira(base: Path, name: str, tuned: Tuned, out: Path) -> Written:
    """Writes the adapter's folder: all, or nothing. A tensor of each model is in memory at a time.

    Args:
      name: the name of the base, as PEFT looks for it.

    Raises:
      UserError: if `out` is not empty, if the tensors differ in name, type or shape, or if others
        than matrices of layers and an untied head changed, or too many of their entries.
    """
    with open_weights(base) as old, atomic_folder(out, replace=False) as folder:
        specs = tensor_specs(old)
        check_alike(specs, base, tuned.specs, tuned.source)
        counts = {name: len(_changed(old, tuned, name)) for name in specs}
        targets = _targets(counts)
        stored = {n: specs[n].shape for n in specs if _module(n) in targets}
        r = max(math.ceil(counts[n] / sum(shape)) for n, shape in stored.items())
        _check_room(stored, r)

        def read(part: str) -> np.ndarray:
            tensor, _, kind = part.removeprefix("base_model.model.").rpartition(".")
            positions, values = _entries(old, tuned, f"{tensor}.weight", r)
            return positions if kind == "shira_indices" else values

        parts: dict[str, TensorSpec] = {}
        for tensor, shape in stored.items():
            stem, size = f"base_model.model.{tensor.removesuffix('.weight')}", r * sum(shape)
            parts[f"{stem}.shira_indices"] = TensorSpec("I32", (2, size))
            parts[f"{stem}.shira_weight"] = TensorSpec("F32", (size,))
        write_safetensors(folder / WEIGHTS, parts, read, {"format": "pt"})
        write_json(folder / CONFIG, _config(sorted(targets), name, r))
    return Written(sum(counts.values()), sum(r * sum(shape) for shape in stored.values()), r)


def _config(targets: list[str], base: str, r: int) -> dict[str, object]:
    return {
        "peft_type": "SHIRA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "mask_type": "random",  # PEFT's only one; the file's positions take the place of its own.
        "target_modules": targets,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_weights": True,
        "modules_to_save": None,
    }


def _pattern(name: str) -> str:
    """The name with {} in the place of a layer's number."""
    return ".".join("{}" if part.isdecimal() else part for part in name.split("."))


def _module(name: str) -> str:
    """The name by which PEFT targets a matrix, such as q_proj; "" for another tensor."""
    return name.split(".")[-2] if _pattern(name) in _LINEAR else ""


def _targets(counts: Mapping[str, int]) -> set[str]:
    changed = [name for name, count in counts.items() if count]
    # A stored head that is tied to embeddings changes with them.
    if others := [name for name in changed if not _module(name)]:
        raise UserError(
            f"PEFT's SHiRA has matrices of layers alone, and others changed: {name_list(others)}; "
            'train with optimizer.mask.mask_ratios={"embed|norm|bias|head": 1.0}, or write a delta '
            "with gmt-train delta extract"
        )
    if not changed:
        raise UserError("the tuned model has the base's weights; there is nothing to write")
    return {_module(name) for name in changed}


def _check_room(stored: Mapping[str, tuple[int, ...]], r: int) -> None:
    full = [name for name, shape in stored.items() if r * sum(shape) > math.prod(shape)]
    if full:
        raise UserError(
            f"PEFT's SHiRA stores {r} (out + in) entries of each matrix, more than there are in "
            f"{name_list(full)}; write a delta with gmt-train delta extract"
        )


def _changed(old: SafetensorsReader, tuned: Tuned, name: str) -> np.ndarray:
    """The flat positions of the entries that are not equal."""
    return np.flatnonzero(old.tensor(name) != tuned.tensor(name))


def _entries(
    old: SafetensorsReader, tuned: Tuned, name: str, r: int
) -> tuple[np.ndarray, np.ndarray]:
    """The positions int32 [2, n] of a matrix' entries, and what is added to them, float32 [n]."""
    before, after = (np.asarray(x, np.float32) for x in (old.tensor(name), tuned.tensor(name)))
    changed = np.flatnonzero(before != after)
    fill = r * sum(before.shape) - len(changed)
    unchanged = np.ones(before.size, bool)
    unchanged[changed] = False
    positions = np.sort(np.concatenate([changed, np.flatnonzero(unchanged)[:fill]]))
    values = difference(before.reshape(-1)[positions], after.reshape(-1)[positions])
    return np.stack(np.unravel_index(positions, before.shape)).astype(np.int32), values


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float32 values that added to `before` give `after`, to the bit where there are such values.

    Where the difference of the two has more bits than fit, the one next to it may hit.
    """
    values = after - before
    for toward in (-np.inf, np.inf):
        other = np.nextafter(values, np.float32(toward))
        missed = before + values != after
        values = np.where(missed & (before + other == after), other, values)
    return values
