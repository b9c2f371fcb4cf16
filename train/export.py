"""Writes a tuned model as a Hugging Face folder that transformers loads."""

import shutil
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.model import ModelConfig, save_params

# What a folder holds beside config.json and the weights.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def export(
    config: ModelConfig,
    params: Any,
    base: Path,
    out: Path,
    dtype: str,
    chat_template: str | None = None,
) -> None:
    """Writes weights, config, tokenizer and chat template to `out`.

    The folder is made beside its place and moved there when it is whole. An earlier export is
    replaced; a folder that holds anything else is not touched.

    Args:
      base: the folder of the model that was tuned; its tokenizer is taken over as it is.
      dtype: of the stored weights, float32 or bfloat16.
      chat_template: the file of the template that was trained with, where it is not the base's.
    """
    check_place(out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_params(params, config, partial, dtype)
        for name in COMPANIONS:
            if (base / name).is_file():
                shutil.copyfile(base / name, partial / name)
        if chat_template is not None:
            shutil.copyfile(chat_template, partial / "chat_template.jinja")
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{out}: {error.strerror}; nothing was written") from None


def check_place(out: Path) -> None:
    """Refuses a place that holds something other than a model's folder."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file()):
        raise UserError(f"{out} exists and is not a model's folder; choose another with --out")
