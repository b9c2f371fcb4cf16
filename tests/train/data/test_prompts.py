"""Prompts of the data: what stands before the first answer."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from train.config.data import DataSection
from train.data.datasets import DataContext, build_datasets
from train.data.prompts import first_prompts, prompt_ids, read_prompts
from train.errors import UserError


def test_the_first_prompts_are_taken_once_each(
    make_tokenizer: Callable[..., Any], turns: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    records = [{"text": "a text that is learned as a whole"}]
    for question in ("first", "first", "a question that is much too long", "third", "fourth"):
        records.append({"messages": turns(f"u:{question}", "a:x", "u:and?", "a:y")})
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = DataSection(train=str(file), eval_fraction=0)
    datasets = build_datasets(data, DataContext(tokenizer, 300, 0, tmp_path / "cache"))
    prompts = first_prompts(datasets.train, most=20)
    assert [tokenizer.decode(prompt.ids) for prompt in prompts] == [
        "u:first<e>\na:",
        "u:third<e>\na:",
    ]
    assert first_prompts(datasets.train, most=0) == []


def test_a_prompt_is_told_the_time_of_the_run(make_tokenizer: Callable[..., Any]) -> None:
    """As the data is: a template's date is that of the run's first start."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}"
    ids = prompt_ids(tokenizer, "hi", datetime(2020, 1, 2))
    assert tokenizer.decode(ids) == "02 Jan 2020 hi"


def test_a_conversation_is_a_prompt(make_tokenizer: Callable[..., Any], turns: Any) -> None:
    tokenizer = make_tokenizer()
    now = datetime(2020, 1, 2)
    ids = prompt_ids(tokenizer, turns("u:one", "a:two", "u:three"), now)
    assert tokenizer.decode(ids) == "u:one<e>\na:two<e>\nu:three<e>\na:"
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template for a prompt of turns"):
        prompt_ids(tokenizer, turns("u:one"), now)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "x"}, "d.jsonl:2: a record has either 'prompt' or 'messages'"),
        ({"prompt": ""}, "d.jsonl:2: a record has either 'prompt' or 'messages'"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "either 'prompt' or"),
        ({"prompt": 3}, "a prompt is text, or turns"),
        ({"messages": [{"content": "y"}]}, "a prompt is text, or turns"),
    ],
)
def test_a_record_without_a_prompt_is_named(
    record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in ({"prompt": "first"}, record)))
    with pytest.raises(UserError, match=message):
        read_prompts(str(file))
