"""Loads a model's tokenizer and chat template with transformers."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import shipped


def load_tokenizer(folder: Path, chat_template: str | None = None) -> Any:
    """The tokenizer in a model's folder, a transformers.PreTrainedTokenizerBase.

    Args:
      chat_template: a file with a Jinja template that replaces the tokenizer's own; one in
        `configs/` may be the program's.

    Raises:
      UserError: if there is no tokenizer that transformers reads, or the template is missing.
    """
    from transformers import AutoTokenizer  # Imported here because it takes seconds.

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: no tokenizer that transformers reads ({reason}); "
            "the folder needs tokenizer.json and tokenizer_config.json"
        ) from None
    if chat_template is not None:
        try:
            file = shipped(Path(chat_template))
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{chat_template}: {error.strerror}; model.chat_template names a Jinja file"
            ) from None
    return tokenizer


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of plain text, beginning with BOS once if the tokenizer itself adds it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("").input_ids[:1] != [bos] or ids[:1] == [bos]:
        return ids
    return [bos, *ids]
