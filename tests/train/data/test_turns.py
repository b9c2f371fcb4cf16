"""Turns in every form that they come in, read as one form."""

import json
from typing import Any

import pytest

from train.data.turns import Conversation, read_turns
from train.errors import UserError

CALL = {"name": "add", "arguments": {"a": 3}}
ADD = {"type": "function", "function": CALL}
U, A = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ([U, A], [U, A]),
        ([{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}], [U, A]),
        ([{"from": "human", "value": "1"}, {"from": "chatgpt", "value": "2"}], [U, A]),
        ([{"human": "1", "assistant": "2"}] * 2, [U, A] * 2),
        (A, [A]),
        ("\n\nHuman: 1\n\nAssistant: 2", [U, A]),
        ([{"role": "user", "content": [{"type": "text", "text": "1"}]}], [U]),
        ([{"role": "user", "content": [{"type": "text", "value": "1"}]}], [U]),
        (
            [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}],
            [{"role": "user", "content": "ab"}],
        ),
        (
            [{"from": "function_call", "value": json.dumps(CALL)}],
            [{"role": "assistant", "tool_calls": [ADD]}],
        ),
        (
            [{"from": "function_call", "value": json.dumps([CALL, CALL])}],
            [{"role": "assistant", "tool_calls": [ADD, ADD]}],
        ),
        ([{"from": "observation", "value": "7"}], [{"role": "tool", "content": "7"}]),
        ([{"role": "function", "name": "f", "content": "7"}],
         [{"role": "tool", "content": "7", "name": "f"}]),
        (
            [{"role": "assistant", "content": "", "tool_calls": [ADD]}],
            [{"role": "assistant", "tool_calls": [ADD]}],
        ),
        (
            [{"role": "assistant", "content": None, "function_call": CALL}],
            [{"role": "assistant", "tool_calls": [ADD]}],
        ),
        ([A | {"name": None, "tool_calls": []}], [A]),
        ([A | {"reasoning_content": "x"}], [A | {"reasoning_content": "x"}]),
    ],
)  # fmt: skip
def test_turns_are_read_as_one_form(given: Any, turns: Any) -> None:
    assert read_turns(given, "messages") == Conversation(turns)


@pytest.mark.parametrize(
    "flag",
    [{"weight": 0}, {"train": False}, {"loss": False}, {"loss_mask": 0}, {"loss_weight": 0.0}],
)
def test_a_turn_may_say_that_it_is_not_trained_on(flag: dict[str, Any]) -> None:
    talk = read_turns([U | {"weight": 1}, A | flag, U, A | {"weight": 1, "train": True}], "m")
    assert talk == Conversation([U, A, U, A], frozenset([1]))


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (A | {"weight": 0.5}, "turn 1: weight is 0.5, and only 0 and 1 are read"),
        (A | {"loss_mask": [0, 1]}, "loss_mask is [0, 1], and only"),
        (U | {"train": True}, "turn 1: train asks to train on a turn of the user; only"),
        (A | {"masked": True}, "has the key 'masked' (True), which may say whether it is trained"),
        (A | {"train_detail": []}, "has the key 'train_detail' ([]), which may say"),
        (A | {"toxic": False}, "rename it to train, or set data.ignore to [toxic]"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "part 1 has the type 'image_url'"),
        ({"role": "user", "content": ["a"]}, "content, part 1 has the type 'str'"),
        ({"role": "user", "content": {}}, "content must be a string, not dict"),
        ({"role": "assistant"}, "content must be a string, not null"),
        ({"from": "function_call", "value": "add(3)"}, "the call is a string that is not JSON"),
        ({"from": "function_call", "value": "{}"}, "a call must have a function with a name"),
        (A | {"tool_calls": [3]}, "a call must have a function with a name"),
        (A | {"tool_calls": 3}, "tool_calls must be a list"),
        ({"role": "wizard", "content": "x"}, "turn 1 has the role 'wizard'; use one of system"),
    ],
)
def test_turns_that_cannot_be_read(turn: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_turns([turn], "messages")
    assert said in str(caught.value)


def test_keys_are_ignored_on_request() -> None:
    turn = A | {"masked": True, "weight": 0}
    assert read_turns([turn], "messages", ["masked", "weight"]) == Conversation([A])
