"""Tokenizers of model folders, and how prompts begin."""

import contextlib
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from train.data.prompts import prompt_ids
from train.errors import UserError
from train.hf.tokenizer import load_tokenizer, text_ids

NOW = datetime(2020, 1, 2)
TEMPLATE = "{{ '<s>' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tokenizer(adds_bos: bool, chat_template: str | None = None) -> Any:
    """Letters as tokens, and a beginning token."""
    raw = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "c": 3}, unk_token="c"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    fast.chat_template = chat_template
    return fast


@pytest.mark.parametrize(
    ("adds_bos", "text", "ids"),
    [(False, "ab", [1, 2]), (True, "ab", [0, 1, 2]), (True, "<s>ab", [0, 1, 2])],
)
def test_text_begins_with_one_bos_where_the_tokenizer_adds_it(
    adds_bos: bool, text: str, ids: list[int]
) -> None:
    assert text_ids(tokenizer(adds_bos), text) == ids
    assert prompt_ids(tokenizer(adds_bos), text, NOW) == ids


def test_the_template_alone_says_how_a_prompt_begins() -> None:
    assert prompt_ids(tokenizer(True, TEMPLATE), "ab", NOW) == [0, 1, 2]
    assert prompt_ids(tokenizer(True, TEMPLATE.replace("{{ '<s>' }}", "")), "ab", NOW) == [1, 2]


def test_a_prompt_is_a_turn_that_the_assistant_answers(tiny_model: Path) -> None:
    loaded = load_tokenizer(tiny_model)
    text = "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert loaded.decode(prompt_ids(loaded, "hi", NOW)) == text


def test_another_template_replaces_the_tokenizers_own(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    loaded = load_tokenizer(tiny_model, str(file))
    assert loaded.decode(prompt_ids(loaded, "hi", NOW)) == "hi"


def test_a_template_that_is_missing_is_named(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jinja: No such file .* names a Jinja file"):
        load_tokenizer(tiny_model, "gone.jinja")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no tokenizer that transformers reads .*json") as caught:
        load_tokenizer(tmp_path)
    assert len(caught.value.lines) == 1
    assert str(caught.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": 3}}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", '{"model_max_length": "9"}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["x.X", null]}}'),
    ],
)
def test_malformed_files_are_one_line_and_no_code_is_run(
    tiny_model: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / name).write_text(content)
    (folder / "x.py").write_text("raise SystemExit('code of a model folder was run')")
    with contextlib.suppress(UserError):  # Some of it is read past.
        text_ids(load_tokenizer(folder), "text")
