"""Writes a tuned model as a Hugging Face folder that transformers loads."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..distributed.processes import is_main_process
from ..errors import UserError
from ..model import ModelConfig
from .save import save_params

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
    *,
    chat_template: str | None = None,
    replace: bool = False,
) -> None:
    """Writes weights, config, tokenizer and chat template to `out`.

    Where there are several processes, all call this together and the first one writes.

    Args:
      base: the folder of the model that was tuned; its tokenizer is taken over as it is.
      dtype: of the stored weights, float32 or bfloat16.
      chat_template: the file of the template that was trained with, where it is not the base's.
      replace: whether what lies at `out` may be removed, as a run's own earlier export may.
    """
    if not is_main_process():
        save_params(params, config, None, dtype)
        return
    with new_folder(out, replace=replace) as folder:
        save_params(params, config, folder, dtype)
        for name in COMPANIONS:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        if chat_template is not None:
            shutil.copyfile(chat_template, folder / "chat_template.jinja")


@contextlib.contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes its place at `out` once it is whole, or vanishes.

    Args:
      replace: whether what lies at `out` may be removed.
    """
    if not replace:
        check_place(out)
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        partial.chmod(0o755)
        yield partial
        if replace:
            shutil.rmtree(out, ignore_errors=True)
        partial.replace(out)
    except BaseException as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{out}: {error.strerror}; nothing was written") from None
        raise


def check_place(out: Path) -> None:
    """Refuses a place where something lies: it may be a model that is there only once."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; choose another folder with --out, or remove it")
