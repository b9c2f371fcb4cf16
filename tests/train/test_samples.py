"""Prompts are completed and recorded with what belongs to them."""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from train.config import load_config
from train.data.prompts import DataPrompt
from train.errors import UserError
from train.hf.tokenizer import load_tokenizer
from train.model import load_model_config
from train.samples import Completer


@pytest.fixture
def completer(write_config: Callable[..., Path], tiny_model: Path) -> Completer:
    config = load_config(write_config())
    return Completer(config, load_model_config(tiny_model), load_tokenizer(tiny_model), [2])


def test_prompts_and_the_datas_answers_are_recorded(
    completer: Completer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def complete(model: Any, params: Any, tokenizer: Any, ids: Sequence[Any], *_: Any) -> list[str]:
        return [f"{len(prompt)} tokens" for prompt in ids]

    monkeypatch.setattr("train.samples.complete", complete)
    assert completer({}) == []
    completer.add_prompts(["3+9="], datetime(2026, 1, 1))
    tokenizer = load_tokenizer(tiny_model)
    ids, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in ("1+1=", "2"))
    completer.add_data_prompts([DataPrompt(ids, {"chosen": answer})])
    first, second = completer({})
    assert first["prompt"] == "3+9="
    assert second == {"prompt": "1+1=", "chosen": "2", "completion": "4 tokens"}


def test_a_prompt_that_is_too_long_is_refused(completer: Completer) -> None:
    with pytest.raises(UserError, match="prompt 1"):
        completer.add_prompts(["a" * 300], datetime(2026, 1, 1))
