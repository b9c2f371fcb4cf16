"""Preference pairs: both answers after one prompt, each with its loss mask."""

from collections.abc import Callable
from typing import Any

import pytest

from train.config.data import Format
from train.data.chat import LossOn, RecordReader, Renderer
from train.data.tokenize import Example, encode
from train.errors import UserError

Make = Callable[..., Any]


def _encode(
    row: dict[str, Any],
    tokenizer: Any,
    loss_on: LossOn = "assistant",
    format: Format | None = None,
) -> list[Example]:
    reader = RecordReader(format, loss_on=loss_on)
    return encode(Renderer(reader, tokenizer).render(row), tokenizer)


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
    pair = _encode(row, tokenizer, format="preference")
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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1", "chosen": "2", "rejected": "3"}, "set data.format to preference"),
        ({"prompt": "1", "chosen": ["a:2"], "rejected": ["a:2"]}, "has equal answers in chosen"),
        ({"prompt": "1", "chosen": ["a:2"], "rejected": ["a: "]}, "has an empty answer in reject"),
        ({"chosen": ["u:1", "a:2"], "rejected": ["u:1"]}, "has an empty answer in rejected"),
        ({"chosen": ["u:1", "a:2"], "rejected": ["u:3", "a:4"]}, "two different prompts"),
        ({"chosen": ["u:1", "a:2"], "rejected": ["s:0", "u:1", "a:4"]}, "two different prompts"),
    ],
)
def test_what_is_no_pair_is_a_fault(
    tokenizer: Any, turns: Make, row: dict[str, Any], message: str
) -> None:
    for name in ("chosen", "rejected"):
        row[name] = turns(*row[name]) if isinstance(row[name], list) else row[name]
    with pytest.raises(UserError, match=message):
        _encode(row, tokenizer)


def test_both_answers_continue_the_same_tokens() -> None:
    """A token that holds the prompt's end and one answer's beginning is learned, on both sides."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {token: n for n, token in enumerate(["<e>", "1", "=", "2", "3", "=2"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("=", "2")]))
    merging = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>")
    pair = _encode({"prompt": "1=", "chosen": "2", "rejected": "3"}, merging)
    assert [side.tokens.tolist() for side in pair] == [[1, 5, 0], [1, 2, 4, 0]]
    assert [side.loss_mask.tolist() for side in pair] == [
        [False, True, True],
        [False, True, True, True],
    ]


ASKED = {"role": "user", "content": "1"}
BETTER, WORSE = ({"role": "assistant", "content": text} for text in "23")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        pytest.param(
            {"prompt": "1", "prompt_id": "x", "messages": [ASKED, BETTER], "score_chosen": 8.0}
            | {"chosen": [ASKED, BETTER], "rejected": [ASKED, WORSE]},
            {"chosen": "chosen", "rejected": "rejected"},
            id="UltraFeedback",
        ),
        pytest.param(
            {"conversations": [{"from": "human", "value": "1"}]}
            | {"chosen": {"from": "gpt", "value": "2"}, "rejected": {"from": "gpt", "value": "3"}},
            None,
            id="ShareGPT",
        ),
        pytest.param(
            {"chosen": "\n\nHuman: 1\n\nAssistant: 2", "rejected": "\n\nHuman: 1\n\nAssistant: 3"},
            None,
            id="HH-RLHF",
        ),
    ],
)
def test_public_pairs(
    tokenizer: Any, draw: Make, row: dict[str, Any], columns: dict[str, str] | None
) -> None:
    reader = RecordReader("preference", columns)
    pair = encode(Renderer(reader, tokenizer).render(row), tokenizer)
    assert [draw(tokenizer, side) for side in pair] == [
        ("u:1E/a:2E/", "       ^^"),
        ("u:1E/a:3E/", "       ^^"),
    ]
