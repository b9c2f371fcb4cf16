"""What rows mean, in every format that they come in, and one line for each thing wrong."""

from typing import Any

import pytest

from train.data.records import Chat, Pair, Text, read_record
from train.errors import UserError

USER, ANSWER = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
TALK = Chat([USER, ANSWER])


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"messages": [USER, ANSWER]}, TALK),
        ({"messages": [USER | {"name": None}, ANSWER]}, TALK),
        ({"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]}, TALK),
        (
            {"conversations": [{"from": r, "value": "x"} for r in ("system", "observation")]},
            Chat([{"role": r, "content": "x"} for r in ("system", "tool")]),
        ),
        ({"instruction": "1", "input": "", "output": "2"}, TALK),
        ({"instruction": "1", "output": "2", "text": "### Instruction: 1 Answer: 2"}, TALK),
        (
            {"instruction": "add", "input": "1", "output": "2"},
            Chat([{"role": "user", "content": "add\n\n1"}, ANSWER]),
        ),
        ({"prompt": "1", "completion": "2"}, Text("1", "2")),
        ({"prompt": [USER], "completion": [ANSWER]}, Chat([USER, ANSWER], 1)),
        ({"text": "1"}, Text("", "1")),
        ({"messages": None, "prompt": None, "text": "1"}, Text("", "1")),
        ({"messages": [USER, ANSWER], "prompt": "no"}, TALK),
        (
            {"messages": [USER], "tools": [{"name": "f"}]},
            Chat([USER], 0, [{"type": "function", "function": {"name": "f"}}]),
        ),
        (
            {"messages": [USER], "functions": [{"name": "f"}]},
            Chat([USER], 0, [{"type": "function", "function": {"name": "f"}}]),
        ),
        ({"messages": [USER, ANSWER], "tools": "[]"}, TALK),
        ({"prompt": "1", "chosen": "2", "rejected": "3"}, Pair(Text("1", "2"), Text("1", "3"))),
        (
            {"prompt": "1", "chosen": [USER, ANSWER], "rejected": [USER, USER]},
            Pair(Chat([USER, ANSWER], 1), Chat([USER, USER], 1)),
        ),
    ],
)  # fmt: skip
def test_formats_are_told_by_their_fields(row: dict[str, Any], record: Any) -> None:
    assert read_record(row) == record


def test_a_format_that_is_said_wins() -> None:
    row = {"messages": [USER, ANSWER], "prompt": "1", "chosen": "2", "rejected": "3"}
    assert read_record(row, "messages") == TALK
    assert read_record(row, "preference") == Pair(Text("1", "2"), Text("1", "3"))


def test_fields_are_mapped_and_no_other_is_looked_at() -> None:
    row = {"q": "1", "a": "2", "messages": "no"}
    assert read_record(row, columns={"prompt": "q", "completion": "a"}) == Text("1", "2")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "needs messages, prompt and completion, instruction and output, text, or chosen and"),
        ({"question": 1}, "and has 'question'; map other columns with data.columns"),
        ({"messages": None}, "and has none"),
        ({"messages": "hi"}, "messages must be a list of turns"),
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": ["hi"]}, "messages, turn 1 must be an object"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "turn 2 has the role 'wizard'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "turn 1 has the role ['user']"),
        ({"messages": [{"content": "x"}]}, "turn 1 has the role None; use one of system, user"),
        ({"messages": [{"role": "user"}]}, "turn 1: content must be a string, not null"),
        ({"messages": [{"role": "user", "content": None}]}, "content must be a string, not null"),
        ({"messages": [{"role": "user", "content": 3}]}, "content must be a string, not int"),
        ({"messages": [USER], "tools": "{"}, "tools is a string that is not JSON"),
        ({"messages": [USER], "tools": [1]}, "tools must be a list of objects"),
        ({"prompt": "x"}, "has no completion, or it is null; prompt and completion go together"),
        ({"prompt": "x", "completion": None}, "has no completion, or it is null"),
        ({"completion": "x"}, "has no prompt"),
        ({"prompt": "x", "completion": [ANSWER]}, "both be strings or both lists"),
        ({"prompt": 1, "completion": 2}, "prompt must be a list"),
        ({"prompt": "1", "chosen": "x", "rejected": [ANSWER]}, "both be strings or both lists"),
        ({"chosen": "x", "rejected": "y"}, "has no prompt; chosen and rejected strings need one"),
        ({"prompt": "x", "chosen": "x"}, "has no rejected"),
        ({"instruction": 3, "output": "x"}, "instruction must be a string, not int"),
        ({"text": 3}, "text must be a string, not int"),
    ],
)
def test_what_cannot_be_used(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_record(row)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(UserError) as caught:
        read_record({"q": "1", "text": "no"}, columns={"prompt": "q", "completion": "a"})
    assert str(caught.value) == (
        "has no column 'a', which data.columns takes completion from; it has 'q', 'text'"
    )
