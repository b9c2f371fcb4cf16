"""Merges model folders tensor by tensor: drop and rescale (DARE), and interpolation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

import gmt_jax

from ..errors import UserError
from ..files import atomic_folder
from ..model.param_table import EMBED, HEAD
from .compare import check_alike, small_files, tensor_specs, write_like, write_small_file
from .ends import read_json
from .safetensors import WEIGHT_DTYPES, name_list, open_weights

# A tree of one tensor under its name. The name matters: DARE's random bits depend on it.
Tree: TypeAlias = dict[str, np.ndarray]
# Merges a tensor of the base and one of the tuned model, into a tree like theirs.
MergeFn: TypeAlias = Callable[[Tree, Tree], Any]


def dare(base: Path, tuned: Path, out: Path, drop_rate: float, seed: int) -> None:
    """Writes the base plus a random part of the tuned model's changes; see gmt_jax.dare.

    Raises:
      UserError: for numbers out of range, tensors that do not match, or an `out` that is not empty.
    """
    if not 0 <= drop_rate < 1:
        raise UserError(f"--drop-rate is the share of changes to drop, in [0, 1); got {drop_rate}")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed must be from 0 to {2**32 - 1}; got {seed}")
    key = jax.random.key(seed)
    _merge(base, tuned, out, lambda old, new: gmt_jax.dare(old, new, drop_rate, key))


def interpolate(base: Path, tuned: Path, out: Path, weight: float) -> None:
    """Writes a model on the line from the base to the tuned one; see gmt_jax.interpolate.

    Raises:
      UserError: for a weight out of range, tensors that do not match, or an `out` that is not
        empty.
    """
    if not 0 <= weight <= 1:
        raise UserError(f"--weight is how far to go from base to tuned, in [0, 1]; got {weight}")
    _merge(base, tuned, out, lambda old, new: gmt_jax.interpolate(old, new, weight))


def _merge(base: Path, tuned: Path, out: Path, merge_fn: MergeFn) -> None:
    """Writes the merged tensors in the base's files, beside the tuned model's small files."""
    with open_weights(base) as old, open_weights(tuned) as new:
        specs = tensor_specs(old)
        check_alike(specs, base, tensor_specs(new), tuned)
        others = [name for name, spec in specs.items() if spec.dtype not in WEIGHT_DTYPES]
        if others:
            raise UserError(
                f"{base}: can only merge tensors of {', '.join(WEIGHT_DTYPES)}; "
                f"not {name_list(others)}"
            )

        is_tied = read_json(tuned / "config.json").get("tie_word_embeddings") and EMBED in specs

        def merged(name: str) -> np.ndarray:
            if name == HEAD and is_tied:
                name = EMBED  # One parameter in two places: drawn twice, it would be two.
            return np.asarray(merge_fn({name: old.tensor(name)}, {name: new.tensor(name)})[name])

        with atomic_folder(out, replace=False) as folder:
            write_like(old, folder, merged)
            for name, content in small_files(tuned).items():
                if name != "README.md":  # The tuned model's card does not describe the merged one.
                    write_small_file(folder, name, content)
