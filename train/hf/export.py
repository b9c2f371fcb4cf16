"""Writes a tuned model as a Hugging Face folder that transformers loads."""

import shutil
from pathlib import Path

from ..distributed.processes import is_main_process
from ..files import atomic_folder
from ..model import ModelConfig, Params
from .save import save_params

# The files of a model folder beside config.json and the weights.
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
    params: Params,
    base: Path,
    out: Path,
    dtype: str,
    *,
    chat_template: str | None = None,
    replace: bool = False,
) -> None:
    """Writes weights, config, tokenizer and chat template to `out`: all of them, or nothing.

    Where there are several processes, all call this together and the first one writes.

    Args:
      base: the folder of the model that was tuned; its tokenizer is copied.
      dtype: of the stored weights, float32 or bfloat16.
      chat_template: the file with the template of the training, if it is not the base's.
      replace: whether a folder at `out` may be replaced, such as a run's own earlier export.

    Raises:
      UserError: if `out` is not empty and may not be replaced, or cannot be written.
    """
    if not is_main_process():
        save_params(params, config, None, dtype)
        return
    with atomic_folder(out, replace=replace) as folder:
        save_params(params, config, folder, dtype)
        for name in COMPANIONS:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        if chat_template is not None:
            shutil.copyfile(chat_template, folder / "chat_template.jinja")
