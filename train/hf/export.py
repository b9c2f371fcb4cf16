"""Writes a tuned model as a Hugging Face folder, for transformers 4 and 5 and for others."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gmt_jax.compact import CompactParams

from ..buckets.mirror import bring
from ..distributed.processes import is_main_process
from ..files import atomic_folder, write_json
from ..manifest import keep_others, write_manifest
from ..model import ModelConfig, Params
from ..model.lora import LoraParams
from .compare import small_files
from .ends import end_ids, find_ends
from .model_config import config_json
from .save import save_params
from .tokenizer_files import (
    as_eos,
    copy_companions,
    write_generation_config,
    write_tokenizer_files,
)


def export(
    config: ModelConfig,
    params: Params | CompactParams | LoraParams,
    base: Path,
    out: Path,
    dtype: str,
    *,
    tokenizer: Any = None,
    card: str | None = None,
    replace: bool = False,
    step: int | None = None,
) -> None:
    """Writes weights, config, tokenizer, templates and a manifest to `out`: all, or nothing.

    The files name every token at which the model stops (`find_ends`). Where there are several
    processes, all call this together and the first one writes.

    Args:
      base: the folder of the model that was tuned; its tokenizer is copied.
      dtype: of the stored weights, float32 or bfloat16.
      tokenizer: the base's, with the chat template of the training; None: without a tokenizer.
      card: the model card, README.md.
      step: the update after which the weights are those; the manifest notes it.
      replace: whether a folder at `out` may be replaced, such as a run's own earlier export; what
        others put into it, or changed in it, stays.

    Raises:
      UserError: if `out` is not empty and may not be replaced, or cannot be written.
    """
    config, ends = _with_ends(config, base, tokenizer)
    if not is_main_process():
        save_params(params, config, None, dtype, base=base)
        return
    bring(out, whole=True)  # What others put there stays.
    with atomic_folder(out, replace=replace) as folder:
        save_params(params, config, folder, dtype, base=base)
        _write_small_files(config, base, folder, ends, tokenizer, card)
        write_manifest(folder, {"step": step, "dtype": dtype})
        keep_others(out, folder)


def exported_files(
    config: ModelConfig, base: Path, dtype: str, *, tokenizer: Any = None, card: str | None = None
) -> dict[str, bytes]:
    """The content of the files that `export` writes beside the weights, by name."""
    config, ends = _with_ends(config, base, tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / "config.json", config_json(config, dtype))
        _write_small_files(config, base, folder, ends, tokenizer, card)
        return small_files(folder)


def _write_small_files(
    config: ModelConfig,
    base: Path,
    folder: Path,
    ends: tuple[int, ...],
    tokenizer: Any,
    card: str | None,
) -> None:
    copy_companions(base, folder)
    if tokenizer is not None:
        write_tokenizer_files(folder, tokenizer, ends)
    write_generation_config(folder, config.original, ends)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _with_ends(
    config: ModelConfig, base: Path, tokenizer: Any
) -> tuple[ModelConfig, tuple[int, ...]]:
    """The config that names every token at which the model stops, and those tokens."""
    if tokenizer is None:
        return config, end_ids(dict(config.original))
    ends = find_ends(base, tokenizer).ids
    return _ending_with(config, ends), ends


def _ending_with(config: ModelConfig, ends: tuple[int, ...]) -> ModelConfig:
    if not ends:
        return config
    return dataclasses.replace(config, original={**config.original, "eos_token_id": as_eos(ends)})
