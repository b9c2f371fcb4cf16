"""What a template leaves out of a conversation is found."""

from typing import Any

import pytest

from train.data.coverage import find_missing

U = {"role": "user", "content": "two?"}
CALL = {"role": "assistant", "tool_calls": [
    {"function": {"name": "add", "arguments": {"a": 3, "b": 'x"y', "c": [True, None, {"d": 2.5}]}}}
]}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "add"}}, {"name": "when"}]


def _missing(text: str, turns: list[dict[str, Any]], tools: Any = None) -> Any:
    """What is missing of turns whose last one is learned from the bar on."""
    begin = text.index("|") + 1
    lost = find_missing(text, turns, tools, {len(turns) - 1: [(begin, len(text))]}).lost
    return lost and (lost[0], lost[1].field)


@pytest.mark.parametrize(
    ("text", "turns", "missing"),
    [
        ("two?|four", [U, {"role": "assistant", "content": " four\n"}], None),
        ("two?four|", [U, {"role": "assistant", "content": "four"}], (1, "content")),
        ("|four", [U, {"role": "assistant", "content": "four"}],
         (0, "content (a turn of the user)")),
        ("two?s|4", [{"role": "system", "content": "s"}, U, {"role": "assistant", "content": "4"}],
         None),
        ("two?|4", [{"role": "system", "content": "s"}, U, {"role": "assistant", "content": "4"}],
         (0, "content (a turn of the system)")),
        ('|add a 3 b x\\"y c 2.5 d', [CALL], None),
        ("|add a=3 b=x\"y c=[True, None, {'d': 2.5}]", [CALL], None),
        ("add a 3|", [CALL], (0, "tool_calls or function_call: the call of 'add'")),
        ("|add a 3 b", [CALL], (0, "tool_calls: an argument of 'add'")),
        ("|add a 3 b x\"y c 2.5 d", [CALL | {"tool_calls": CALL["tool_calls"] * 2}],
         (0, "tool_calls or function_call: the call of 'add'")),
        ("|4", [{"role": "assistant", "content": "4", "reasoning_content": "2+2"}],
         (0, "reasoning_content")),
        ("|4", [{"role": "assistant", "content": "<think>\n2+2\n</think>\n\n4"}],
         (0, "content's <think> part")),
    ],
)  # fmt: skip
def test_what_is_missing(text: str, turns: Any, missing: Any) -> None:
    assert _missing(text, turns) == missing


def test_every_tool_is_described() -> None:
    turns = [{"role": "assistant", "content": "4"}]
    assert _missing("add when|4", turns, TOOLS) is None
    assert _missing("add|4", turns, TOOLS) == (None, "tools: 'when'")


def test_thoughts_of_earlier_turns_may_be_left_out() -> None:
    turns = [{"role": "assistant", "content": "<think>x</think>1"}, U]
    turns += [{"role": "assistant", "content": "2"}]
    missing = find_missing("1two?2", turns, None, {2: [(5, 6)]})
    assert missing == (None, True)
    assert find_missing("x1two?2", turns, None, {2: [(6, 7)]}) == (None, False)
