"""Preference pairs: both answers after one prompt, each with its loss mask."""

from collections.abc import Callable
from typing import Any

import pytest

from train.data.chat import LossOn, RecordReader, Renderer
from train.data.tokenize import Example, encode

Make = Callable[..., Any]


def _encode(row: dict[str, Any], tokenizer: Any, loss_on: LossOn = "assistant") -> list[Example]:
    return encode(Renderer(RecordReader(loss_on=loss_on), tokenizer).render(row), tokenizer)


@pytest.mark.parametrize("loss_on", ["assistant", "last"])
def test_a_pair_shares_its_prompt(tokenizer: Any, turns: Make, draw: Make, loss_on: LossOn) -> None:
    asked = turns("u:1", "a:2", "u:3")
    rows: list[dict[str, Any]] = [
        {"prompt": asked, "chosen": turns("a:4"), "rejected": turns("a:56")},
        {"chosen": [*asked, *turns("a:4")], "rejected": [*asked, *turns("a:56")]},
    ]
    for row in rows:
        pair = _encode(row, tokenizer, loss_on)
        assert [draw(tokenizer, side) for side in pair] == [
            ("u:1E/a:2E/u:3E/a:4E/", "                 ^^"),
            ("u:1E/a:2E/u:3E/a:56E/", "                 ^^^"),
        ]


def test_a_pair_of_strings(tokenizer: Any, draw: Make) -> None:
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3!"}
    pair = _encode(row, tokenizer)
    assert [draw(tokenizer, side) for side in pair] == [
        ("1+1=2E", "    ^^"),
        ("1+1=3!E", "    ^^^"),
    ]


def test_a_pair_whose_prompt_is_a_string_and_whose_answers_are_turns(
    tokenizer: Any, turns: Make, draw: Make
) -> None:
    row = {"prompt": "1", "chosen": turns("a:2"), "rejected": turns("a:3")}
    pair = _encode(row, tokenizer)
    assert [draw(tokenizer, side)[0] for side in pair] == ["u:1E/a:2E/", "u:1E/a:3E/"]
