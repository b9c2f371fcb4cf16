"""The model's own tokenizer and chat template, through transformers."""

from pathlib import Path
from typing import Any

from ..errors import UserError


def load_tokenizer(folder: Path, chat_template: str | None = None) -> Any:
    """The tokenizer that lies in a model's folder.

    Args:
      chat_template: a file whose Jinja template takes the place of the tokenizer's own.
    """
    from transformers import AutoTokenizer  # Slow to import: only where it is used.

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
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{chat_template}: {error.strerror}; model.chat_template names a Jinja file"
            ) from None
    return tokenizer


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Plain text, with the beginning token where the tokenizer itself adds one, never twice."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    begin = tokenizer.bos_token_id
    if begin is None or tokenizer("").input_ids[:1] != [begin] or ids[:1] == [begin]:
        return ids
    return [begin, *ids]


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt as a user turn that the assistant is about to answer.

    Without a chat template it is plain text. With one, the template alone says how text begins.
    """
    if not tokenizer.chat_template:
        return text_ids(tokenizer, prompt)
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids
