"""Loads a model's tokenizer and chat template with transformers."""

import hashlib
from pathlib import Path
from typing import Any

from ..buckets.fetch import fetch
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
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenizer("a", add_special_tokens=False)  # Which reads some of its settings first.
    except Exception as error:  # Malformed files raise whatever their reader came upon.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise UserError(
            f"{folder}: no tokenizer that transformers reads ({reason}); "
            "the folder needs tokenizer.json and tokenizer_config.json"
        ) from None
    if chat_template is not None:
        try:
            file = shipped(fetch(chat_template))
            tokenizer.chat_template = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"{chat_template}: {reason}; model.chat_template names a Jinja file"
            ) from None
    return tokenizer


def describe_tokenizer(tokenizer: Any) -> dict[str, str]:
    """Digests of what a tokenizer makes of texts, and of its chat template."""
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    parts = {
        "the tokenizer": f"{backend} {tokenizer.special_tokens_map}",
        "the chat template": str(tokenizer.chat_template),
    }
    return {name: hashlib.sha256(part.encode()).hexdigest() for name, part in parts.items()}


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of plain text, beginning with BOS once if the tokenizer itself adds it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("").input_ids[:1] != [bos] or ids[:1] == [bos]:
        return ids
    return [bos, *ids]
