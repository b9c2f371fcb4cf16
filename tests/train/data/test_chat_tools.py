"""The loss mask of a conversation with tools: calls are learned, results are not."""

import json
from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]

TOOLS = (
    "{% if tools %}{% for t in tools %}[{{ t['function']['name'] }}]{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}({{ c['function']['name'] }}){% endfor %}<e>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "JSON text"])
def test_tools_and_their_calls(
    make_tokenizer: Make, turns: Make, draw_record: Make, as_text: bool
) -> None:
    tools: Any = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    messages = [*turns("u:1+1"), call, *turns("t:2", "a:two")]
    tokenizer = make_tokenizer(TOOLS)
    fields = {"messages": messages, "tools": json.dumps(tools) if as_text else tools}
    assert draw_record(tokenizer, fields) == (
        "[add]u:1+1Ea:(add)Et:2Ea:twoE",
        "             ^^^^^^      ^^^^",
    )
