"""Whether a rendered conversation holds everything that its record does."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .records import Fields
from .template import parse_arguments
from .turns import Turns

# Keys of a turn that hold the thoughts before an answer.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


class Piece(NamedTuple):
    """Something that a text must hold, as it is or as JSON writes it.

    Attributes:
      field: what an error calls it.
      key: the key of the turn.
      is_thought: whether templates leave it out of earlier turns on purpose.
      times: how often the text must hold it.
    """

    field: str
    text: str
    key: str
    is_thought: bool = False
    times: int = 1

    def find(self, text: str, begin: int) -> int:
        """The end of its first occurrence from a place on, or -1."""
        for form in self._forms():
            found = text.find(form, begin)
            if found >= 0:
                return found + len(form)
        return -1

    def is_in(self, text: str) -> bool:
        """Whether the text holds it often enough."""
        return any(text.count(form) >= self.times for form in self._forms())

    def _forms(self) -> Iterator[str]:
        yield self.text
        yield json.dumps(self.text, ensure_ascii=False)[1:-1]
        yield json.dumps(self.text)[1:-1]


def pieces_of(turn: dict[str, Any]) -> Iterator[Piece]:
    """What a text must hold of a turn, in the order in which templates write it."""
    for key in THOUGHTS:
        if isinstance(turn.get(key), str):
            yield from _piece(key, turn[key], key, is_thought=True)
    content = turn.get("content") or ""
    thought = _THOUGHT.fullmatch(content) if turn["role"] == "assistant" else None
    if thought:
        yield from _piece("content's <think> part", thought[1], "content", is_thought=True)
        content = thought[2]
    role = "" if turn["role"] == "assistant" else f" (a turn of the {turn['role']})"
    yield from _piece(f"content{role}", content, "content")
    yield from _pieces_of_calls(turn.get("tool_calls") or [])


def _pieces_of_calls(calls: Sequence[Fields]) -> Iterator[Piece]:
    names = [call["function"]["name"] for call in calls]
    for name in dict.fromkeys(names):
        field = f"tool_calls or function_call: the call of {name!r}"
        yield Piece(field, name, "tool_calls", times=names.count(name))
    for call in calls:
        name, arguments = call["function"]["name"], call["function"].get("arguments")
        if isinstance(arguments, str):
            arguments = parse_arguments(arguments)
        for text in _scalars(arguments):
            yield from _piece(f"tool_calls: an argument of {name!r}", text, "tool_calls")


def names_of(tools: Sequence[Fields] | None) -> Iterator[Piece]:
    """The names of tools that are described to the model."""
    for tool in tools or ():
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str):
            yield Piece(f"tools: {name!r}", name, "tools")


def _scalars(value: Any) -> Iterator[str]:
    """The keys and values of arguments as strings."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from _scalars(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _piece(field: str, text: str, key: str, *, is_thought: bool = False) -> Iterator[Piece]:
    """A string, without the white space around it, which templates may leave out."""
    if text := text.strip():
        yield Piece(field, text, key, is_thought)


class Missing(NamedTuple):
    """What a text does not hold.

    Attributes:
      lost: the number of a turn and what is missing of it; None for the tools.
      forgets: whether thoughts of turns that are not learned here are missing.
    """

    lost: tuple[int | None, Piece] | None
    forgets: bool


def find_missing(
    text: str, turns: Turns, tools: Sequence[Fields] | None, learned: Mapping[int, Any]
) -> Missing:
    """What a rendered conversation does not hold of its turns and tools.

    Args:
      learned: the spans of the turns that are learned in this text. They must be whole; of the
        assistant's other turns thoughts may be missing.
    """
    position, forgets = 0, False
    for number, turn in enumerate(turns):
        spans = learned.get(number)
        if spans:
            own = "".join(text[begin:end] for begin, end in spans)
            for piece in pieces_of(turn):
                if not piece.is_in(own):
                    return Missing((number, piece), forgets)
            position = spans[-1][1]
            continue
        beyond = position
        for piece in pieces_of(turn):
            # Some templates write the system's turn into a later one.
            in_order = turn["role"] != "system" and not piece.is_thought
            found = piece.find(text, position if in_order else 0)
            if found < 0 and not piece.is_thought:
                return Missing((number, piece), forgets)
            forgets = forgets or found < 0
            beyond = max(beyond, found) if in_order else beyond
        position = beyond
    for piece in names_of(tools):
        if not piece.is_in(text):
            return Missing((None, piece), forgets)
    return Missing(None, forgets)
