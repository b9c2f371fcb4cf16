"""Tokenizers of bytes, so that expectations can be counted by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPECIALS = ["<pad>", "<s>", "<e>"]

# The assistant's header and the line break after <e> are not what the assistant wrote.
PLAIN = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}<e>\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files are read through a cache: not the user's."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """Makes a tokenizer in which every byte and every special is a token."""

    def make(template: str | None = PLAIN, *, adds_bos: bool = False, **tokens: str | None) -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: at for at, token in enumerate([*SPECIALS, *letters])}
        raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
        if adds_bos:
            raw.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
            )
        named = {"bos_token": "<s>", "eos_token": "<e>", "pad_token": "<pad>"} | tokens
        made = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
        made.chat_template = template
        return made

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def stdlib() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The real one: it takes seconds to read."""
    from train.data.python_stdlib import load_stdlib

    return load_stdlib(0.05)
