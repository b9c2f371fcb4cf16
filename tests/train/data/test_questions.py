"""Records that can be meant in two ways are asked about, and the answers are taken."""

from typing import Any

import pytest

from train.data.records import Chat, Pair, Text, read_record, understand_record
from train.errors import UserError

U, A = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
MBPP = {"task_id": 11, "text": "Write add.", "code": "def add(): …"}
KTO = {"messages": [U, A], "label": False}
DPO = {
    "conversations": [{"from": "human", "value": "1"}],
    "chosen": {"from": "gpt", "value": "2"},
    "rejected": {"from": "gpt", "value": "3"},
}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (MBPP, "has text and 'code': set data.format to text to train on the text alone, or name "),
        (KTO, "has a column 'label' (False), which looks like a label: keep the records that are"),
        ({"text": "so good", "label": 1}, "set data.ignore to [label]"),
        ({"messages": [U, A], "weight": 0.5}, "has a column 'weight' (0.5), which looks like"),
        ({"messages": [U, A], "is_correct": False}, "has a column 'is_correct' (False)"),
        ({"messages": [U, A], "images": ["a.png"]}, "has a column 'images', and only text"),
        (DPO, "fits the formats conversations and preference; set data.format to the one"),
        (
            {"question": "1", "answer": "2"},
            "data.columns, such as {instruction: question, output: an",
        ),
        (
            {"prompt": "def f():", "canonical_solution": "return", "test": "x"},
            "data.columns, such as {instruction: prompt, output: canonical_solution}, or remove",
        ),
        ({"messages": [U, A], "text": "other"}, "fits the formats messages and text"),
    ],
)
def test_what_can_be_meant_in_two_ways(row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_record(row)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("row", "settings", "record"),
    [
        (MBPP, {"format": "text"}, Text("", "Write add.")),
        (
            MBPP,
            {"columns": {"prompt": "text", "completion": "code"}},
            Text("Write add.", "def add(): …"),
        ),
        (KTO, {"ignore": ["label"]}, Chat([U, A])),
        (DPO, {"format": "preference"},
         Pair(Chat([U, A], 1), Chat([U, A | {"content": "3"}], 1))),
        (DPO, {"columns": {"prompt": "conversations", "completion": "chosen"}}, Chat([U, A], 1)),
        ({"messages": [U, A], "images": []}, {}, Chat([U, A])),
        ({"messages": [U, A], "text": "Q 1 A 2"}, {}, Chat([U, A])),
        ({"messages": [U, A], "correct": "yes"}, {}, Chat([U, A])),
    ],
)  # fmt: skip
def test_answers_are_taken(row: dict[str, Any], settings: dict[str, Any], record: Any) -> None:
    assert read_record(row, **settings) == record


def test_columns_that_are_read_and_those_that_are_not() -> None:
    row = {"conversation": [U, A], "system": "s", "id": 3, "tools": None, "source": "x"}
    _, reading = understand_record(row)
    assert reading == ("conversations", ("conversation", "system"), ("id", "source"))
