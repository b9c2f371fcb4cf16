"""The tokenizer of an import encodes as the GGUF file's did."""

from typing import Any

import pytest

ARCHITECTURES = ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("smollm", "12 he", ["1", "2", "Ġhe"]),
        ("smollm", "ĊĊ1".replace("Ċ", "\n"), ["ĊĊ", "1"]),
        ("smollm", "the", ["t", "he"]),
        ("qwen2", "12 he", ["1", "2", "Ġhe"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),
        ("llama-bpe", "12 he", ["12", "Ġhe"]),
        ("llama-bpe", "the", ["the"]),
        ("smollm", "a<|im_end|>b<tool>", ["a", "<|im_end|>", "b", "<tool>"]),
        ("smollm", "[PAD0]", list("[PAD0]")),
    ],
)
def test_text_is_cut_as_the_pre_tokeniser_says(
    gguf: Any, pre: str, text: str, expected: list[str]
) -> None:
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": False}
    gguf.imported(keys=keys)
    assert gguf.encode(text) == expected


@pytest.mark.parametrize(
    ("pre", "given", "expected"),
    [
        ("smollm", {}, ["a"]),
        ("smollm", {"add_bos_token": True}, ["<|im_start|>", "a"]),
        ("smollm", {"add_eos_token": True}, ["a", "<|im_end|>"]),
        ("llama-bpe", {}, ["<|im_start|>", "a"]),
        ("llama-bpe", {"add_bos_token": False}, ["a"]),
    ],
)
def test_bos_and_eos_are_added_where_the_file_says(
    gguf: Any, pre: str, given: dict[str, bool], expected: list[str]
) -> None:
    from transformers import AutoTokenizer

    keys: dict[str, Any] = {"tokenizer.ggml.pre": pre}
    keys |= {f"tokenizer.ggml.{key}": value for key, value in given.items()}
    folder = gguf.imported(keys=keys)
    assert gguf.encode("a") == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_the_same_tokenizer(gguf: Any, architecture: str) -> None:
    from transformers import AutoTokenizer

    folder = gguf.imported(architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The 12 hens, the naïve café\n\n12 東京 🙂 <tool>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == gguf.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.all_special_ids == [1, 2, 0]
    assert tokenizer.decode([1, *ids], skip_special_tokens=True) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.model_max_length == gguf.CONTEXT
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}


def test_chat_template_is_kept_to_the_letter(gguf: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.imported())
    assert tokenizer.chat_template == gguf.CHAT_TEMPLATE


def test_chat_template_renders(gguf: Any) -> None:
    pytest.importorskip("jinja2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.imported())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tokenizer.ggml.model": "llama"}, ("tokenizer.ggml.model", "'llama'")),
        ({"tokenizer.ggml.pre": "tekken"}, ("tokenizer.ggml.pre", "'tekken'", "smollm")),
        ({"tokenizer.ggml.pre": None}, ("tokenizer.ggml.pre", "missing")),
        ({"tokenizer.ggml.tokens": None}, ("tokenizer.ggml.tokens", "missing")),
        ({"tokenizer.ggml.merges": ["q q"]}, ("tokenizer.ggml.merges", "'q q'")),
        ({"tokenizer.ggml.eos_token_id": 9999}, ("tokenizer.ggml.eos_token_id", "9999")),
    ],
)
def test_metadata_that_is_not_understood_is_refused_by_name(
    gguf: Any, keys: dict[str, Any], words: tuple[str, ...]
) -> None:
    gguf.refused(gguf.write(keys=keys), "model.gguf", *words)


def test_a_vocabulary_that_does_not_fit_is_refused(gguf: Any) -> None:
    keys = {"tokenizer.ggml.tokens": [*gguf.TOKENS[:-1], "a"]}
    gguf.refused(gguf.write(keys=keys), "tokenizer.ggml.tokens", "'a'")
    keys = {"tokenizer.ggml.tokens": [*gguf.TOKENS, "more"]}
    gguf.refused(gguf.write(keys=keys), "tokenizer.ggml.token_type")
